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
from rapt.wire.manifest import Manifest
from rapt.wire.privatized_file import PrivatizedRecord, RecordLines, record_lines

# Texts privatized at once: thousands of tokens, enough to keep the matrix product busy, and about a second of work,
# so that progress moves. For several processes less, so that at the end of a file none waits long for the others.
CHUNK: Final = 512
CHUNK_OF_A_WORKER: Final = 256
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


def in_chunks(
    items: Iterator[SourceItem], *, first_position: int, labelled: bool, size: int = CHUNK
) -> Iterator[Chunk]:
    """The texts and label indices, `size` at a time; `first_position` is that of the first."""
    position = first_position
    while chunk := list(islice(items, size)):
        labels = [item.label for item in chunk if item.label is not None]
        others = {part: [item.others[part] for item in chunk] for part in chunk[0].others}
        yield Chunk(position, [item.text for item in chunk], labels if labelled else None, others)
        position += len(chunk)


@dataclass(frozen=True)
class ChunkSetting:
    """What is done to every chunk of a file, in whichever process.

    Attributes:
        privatizer: The setting of its texts.
        response: Randomizes labels; None sends them in clear.
        manifest: Of the file that the records are for.
    """

    privatizer: Privatizer
    response: RandomizedResponse | None
    manifest: Manifest


def privatize_chunk(chunk: Chunk, setting: ChunkSetting, *, stream: RandomStream) -> RecordLines:
    """The lines of one chunk's records; labels are randomized first where there is a response.

    Raises:
        CorpusError: As `Privatizer.privatize`, or a pair is too long.
        UsageError: As `Privatizer.privatize`.
    """
    response = setting.response

    def release(privatizer: Privatizer, texts: list[str], labels: list[int] | None) -> list[PrivatizedRecord]:
        if response is not None and labels is not None:
            labels = response.randomize(labels, rng=stream.generator)
        return privatizer.privatize(texts, labels=labels, stream=stream, first_position=chunk.position)

    return release_chunk(chunk, setting, release=release)


def release_chunk(chunk: Chunk, setting: ChunkSetting, *, release: Release) -> RecordLines:
    """The lines of one chunk's records, each of its texts drawn by `release`; raises as `privatize_chunk`."""
    privatizer = setting.privatizer
    check_pairs(privatizer, chunk.texts, chunk.others, first_position=chunk.position)
    records = with_other_parts(
        release(privatizer, chunk.texts, chunk.labels),
        chunk.others,
        privatizer=privatizer,
        privatize=lambda own, texts: release(own, texts, None),
        first_position=chunk.position,
    )
    return record_lines(records, setting.manifest, first_position=chunk.position)
