"""The adapter card: what a tuned soft prompt is, for whom it was tuned, and on what kind of text.

It lies beside the weights as `rapt.json`. A loader checks it before it reads a weight, and refuses a schema that it
does not know. It holds counts, hashes and settings: nothing of any text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rapt.errors import WireError
from rapt.wire.manifest import MechanismSetting, mechanism_from_json, mechanism_to_json
from rapt.wire.strict_json import exact_fields, field

SCHEMA: Final = "rapt.adapter/2"
# Cards of the first schema name neither task nor kind: there was one of each.
FIRST_SCHEMA: Final = "rapt.adapter/1"
_FIRST: Final = {"task": "classification", "kind": "encoder"}


@dataclass(frozen=True, kw_only=True)
class AdapterCard:
    """What an adapter is and where it came from.

    Attributes:
        model: Name of the backbone.
        vocabulary_hash: The vocabulary that training and queries are privatized with.
        kind: Of the backbone: `encoder`, `encoder-decoder` or `decoder`.
        method: How the backbone was adapted, such as `prompt_tuning`.
        task: What it answers: `classification`, `label_words` or `generation`.
        labels: Names of the classes, in the order of the head's rows; none for generation.
        mechanism: What privatized the training text; queries must be privatized the same way.
        plain_tokens: m, how many privatized plain tokens stand before each text; 0 for tuning without reconstruction.
        prompt_length: P, number of soft prompt vectors or prefix positions; 0 for the other methods.
        training: Settings of the run, by the names of `TuningConfig`.
        metrics: Final figures of the run on its own training data: never a promise about other data.
        weights_sha256: Hex digest of the weights file.
        created_by: Program and version.
    """

    model: str
    vocabulary_hash: str
    method: str
    labels: tuple[str, ...]
    mechanism: MechanismSetting
    plain_tokens: int
    prompt_length: int
    training: Mapping[str, float | int | str | bool | None]
    metrics: Mapping[str, float | int]
    weights_sha256: str
    created_by: str
    kind: str = _FIRST["kind"]
    task: str = _FIRST["task"]


def card_to_json(card: AdapterCard) -> dict[str, Any]:
    """The card as plain JSON values, in a fixed order of keys."""
    return {
        "schema": SCHEMA,
        "model": card.model,
        "vocabulary_hash": card.vocabulary_hash,
        "kind": card.kind,
        "method": card.method,
        "task": card.task,
        "labels": list(card.labels),
        "mechanism": mechanism_to_json(card.mechanism),
        "plain_tokens": card.plain_tokens,
        "prompt_length": card.prompt_length,
        "training": dict(card.training),
        "metrics": dict(card.metrics),
        "weights_sha256": card.weights_sha256,
        "created_by": card.created_by,
    }


def card_from_json(value: Mapping[str, Any]) -> AdapterCard:
    """The card in a JSON object.

    Raises:
        WireError: Unknown schema, or a missing, unknown or mistyped field.
    """
    what = "the adapter card"
    schema = value.get("schema")
    if schema not in (SCHEMA, FIRST_SCHEMA):
        raise WireError(f"{what} must be of schema {SCHEMA!r}; upgrade rapt or tune again")
    names = {"schema", "model", "vocabulary_hash", "method", "labels", "mechanism", "plain_tokens", "prompt_length"}
    required = names | {"training", "metrics", "weights_sha256", "created_by"}
    exact_fields(value, required=required | (set(_FIRST) if schema == SCHEMA else set()), optional=set(), what=what)
    value = {**_FIRST, **value}
    labels = field(value, "labels", list, what=what)
    if not all(type(name) is str for name in labels) or bool(labels) == (value["task"] == "generation"):
        raise WireError(f"{what} must name its labels, unless it generates text; tune again")
    return AdapterCard(
        model=field(value, "model", str, what=what),
        vocabulary_hash=field(value, "vocabulary_hash", str, what=what),
        method=field(value, "method", str, what=what),
        labels=tuple(labels),
        mechanism=mechanism_from_json(field(value, "mechanism", dict, what=what)),
        plain_tokens=field(value, "plain_tokens", int, what=what),
        prompt_length=field(value, "prompt_length", int, what=what),
        training=field(value, "training", dict, what=what),
        metrics=field(value, "metrics", dict, what=what),
        weights_sha256=field(value, "weights_sha256", str, what=what),
        created_by=field(value, "created_by", str, what=what),
        kind=field(value, "kind", str, what=what),
        task=field(value, "task", str, what=what),
    )
