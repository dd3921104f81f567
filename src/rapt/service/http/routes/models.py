"""`/v1/models` and `/v1/adapters`: base models and tuned ones, and tuned weights out and in, as PEFT's files.

Weights go out as a ZIP archive of the files of an adapter, and come in as the files themselves: nothing that came from
outside is unpacked. An adapter without our card is refused, because nobody could say how queries for it must be
privatized. What was checked is written anew: no byte of a stranger's file is kept.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Form, UploadFile
from fastapi.responses import Response

from rapt.errors import LimitError, UsageError, WireError
from rapt.service.adapter.adapter import (
    CARD,
    PEFT_CONFIG,
    WEIGHTS,
    Adapter,
    adapter_from_files,
    adapter_to_files,
    read_card,
)
from rapt.service.adapter.adapter_check import list_methods
from rapt.service.adapter.hub_folder import make_hub_files
from rapt.service.adapter.methods import METHODS
from rapt.service.http.admission import check_mechanism
from rapt.service.http.assembly import Service
from rapt.service.http.bodies import BodyRoute, make_staged_route
from rapt.service.http.parameters import After, CallerOf, LongLimit, make_cursor
from rapt.service.http.schemas import AdapterRequest, Deleted, ListOf, ModelDetail, ModelObject
from rapt.service.storage.callers import Caller
from rapt.service.storage.model_rows import (
    StoredModel,
    add_imported_model,
    delete_model,
    get_model,
    list_models,
    read_adapter_archive,
)
from rapt.wire.adapter_files import dump_card, pack_adapter, unpack_adapter

_LARGEST_CARD: Final = 1024 * 1024  # bytes; of the configuration too
_SUFFIX: Final = "imported"
AdapterForm = Literal["rapt", "hub"]


def make_model_router(service: Service) -> APIRouter:
    """The routes of models."""
    routes = APIRouter(route_class=BodyRoute, prefix="/v1/models", tags=["models"])

    @routes.get("")
    def list_all_models(caller: CallerOf, after: After = None, limit: LongLimit = 10_000) -> ListOf[ModelObject]:
        """List base models, on the first page, and tuned ones, newest first."""
        page = list_models(service.store, make_cursor(after, limit), tenant=caller.tenant)
        models = [] if after is not None else [_show_base(service, name) for name in service.backbones]
        models += [show_tuned(service, model) for model in page.items if model.base in service.backbones]
        return ListOf(
            data=models,
            first_id=models[0].id if models else None,
            # Of the last row, shown or not: the next page starts there.
            last_id=page.items[-1].id if page.items else None,
            has_more=page.has_more,
        )

    @routes.get("/{model_id}")
    def retrieve_model(model_id: str, caller: CallerOf) -> ModelObject:
        """A model; of a tuned one also its card, which says how queries must be privatized."""
        if model_id in service.backbones:
            return _show_base(service, model_id)
        model = get_model(service.store, model_id, tenant=caller.tenant)
        shown = show_tuned(service, model)
        card = dump_card(load_tuned(service, model).card)
        return shown.model_copy(update={"rapt": shown.rapt.model_copy(update={"card": card})})

    @routes.delete("/{model_id}")
    def remove_model(model_id: str, caller: CallerOf) -> Deleted:
        """Delete a tuned model, its weights and the checkpoints of its job; or one checkpoint by its name."""
        if model_id in service.backbones:
            raise UsageError("a base model must stay; tuned models can be deleted")
        for adapter in delete_model(service.store, model_id, caller=caller):
            service.adapters.drop(adapter)
        return Deleted(id=model_id, object="model")

    return routes


def load_tuned(service: Service, model: StoredModel) -> Adapter:
    """The adapter of a tuned model, from memory or from where it is kept.

    Raises:
        NotFoundError: The base model is not served any more.
        DamagedError: The files that were kept are not what they were.
    """
    backbone = service.backbone(model.base)

    def load() -> Adapter:
        return adapter_from_files(unpack_adapter(read_adapter_archive(service.store, model)), backbone=backbone)

    return service.adapters.get(model.adapter, load)


def load_tuned_adapters(service: Service, model_ids: Sequence[str], caller: Caller) -> list[Adapter]:
    """The adapters of tuned models of the caller's tenant, in order.

    Raises:
        NotFoundError: One is not there, or not the caller's.
        LimitError: Together they are larger than all that may be kept loaded.
    """
    models = [get_model(service.store, model_id, tenant=caller.tenant) for model_id in model_ids]
    most, size = service.settings.adapter_memory_bytes, sum(model.bytes for model in models)
    if len(models) > 1 and size > most:
        raise LimitError(
            f"the models of a request must have at most {most} bytes together, got bytes={size}; send several requests"
        )
    return [_load_adapter(service, model, caller) for model in models]


def _load_adapter(service: Service, model: StoredModel, caller: Caller) -> Adapter:
    try:
        return load_tuned(service, model)
    except WireError:
        # Deleted while it was being loaded: then it is not found.
        get_model(service.store, model.id, tenant=caller.tenant)
        raise


def _show_base(service: Service, name: str) -> ModelObject:
    return ModelObject(id=name, created=service.started_at, owned_by="rapt", rapt=_make_detail(service, name))


def show_tuned(service: Service, model: StoredModel) -> ModelObject:
    """A tuned model in the shape of the API, without its card."""
    return ModelObject(
        id=model.id, created=model.created_at, owned_by=model.tenant, rapt=_make_detail(service, model.base)
    )


def _make_detail(service: Service, base: str) -> ModelDetail:
    backbone = service.backbone(base)
    bundle = backbone.bundle
    return ModelDetail(
        base=base,
        kind=backbone.kind,
        vocabulary_hash=bundle.hash,
        max_tokens=bundle.max_tokens,
        unit="token" if backbone.code is None else "text",
        methods={name: METHODS[name].title for name in list_methods(backbone)},
        chat_template=backbone.chat is not None,
    )


def make_adapter_router(service: Service) -> APIRouter:
    """The routes of adapters."""
    route = make_staged_route(service, most=service.settings.max_request_bytes)
    routes = APIRouter(prefix="/v1", tags=["models"], route_class=route)

    @routes.get(
        "/models/{model_id}/adapter", response_class=Response, responses={200: {"content": {"application/zip": {}}}}
    )
    def export_adapter(model_id: str, caller: CallerOf, form: AdapterForm = "rapt") -> Response:
        """The files of a tuned model in a ZIP archive: weights, PEFT's configuration where it has one, and our card.

        In the form `hub` they are what plain PEFT, vLLM and the hub take, with a README; a service imports `rapt`.
        """
        model = get_model(service.store, model_id, tenant=caller.tenant)
        if form == "hub":
            adapter = load_tuned(service, model)
            archive = pack_adapter(make_hub_files(adapter, backbone=service.backbone(model.base)))
        else:
            archive = read_adapter_archive(service.store, model)
        headers = {"content-disposition": 'attachment; filename="adapter.zip"'}
        return Response(archive, media_type="application/zip", headers=headers)

    @routes.post("/adapters", form_limits={"max_files": 3, "max_fields": 2, "max_part_size": 4096})
    def import_adapter(
        form: Annotated[AdapterRequest, Form(media_type="multipart/form-data")], caller: CallerOf
    ) -> ModelObject:
        """Make a model of weights that were tuned elsewhere: `adapter_model.safetensors` and the card `rapt.json`."""
        files = {
            CARD: _read_file(form.card, most=_LARGEST_CARD),
            WEIGHTS: _read_file(form.weights, most=service.settings.max_request_bytes),
        }
        if form.config is not None:
            files[PEFT_CONFIG] = _read_file(form.config, most=_LARGEST_CARD)
        card = read_card(files[CARD])
        check_mechanism(card.mechanism)
        base = card.model
        adapter = adapter_from_files(files, backbone=service.backbone(base))
        with service.store.directory.stage_bytes(pack_adapter(adapter_to_files(adapter))) as staged:
            model = add_imported_model(
                service.store,
                staged,
                suffix=form.suffix or _SUFFIX,
                base=base,
                caller=caller,
                now=int(time.time()),
                max_bytes=service.settings.tenant_bytes,
                max_models=service.settings.tenant_models,
            )
        return show_tuned(service, model)

    return routes


def _read_file(file: UploadFile, *, most: int) -> bytes:
    content = file.file.read(most + 1)
    if len(content) > most:
        raise LimitError(f"a file of an adapter must have at most {most} bytes; it has more")
    if not content:
        raise WireError("a file of an adapter must not be empty; send the card and the weights")
    return content
