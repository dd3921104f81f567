"""`/v1/models`: base models and tuned ones."""

from __future__ import annotations

from fastapi import APIRouter

from rapt.errors import UsageError
from rapt.service.adapter.adapter import Adapter, adapter_from_files
from rapt.service.http.assembly import Service
from rapt.service.http.callers import CallerOf
from rapt.service.http.routes.pages import After, LongLimit, cursor
from rapt.service.http.schemas import Deleted, ListOf, ModelDetail, ModelObject
from rapt.service.storage.model_rows import StoredModel, adapter_archive, delete_model, get_model, list_models
from rapt.wire.adapter_files import card_to_json, unpack_adapter


def router(service: Service) -> APIRouter:
    """The routes of models."""
    routes = APIRouter(prefix="/v1/models", tags=["models"])

    @routes.get("")
    def list_all_models(caller: CallerOf, after: After = None, limit: LongLimit = 10_000) -> ListOf[ModelObject]:
        """List base models, on the first page, and tuned ones, newest first."""
        page = list_models(service.store, cursor(after, limit), tenant=caller.tenant)
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
        card = card_to_json(load_tuned(service, model).card)
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
        NotFoundError: Its base model is not served any more.
        DamagedError: What was kept is not what it was.
    """
    backbone = service.backbone(model.base)

    def load() -> Adapter:
        return adapter_from_files(unpack_adapter(adapter_archive(service.store, model)), backbone=backbone)

    return service.adapters.get(model.adapter, load)


def _show_base(service: Service, name: str) -> ModelObject:
    return ModelObject(id=name, created=service.started_at, owned_by="rapt", rapt=_detail(service, name))


def show_tuned(service: Service, model: StoredModel) -> ModelObject:
    """A tuned model in the shape of the API, without its card."""
    return ModelObject(id=model.id, created=model.created_at, owned_by=model.tenant, rapt=_detail(service, model.base))


def _detail(service: Service, base: str) -> ModelDetail:
    backbone = service.backbone(base)
    bundle = backbone.bundle
    return ModelDetail(
        base=base,
        kind=backbone.kind,
        vocabulary_hash=bundle.hash,
        max_tokens=bundle.max_tokens,
        chat_template=backbone.chat is not None,
    )
