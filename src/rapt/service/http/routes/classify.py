"""`/v1/classify`: labels for privatized records. OpenAI has no such route; the answer has its conventions."""

from __future__ import annotations

from fastapi import APIRouter

from rapt.errors import LimitError, UsageError, WireError
from rapt.service.http.assembly import Service
from rapt.service.http.routes.models import load_tuned
from rapt.service.http.schemas import Classification, ClassifyRequest, PredictionObject
from rapt.service.model.adapter import Adapter
from rapt.service.model.inference import ClassificationRow, classify
from rapt.service.storage.model_rows import get_model
from rapt.wire.privatized_file import PrivatizedFile
from rapt.wire.query import query_from_json


def router(service: Service) -> APIRouter:
    """The route of predictions."""
    routes = APIRouter(prefix="/v1", tags=["predictions"])

    @routes.post("/classify")
    def classify_records(request: ClassifyRequest) -> Classification:
        """Predict the label of each record. Labels of the records are not needed, and not looked at."""
        most = service.settings.max_records_per_request
        if len(request.records) > most:
            raise LimitError(f"a request must have at most {most} records, got {len(request.records)}; send several")
        if request.model in service.backbones:
            raise UsageError("the model must be a tuned one, got a base model; tune it first")
        adapter = _adapter(service, request.model)
        query = query_from_json(request.manifest, request.records)
        service.gate.admit_query(query, card=adapter.card)
        return _answer(request.model, adapter, _probabilities(service, adapter, query))

    return routes


def _adapter(service: Service, model_id: str) -> Adapter:
    model = get_model(service.store, model_id)
    try:
        return load_tuned(service, model)
    except WireError:
        get_model(service.store, model_id)  # deleted while it was being loaded: then it is not found
        raise


def _probabilities(service: Service, adapter: Adapter, query: PrivatizedFile) -> list[tuple[float, ...]]:
    rows = [
        ClassificationRow(
            adapter=adapter,
            token_ids=record.token_ids,
            privatized_plain_tokens=record.privatized_plain_tokens,
        )
        for record in query.records
    ]
    with service.computing:
        return classify(service.backbone(adapter.card.model), rows)


def _answer(model: str, adapter: Adapter, probabilities: list[tuple[float, ...]]) -> Classification:
    labels = adapter.card.labels
    predictions = []
    for row in probabilities:
        best = max(range(len(labels)), key=row.__getitem__)
        predictions.append(PredictionObject(label=labels[best], label_index=best, probabilities=list(row)))
    return Classification(model=model, labels=list(labels), predictions=predictions)
