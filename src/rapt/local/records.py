"""Records of more than one text: a pair of sentences, a text with the one that is to be generated from it.

Every text of a record is private and goes through the same mechanism, each as a release of its own: a sentence costs
the same whether it stands first, second or as a target, and a ledger knows it wherever it stands. A target alone may be
declared public by the user; it then leaves as it is. Records are privatized a few
hundred at a time, which keeps the matrix product busy, and in the same way in whichever process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final, Literal

from rapt.errors import CorpusError, record_at
from rapt.local.label_privacy import RandomizedResponse
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import RandomStream
from rapt.wire.manifest import NO_PLAIN_TOKENS, Manifest, Targets
from rapt.wire.privatized_file import PrivatizedRecord, RecordLines, record_lines

# What the other texts of a record become; a public target is not privatized.
Part = Literal["second", "target", "public_target"]
# Tokens that a model may put between the two texts of a pair; the service counts exactly.
_BETWEEN = 1


@dataclass(frozen=True, kw_only=True)
class PartColumns:
    """Where the other texts of a record stand in its source.

    Attributes:
        second: Column of the second text of a pair; None for single texts.
        target: Column of the text that is to be generated; None where there is none.
        public_target: Whether the user declares the targets public: they leave as they are.
    """

    second: str | None = None
    target: str | None = None
    public_target: bool = False

    @property
    def by_part(self) -> dict[Part, str]:
        """The column of each part that there is."""
        found: dict[Part, str] = {}
        if self.second is not None:
            found["second"] = self.second
        if self.target is not None:
            found["public_target" if self.public_target else "target"] = self.target
        return found

    @property
    def targets(self) -> Targets | None:
        """How targets leave, as the manifest says it."""
        if self.target is None:
            return None
        return "public" if self.public_target else "privatized"


@dataclass(frozen=True)
class SourceItem:
    """One record of a source, in clear: its `repr` shows nothing of it."""

    text: str = field(repr=False)
    label: int | None = field(repr=False)
    others: Mapping[Part, str] = field(default_factory=dict, repr=False)


def long_pair(privatizer: Privatizer, tokens: int) -> str | None:
    """What a pair of so many tokens in both texts must have instead, where it fits no backbone."""
    most = privatizer.longest_text - _BETWEEN
    if tokens <= most:
        return None
    return f"have at most {most} tokens in both texts, got {tokens}; cut both with --truncate {most // 2}"


def check_pairs(
    privatizer: Privatizer, texts: Sequence[str], others: Mapping[Part, Sequence[str]], *, first_position: int
) -> None:
    """Refuse a pair that fits no backbone, before anything of it is drawn or paid for (`CorpusError`)."""
    if "second" not in others:
        return
    counts = (privatizer.token_counts(part, first_position=first_position) for part in (texts, others["second"]))
    for position, (first, second) in enumerate(zip(*counts, strict=True), first_position):
        rule = long_pair(privatizer, first + second)
        if rule is not None:
            raise CorpusError(f"{record_at(position)} must {rule}")


def with_other_parts(
    records: list[PrivatizedRecord],
    others: Mapping[Part, list[str]],
    *,
    privatizer: Privatizer,
    privatize: Callable[[Privatizer, list[str]], list[PrivatizedRecord]],
    first_position: int,
) -> list[PrivatizedRecord]:
    """The records with their other texts.

    Args:
        records: Of the first texts.
        others: In clear.
        privatizer: The setting. Plain tokens stand before the first text only, so the others are drawn without any.
        privatize: Draws records of texts, through a ledger where there is one.
        first_position: Position of the first record in its file, for messages.

    Raises:
        CorpusError: As `Privatizer.privatize`.
    """
    bare = replace(privatizer, plain_tokens=NO_PLAIN_TOKENS)
    for part, texts in others.items():
        if part == "public_target":
            ids = [tuple(content) for content in bare.contents(texts, first_position=first_position)]
        else:
            ids = [record.token_ids for record in privatize(bare, texts)]
        pairs = zip(records, ids, strict=True)
        if part == "second":
            records = [replace(record, second_token_ids=own) for record, own in pairs]
        else:
            records = [replace(record, target_ids=own) for record, own in pairs]
    return records


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
