"""From texts to privatized records: z = M([k; x]) of RAPT, Eq. 5, for many texts in one batch.

Every content token goes through the mechanism: stop words, numbers, punctuation and [UNK] included. A token that passed
unchanged by rule would tell the service that it is the true one.

*Plain tokens.* k are public words, chosen before any text is read and privatized together with it. The service knows k
and sees M(k), and trains a head to undo the noise on them (RAPT, Sec. 3). Nothing here reads a text, so k says nothing
about one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal, Protocol, Self

import numpy as np

from rapt.arguments import check_arguments, check_fields
from rapt.errors import CorpusError, UsageError, name_record
from rapt.local.mechanisms.interface import Mechanism, share_memory
from rapt.local.randomness import RandomStream
from rapt.local.vocabulary import Vocabulary, check_texts
from rapt.version import __version__
from rapt.wire.manifest import (
    LONGEST_BUCKET,
    NO_PLAIN_TOKENS,
    Arrangement,
    LabelPrivacy,
    Manifest,
    PlainTokens,
    Randomness,
    Targets,
)
from rapt.wire.mechanism_setting import MechanismSetting
from rapt.wire.privatized_file import PrivatizedRecord

Drawn = Literal["file", "record"]
# Common words that plain tokens are drawn from unless another number is named.
USUAL_POOL: Final = 500
# Common words that a text is filled up with.
PADDING_WORDS: Final = 500


@check_arguments
def plan_plain_tokens(
    vocabulary: Vocabulary, *, count: int, pool_size: int, drawn: Drawn, rng: np.random.Generator
) -> PlainTokens:
    """A pool of common whole words and, when one sequence serves the whole file, that sequence.

    Paper: drawn from the whole vocabulary (RAPT, Sec. 3). Here: from a pool, because a reconstruction head over all of
    V drowns the task on small data; `pool_size` moves between the two. Effect: on utility only, k is public.

    Args:
        vocabulary: Vocabulary of the words; in BERT's files the order of ids is roughly that of frequency.
        count: m, how many stand before each record; 0 for none at all.
        pool_size: |T|, how many words to draw from: the first ones in order of id.
        drawn: "file" for one sequence for all records, "record" for a fresh one each.
        rng: Source of the sequence. Draws are independent and uniform over the pool, repetition allowed.

    Raises:
        UsageError: A count below 0, a pool that is empty or larger than the vocabulary has words, or another `drawn`.
    """
    if drawn not in ("file", "record"):
        raise UsageError(f"plain tokens must be drawn once a 'file' or once a 'record', got drawn={drawn!r}")
    if count < 0:
        raise UsageError(f"the number of plain tokens must be at least 0, got count={count}")
    if count == 0:
        return NO_PLAIN_TOKENS
    if pool_size < 1:
        raise UsageError(f"the pool of plain tokens must have at least 1 word, got pool_size={pool_size}")
    words = find_whole_words(vocabulary, at_most=pool_size)
    if len(words) < pool_size:
        raise UsageError(
            f"the pool of plain tokens must have at most the {len(words)} words of model={vocabulary.model!r}, "
            f"got pool_size={pool_size}"
        )
    plan = PlainTokens(count=count, pool=words, fixed=None)
    if drawn == "record":
        return plan
    return PlainTokens(count=count, pool=words, fixed=draw_plain_tokens(plan, rng))


def draw_plain_tokens(plain: PlainTokens, rng: np.random.Generator) -> tuple[int, ...]:
    """Plain tokens for one record: the file's, where one is fixed, else a fresh draw."""
    if plain.fixed is not None or plain.count == 0:
        return plain.fixed or ()
    return tuple(plain.pool[i] for i in rng.integers(len(plain.pool), size=plain.count))


def find_whole_words(vocabulary: Vocabulary, *, at_most: int) -> tuple[int, ...]:
    """The first eligible ids, in order, whose token is a word of two letters or more and not a piece (`##ing`)."""
    words: list[int] = []
    for token_id, token in zip(
        vocabulary.eligible.tolist(), vocabulary.tokens(vocabulary.eligible.tolist()), strict=True
    ):
        if len(words) >= at_most:
            break
        if len(token) > 1 and token.isalpha():
            words.append(token_id)
    return tuple(words)


