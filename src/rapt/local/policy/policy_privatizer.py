"""Texts under an entity policy: rewritten first, privatized then, by whatever setting there is.

Let f be the rewriting of a policy: it turns one text into another, with masks and pseudonyms. It is a function of that
text, the policy and the key of the pseudonyms, and of no other text. The key is drawn before any text is read.

*Whole texts under ε.* For any two texts x, x' and every code y,

    P(M(f(x)) = y) <= e^ε P(M(f(x')) = y).

Proof: f(x) and f(x') are two texts, and the guarantee of M is for any two. It holds for every key, so also on average
over keys. Of n texts the code of each depends on its own text and the key alone, so a change of one text changes the
law of its code and of no other. ∎ That a name stood in a text, how many and where, is part of the text: ε covers it.

*Tokens under η.* For any two texts x, x' with as many tokens in f(x) as in f(x'), and all tokens y,

    P(M(f(x)) = y) <= exp(η Σ d(f(x)_t, f(x')_t)) P(M(f(x')) = y).

Proof: it is the guarantee of M for the texts f(x) and f(x'). ∎ Two texts that differ only within masked entities of the
same kinds have f(x) = f(x'): nothing tells them apart, in whatever number of words a name is written. Placeholders and
pseudonyms go through M like every word, so that one stood there is protected as a token is. Not covered: how many
tokens f(x) has; and that a pseudonym is the same wherever its name comes, so its losses add up over texts.

*A strength of its own for a kind.* Let k(x) say for each token of f(x) under which mechanism the policy puts it: M at
η, M at the η of a kind, or randomized response over all tokens under the ε of a kind. For any two texts with as many
tokens and k(x) = k(x'), and all y,

    P(y | x) <= exp(Σ l_t) P(y | x'),   l_t = η_k d(f(x)_t, f(x')_t), or ε_k where the tokens differ.

Proof: given k, tokens are drawn independently, each by its mechanism; the bounds multiply. ∎ The weakest of them is the
largest η or ε. Not covered: k(x), that is which tokens a recognizer took for a kind. More or less noise shows it, and
for texts with another k there is no bound: what one word is can change how much noise its neighbours get.

What no recognizer finds is protected as any other word of the text, and no better.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from rapt.errors import CorpusError, MechanismError, UsageError, name_record
from rapt.local.codes.code_privatizer import join_pair, split_pair
from rapt.local.label_privacy import RandomizedResponse
from rapt.local.mechanisms import check_useful_eta, find_space, remake_mechanism
from rapt.local.mechanisms.interface import share_memory
from rapt.local.policy.policy import Policy, PolicyText
from rapt.local.privatizer import Privatizer, PublicSetting, TextPrivatizer
from rapt.local.randomness import RandomStream
from rapt.local.vocabulary import Vocabulary, check_texts
from rapt.wire.manifest import LabelPrivacy, Manifest, PlainTokens, Randomness, Targets
from rapt.wire.privatized_file import PrivatizedRecord

# Texts whose rewriting is remembered, because each is looked at more than once before it is drawn, and the characters
# of the longest of them: together 67 million characters, and those of their rewritings.
_REMEMBERED: Final = 16_384
_LONGEST_REMEMBERED: Final = 4_096


class _Replaces(Protocol):
    def privatize(self, token_ids: NDArray[np.int64], *, rng: np.random.Generator) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class _AnyToken:
    """Randomized response over the tokens that may be an output: ε for any two tokens, whatever their distance.

    A token that may be no output, such as [UNK], counts as the first that may; that is fixed before any text is read.
    """

    eligible: NDArray[np.int64] = field(repr=False)
    response: RandomizedResponse

    def privatize(self, token_ids: NDArray[np.int64], *, rng: np.random.Generator) -> NDArray[np.int64]:
        places = np.searchsorted(self.eligible, token_ids).clip(max=len(self.eligible) - 1)
        places[self.eligible[places] != token_ids] = 0
        return self.eligible[self.response.randomize(places.tolist(), rng=rng)]


@contextmanager
def keep_policy(partial: Path, privatizer: TextPrivatizer, *, begun: bool) -> Iterator[None]:
    """Refuse to go on with an unfinished file under another policy than the one it was begun with.

    Its manifest states kinds and treatments alone. So a digest of the whole policy stands beside the file, as
    `NAME.policy`, readable by its owner alone, for as long as the file is there.

    Args:
        partial: Name of the unfinished file, which is written, and put in place, in the block.
        privatizer: Setting of the run.
        begun: Whether an earlier run began the file.

    Raises:
        UsageError: The policy is another, or the digest of the one it was begun with is not there.
        CorpusError: The digest cannot be written.
    """
    if not isinstance(privatizer, PolicyPrivatizer):
        yield
        return
    note, digest = partial.with_name(f"{partial.name}.policy"), privatizer.policy.digest
    if not begun:
        try:
            note.unlink(missing_ok=True)
            with open(os.open(note, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as stream:
                stream.write(digest)
        except OSError as error:
            raise CorpusError(
                f"the output must be writable, got {error.strerror}; free space or choose another folder"
            ) from None
    elif not note.is_file() or note.read_text(encoding="ascii", errors="replace") != digest:
        raise UsageError(
            "an unfinished run must go on under the policy that it was begun with, got another; give that one, or "
            "begin anew with `overwrite=True`"
        )
    try:
        yield
    finally:
        if not partial.exists():
            note.unlink(missing_ok=True)


@dataclass(frozen=True, repr=False)
class PolicyPrivatizer:
    """A setting with an entity policy before it; the guarantee and its proof stand in the module.

    Attributes:
        inner: Setting of the rewritten texts.
        policy: The policy.
        remembered: Rewriting of the last texts, which several settings under one policy may share; in memory alone.
    """

    inner: TextPrivatizer
    policy: Policy
    remembered: dict[str, PolicyText] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        """Refuse kinds with a strength of their own in codes of whole texts (`UsageError`), or a useless one."""
        if isinstance(self.inner, PolicyPrivatizer):
            raise UsageError("a setting must have one policy, got two; leave one of them out")
        if self.mechanism.setting.unit == "text" and (kinds := self.policy.needs_tokens):
            raise UsageError(
                f"a kind with an eta or epsilon of its own must be of tokens, got {', '.join(kinds)} for whole texts, "
                "whose epsilon covers every word; write mask or pseudonym"
            )
        for kind, rule in self.policy.rules.items():
            if rule.treatment == "eta" and rule.strength is not None:
                space = find_space(self.mechanism.setting.name, self.vocabulary)
                try:
                    check_useful_eta(rule.strength, vocabulary=space)
                except MechanismError as error:
                    raise MechanismError(f"kind {kind!r}: {error}") from None

    def __repr__(self) -> str:
        """The setting in a line."""
        return f"PolicyPrivatizer({self.inner!r}, kinds={len(self.policy.rules)})"

    @property
    def vocabulary(self) -> Vocabulary:
        """Tokenizer of the texts."""
        return self.inner.vocabulary

    @property
    def vocabulary_hash(self) -> str:
        """`sha256:...` of the vocabulary, or of the code, whose ids leave."""
        return self.inner.vocabulary_hash

    @property
    def mechanism(self) -> PublicSetting:
        """Mechanism of all tokens whose kind has no strength of its own."""
        return self.inner.mechanism

    @property
    def truncate_to(self) -> int | None:
        """Content tokens to keep of a longer text."""
        return self.inner.truncate_to

    @property
    def plain_tokens(self) -> PlainTokens:
        """k, or the pool that k is drawn from for each record."""
        return self.inner.plain_tokens

    @property
    def longest_text(self) -> int:
        """Content tokens that a text may have."""
        return self.inner.longest_text

    def with_plain_tokens(self, plain_tokens: PlainTokens) -> Self:
        """The same setting with other plain tokens."""
        return replace(self, inner=self.inner.with_plain_tokens(plain_tokens))

    def share_memory(self, *, among: int) -> Self:
        """The same setting for one of several processes, without a text that this one remembers."""
        return replace(self, inner=self.inner.share_memory(among=among), remembered={})

    def privatize(
        self,
        texts: Sequence[str],
        *,
        labels: Sequence[int | None] | None,
        stream: RandomStream,
        first_position: int = 0,
        known: Sequence[tuple[int, ...] | None] | None = None,
    ) -> list[PrivatizedRecord]:
        """One record for each text, in order, as the inner setting makes it; new pseudonyms are written first.

        Raises:
            CorpusError: The reasons of the inner setting and of `Policy.apply`, by the position of the text.
            UsageError: The reasons of the inner setting and of `Policy.apply`.
            LedgerError: The map of pseudonyms cannot be written.
        """
        applied = self._apply(texts, first_position=first_position)
        self.policy.save()
        rewritten = [one.text for one in applied]
        records = self.inner.privatize(
            rewritten, labels=labels, stream=stream, first_position=first_position, known=known
        )
        if not self._strengths:
            return records
        # What the inner setting drew of a marked token is dropped unseen, and drawn again at its own strength.
        contents = self.inner.contents(rewritten, first_position=first_position)
        marks = self._mark(applied, contents)
        found = [list(record.token_ids) for record in records]
        for number, replaces in enumerate(self._strengths, 1):
            places = [
                (row, place)
                for row, own in enumerate(marks)
                if known is None or known[row] is None
                for place, mark in enumerate(own)
                if mark == number
            ]
            tokens = np.array([contents[row][place] for row, place in places], dtype=np.int64)
            drawn = replaces.privatize(tokens, rng=stream.generator).tolist() if places else []
            for (row, place), token in zip(places, drawn, strict=True):
                found[row][place] = token
        return [replace(record, token_ids=tuple(own)) for record, own in zip(records, found, strict=True)]

    def contents(self, texts: Sequence[str], *, first_position: int = 0) -> list[list[int]]:
        """The content tokens of each rewritten text, as the mechanism sees them."""
        rewritten = [one.text for one in self._apply(texts, first_position=first_position)]
        return self.inner.contents(rewritten, first_position=first_position)

    def marks(self, texts: Sequence[str], *, first_position: int = 0) -> list[tuple[int, ...]]:
        """For each token of `contents` the number of its kind among those with a strength, or 0."""
        applied = self._apply(texts, first_position=first_position)
        if not self._strengths:
            return [()] * len(applied)
        return self._mark(applied, self.inner.contents([one.text for one in applied], first_position=first_position))

    def token_counts(self, texts: Sequence[str], *, first_position: int = 0) -> list[int]:
        """How many ids the record of each text has."""
        rewritten = [one.text for one in self._apply(texts, first_position=first_position)]
        return self.inner.token_counts(rewritten, first_position=first_position)

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many rewritten texts are cut, because they are longer than the setting keeps."""
        return self.inner.count_cut([one.text for one in self._apply(texts, first_position=0)])

    def manifest(
        self,
        *,
        labels: tuple[str, ...] | None,
        randomness: Randomness,
        label_privacy: LabelPrivacy | None = None,
        pairs: bool = False,
        targets: Targets | None = None,
    ) -> Manifest:
        """The manifest of a file made with this setting, with its kinds and their treatments."""
        made = self.inner.manifest(
            labels=labels, randomness=randomness, label_privacy=label_privacy, pairs=pairs, targets=targets
        )
        return replace(made, policy=self.policy.setting)

    def _apply(self, texts: Sequence[str], *, first_position: int) -> list[PolicyText]:
        texts = check_texts(texts, first_position=first_position)
        found = []
        for position, text in enumerate(texts, first_position):
            if (applied := self.remembered.get(text)) is None:
                try:
                    applied = self._rewrite(text)
                except CorpusError as error:
                    raise CorpusError(f"{name_record(position)} must have what a policy can read: {error}") from None
                if len(self.remembered) >= _REMEMBERED:
                    self.remembered.clear()
                if len(text) <= _LONGEST_REMEMBERED:
                    self.remembered[text] = applied
            found.append(applied)
        return found

    def _rewrite(self, text: str) -> PolicyText:
        """Apply the policy to a text, or to both texts of a pair that codes take as one."""
        if self.mechanism.setting.unit == "text":
            first, second = split_pair(text)
            if second:
                joined = join_pair(self.policy.apply(first).text, self.policy.apply(second).text)
                return PolicyText(joined, (), (), ())
        return self.policy.apply(text)

    @cached_property
    def _strengths(self) -> tuple[_Replaces, ...]:
        """What replaces the tokens of each kind with a strength of its own, in the order of `needs_tokens`."""
        found: list[_Replaces] = []
        for kind in self.policy.needs_tokens:
            rule = self.policy.rules[kind]
            assert rule.strength is not None
            assert isinstance(self.inner, Privatizer)
            if rule.treatment == "epsilon":
                eligible = self.vocabulary.eligible
                found.append(_AnyToken(eligible, RandomizedResponse(classes=len(eligible), epsilon=rule.strength)))
                continue
            setting = self.inner.mechanism.setting
            setting = replace(setting, parameters={**setting.parameters, "eta": rule.strength})
            try:
                made = remake_mechanism(setting, vocabulary=self.vocabulary, allow_unproved=True)
            except MechanismError:
                raise MechanismError(
                    f"an eta of its own must be of a mechanism that eta alone makes, such as laplace, got "
                    f"mechanism={setting.name!r} for kind={kind!r}; mask the kind, or take another mechanism"
                ) from None
            found.append(share_memory(made, among=1 + len(self.policy.needs_tokens)))
        return tuple(found)

    def _mark(self, applied: Sequence[PolicyText], contents: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """The number of each token's kind among those with a strength; where two meet in a token, the strictest."""
        rules = self.policy.rules
        kinds = self.policy.needs_tokens
        marks = []
        for one, spans, content in zip(
            applied, self.vocabulary.spans([one.text for one in applied]), contents, strict=True
        ):
            own = [0] * len(content)
            for entity in sorted(one.marked, key=lambda entity: rules[entity.kind].strictness, reverse=True):
                for place, (left, right) in enumerate(spans[: len(content)]):
                    if left < entity.end and entity.start < right:
                        own[place] = kinds.index(entity.kind) + 1
            marks.append(tuple(own))
        return marks
