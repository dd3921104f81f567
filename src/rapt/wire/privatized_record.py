"""One record of a privatized file, and the line that says it.

Ids and not words, because decoding and tokenizing again changes ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rapt.errors import WireError, record_at
from rapt.wire.manifest import Manifest
from rapt.wire.strict_json import dump, exact_fields, field, id_tuple

# A text of a record that may have gone through the mechanism.
PrivatizedPart = Literal["first", "second", "target"]


@dataclass(frozen=True, kw_only=True, repr=False)
class PrivatizedRecord:
    """One privatized text: z = M([k; x]) of RAPT, Eq. 5, kept as its two parts.

    Attributes:
        token_ids: M(x), one id for each content token of the text, in order.
        label: Index into the manifest's labels, in clear; None without a label.
        privatized_plain_tokens: M(k), as many as the manifest's plain tokens.
        plain_tokens: k, when each record has its own; None when the manifest holds one for all, or there are none.
        second_token_ids: M(x2) of the second text of a pair; None in a file of single texts.
        target_ids: The text that is to be generated: M(t), or t itself when the manifest declares targets public.
    """

    token_ids: tuple[int, ...]
    label: int | None = None
    privatized_plain_tokens: tuple[int, ...] = ()
    plain_tokens: tuple[int, ...] | None = None
    second_token_ids: tuple[int, ...] | None = None
    target_ids: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        """How long it is."""
        return f"PrivatizedRecord({len(self.token_ids)} tokens, {'no label' if self.label is None else 'a label'})"


@dataclass(frozen=True, kw_only=True)
class RecordLines:
    """Records as they stand in a file, with what its manifest will count.

    Attributes:
        lines: One line of ASCII JSON for each record.
        records: How many they are.
        tokens: How many tokens of them went through the mechanism; see `privatized_tokens`.
    """

    lines: bytes
    records: int
    tokens: int


def record_lines(records: Sequence[PrivatizedRecord], manifest: Manifest, *, first_position: int) -> RecordLines:
    """The lines of these records, each checked against the manifest.

    Args:
        records: In order.
        manifest: Of their file.
        first_position: Position of the first in the file, for messages.

    Raises:
        WireError: A record contradicts the manifest.
    """
    for position, record in enumerate(records, first_position):
        check_record(record, manifest, position=position)
    return RecordLines(
        lines="".join(f"{dump(_record_to_json(record))}\n" for record in records).encode("ascii"),
        records=len(records),
        tokens=sum(privatized_tokens(record, manifest) for record in records),
    )


def privatized_tokens(record: PrivatizedRecord, manifest: Manifest) -> int:
    """How many tokens of a record went through the mechanism: those of its texts, plain tokens not counted."""
    targets = len(record.target_ids or ()) if manifest.targets == "privatized" else 0
    return len(record.token_ids) + len(record.second_token_ids or ()) + targets


def privatized_parts(manifest: Manifest) -> tuple[PrivatizedPart, ...]:
    """Which texts of each record of a file went through the mechanism: all but a target that was declared public."""
    second: tuple[PrivatizedPart, ...] = ("second",) if manifest.pairs else ()
    target: tuple[PrivatizedPart, ...] = ("target",) if manifest.targets == "privatized" else ()
    return ("first", *second, *target)


def privatized_texts(record: PrivatizedRecord, manifest: Manifest) -> tuple[tuple[int, ...], ...]:
    """The texts of a record that went through the mechanism, in the order of `privatized_parts`."""
    texts: dict[PrivatizedPart, tuple[int, ...] | None] = {
        "first": record.token_ids,
        "second": record.second_token_ids,
        "target": record.target_ids,
    }
    return tuple(texts[part] or () for part in privatized_parts(manifest))


def check_record(record: PrivatizedRecord, manifest: Manifest, *, position: int) -> None:
    """Refuse a record that contradicts its manifest: labels out of range, plain tokens missing or unexpected."""
    plain = manifest.plain_tokens
    what = record_at(position)
    if manifest.labels is None and record.label is not None:
        raise WireError(f"{what} must have no label, because the manifest names none")
    if manifest.labels is not None and (record.label is None or not 0 <= record.label < len(manifest.labels)):
        raise WireError(f"{what} must have a label from 0 to {len(manifest.labels) - 1}, as the manifest names them")
    if len(record.privatized_plain_tokens) != plain.count:
        raise WireError(
            f"{what} must have {plain.count} privatized plain tokens, got {len(record.privatized_plain_tokens)}"
        )
    fresh = plain.count > 0 and plain.fixed is None
    if fresh and (record.plain_tokens is None or len(record.plain_tokens) != plain.count):
        raise WireError(f"{what} must have {plain.count} plain tokens of its own, because the manifest fixes none")
    if fresh and not plain.pool_set.issuperset(record.plain_tokens or ()):
        raise WireError(f"{what} must have plain tokens of the manifest's pool")
    if not fresh and record.plain_tokens is not None:
        raise WireError(f"{what} must have no plain tokens of its own, because the manifest fixes them")
    if (record.second_token_ids is not None) != manifest.pairs:
        wanted = "a" if manifest.pairs else "no"
        raise WireError(f"{what} must have {wanted} second text, as the manifest says")
    if (record.target_ids is not None) != (manifest.targets is not None):
        wanted = "no" if manifest.targets is None else "a"
        raise WireError(f"{what} must have {wanted} target, as the manifest says")


def record_from_json(value: dict[str, Any], *, position: int) -> PrivatizedRecord:
    """The record in a JSON object. Raises `WireError` for a missing, unknown or mistyped field."""
    what = record_at(position)
    exact_fields(
        value,
        required={"token_ids"},
        optional={"label", "privatized_plain_tokens", "plain_tokens", "second_token_ids", "target_ids"},
        what=what,
    )
    return PrivatizedRecord(
        token_ids=id_tuple(value, "token_ids", what=what),
        label=field(value, "label", int, what=what) if value.get("label") is not None else None,
        privatized_plain_tokens=(
            id_tuple(value, "privatized_plain_tokens", what=what) if "privatized_plain_tokens" in value else ()
        ),
        plain_tokens=id_tuple(value, "plain_tokens", what=what) if "plain_tokens" in value else None,
        second_token_ids=id_tuple(value, "second_token_ids", what=what) if "second_token_ids" in value else None,
        target_ids=id_tuple(value, "target_ids", what=what) if "target_ids" in value else None,
    )


def _record_to_json(record: PrivatizedRecord) -> dict[str, Any]:
    value: dict[str, Any] = {"token_ids": record.token_ids}
    if record.label is not None:
        value["label"] = record.label
    if record.privatized_plain_tokens:
        value["privatized_plain_tokens"] = record.privatized_plain_tokens
    if record.plain_tokens is not None:
        value["plain_tokens"] = record.plain_tokens
    if record.second_token_ids is not None:
        value["second_token_ids"] = record.second_token_ids
    if record.target_ids is not None:
        value["target_ids"] = record.target_ids
    return value
