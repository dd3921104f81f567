"""A look at one text: what could leave in its place, by draws of the very setting that would release it.

Nothing that is drawn here leaves, so nothing is counted: the draws are for the eyes of the text's owner, and are thrown
away. Draws of one text add up for whoever sees them, so they are shown on this machine and nowhere else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import MechanismError, UsageError
from rapt.local.calibration_search import compute_share_interval
from rapt.local.codes.code_privatizer import CodePrivatizer, encode_codes
from rapt.local.codes.subset import make_subset
from rapt.local.codes.text_statement import state_text_privacy
from rapt.local.deniability import measure_unchanged
from rapt.local.mechanisms import remake_mechanism
from rapt.local.policy.policy_privatizer import PolicyPrivatizer
from rapt.local.privatizer import Privatizer, TextPrivatizer
from rapt.local.randomness import RandomStream
from rapt.local.weighting import weigh_running_text
from rapt.severity import Severity, find_worst, weigh_attack
from rapt.wire.manifest import NO_PLAIN_TOKENS

MOST_CHARACTERS: Final = 2000
# Tokens of a text that are shown, the first ones.
MOST_TOKENS: Final = 64
# Draws over all tokens of a text: a second on one core with MiniLM's table.
_DRAWS: Final = 2**14
_MOST_DRAWS: Final = 512
_OTHERS: Final = 5
# An interval of at most ± 2.2 points, as in `kept_share`.
_RUNNING: Final = 2048


@dataclass(frozen=True, kw_only=True)
class WeighedShare:
    """A share of 1 with its 95 % interval, and how bad it is.

    Attributes:
        value, low, high: The share and its interval.
        severity: Severity of that share beside a blind guess.
    """

    value: float
    low: float
    high: float
    severity: Severity


@dataclass(frozen=True, kw_only=True, repr=False)
class TokenLook:
    """One token of a text, and what left in its place in many draws; its `repr` shows nothing of it.

    Attributes:
        token: The token in clear.
        kept: Share of the draws in which it stayed.
        others: The most frequent other outputs, each with its share of the draws.
    """

    token: str
    kept: WeighedShare
    others: tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class TextLook:
    """A text of tokens at one η.

    Attributes:
        eta: η of the tokens whose kind has no rule of its own.
        draws: Number of draws of the whole text.
        tokens: The first tokens of the text.
        left_out: Number of tokens behind them, which are not shown.
        example: One draw of these tokens.
        own: Share of the tokens of this text that stay.
        running: Share of the tokens of running public text that stay, where no policy treats them otherwise.
        blind: Share that the best guess without seeing anything names, of running public text.
    """

    eta: float
    draws: int
    tokens: tuple[TokenLook, ...]
    left_out: int
    example: tuple[str, ...]
    own: WeighedShare
    running: WeighedShare
    blind: float


@dataclass(frozen=True, kw_only=True)
class CodeGuess:
    """How often anybody who sees a code can name its text.

    Attributes:
        among: Number of texts, all as likely.
        blind: Share without having seen the code.
        right: Share that no guess exceeds.
        severity: Severity of that bound.
    """

    among: int
    blind: float
    right: float
    severity: Severity


@dataclass(frozen=True, kw_only=True, repr=False)
class CodeLook:
    """A whole text at one ε; its `repr` shows nothing of it.

    Attributes:
        epsilon: ε of the text.
        codewords: Number of codewords that could leave.
        preferred: Number of them, nearest to the text's code, that leave more often than the others.
        near: Probability that one of those leaves.
        odds: Factor by which one of those leaves more often than any other.
        example: Ids of the codewords of one draw.
        ranks: Places of these codewords among all, by nearness to the text's own code, from 1 on.
        likeness: Mean inner product of the text's code with what leaves, 1 where they are one.
        guesses: Share of the time that a text can be named, among several numbers of texts.
        severity: Severity of the bound among a thousand texts.
    """

    epsilon: float
    codewords: int
    preferred: int
    near: float
    odds: float
    example: tuple[int, ...]
    ranks: tuple[int, ...]
    likeness: float
    guesses: tuple[CodeGuess, ...]
    severity: Severity


def set_strength(privatizer: TextPrivatizer, strength: float) -> TextPrivatizer:
    """Return a setting at another η, or ε, without plain tokens.

    Raises:
        MechanismError: The strength is outside its domain, or the mechanism cannot be made from its setting alone.
    """
    stated = privatizer.mechanism.setting
    if strength == (stated.epsilon if stated.unit == "text" else stated.eta):
        return privatizer.with_plain_tokens(NO_PLAIN_TOKENS)
    if isinstance(privatizer, PolicyPrivatizer):
        return replace(privatizer, inner=set_strength(privatizer.inner, strength))
    if isinstance(privatizer, CodePrivatizer):
        return replace(privatizer, mechanism=make_subset(privatizer.mechanism.bundle, epsilon=strength))
    if not isinstance(privatizer, Privatizer):
        raise MechanismError("the strength must be of a setting that is known here; start the gateway with another")
    setting = replace(stated, parameters={**stated.parameters, "eta": float(strength)})
    mechanism = remake_mechanism(setting, vocabulary=privatizer.vocabulary, allow_unproved=True)
    return replace(privatizer, mechanism=mechanism, plain_tokens=NO_PLAIN_TOKENS)


def check_text(text: str) -> str:
    """Refuse a text that is too long to look at (`UsageError`)."""
    if len(text) > MOST_CHARACTERS:
        raise UsageError(f"a text to look at must have at most {MOST_CHARACTERS:,} characters; look at a part of it")
    return text


def look_at_tokens(privatizer: TextPrivatizer, text: str, *, stream: RandomStream) -> TextLook:
    """Look at a text whose tokens are replaced one by one.

    Args:
        privatizer: Setting of tokens, with a policy or without.
        text: Text in clear; it is not kept.
        stream: Source of draws that are thrown away; never that of a release.

    Raises:
        CorpusError: The text has no token, or more than the setting takes.
    """
    bare, vocabulary = _keep_no_name(privatizer.with_plain_tokens(NO_PLAIN_TOKENS)), privatizer.vocabulary
    (content,) = bare.contents([text])
    shown = content[:MOST_TOKENS]
    draws = min(_MOST_DRAWS, max(1, _DRAWS // len(content)))
    records = bare.privatize([text] * draws, labels=None, stream=stream)
    drawn = np.array([record.token_ids for record in records], dtype=np.int64)
    inner = bare.inner if isinstance(bare, PolicyPrivatizer) else bare
    assert isinstance(inner, Privatizer)
    weighting = weigh_running_text(vocabulary)
    blind = float(weighting.shares.max())
    running = measure_unchanged(inner.mechanism, vocabulary, rng=stream.generator, draws=_RUNNING)

    def weigh(value: float, low: float, high: float) -> WeighedShare:
        return WeighedShare(value=value, low=low, high=high, severity=weigh_attack(value, blind=blind))

    written = vocabulary.tokens(shown)
    found = []
    for place, (token_id, token) in enumerate(zip(shown, written, strict=True)):
        counts = Counter(drawn[:, place].tolist())
        kept = counts.pop(token_id, 0) / draws
        likeliest = counts.most_common(_OTHERS)
        names = vocabulary.tokens([other for other, _ in likeliest])
        others = tuple((name, times / draws) for name, (_, times) in zip(names, likeliest, strict=True))
        found.append(TokenLook(token=token, kept=weigh(kept, *compute_share_interval(kept, draws)), others=others))
    stays = float((drawn == np.array(content)).mean())
    return TextLook(
        eta=inner.mechanism.setting.eta,
        draws=draws,
        tokens=tuple(found),
        left_out=len(content) - len(shown),
        example=tuple(vocabulary.tokens(drawn[0, : len(shown)].tolist())),
        own=weigh(stays, *compute_share_interval(stays, drawn.size)),
        running=weigh(running.share, running.low, running.high),
        blind=blind,
    )


def look_at_code(privatizer: TextPrivatizer, text: str, *, stream: RandomStream) -> CodeLook:
    """Look at a text that leaves as one code.

    Args:
        privatizer: Setting of whole texts, with a policy or without.
        text: Text in clear; it is not kept.
        stream: Source of draws that are thrown away; never that of a release.

    Raises:
        CorpusError: The text has no token.
    """
    privatizer = _keep_no_name(privatizer)
    inner = privatizer.inner if isinstance(privatizer, PolicyPrivatizer) else privatizer
    assert isinstance(inner, CodePrivatizer)
    privatizer.contents([text])  # refuses what cannot be released
    read = privatizer.policy.apply(text).text if isinstance(privatizer, PolicyPrivatizer) else text
    mechanism = inner.mechanism
    bundle = mechanism.bundle
    code = encode_codes(inner.encoder, [read], bundle=bundle)
    chances = mechanism.log_probabilities(code)[0]
    drawn = mechanism.privatize(code, rng=stream.generator)[0]
    statement = state_text_privacy(mechanism.epsilon)
    guesses = tuple(
        CodeGuess(
            among=guess.among,
            blind=guess.blind,
            right=guess.right,
            severity=weigh_attack(guess.right, blind=guess.blind),
        )
        for guess in statement.guesses
    )
    return CodeLook(
        epsilon=mechanism.epsilon,
        codewords=bundle.size,
        preferred=mechanism.preferred,
        near=mechanism.hit_probability,
        odds=float(np.exp(chances[0].max() - chances[0].min())),
        example=tuple(drawn.tolist()),
        ranks=_rank(code[0], bundle.codewords, drawn),
        likeness=mechanism.measure_attenuation(code),
        guesses=guesses,
        severity=find_worst(guess.severity for guess in guesses if guess.among == 1000),
    )


def _keep_no_name(privatizer: TextPrivatizer) -> TextPrivatizer:
    """Return the same setting, whose policy gives the same pseudonyms and remembers none of them."""
    if not isinstance(privatizer, PolicyPrivatizer):
        return privatizer
    # The copy of a map has its secrets, and neither its names nor its file.
    policy = replace(privatizer.policy, names=copy(privatizer.policy.names))
    return replace(privatizer, policy=policy, remembered={})


def _rank(
    code: NDArray[np.float64], codewords: NDArray[np.float32], drawn: Sequence[int] | NDArray[np.int64]
) -> tuple[int, ...]:
    """Return the place of each drawn codeword by nearness to its part of a code, from 1 on."""
    parts = np.split(code, len(codewords))
    scores = [words @ part for part, words in zip(parts, codewords, strict=True)]
    return tuple(
        int(np.count_nonzero(own > own[word])) + 1 for own, word in zip(scores, np.asarray(drawn).tolist(), strict=True)
    )
