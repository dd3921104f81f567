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

from rapt.errors import CorpusError, UsageError, WireError
from rapt.local.ledger import Ledger
from rapt.local.ledger_releases import stored_token_ids
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import RandomStream
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
    source: Iterator[tuple[str, int | None]],
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
        texts = list(islice(source, len(chunk)))
        counts = privatizer.token_counts([text for text, _ in texts], first_position=records)
        for position, record in enumerate(chunk):
            if position >= len(texts) or len(record.token_ids) != counts[position]:
                raise _another_source(records + position)
            if labels_in_clear and record.label != texts[position][1]:
                raise _another_source(records + position)
        if ledger is not None:
            stored = stored_token_ids(ledger, privatizer, [text for text, _ in texts], stream=stream)
            _check_accounted(stored, chunk, first_position=records)
        records += len(chunk)
        tokens += sum(len(record.token_ids) for record in chunk)
    return records, tokens


def _check_accounted(
    stored: Sequence[tuple[int, ...] | None], chunk: Sequence[PrivatizedRecord], *, first_position: int
) -> None:
    for position, (ids, record) in enumerate(zip(stored, chunk, strict=True), first_position):
        if ids is None or ids != record.token_ids:
            raise UsageError(
                f"record {position} of the unfinished output must be accounted for in the ledger; "
                "name the ledger it was begun with, or remove its .partial file to begin again"
            )


def _another_source(position: int) -> CorpusError:
    return CorpusError(
        f"the source must be the one that the unfinished output was begun with, got another text as record {position}; "
        "name that source, or remove the .partial file to begin again"
    )
