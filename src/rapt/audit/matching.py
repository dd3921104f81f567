"""The truth of a view: from the corpus that the privatized file was made from, once every count fits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np

from rapt.audit.view import PART_NAMES, AdversaryView, Truth
from rapt.errors import AuditError, record_at
from rapt.local.corpus import ONE_TEXT, read_corpus
from rapt.local.record_parts import Part, PartColumns
from rapt.local.vocabulary import Vocabulary
from rapt.wire.manifest import Manifest
from rapt.wire.privatized_record import privatized_parts

_OPTIONS: Final[Mapping[Literal["second", "target"], str]] = MappingProxyType(
    {"second": "--text-column-2", "target": "--target-column"}
)
NO_OTHERS: Final[Mapping[Part, Sequence[Any]]] = MappingProxyType({})


def match_truth(
    view: AdversaryView,
    contents: Sequence[Sequence[int]],
    *,
    others: Mapping[Part, Sequence[Sequence[int]]] = NO_OTHERS,
    truncate_to: int | None = None,
) -> Truth:
    """The truth of a view, once every count shows that the plain text belongs to the privatized file.

    Args:
        view: Made from the privatized file.
        contents: Token ids of each plain text, in the order of the file.
        others: The same of the other texts of a record that went through the mechanism.
        truncate_to: As given when the file was privatized; None if nothing was cut.

    Raises:
        AuditError: A text of the records is missing, or records or tokens differ in number, so nothing true could be
            said about recovery.
    """
    check_parts(view.manifest, others)
    columns = [contents, *(others[part] for part in view.parts if part != "first")]
    for column in columns:
        if len(column) != len(view.records):
            raise AuditError(
                f"the plain text must belong to the privatized file, got {len(column)} records for "
                f"{len(view.records)} in the file; give the corpus it was made from"
            )
    kept = [content[:truncate_to] for content in chain.from_iterable(zip(*columns, strict=True))]
    for place, (content, length) in enumerate(zip(kept, view.lengths, strict=True)):
        if len(content) != length:
            position, part = divmod(place, len(view.parts))
            where = "" if len(view.parts) == 1 else f"the {PART_NAMES[view.parts[part]]} of "
            raise AuditError(
                f"the plain text must belong to the privatized file, got {len(content)} tokens for {length} in {where}"
                f"{record_at(position)}; give the corpus it was made from, and truncate_to if it was cut"
            )
    flat = np.array([token for content in kept for token in content], dtype=np.int64)
    if ((flat < 0) | (flat >= len(view.bundle.embeddings))).any():
        raise AuditError(f"every true token must have a row in the table of model={view.manifest.model!r}")
    return Truth(token_ids=flat)


def check_parts(manifest: Manifest, others: Collection[Part]) -> None:
    """Refuse plain text that lacks a text of the records, or has one that did not go through the mechanism.

    Args:
        manifest: Of the privatized file.
        others: The texts beside the first that are given.

    Raises:
        AuditError: They are not those of the file.
    """
    parts = privatized_parts(manifest)
    for part, option in _OPTIONS.items():
        if part in parts and part not in others:
            raise AuditError(
                f"an audit must cover every privatized text, and each record of this file has a {PART_NAMES[part]}; "
                f"name its column with {option}"
            )
        if part in others and part not in parts:
            public = part == "target" and manifest.targets == "public"
            reason = "are public: nothing in them is to be recovered" if public else "are not in this file"
            raise AuditError(
                f"an audit takes the texts that were privatized, and {PART_NAMES[part]}s {reason}; leave out {option}"
            )


def read_truth(
    view: AdversaryView,
    path: Path,
    *,
    text_column: str = "text",
    label_column: str | None = "label",
    other_texts: PartColumns = ONE_TEXT,
    truncate_to: int | None = None,
) -> Truth:
    """The truth of a view, from the corpus that the privatized file was made from.

    Args:
        view: Made from the privatized file.
        path: The private corpus: CSV, TSV or JSONL.
        text_column: As given when the file was privatized.
        label_column: As given when the file was privatized; ignored when the manifest names no labels.
        other_texts: As given when the file was privatized; without targets that are public.
        truncate_to: As given when the file was privatized.

    Raises:
        AuditError: Texts, records, tokens or labels do not belong to the file.
        CorpusError: The corpus cannot be read.
    """
    check_parts(view.manifest, other_texts.by_part)
    names = view.manifest.labels
    records = list(read_corpus(path, text_column=text_column, label_column=None if names is None else label_column))
    vocabulary = Vocabulary(view.bundle)
    truth = match_truth(
        view,
        vocabulary.encode([record.text for record in records]),
        others={part: vocabulary.encode(texts) for part, texts in read_others(path, other_texts).items()},
        truncate_to=truncate_to,
    )
    # Randomized labels differ from the true ones on purpose, and say nothing about whose file this is.
    if names is not None and label_column is not None and view.manifest.label_privacy is None:
        for position, (plain, private) in enumerate(zip(records, view.records, strict=True)):
            if private.label is None or plain.label != names[private.label]:
                raise AuditError(
                    f"the plain text must belong to the privatized file, but {record_at(position)} has another label; "
                    "give the corpus it was made from"
                )
    return truth


def read_others(path: Path, columns: PartColumns) -> dict[Part, list[str]]:
    """The other texts of the records of a corpus, in clear. Raises `CorpusError` when it cannot be read."""
    return {
        part: [record.text for record in read_corpus(path, text_column=column, label_column=None)]
        for part, column in columns.by_part.items()
    }