class PublicSetting(Protocol):
    """A mechanism of any unit: its setting may be published."""

    @property
    def setting(self) -> MechanismSetting:
        """Name and public parameters, as a manifest states them."""
        ...


class TextPrivatizer(Protocol):
    """A setting that texts are privatized with, token by token or whole: what files, records and ledgers need of it.

    It is a value that can be published; texts, labels and randomness are arguments and are not kept.
    """

    @property
    def vocabulary(self) -> Vocabulary:
        """Tokenizer of the texts."""
        ...

    @property
    def vocabulary_hash(self) -> str:
        """`sha256:...` of the vocabulary, or of the code, whose ids leave."""
        ...

    @property
    def mechanism(self) -> PublicSetting:
        """Mechanism M that replaces tokens."""
        ...

    @property
    def truncate_to(self) -> int | None:
        """Content tokens to keep of a longer text."""
        ...

    @property
    def plain_tokens(self) -> PlainTokens:
        """k, or the pool that k is drawn from for each record."""
        ...

    @property
    def longest_text(self) -> int:
        """Content tokens that a text may have."""
        ...

    def with_plain_tokens(self, plain_tokens: PlainTokens) -> Self:
        """The same setting with other plain tokens."""
        ...

    def share_memory(self, *, among: int) -> Self:
        """The same setting for one of several processes, so that together they keep to its bound of memory."""
        ...

    def privatize(
        self,
        texts: Sequence[str],
        *,
        labels: Sequence[int | None] | None,
        stream: RandomStream,
        first_position: int = 0,
        known: Sequence[tuple[int, ...] | None] | None = None,
    ) -> list[PrivatizedRecord]:
        """One record for each text, in order."""
        ...

    def contents(self, texts: Sequence[str], *, first_position: int = 0) -> list[list[int]]:
        """The content tokens of each text in clear, as the mechanism sees them."""
        ...

    def marks(self, texts: Sequence[str], *, first_position: int = 0) -> list[tuple[int, ...]]:
        """What beside the tokens of each text says how they are replaced; nothing where all are replaced alike."""
        ...

    def token_counts(self, texts: Sequence[str], *, first_position: int = 0) -> list[int]:
        """How many ids the record of each text has."""
        ...

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many texts are cut, because they are longer than the setting keeps."""
        ...

    def manifest(
        self,
        *,
        labels: tuple[str, ...] | None,
        randomness: Randomness,
        label_privacy: LabelPrivacy | None = None,
        pairs: bool = False,
        targets: Targets | None = None,
    ) -> Manifest:
        """The manifest of a file made with this setting, its counts still 0."""
        ...


@dataclass(frozen=True, repr=False)
class Privatizer:
    """A setting that can be published; texts, labels and randomness are arguments and are not kept.

    Attributes:
        vocabulary: Vocabulary of the backbone that will read the records.
        mechanism: Mechanism M.
        plain_tokens: k, or the pool that k is drawn from for each record.
        truncate_to: Content tokens to keep of a longer text; None refuses texts that are too long.
        length_bucket: Number whose multiples the lengths are rounded up to, by public words that go through the
            mechanism as the text does; None sends the length of each text.
    """

    vocabulary: Vocabulary
    mechanism: Mechanism
    plain_tokens: PlainTokens
    truncate_to: int | None = None
    length_bucket: int | None = None

    def __post_init__(self) -> None:
        """Refuse a setting that no text can satisfy (`UsageError`)."""
        check_fields(self)
        if self.truncate_to is not None and self.truncate_to < 1:
            raise UsageError(f"truncate_to must be at least 1 token, got truncate_to={self.truncate_to}")
        if self.length_bucket is not None and not 2 <= self.length_bucket <= LONGEST_BUCKET:
            raise UsageError(
                f"length_bucket must be 2 to {LONGEST_BUCKET} tokens, got length_bucket={self.length_bucket}"
            )
        if self.longest_text < (self.length_bucket or 1):
            raise UsageError(
                f"plain tokens must leave room for a text in the {self.vocabulary.bundle.max_tokens} tokens that "
                f"model={self.vocabulary.model!r} takes, got count={self.plain_tokens.count}; use fewer"
            )

    def __repr__(self) -> str:
        """The setting in a line."""
        mechanism = self.mechanism.setting
        return (
            f"Privatizer(model={self.vocabulary.model[:60]!r}, mechanism={mechanism.name!r}, eta={mechanism.eta:g}, "
            f"plain_tokens={self.plain_tokens.count}, truncate_to={self.truncate_to})"
        )

    @property
    def longest_text(self) -> int:
        """Content tokens that fit into the backbone beside the special and the plain tokens."""
        bundle = self.vocabulary.bundle
        return bundle.max_tokens - bundle.special_tokens - self.plain_tokens.count

    @property
    def vocabulary_hash(self) -> str:
        """`sha256:...` of the vocabulary."""
        return self.vocabulary.hash

    def with_plain_tokens(self, plain_tokens: PlainTokens) -> Self:
        """The same setting with other plain tokens."""
        return replace(self, plain_tokens=plain_tokens)

    def share_memory(self, *, among: int) -> Self:
        """The same setting with the share of its mechanism's cache that one of several processes may have."""
        return replace(self, mechanism=share_memory(self.mechanism, among=among))

    def privatize(
        self,
        texts: Sequence[str],
        *,
        labels: Sequence[int | None] | None,
        stream: RandomStream,
        first_position: int = 0,
        known: Sequence[tuple[int, ...] | None] | None = None,
    ) -> list[PrivatizedRecord]:
        """One record for each text, in order.

        A text without any token (empty, or nothing but spaces and control characters) is refused: it would leave the
        trusted side as it is, recognizably empty.

        Args:
            texts: Texts in clear; not kept, and never part of an error.
            labels: Index of each text's label, or None where there are none. They leave as they are given.
            stream: Source of plain tokens, then noise. It must not have been copied from another process.
            first_position: Position of the first text in its file, for messages.
            known: M(x) of texts that were released before, as a ledger stores it, and None for each other text; those
                are not drawn again. Plain tokens are drawn for every record: they say nothing about a text.

        Raises:
            CorpusError: A text has no token, too many, or is not valid Unicode; named by its position.
            UsageError: Labels and texts differ in number, a known release is of another text, or the stream is another
                process's.
        """
        texts = check_texts(texts, first_position=first_position)
        given = check_labels(labels, texts=len(texts), first_position=first_position)
        stream.check_process()
        # Before any text is looked at: k cannot depend on x.
        plain = [draw_plain_tokens(self.plain_tokens, stream.generator) for _ in texts]
        contents = self.contents(texts, first_position=first_position)
        stored = [None] * len(texts) if known is None else list(known)
        check_known(stored, [self._count_padded(len(content)) for content in contents], first_position=first_position)
        drawn = [self._pad(x, stream.generator) if y is None else [] for x, y in zip(contents, stored, strict=True)]
        flat = [token for k, x in zip(plain, drawn, strict=True) for token in (*k, *x)]
        private = self.mechanism.privatize(np.array(flat, dtype=np.int64), rng=stream.generator).tolist()
        fresh = self.plain_tokens.count > 0 and self.plain_tokens.fixed is None
        records, start = [], 0
        for position, (k, x, y) in enumerate(zip(plain, drawn, stored, strict=True)):
            middle, end = start + len(k), start + len(k) + len(x)
            records.append(
                PrivatizedRecord(
                    token_ids=tuple(private[middle:end]) if y is None else y,
                    label=None if given is None else given[position],
                    privatized_plain_tokens=tuple(private[start:middle]),
                    plain_tokens=k if fresh else None,
                )
            )
            start = end
        return records

    def marks(self, texts: Sequence[str], *, first_position: int = 0) -> list[tuple[int, ...]]:
        """Nothing: all tokens are replaced by the same mechanism."""
        return [()] * len(texts)

    def token_counts(self, texts: Sequence[str], *, first_position: int = 0) -> list[int]:
        """How many tokens the record of each text has; raises `CorpusError` as `privatize` does."""
        return [self._count_padded(len(content)) for content in self.contents(texts, first_position=first_position)]

    def _count_padded(self, tokens: int) -> int:
        """Return the number of tokens that leave of a text with so many."""
        if self.length_bucket is None:
            return tokens
        return -(-tokens // self.length_bucket) * self.length_bucket

    def _pad(self, content: list[int], rng: np.random.Generator) -> list[int]:
        """Return the content with public words after it; they are replaced like the others, so none stands out."""
        missing = self._count_padded(len(content)) - len(content)
        if not missing:
            return content
        return content + [self._padding[i] for i in rng.integers(len(self._padding), size=missing)]

    @cached_property
    def _padding(self) -> tuple[int, ...]:
        return find_whole_words(self.vocabulary, at_most=PADDING_WORDS)

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many texts are longer than `truncate_to`; raises `CorpusError` as `privatize` does."""
        if self.truncate_to is None:
            return 0
        return sum(len(content) > self.truncate_to for content in self.vocabulary.encode(texts))

    def manifest(
        self,
        *,
        labels: tuple[str, ...] | None,
        randomness: Randomness,
        label_privacy: LabelPrivacy | None = None,
        pairs: bool = False,
        targets: Targets | None = None,
    ) -> Manifest:
        """The manifest of a file made with this setting, its counts still 0: the writer fills them in."""
        return Manifest(
            model=self.vocabulary.model,
            vocabulary_hash=self.vocabulary.hash,
            mechanism=self.mechanism.setting,
            randomness=randomness,
            plain_tokens=self.plain_tokens,
            labels=labels,
            label_privacy=label_privacy,
            pairs=pairs,
            targets=targets,
            records=0,
            tokens=0,
            records_sha256="",
            created_by=f"rapt {__version__}",
            arrangement=Arrangement(length_bucket=self.length_bucket),
        )

    def contents(self, texts: Sequence[str], *, first_position: int = 0) -> list[list[int]]:
        """The content tokens of each text in clear, cut where the setting says so, within the backbone's limit.

        Raises:
            CorpusError: The reasons of `privatize`.
        """
        encoded = self.vocabulary.encode(texts, first_position=first_position)
        contents = [content[: self.truncate_to] for content in encoded]
        for position, content in enumerate(contents, first_position):
            if not content:
                raise CorpusError(f"{name_record(position)} must have at least one token, got an empty text; remove it")
            if (tokens := self._count_padded(len(content))) > self.longest_text:
                most = self.longest_text // (self.length_bucket or 1) * (self.length_bucket or 1)
                raise CorpusError(
                    f"{name_record(position)} must have at most {most} tokens beside "
                    f"{self.plain_tokens.count} plain and {self.vocabulary.bundle.special_tokens} special ones, got "
                    f"{tokens}; split it, or cut it there with `truncate_to={most}`"
                )
        return contents


def check_labels(labels: Sequence[int | None] | None, *, texts: int, first_position: int) -> list[int | None] | None:
    """The labels as plain integers, whole numbers of NumPy among them; a missing one is None, never NaN.

    Raises:
        UsageError: They are not as many as the texts, or one is no index, named by its position.
    """
    if labels is None:
        return None
    if len(labels) != texts:
        raise UsageError(f"there must be one label for each text, got {len(labels)} labels for {texts} texts")
    for position, label in enumerate(labels, first_position):
        if label is not None and (isinstance(label, bool) or not isinstance(label, int | np.integer)):
            raise UsageError(
                f"the label of {name_record(position)} must be the index of a class or None, got "
                f"{type(label).__name__}; look it up in the list of classes"
            )
    return [None if label is None else int(label) for label in labels]


def check_known(known: Sequence[tuple[int, ...] | None], counts: Sequence[int], *, first_position: int) -> None:
    """Refuse known releases that are not as many as the texts, or have another number of ids (`UsageError`)."""
    if len(known) != len(counts):
        raise UsageError(f"there must be one known release or none for each text, got {len(known)} for {len(counts)}")
    for position, (y, count) in enumerate(zip(known, counts, strict=True), first_position):
        if y is not None and len(y) != count:
            raise UsageError(
                f"a known release must be of the same text and setting, got {len(y)} tokens for {count} in "
                f"{name_record(position)}; draw it again"
            )
