"""`/v1/models/{model}/adapter` and `/v1/adapters`: tuned weights out and in, as the files that PEFT reads and writes.

Out as a ZIP archive of the files of an adapter. In as the files themselves: nothing that came from outside is unpacked.
An adapter without our card is refused, because nobody could say how queries for it must be privatized. What was checked
is written anew: no byte of a stranger's file is kept.
"""

from __future__ import annotations

import time
from typing import Annotated, Final

from fastapi import APIRouter, Form, UploadFile
from fastapi.responses import Response

from rapt.errors import LimitError, WireError
from rapt.service.adapter.adapter import (
    CARD,
    PEFT_CONFIG,
    WEIGHTS,
    adapter_from_files,
    adapter_to_files,
    read_card,
)
from rapt.service.http.admission import check_mechanism
from rapt.service.http.assembly import Service
from rapt.service.http.callers import CallerOf
from rapt.service.http.import_schemas import AdapterRequest
from rapt.service.http.routes.models import show_tuned
from rapt.service.http.routes.staged_forms import staged_route
from rapt.service.http.schemas import ModelObject
from rapt.service.storage.model_rows import adapter_archive, add_imported_model, get_model
from rapt.wire.adapter_files import pack_adapter

_LARGEST_CARD: Final = 1024 * 1024  # bytes; of the configuration too
_SUFFIX: Final = "imported"


def router(service: Service) -> APIRouter:
    """The routes of adapters."""
    route = staged_route(service, most=service.settings.max_request_bytes)
    routes = APIRouter(prefix="/v1", tags=["models"], route_class=route)

    @routes.get(
        "/models/{model_id}/adapter", response_class=Response, responses={200: {"content": {"application/zip": {}}}}
    )
    def export_adapter(model_id: str, caller: CallerOf) -> Response:
        """The files of a tuned model in a ZIP archive: weights, PEFT's configuration where it has one, and our card."""
        archive = adapter_archive(service.store, get_model(service.store, model_id, tenant=caller.tenant))
        headers = {"content-disposition": 'attachment; filename="adapter.zip"'}
        return Response(archive, media_type="application/zip", headers=headers)

    @routes.post("/adapters", form_limits={"max_files": 3, "max_fields": 2, "max_part_size": 4096})
    def import_adapter(
        form: Annotated[AdapterRequest, Form(media_type="multipart/form-data")], caller: CallerOf
    ) -> ModelObject:
        """Make a model of weights that were tuned elsewhere: `adapter_model.safetensors` and the card `rapt.json`."""
        files = {
            CARD: _read(form.card, most=_LARGEST_CARD),
            WEIGHTS: _read(form.weights, most=service.settings.max_request_bytes),
        }
        if form.config is not None:
            files[PEFT_CONFIG] = _read(form.config, most=_LARGEST_CARD)
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
            )
        return show_tuned(service, model)

    return routes


def _read(file: UploadFile, *, most: int) -> bytes:
    content = file.file.read(most + 1)
    if len(content) > most:
        raise LimitError(f"a file of an adapter must have at most {most} bytes; it has more")
    if not content:
        raise WireError("a file of an adapter must not be empty; send the card and the weights")
    return content
