"""Questions to a model of a service: privatized records go there in parts, labels or texts come back in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from rapt.local.client.connection import Connection
from rapt.local.client.objects import (
    Completion,
    Prediction,
    not_understood,
    read_answers,
    read_completion,
    read_prediction,
)
from rapt.local.client.steps import Steps
from rapt.wire.privatized_file import PrivatizedFile, dump_query, remove_labels

T = TypeVar("T")
RECORDS_PER_REQUEST: Final = 256
# As many texts as a service writes at once; more of one request would wait for these.
TEXTS_PER_REQUEST: Final = 16


def split_queries(file: PrivatizedFile, *, first: int = 0, size: int | None = None) -> Iterator[PrivatizedFile]:
    """The records of a file from position `first` on, without labels, in parts of one request each."""
    bare = remove_labels(file)
    size = RECORDS_PER_REQUEST if size is None else size
    for start in range(first, len(bare.records), size):
        yield replace(bare, records=bare.records[start : start + size])


def classify_part(service: Connection, model: str, part: PrivatizedFile) -> Steps[list[Prediction]]:
    """Predictions for the records of one request."""
    body = {"model": model, **dump_query(part)}
    answer = yield from service.ask("POST", "/v1/classify", json=body, repeatable=True)
    return _one_for_each(part, read_answers(read_prediction, answer, name="predictions"))


def classify(
    service: Connection,
    model: str,
    file: PrivatizedFile,
    *,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Steps[list[Prediction]]:
    """Predictions for all records, in order. Labels of the records are not sent.

    Args:
        service: Connection to the service.
        model: A tuned model.
        file: Privatized as the model's training text was.
        on_progress: Called with the number of records answered so far.
    """
    predictions: list[Prediction] = []
    for part in split_queries(file):
        predictions += yield from classify_part(service, model, part)
        on_progress(len(predictions))
    return predictions


def generate(
    service: Connection,
    model: str,
    file: PrivatizedFile,
    *,
    max_tokens: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | None = None,
    stop: Sequence[str] = (),
    on_progress: Callable[[int], None] = lambda done: None,
) -> Steps[list[Completion]]:
    """What a model writes behind each record, in order; of a model that chooses among classes, the likeliest label.

    Args:
        service: Connection to the service.
        model: A base model that writes, or any tuned one.
        file: Privatized for that base model, or as the tuned model's training text was. Labels are not sent.
        max_tokens: Most tokens of each answer.
        temperature: Temperature of the draw, 0 to 2; 0 takes the likeliest token each time.
        top_p: Share of the probability from which tokens are drawn, above 0 to 1.
        seed: Seed that repeats the draw on the same machine; None draws anew.
        stop: Up to four texts before the first of which an answer ends. They travel in clear, so take public ones.
        on_progress: Called with the number of records answered so far.
    """
    given: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
    given |= ({} if seed is None else {"seed": seed}) | ({"stop": list(stop)} if stop else {})
    found: list[Completion] = []
    for part in split_queries(file, size=TEXTS_PER_REQUEST):
        body = {"model": model, **given, **_dump_prompts(part)}
        answer = yield from service.ask("POST", "/v1/completions", json=body, repeatable=True)
        found += _one_for_each(part, read_answers(read_completion, answer, name="choices"))
        on_progress(len(found))
    return found


def _dump_prompts(part: PrivatizedFile) -> Mapping[str, Any]:
    """Records as prompts of token ids, with the rest of each beside them."""
    query = dump_query(part)
    prompts = [record.pop("token_ids") for record in query["records"]]
    rest = {"records": query["records"]} if any(query["records"]) else {}
    return {"prompt": prompts, "rapt": {"manifest": query["manifest"], **rest}}


def _one_for_each(part: PrivatizedFile, found: list[T]) -> list[T]:
    if len(found) != len(part.records):
        raise not_understood()
    return found
