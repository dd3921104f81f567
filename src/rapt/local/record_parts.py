"""Records of more than one text: a pair of sentences, a text with the one that is to be generated from it.

Every text of a record is private and goes through the same mechanism, each as a release of its own: a sentence costs
the same whether it stands first, second or as a target, and a ledger knows it wherever it stands. A target alone may be
declared public by the user; it then leaves as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rapt.errors import CorpusError, record_at
from rapt.local.privatizer import Privatizer
from rapt.wire.manifest import NO_PLAIN_TOKENS, Targets
from rapt.wire.privatized_file import PrivatizedRecord

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
