"""Records of more than one text: a pair of sentences, a text with the one that is to be generated from it.

Every text of a record is private and goes through the same mechanism, each as a release of its own: a sentence costs
the same whether it stands first, second or as a target, and a ledger knows it wherever it stands. Equal texts of one
record are drawn apart. A target alone may be declared public by the user; it then leaves as it is. Records are
privatized a few hundred at a time, which keeps the matrix product busy, and in the same way in whichever process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final, Literal

from rapt.errors import CorpusError, name_record
from rapt.local.label_privacy import RandomizedResponse
from rapt.local.privatizer import TextPrivatizer
from rapt.local.randomness import RandomStream
from rapt.wire.manifest import NO_PLAIN_TOKENS, Manifest, Targets
from rapt.wire.privatized_file import PrivatizedPart, PrivatizedRecord

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


def explain_long_pair(privatizer: TextPrivatizer, tokens: int) -> str | None:
    """Say what a pair of so many tokens in both texts must have instead, where it fits no backbone."""
    most = privatizer.longest_text - _BETWEEN
    if tokens <= most:
        return None
    return f"have at most {most} tokens in both texts, got {tokens}; cut both with `truncate_to={most // 2}`"


def check_pairs(
    privatizer: TextPrivatizer, texts: Sequence[str], others: Mapping[Part, Sequence[str]], *, first_position: int
) -> None:
    """Refuse a pair that fits no backbone, before anything of it is drawn or paid for (`CorpusError`)."""
    if "second" not in others:
        return
    counts = (privatizer.token_counts(part, first_position=first_position) for part in (texts, others["second"]))
    for position, (first, second) in enumerate(zip(*counts, strict=True), first_position):
        rule = explain_long_pair(privatizer, first + second)
        if rule is not None:
            raise CorpusError(f"{name_record(position)} must {rule}")


# Texts privatized at once: thousands of tokens, enough to keep the matrix product busy, and about a second of work,
# so that progress moves. For several processes less, so that at the end of a file none waits long for the others.
CHUNK: Final = 512
CHUNK_OF_A_WORKER: Final = 256


@dataclass(frozen=True)
class Chunk:
    """Texts that are privatized at once; in clear, so nothing of them shows.

    Attributes:
        position: Position of the first record in its file.
        texts: Texts in clear.
        labels: Index of each text's true label, or None where no labels are sent.
        others: The other texts of each record, by the part of the record that they become.
        known: Stored release of each text, and None for one that is to be drawn, by the part of the record.
    """

    position: int
    texts: list[str] = field(repr=False)
    labels: list[int] | None = field(repr=False)
    others: Mapping[Part, list[str]] = field(default_factory=dict, repr=False)
    known: Mapping[PrivatizedPart, Sequence[tuple[int, ...] | None]] = field(default_factory=dict, repr=False)

    @property
    def privatized_texts(self) -> dict[PrivatizedPart, list[str]]:
        """Return the texts that go through the mechanism, by the part of the record that they become, in order."""
        found: dict[PrivatizedPart, list[str]] = {"first": self.texts}
        for part, texts in self.others.items():
            if part != "public_target":
                found[part] = texts
        return found


def cut_into_chunks(
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
    """Setting that every chunk of a file is privatized with, in whichever process.

    Attributes:
        privatizer: The setting of its texts.
        response: Randomizes labels; None sends them in clear.
        manifest: Manifest of the file that the records are for.
    """

    privatizer: TextPrivatizer
    response: RandomizedResponse | None
    manifest: Manifest


def privatize_records(chunk: Chunk, setting: ChunkSetting, *, stream: RandomStream) -> list[PrivatizedRecord]:
    """One record for each record of the chunk, with all of its texts, each drawn as a release of its own.

    Args:
        chunk: Texts and labels in clear, and what is known of them.
        setting: Privatization of the records. Plain tokens stand before the first text only.
        stream: Source of labels, plain tokens and noise, in this order.

    Raises:
        CorpusError: The reasons of `Privatizer.privatize`, or a pair is too long; nothing was drawn then.
        UsageError: The reasons of `Privatizer.privatize`.
    """
    check_pairs(setting.privatizer, chunk.texts, chunk.others, first_position=chunk.position)
    labels = chunk.labels
    if setting.response is not None and labels is not None:
        labels = setting.response.randomize(labels, rng=stream.generator)
    privatizer, records = setting.privatizer, []
    for part, texts in chunk.privatized_texts.items():
        drawn = privatizer.privatize(
            texts,
            labels=labels if part == "first" else None,
            stream=stream,
            first_position=chunk.position,
            known=chunk.known.get(part),
        )
        if part == "first":
            records, privatizer = drawn, privatizer.with_plain_tokens(NO_PLAIN_TOKENS)
        else:
            records = [put_text(record, part, own.token_ids) for record, own in zip(records, drawn, strict=True)]
    if (public := chunk.others.get("public_target")) is not None:
        contents = privatizer.contents(public, first_position=chunk.position)
        records = [replace(record, target_ids=tuple(own)) for record, own in zip(records, contents, strict=True)]
    return records


def put_text(record: PrivatizedRecord, part: PrivatizedPart, ids: tuple[int, ...]) -> PrivatizedRecord:
    """Return the record with another text in one of its parts."""
    if part == "first":
        return replace(record, token_ids=ids)
    return replace(record, second_token_ids=ids) if part == "second" else replace(record, target_ids=ids)
