"""Answers of a service, as values. Fields that this version does not know are passed over: a service may be newer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from rapt.errors import ServiceError, WireError
from rapt.wire.adapter_files import AdapterCard, parse_card
from rapt.wire.manifest import Manifest, parse_manifest
from rapt.wire.strict_json import read_field

T = TypeVar("T")
ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """An uploaded privatized file."""

    id: str
    bytes: int
    created_at: int
    vocabulary_hash: str
    records: int
    tokens: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class JobInfo:
    """A tuning job as the service describes it.

    Attributes:
        id: `ftjob-...`.
        model: Base model.
        training_file: Id of the file.
        status: `queued`, `running`, `paused`, `succeeded`, `failed` or `cancelled`.
        method: Method and hyper-parameters as the service decided them.
        seed: Seed of the training.
        fine_tuned_model: Name of the result; None unless it succeeded.
        trained_tokens: Text tokens seen; None unless it succeeded.
        error_code: Reason of its failure, for machines; None unless it failed.
        error_message: Reason of its failure, for people; None unless it failed.
        created_at: Time of its creation, s since 1970; None where the service does not say.
        finished_at: Time of its end, s since 1970; None before.
        validation_file: Id of the file by whose loss the best epoch is chosen; None without one.
        waits_because: Reason why the service will not run it for now; None where nothing but time stands in its way.
    """

    id: str
    model: str = field(repr=False)
    training_file: str = field(repr=False)
    status: str
    method: Mapping[str, Any] = field(repr=False)
    seed: int = field(repr=False)
    fine_tuned_model: str | None
    trained_tokens: int | None = field(repr=False)
    error_code: str | None = field(repr=False)
    error_message: str | None = field(repr=False)
    created_at: int | None = field(default=None, repr=False)
    finished_at: int | None = field(default=None, repr=False)
    validation_file: str | None = field(default=None, repr=False)
    waits_because: str | None = field(default=None, repr=False)

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in ENDED


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """Something that happened to a job; `data` has the figures of a `metrics` event, and is None for a `message`."""

    id: str
    created_at: int
    level: str
    type: str
    message: str
    data: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """The model at the end of an epoch of a job.

    Attributes:
        id: Id of the checkpoint.
        created_at: Time of its making, s since 1970.
        model: Name of the tuned model, which is asked as any other.
        step: Number of steps that were made.
        metrics: Figures of the epoch, such as `full_valid_loss`.
    """

    id: str
    created_at: int
    model: str
    step: int
    metrics: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A base model, or a tuned one.

    Attributes:
        id: Name of the model.
        base: Name of the base model, which is the same for a base model.
        vocabulary_hash: Hash of the vocabulary, or of the codebook, that texts for it are privatized with.
        max_tokens: Longest input, tokens.
        card: Card that says how queries must be privatized; only of a tuned model that was asked for by name.
        unit: Unit of privatization: each `token`, or a whole `text`.
    """

    id: str
    base: str
    vocabulary_hash: str
    max_tokens: int
    card: AdapterCard | None
    unit: str = "token"


