"""Entities that people labelled: what the recognizers of a policy miss of them, and which tokens are left of them.

A line of the file is `{"text": "Ann came", "entities": [{"start": 0, "end": 3, "kind": "person"}]}`, in the order of
the corpus; other fields are passed over. An entity is found when each of its letters and digits lies in what a
recognizer found. What a policy replaced is gone; of the rest every token counts, so a surname that is left is a name
recovered.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from rapt.audit.intervals import Share, compute_clustered_share
from rapt.audit.truth import GoneEntity, Truth
from rapt.audit.view import AdversaryView
from rapt.errors import AuditError, name_record
from rapt.local.policy.policy import Policy, PolicyText
from rapt.local.policy.recognizers import Entity
from rapt.local.vocabulary import Vocabulary
from rapt.wire.policy_setting import KIND_NAME

_MOST_BYTES: Final = 256 * 1024 * 1024
_MOST_ENTITIES: Final = 10_000


@dataclass(frozen=True, kw_only=True)
class TextWithEntities:
    """A text and its entities, apart from each other and in order; its `repr` shows nothing of it."""

    text: str
    entities: tuple[Entity, ...]

    def __repr__(self) -> str:
        """How many entities there are."""
        return f"LabelledText({len(self.entities)} entities)"


@dataclass(frozen=True, kw_only=True)
class MissedKind:
    """What the recognizers of a policy miss of a labelled kind, before any mechanism.

    Attributes:
        kind: Name of the kind, as it is labelled.
        missed: Share of entities of which a letter or digit was not found.
        whole: Share of which nothing was found.
    """

    kind: str
    missed: Share
    whole: float


def read_labelled_texts(path: Path) -> list[TextWithEntities]:
    """Read a file of labelled texts.

    Raises:
        AuditError: It cannot be read, is too large, or a line is not as the module says; named by its number.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise AuditError(f"labelled texts must have at most {_MOST_BYTES:,} bytes; take a part of them")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise AuditError(f"labelled texts must be a readable file in UTF-8, got {type(error).__name__}") from None
    found = [_read_line(line, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not any(one.entities for one in found):
        raise AuditError("labelled texts must have at least one entity, got none; see docs/policy.md for the format")
    return found


def measure_missed(texts: Sequence[TextWithEntities], applied: Sequence[PolicyText | None]) -> tuple[MissedKind, ...]:
    """What is missed of each kind, the most frequent kind first.

    Args:
        texts: Labelled texts.
        applied: The same under the policy; None where there is none, and all is missed.
    """
    found = []
    for kind, _ in Counter(entity.kind for one in texts for entity in one.entities).most_common():
        missed, whole, lengths = [], [], []
        for one, under in zip(texts, applied, strict=True):
            own = [entity for entity in one.entities if entity.kind == kind]
            lengths.append(len(own))
            for entity in own:
                left = _list_left(entity, one.text, () if under is None else under.found)
                missed.append(bool(left))
                whole.append(left == [(entity.start, entity.end)])
        share = compute_clustered_share(np.array(missed), np.array(lengths, dtype=np.int64))
        assert share is not None
        found.append(MissedKind(kind=kind, missed=share, whole=sum(whole) / len(whole)))
    return tuple(found)


def add_labelled_entities(
    view: AdversaryView,
    truth: Truth,
    texts: Sequence[TextWithEntities],
    applied: Sequence[PolicyText | None],
    *,
    policy: Policy | None,
    truncate_to: int | None = None,
) -> Truth:
    """The truth of the whole corpus, with the labelled entity that each token is part of, and those that are gone.

    Args:
        view: View of all records.
        truth: Their tokens, as the policy left them.
        texts: Labelled texts of the corpus, in its order.
        applied: The same under the policy; None where there is none.
        policy: The policy.
        truncate_to: Tokens that each text was cut to, as given when the file was privatized.

    Raises:
        AuditError: Records have several texts, or the texts are not those of the file.
    """
    if len(view.parts) != 1 or len(texts) != len(view.records):
        raise AuditError(
            f"labelled texts must be those of a file of single texts, got {len(texts)} for {len(view.records)} records"
        )
    kept = frozenset(policy.needs_tokens) if policy is not None else frozenset()
    written = [one.text if under is None else under.text for one, under in zip(texts, applied, strict=True)]
    names: dict[str, int] = {}
    entity: list[int] = []
    kinds: list[str] = []
    gone: list[GoneEntity] = []
    spans = Vocabulary(view.bundle).spans(written)
    for record, (one, under, tokens) in enumerate(zip(texts, applied, spans, strict=True)):
        here = [-1] * len(tokens[:truncate_to])
        replaced = [] if under is None else [place for place in under.found if place.kind not in kept]
        for labelled in one.entities:
            pieces = _list_left(labelled, one.text, replaced)
            moved = [(_move(start, under), _move(start, under) + end - start) for start, end in pieces]
            inside = [
                place
                for place, (left, right) in enumerate(tokens[: len(here)])
                if any(left < end and start < right for start, end in moved)
            ]
            if inside:
                for place in inside:
                    here[place] = len(kinds)
                kinds.append(labelled.kind)
            else:
                name = names.setdefault(one.text[labelled.start : labelled.end], len(names))
                gone.append(GoneEntity(record=record, kind=labelled.kind, name=name))
        entity += here
    if len(entity) != len(truth.token_ids):
        raise AuditError(
            f"labelled texts must be those of the file, got {len(entity)} tokens for {len(truth.token_ids)}"
        )
    return replace(truth, entity=np.array(entity, dtype=np.int64), entity_kinds=tuple(kinds), gone=tuple(gone))


def _list_left(entity: Entity, text: str, found: Sequence[Entity]) -> list[tuple[int, int]]:
    """The parts of an entity that lie in none of these places, those without a letter or digit left out."""
    parts, start = [], entity.start
    for place in found:
        if place.end <= entity.start or place.start >= entity.end:
            continue
        parts.append((start, place.start))
        start = max(start, place.end)
    parts.append((start, entity.end))
    return [(start, end) for start, end in parts if any(sign.isalnum() for sign in text[start:end])]


def _move(place: int, under: PolicyText | None) -> int:
    """Where a character of the text, outside of what was replaced, stands in the rewritten text."""
    if under is None:
        return place
    moved = place
    for entity, end in zip(under.found, under.ends, strict=True):
        if entity.end <= place:
            moved = end + place - entity.end
        elif entity.start <= place:  # a kind with a strength of its own: its words are still there
            moved = end - (entity.end - place)
    return moved


def _read_line(line: str, number: int) -> TextWithEntities:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise _refuse(number, "must be a JSON object") from None
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise _refuse(number, "must be a JSON object with a text")
    stated = value.get("entities")
    if not isinstance(stated, list) or len(stated) > _MOST_ENTITIES:
        raise _refuse(number, f"must have a list of at most {_MOST_ENTITIES:,} entities")
    found = sorted(_read_entities(stated, number, length=len(value["text"])))
    if any(left.end > right.start for left, right in pairwise(found)):
        raise _refuse(number, "must have entities that do not overlap")
    return TextWithEntities(text=value["text"], entities=tuple(found))


def _read_entities(listed: Sequence[Any], number: int, *, length: int) -> Iterator[Entity]:
    for one in listed:
        stated = one if isinstance(one, dict) else {}
        start, end = stated.get("start"), stated.get("end")
        if type(start) is not int or type(end) is not int or not 0 <= start < end <= length:
            raise _refuse(number, "must have start and end of each entity as places in its text")
        kind = stated.get("kind")
        if not isinstance(kind, str) or not KIND_NAME.fullmatch(kind):
            raise _refuse(number, "must have the kind of each entity in small letters, digits and underscores")
        yield Entity(start, end, kind)


def _refuse(number: int, rule: str) -> AuditError:
    return AuditError(f"{name_record(number - 1)} of the labelled texts {rule}; see docs/policy.md for the format")
