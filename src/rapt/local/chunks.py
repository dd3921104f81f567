"""A few hundred texts at a time: enough to keep the matrix product busy, and the same in whichever process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from rapt.local.label_privacy import RandomizedResponse
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import RandomStream
from rapt.local.record_parts import Part, SourceItem, check_pairs, with_other_parts
from rapt.wire.privatized_file import PrivatizedRecord

# Texts privatized at once: thousands of tokens, enough to keep the matrix product busy, and about a second of work,
# so that progress moves.
_CHUNK: Final = 512
# Draws the records of texts with a setting, and with their labels, if any.
Release = Callable[[Privatizer, list[str], list[int] | None], list[PrivatizedRecord]]


@dataclass(frozen=True)
class Chunk:
    """Texts that are privatized at once; in clear, so nothing of them shows.

    Attributes:
        position: Of the first text in its file.
        texts: In clear.
        labels: Index of each text's true label, or None where no labels are sent.
        others: The other texts of each record, by the part of the record that they become.
    """

    position: int
    texts: list[str] = field(repr=False)
    labels: list[int] | None = field(repr=False)
    others: Mapping[Part, list[str]] = field(default_factory=dict, repr=False)


def in_chunks(items: Iterator[SourceItem], *, first_position: int, labelled: bool) -> Iterator[Chunk]:
    """The texts and label indices, some hundred at a time; `first_position` is that of the first."""
    position = first_position
    while chunk := list(islice(items, _CHUNK)):
        labels = [item.label for item in chunk if item.label is not None]
        others = {part: [item.others[part] for item in chunk] for part in chunk[0].others}
        yield Chunk(position, [item.text for item in chunk], labels if labelled else None, others)
        position += len(chunk)


def privatize_chunk(
    chunk: Chunk, *, privatizer: Privatizer, response: RandomizedResponse | None, stream: RandomStream
) -> list[PrivatizedRecord]:
    """The records of one chunk; labels are randomized first where there is a response. Raises as `Privatizer`."""

    def release(setting: Privatizer, texts: list[str], labels: list[int] | None) -> list[PrivatizedRecord]:
        if response is not None and labels is not None:
            labels = response.randomize(labels, rng=stream.generator)
        return setting.privatize(texts, labels=labels, stream=stream, first_position=chunk.position)

    return release_chunk(chunk, privatizer=privatizer, release=release)


def release_chunk(chunk: Chunk, *, privatizer: Privatizer, release: Release) -> list[PrivatizedRecord]:
    """The records of one chunk, each of its texts drawn by `release`. Raises `CorpusError` for a pair too long."""
    check_pairs(privatizer, chunk.texts, chunk.others, first_position=chunk.position)
    return with_other_parts(
        release(privatizer, chunk.texts, chunk.labels),
        chunk.others,
        privatizer=privatizer,
        privatize=lambda setting, texts: release(setting, texts, None),
        first_position=chunk.position,
    )
