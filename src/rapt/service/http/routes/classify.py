"""`/v1/classify`: labels for privatized records. OpenAI has no such route; the answer has its conventions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from rapt.errors import LimitError, UsageError
from rapt.service.adapter.adapter import Adapter
from rapt.service.answers.batching import Ticket
from rapt.service.answers.prediction import Predictor, row_of
from rapt.service.answers.rows import count_added_positions
from rapt.service.http.assembly import Service
from rapt.service.http.bodies import BodyRoute, run_in_body_thread
from rapt.service.http.door import run_at_hand_or_in_thread
from rapt.service.http.parameters import CallerOf
from rapt.service.http.routes.answering import MOST_PROBABILITIES, await_answers, begin_or_undo
from rapt.service.http.routes.models import load_tuned_adapters
from rapt.service.http.schemas import Classification, ClassifyRequest, PredictionObject
from rapt.service.storage.callers import Caller
from rapt.wire.privatized_file import parse_query

# Records whose checks take the event loop less time than a thread would take to begin: some 0.1 ms each.
_FEW: Final = 4


def make_classify_router(service: Service) -> APIRouter:
    """The route of predictions."""
    routes = APIRouter(route_class=BodyRoute, prefix="/v1", tags=["predictions"])

    @routes.post("/classify", response_model=Classification)
    async def classify_records(body: ClassifyRequest, request: Request, caller: CallerOf) -> Classification | Response:
        """Predict the label of each record. Labels of the records are not needed, and not looked at."""
        # Checking many ids, or asking the database and the disk, is for a thread: others are served meanwhile.
        in_place = len(body.records) <= _FEW
        admit = run_at_hand_or_in_thread if in_place else functools.partial(run_in_body_thread, request)
        adapter, ticket = await begin_or_undo(
            admit(_admit, service, body, caller), undo=lambda both: _find_predictor(service, both[0]).cancel(both[1])
        )
        answers = await await_answers(ticket, of=_find_predictor(service, adapter), request=request)
        shown = body.model, adapter.card.labels, answers
        if in_place:
            return _answer(*shown)
        return Response(await run_in_body_thread(request, _write_answer, *shown), media_type="application/json")

    return routes


def _admit(service: Service, body: ClassifyRequest, caller: Caller) -> tuple[Adapter, Ticket[tuple[float, ...]]]:
    most = service.settings.max_records_per_request
    if len(body.records) > most:
        raise LimitError(f"a request must have at most {most} records, got {len(body.records)}; send several")
    if body.model in service.backbones:
        raise UsageError("the model must be a tuned one, got a base model; tune it first")
    (adapter,) = load_tuned_adapters(service, [body.model], caller)
    classes = len(adapter.card.labels)
    if len(body.records) * classes > MOST_PROBABILITIES:
        raise LimitError(
            f"an answer must have at most {MOST_PROBABILITIES} probabilities, got records={len(body.records)} of "
            f"{classes} classes; send several requests"
        )
    query = parse_query(body.manifest, body.records)
    rows = [row_of(record, adapter=adapter) for record in query.records]
    # Before the work, and after all that may wait for a disk: this may begin twice.
    added = sum(count_added_positions(service.backbone(adapter.card.model), row) for row in rows)
    service.quotas.spend_tokens(caller.tenant, query.manifest.tokens + added)
    service.gate.admit_query(query, card=adapter.card)
    return adapter, _find_predictor(service, adapter).submit(rows, tenant=caller.tenant)


def _find_predictor(service: Service, adapter: Adapter) -> Predictor:
    return service.predictors[adapter.card.model]


def _answer(model: str, labels: Sequence[str], answers: Sequence[tuple[float, ...]]) -> Classification:
    predictions = []
    for row in answers:
        best = max(range(len(labels)), key=row.__getitem__)
        predictions.append(PredictionObject(label=labels[best], label_index=best, probabilities=list(row)))
    return Classification(model=model, labels=list(labels), predictions=predictions)


def _write_answer(model: str, labels: Sequence[str], answers: Sequence[tuple[float, ...]]) -> bytes:
    return _answer(model, labels, answers).model_dump_json().encode()
