"""Records of more than one text: a pair of sentences, a text with the one that is to be generated from it.

Every text of a record is private and goes through the same mechanism, each as a release of its own: a sentence costs
the same whether it stands first, second or as a target, and a ledger knows it wherever it stands. Equal texts of one
record are drawn apart. A target alone may be declared public by the user; it then leaves as it is. Records are
privatized a few hundred at a time, which keeps the matrix product busy, and in the same way in whichever process.

*Order.* The order of a source says when a text was written, or which texts belong together. The order of a file's
records is drawn from a key that stays on the trusted side. Whoever has the receipt of a run can put the records back,
as an audit must, which compares them with the source.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from randomgen import ChaCha  # type: ignore[import-untyped]  # it ships no type stubs

from rapt.errors import CorpusError, LedgerError, UsageError, name_record
from rapt.local.label_privacy import RandomizedResponse
from rapt.local.ledger_place import find_receipt, name_receipt, read_receipt
from rapt.local.privatizer import TextPrivatizer
from rapt.local.randomness import RandomStream
from rapt.wire.manifest import NO_PLAIN_TOKENS, Manifest, Randomness, Targets
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedPart, PrivatizedRecord, read_privatized_file

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
# so that progress moves. For several processes less, so that at the end of a file none waits long for the others; but
# not on a cluster, where each costs its nodes some 10 ms.
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


def make_order_key(randomness: Randomness) -> bytes:
    """Make a fresh key of 32 bytes; under an insecure seed, the one that follows from the seed."""
    if randomness.insecure_seed is None:
        return secrets.token_bytes(32)
    return hashlib.sha256(f"rapt order {randomness.insecure_seed}".encode()).digest()


def draw_order(count: int, *, key: bytes) -> NDArray[np.int64]:
    """Draw a permutation, (count,): the place in the source of each record of the file, every order as likely.

    Numbers of 64 bits from ChaCha20 under the key are sorted, so it is the same wherever it is drawn again.
    """
    numbers = ChaCha(key=int.from_bytes(key, "little"), rounds=20).random_raw(count)
    return np.argsort(np.asarray(numbers, dtype=np.uint64).reshape(count), kind="stable")


def restore_order(file: PrivatizedFile, *, key: bytes) -> PrivatizedFile:
    """Return the records of a file in the order of their source."""
    records = list(file.records)
    for record, place in zip(file.records, draw_order(len(records), key=key).tolist(), strict=True):
        records[place] = record
    return replace(file, records=tuple(records))


def read_in_order_of_source(path: Path, *, receipt: Path | None, ledger: Path | None) -> PrivatizedFile:
    """Read a privatized file with its records in the order of its source, as comparing it with the source needs.

    Args:
        path: Path of the privatized file.
        receipt: Receipt of the run that wrote it; None looks for it.
        ledger: Ledger to look beside; None looks beside those in the folder of the file and above.

    Raises:
        LedgerError: The records were shuffled, and there is no receipt of them, or it cannot be read.
        UsageError: Both a receipt and a ledger are given.
        WireError: The reasons of `read_privatized_file`.
    """
    if receipt is not None and ledger is not None:
        raise UsageError("`receipt` and `ledger` both name the receipt; give one of them")
    file = read_privatized_file(path)
    manifest = file.manifest
    if not manifest.arrangement.shuffled:
        return file
    if manifest.randomness.insecure_seed is not None:
        return restore_order(file, key=make_order_key(manifest.randomness))
    if ledger is not None:
        place: Path | None = name_receipt(ledger, manifest.records_sha256)
    else:
        place = receipt or find_receipt(path, manifest.records_sha256)
    if place is None or not place.is_file():
        where = "in its folder or above" if place is None else "there"
        raise LedgerError(
            "the records of this file were shuffled: the receipt of the run that wrote them must be at hand to compare "
            f"them with their source, got none {where}; name the run's ledger (`ledger`), or the receipt (`receipt`)"
        )
    found = read_receipt(place)
    key = found.get("order_key")
    if found.get("records_sha256") != manifest.records_sha256 or not isinstance(key, str):
        raise LedgerError("the receipt must be that of this file, got another; name the one that its run wrote")
    try:
        return restore_order(file, key=bytes.fromhex(key))
    except ValueError:
        raise LedgerError("the receipt must have the key of the order; name the one that the run wrote") from None
