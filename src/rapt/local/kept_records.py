"""Going on after a kill: the records that were already written are compared with the source and skipped.

Nothing about the texts was written down to compare with. But a record has as many tokens as its text, and its label
where labels leave in clear; and a ledger, where there is one, knows each text by a keyed hash. So a source that was
changed, cut, or is another one shows, unless it agrees in all of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from rapt.errors import CorpusError, UsageError, WireError, record_at
from rapt.local.ledger import Ledger
from rapt.local.ledger_releases import stored_token_ids
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import RandomStream
from rapt.local.record_parts import SourceItem
from rapt.wire.manifest import Manifest
from rapt.wire.privatized_file import PrivatizedRecord

_CHUNK: Final = 512


def with_plain_tokens_of(unfinished: Manifest, privatizer: Privatizer) -> Privatizer:
    """The setting with the plain tokens that the unfinished file was begun with: they were drawn then.

    Raises:
        WireError: It was begun with another number, pool, or way to draw them.
    """
    begun, planned = unfinished.plain_tokens, privatizer.plain_tokens
    if (begun.count, begun.pool, begun.fixed is None) != (planned.count, planned.pool, planned.fixed is None):
        raise WireError(
            f"an unfinished output must be continued with its plain tokens, got count={planned.count} for "
            f"{begun.count} or another pool; repeat the settings, or remove its .partial file to begin again"
        )
    return replace(privatizer, plain_tokens=begun)


def skip_kept(
    kept: Iterator[PrivatizedRecord],
    source: Iterator[SourceItem],
    *,
    privatizer: Privatizer,
    labels_in_clear: bool,
    stream: RandomStream,
    ledger: Ledger | None,
) -> tuple[int, int]:
    """Take as many texts from the source as there are kept records; returns how many records and tokens those are.

    Args:
        kept: The records of the unfinished file, all of which are taken.
        source: Texts and true labels from the first on; stands at the first that is not written yet afterwards.
        privatizer: The setting.
        labels_in_clear: Whether the records carry the true labels.
        stream: Of the run, whose provenance is part of what a ledger accounts for.
        ledger: Every kept record must be accounted for in it.

    Raises:
        CorpusError: The source is not the one of the unfinished file.
        UsageError: A kept record is not in the ledger.
        WireError: The unfinished file is damaged.
    """
    records = tokens = 0
    while chunk := list(islice(kept, _CHUNK)):
        items = list(islice(source, len(chunk)))
        if len(items) < len(chunk):
            raise _another_source(records + len(items))
        for position, (record, item) in enumerate(zip(chunk, items, strict=True), records):
            if labels_in_clear and record.label != item.label:
                raise _another_source(position)
        for texts, ids, privatized in _parts(items, chunk):
            counts = privatizer.token_counts(texts, first_position=records)
            for position, (own, count) in enumerate(zip(ids, counts, strict=True), records):
                if len(own) != count:
                    raise _another_source(position)
            if privatized:
                tokens += sum(counts)
            if privatized and ledger is not None:
                stored = stored_token_ids(ledger, privatizer, texts, stream=stream)
                _check_accounted(stored, ids, first_position=records)
        records += len(chunk)
    return records, tokens


def _parts(
    items: Sequence[SourceItem], chunk: Sequence[PrivatizedRecord]
) -> Iterator[tuple[list[str], list[tuple[int, ...]], bool]]:
    """The texts of each part of the records, what stands in the file for them, and whether that was privatized."""
    yield [item.text for item in items], [record.token_ids for record in chunk], True
    for part in items[0].others if items else ():
        ids = [(record.second_token_ids if part == "second" else record.target_ids) or () for record in chunk]
        yield [item.others[part] for item in items], ids, part != "public_target"


def _check_accounted(
    stored: Sequence[tuple[int, ...] | None], written: Sequence[tuple[int, ...]], *, first_position: int
) -> None:
    for position, (ids, own) in enumerate(zip(stored, written, strict=True), first_position):
        if ids is None or ids != own:
            raise UsageError(
                f"{record_at(position)} of the unfinished output must be accounted for in the ledger; "
                "name the ledger it was begun with, or remove its .partial file to begin again"
            )


def _another_source(position: int) -> CorpusError:
    return CorpusError(
        f"the source must be the one that the unfinished output was begun with, got another text as "
        f"{record_at(position)}; name that source, or remove the .partial file to begin again"
    )
