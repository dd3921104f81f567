"""A file that was dropped on the page: its columns, then a privatized file of two of them and its statement."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from rapt.errors import CorpusError, UsageError, name_record
from rapt.gateway.releases import Releases
from rapt.gateway.training_files import SURPLUS, TrainingRecord, TrainingSetting, privatize_training, read_rows
from rapt.local.in_memory import state_manifest
from rapt.own_page.described import describe_statement
from rapt.wire.privatized_file import read_privatized_lines

MOST_BYTES: Final = 16 * 2**20
_MOST_COLUMNS: Final = 64
_LONGEST_NAME: Final = 200
_SHOWN: Final = 3
_SHOWN_TOKENS: Final = 60


@dataclass(frozen=True, kw_only=True, repr=False)
class DroppedFile:
    """A file as the page sends it, in clear.

    Attributes:
        content: The file.
        is_csv: Whether it is CSV, else JSONL.
        text_column: Column of the texts; None asks which columns there are.
        label_column: Column of the labels, whose names leave; None makes queries, without labels.
    """

    content: bytes
    is_csv: bool
    text_column: str | None
    label_column: str | None


def list_columns(file: DroppedFile) -> dict[str, Any]:
    """List the columns of a file, in the order of its first record, and count its records.

    Raises:
        CorpusError: It cannot be read, or has too many columns.
    """
    columns: dict[str, None] = {}
    count = 0
    for row in _read_whole_rows(file):
        count += 1
        columns |= dict.fromkeys(row)
        if len(columns) > _MOST_COLUMNS:
            raise CorpusError(f"a file must have at most {_MOST_COLUMNS} columns; drop one with fewer")
    return {"columns": [name[:_LONGEST_NAME] for name in columns], "records": count}


async def privatize_dropped(file: DroppedFile, setting: TrainingSetting, releases: Releases) -> dict[str, Any]:
    """Return a privatized file of two columns, as the page shows and saves it.

    Raises:
        UsageError: No column of the texts is named.
        CorpusError: A record has not these columns, or no texts in them.
        Others: The reasons of `privatize_training`.
    """
    if file.text_column is None:
        raise UsageError("the column of the texts must be named")
    records = await asyncio.to_thread(_read_records, file)
    content, kept = await privatize_training(records, replace(setting, collects_labels=True), releases)
    return await asyncio.to_thread(_describe, content, None if kept is None else kept.sentence, releases)


def _read_whole_rows(file: DroppedFile) -> Iterator[dict[str, Any]]:
    for place, row in enumerate(read_rows(file.content, is_csv=file.is_csv)):
        # A comma without quotes cuts a text in two, of which one half would leave and the other be lost.
        if file.is_csv and SURPLUS in row:
            raise CorpusError(
                f"{name_record(place)} must have no more fields than the first line; put quotes around its texts"
            )
        yield row


def _read_records(file: DroppedFile) -> list[TrainingRecord]:
    found = []
    for place, row in enumerate(_read_whole_rows(file)):
        text, label = row.get(file.text_column or ""), None
        if not isinstance(text, str):
            raise CorpusError(f"{name_record(place)} must have a text in the column of the texts")
        if file.label_column is not None:
            label = row.get(file.label_column)
            if isinstance(label, int | float):
                label = str(label).lower() if isinstance(label, bool) else f"{label}"
            if not isinstance(label, str) or not label.strip():
                raise CorpusError(f"{name_record(place)} must have a label in the column of the labels")
        found.append(TrainingRecord(text, label))
    return found


def _describe(content: bytes, remark: str | None, releases: Releases) -> dict[str, Any]:
    file = read_privatized_lines(content.splitlines(keepends=True))
    vocabulary, manifest = releases.privatizer.vocabulary, file.manifest
    is_code = manifest.mechanism.unit == "text"
    labels = manifest.labels or ()
    preview = [
        {
            "ids": list(record.token_ids[:_SHOWN_TOKENS]),
            "words": None if is_code else vocabulary.decode(record.token_ids[:_SHOWN_TOKENS]),
            "label": labels[record.label] if labels and record.label is not None else None,
        }
        for record in file.records[:_SHOWN]
    ]
    return {
        "file": content.decode("ascii"),
        "records": manifest.records,
        "tokens": manifest.tokens,
        "labels": list(labels),
        "remark": remark,
        "preview": preview,
        "statement": describe_statement(state_manifest(manifest, vocabulary)),
    }