@dataclass(frozen=True, kw_only=True)
class PoolInfo:
    """A pool of contributions.

    Attributes:
        id: `pool-...`.
        status: `open`, `closing` or `closed`.
        manifest: Manifest that contributions are privatized by, without counts.
        setting: Hex digest of it, which a contribution names.
        least: Number of contributions below which no file is made.
        most: Number of contributions that it takes.
        contributions: Number of contributions that it has.
        file: Id of the file that it became; None until it is closed.
        round: Number of the round: 2 once the centre of the code was found; else 1, as in a pool of one round.
        first: Number of contributions that the first of two rounds needs; None for a pool of one round.
        center: Second centre of the code in the second round; None before, and in a pool of one round.
    """

    id: str
    status: str
    manifest: Manifest
    setting: str
    least: int
    most: int
    contributions: int
    file: str | None
    round: int = 1
    first: int | None = None
    center: str | None = None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer for one record; probabilities in the order of the model's labels."""

    label: str
    label_index: int
    probabilities: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What a model wrote behind a text, or the label that it chose.

    Attributes:
        text: Text of the answer, which may hold what the service makes of the private text: it is for its owner.
        finish_reason: `stop` where the model ended, `length` where it wrote as many tokens as were asked for.
    """

    text: str = field(repr=False)
    finish_reason: str


def read_file_info(value: Mapping[str, Any]) -> FileInfo:
    """The file in an answer. Raises `WireError`, as all below, when it is not one."""
    what, detail = "a file", read_field(value, "rapt", dict, what="a file")
    return FileInfo(
        **_read_fields(value, {"id": str, "bytes": int, "created_at": int}, what=what),
        **_read_fields(detail, {"vocabulary_hash": str, "records": int, "tokens": int}, what=what),
        sha256=read_field(detail, "sha256", str, what=what),
    )


def read_job_info(value: Mapping[str, Any]) -> JobInfo:
    """The job in an answer."""
    what = "a job"
    error, detail = (_read_optional(value, name, dict, what=what) or {} for name in ("error", "rapt"))
    kinds = {"id": str, "model": str, "training_file": str, "status": str, "method": dict, "seed": int}
    return JobInfo(
        **_read_fields(value, kinds, what=what),
        fine_tuned_model=_read_optional(value, "fine_tuned_model", str, what=what),
        trained_tokens=_read_optional(value, "trained_tokens", int, what=what),
        error_code=_read_optional(error, "code", str, what=what),
        error_message=clean_line(error["message"]) if "message" in error else None,
        created_at=_read_optional(value, "created_at", int, what=what),
        finished_at=_read_optional(value, "finished_at", int, what=what),
        validation_file=_read_optional(value, "validation_file", str, what=what),
        waits_because=None if detail.get("waits_because") is None else clean_line(detail["waits_because"]),
    )


def read_checkpoint_info(value: Mapping[str, Any]) -> CheckpointInfo:
    """The checkpoint in an answer."""
    what = "a checkpoint"
    return CheckpointInfo(
        **_read_fields(value, {"id": str, "created_at": int, "metrics": dict}, what=what),
        model=read_field(value, "fine_tuned_model_checkpoint", str, what=what),
        step=read_field(value, "step_number", int, what=what),
    )


def read_job_event(value: Mapping[str, Any]) -> JobEvent:
    """The event in an answer."""
    what = "an event"
    return JobEvent(
        **_read_fields(value, {"id": str, "created_at": int, "level": str, "type": str}, what=what),
        message=clean_line(read_field(value, "message", str, what=what)),
        data=_read_optional(value, "data", dict, what=what),
    )


def read_model_info(value: Mapping[str, Any]) -> ModelInfo:
    """The model in an answer."""
    what, detail = "a model", read_field(value, "rapt", dict, what="a model")
    card = _read_optional(detail, "card", dict, what=what)
    return ModelInfo(
        id=read_field(value, "id", str, what=what),
        **_read_fields(detail, {"base": str, "vocabulary_hash": str, "max_tokens": int}, what=what),
        card=None if card is None else parse_card(card),
        unit=_read_optional(detail, "unit", str, what=what) or "token",
    )


def read_pool_info(value: Mapping[str, Any]) -> PoolInfo:
    """The pool in an answer."""
    what = "a pool"
    kinds = {"id": str, "status": str, "setting": str, "least": int, "most": int, "contributions": int}
    return PoolInfo(
        **_read_fields(value, kinds, what=what),
        manifest=parse_manifest(read_field(value, "manifest", dict, what=what)),
        file=_read_optional(value, "file", str, what=what),
        round=_read_optional(value, "round", int, what=what) or 1,
        first=_read_optional(value, "first", int, what=what),
        center=_read_optional(value, "center", str, what=what),
    )


def read_prediction(value: Mapping[str, Any]) -> Prediction:
    """One prediction in an answer."""
    what = "a prediction"
    probabilities = read_field(value, "probabilities", list, what=what)
    if not all(type(item) in (float, int) and 0 <= item <= 1.001 for item in probabilities):
        raise WireError(f"{what} must have numbers from 0 to 1 as probabilities")
    index = read_field(value, "label_index", int, what=what)
    if not 0 <= index < len(probabilities):
        raise WireError(f"{what} must have the index of one of its probabilities")
    return Prediction(
        label=read_field(value, "label", str, what=what),
        label_index=index,
        probabilities=tuple(float(item) for item in probabilities),
    )


def read_completion(value: Mapping[str, Any]) -> Completion:
    """One completion in an answer."""
    return Completion(**_read_fields(value, {"text": str, "finish_reason": str}, what="a completion"))


def read_chat_answer(value: Mapping[str, Any]) -> Completion:
    """The message of the model in an answer to a chat."""
    what = "an answer to a chat"
    message = read_field(value, "message", dict, what=what)
    return Completion(
        text=read_field(message, "content", str, what=what),
        finish_reason=read_field(value, "finish_reason", str, what=what),
    )


def read_answer(parse: Callable[[Mapping[str, Any]], T], answer: Mapping[str, Any]) -> T:
    """The value in an answer. Raises `ServiceError` when it is not what the API says."""
    try:
        return parse(answer)
    except WireError:
        raise make_answer_error() from None


def read_answers(parse: Callable[[Mapping[str, Any]], T], answer: Mapping[str, Any], *, name: str = "data") -> list[T]:
    """The values of a list in an answer; raises as `read_answer`."""
    return read_answer(lambda value: [parse(item) for item in read_items(value, name)], answer)


def read_items(value: Mapping[str, Any], name: str = "data") -> list[Mapping[str, Any]]:
    """The objects of a list in an answer."""
    found: list[Mapping[str, Any]] = read_field(value, name, list, what="a list")
    if not all(isinstance(item, dict) for item in found):
        raise WireError("a list must hold objects")
    return found


def read_refusal(value: object) -> str:
    """The message of an error answer, on one line; what does not look like one is not repeated."""
    if isinstance(value, dict) and isinstance(value.get("error"), dict):
        message = value["error"].get("message")
        if isinstance(message, str) and message:
            return clean_line(message)
    return "no reason given"


def make_answer_error() -> ServiceError:
    """The error for an answer that is not what the API says."""
    return ServiceError("the service must answer as this version of rapt expects, and did not; is it a rapt service?")


def _read_fields(value: Mapping[str, Any], kinds: Mapping[str, type[Any]], *, what: str) -> dict[str, Any]:
    return {name: read_field(value, name, kind, what=what) for name, kind in kinds.items()}


def _read_optional(value: Mapping[str, Any], name: str, kind: type[Any], *, what: str) -> Any:
    return None if value.get(name) is None else read_field(value, name, kind, what=what)


def clean_line(text: object) -> str:
    """A stranger's text as it may be shown: printable, on one line, of bounded length."""
    # It goes to a terminal: control characters of a stranger's text do not.
    return "".join(character if character.isprintable() else " " for character in str(text))[:500]
