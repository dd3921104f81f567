"""Questions to a model of a service: privatized records go there in parts, labels or texts come back in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from rapt.errors import UsageError
from rapt.local.client.connection import Connection
from rapt.local.client.objects import (
    Completion,
    Prediction,
    make_answer_error,
    read_answers,
    read_chat_answer,
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
    return _require_one_for_each(part, read_answers(read_prediction, answer, name="predictions"))


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
    given = _state_sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop)
    found: list[Completion] = []
    for part in split_queries(file, size=TEXTS_PER_REQUEST):
        body = {"model": model, **given, **_dump_prompts(part)}
        answer = yield from service.ask("POST", "/v1/completions", json=body, repeatable=True)
        found += _require_one_for_each(part, read_answers(read_completion, answer, name="choices"))
        on_progress(len(found))
    return found


def chat(
    service: Connection,
    model: str,
    turns: Sequence[PrivatizedFile | Completion],
    *,
    max_tokens: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | None = None,
    stop: Sequence[str] = (),
) -> Steps[Completion]:
    """What a model answers to the last message of a chat.

    Args:
        service: Connection to the service.
        model: A base model with a chat template, or a tuned one, which is asked as it was tuned: with one message.
        turns: Messages of the user, a privatized record each, and between them the answers that the service gave.
            These travel in clear, as they came; labels of records are not sent.
        max_tokens: Most tokens of the answer.
        temperature: Temperature of the draw, 0 to 2; 0 takes the likeliest token each time.
        top_p: Share of the probability from which tokens are drawn, above 0 to 1.
        seed: Seed that repeats the draw on the same machine; None draws anew.
        stop: Up to four texts before the first of which the answer ends. They travel in clear, so take public ones.

    Raises:
        UsageError: The last turn is no message of the user, or a message is not of one record.
    """
    messages: list[dict[str, Any]] = []
    privacy: list[dict[str, Any]] = []
    for turn in turns:
        if isinstance(turn, Completion):
            part = {"type": "public_text", "text": turn.text}
            messages.append({"role": "assistant", "content": [part]})
            continue
        if len(turn.records) != 1:
            raise UsageError(f"a message of a chat must be one record, got records={len(turn.records)}; cut the file")
        query = dump_query(remove_labels(turn))
        (record,) = query["records"]
        part = {"type": "token_ids", "token_ids": record.pop("token_ids")}
        messages.append({"role": "user", "content": [part]})
        privacy.append({"manifest": query["manifest"], **({"records": [record]} if record else {})})
    if not turns or isinstance(turns[-1], Completion):
        raise UsageError("the last turn of a chat must be a privatized message of the user; add one")
    earlier = [one["manifest"] for one in privacy[:-1]]
    body = {
        "model": model,
        "messages": messages,
        "rapt": {**privacy[-1], **({"earlier": earlier} if earlier else {})},
        **_state_sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop),
    }
    answer = yield from service.ask("POST", "/v1/chat/completions", json=body, repeatable=True)
    found = read_answers(read_chat_answer, answer, name="choices")
    if len(found) != 1:
        raise make_answer_error()
    return found[0]


def _state_sampling(
    *, max_tokens: int, temperature: float, top_p: float, seed: int | None, stop: Sequence[str]
) -> dict[str, Any]:
    given: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
    return given | ({} if seed is None else {"seed": seed}) | ({"stop": list(stop)} if stop else {})


def _dump_prompts(part: PrivatizedFile) -> Mapping[str, Any]:
    """Records as prompts of token ids, with the rest of each beside them."""
    query = dump_query(part)
    prompts = [record.pop("token_ids") for record in query["records"]]
    rest = {"records": query["records"]} if any(query["records"]) else {}
    return {"prompt": prompts, "rapt": {"manifest": query["manifest"], **rest}}


def _require_one_for_each(part: PrivatizedFile, found: list[T]) -> list[T]:
    if len(found) != len(part.records):
        raise make_answer_error()
    return found
