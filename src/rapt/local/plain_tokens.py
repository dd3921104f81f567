"""The plain tokens k of RAPT: public words, chosen before any text is read and privatized together with it.

The service knows k and sees M(k), and trains a head to undo the noise on them (RAPT, Sec. 3). Nothing here reads a
text, so k says nothing about one.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from rapt.errors import UsageError
from rapt.local.vocabulary import Vocabulary
from rapt.wire.manifest import NO_PLAIN_TOKENS, PlainTokens

Drawn = Literal["file", "record"]


def plan_plain_tokens(
    vocabulary: Vocabulary, *, count: int, pool_size: int, drawn: Drawn, rng: np.random.Generator
) -> PlainTokens:
    """A pool of common whole words and, when one sequence serves the whole file, that sequence.

    Paper: drawn from the whole vocabulary (RAPT, Sec. 3). Here: from a pool, because a reconstruction head over all of
    V drowns the task on small data; `pool_size` moves between the two. Effect: on utility only, k is public.

    Args:
        vocabulary: Whose eligible tokens are meant; in BERT's files the order of ids is roughly that of frequency.
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
    words = whole_words(vocabulary, at_most=pool_size)
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


def whole_words(vocabulary: Vocabulary, *, at_most: int) -> tuple[int, ...]:
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
