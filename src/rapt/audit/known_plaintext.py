"""The known-plaintext attack: plain tokens are public, and so are their privatized forms. What do the pairs say?

Of a sound stream nothing: the noise of each token is drawn by itself, so pairs that are known say nothing about the
noise of the private tokens. What a broken one gives away is looked for here.

- *Seeds.* The stream draws the plain tokens before any noise. Whoever guesses the seed draws them again and sees that
  he is right; then he draws the noise of the private tokens as well.
- *Shared noise.* The plain tokens of a record are cut into two halves. If their noise is independent, so is whether
  they changed, and so is where they went. Two records r and r' are compared: with u and v for the halves, u_r goes
  with v_r as often as with v_r'. So (u_r - u_r')·(v_r - v_r') is above 0 as often as below, and a sign test over pairs
  of records is exact, whatever the mechanism: for u the number of unchanged tokens, and for u the sum of the moves.
- *Repeated noise.* With the same plain tokens in every record, two records that share their noise have the same
  outputs in both halves. Pairs that agree in one half and pairs that agree in the other meet by chance as often as
  their product says. The test takes the number for a Poisson value, which it nearly is; it is not exact.

*Not covered.* Noise shared between records with different plain tokens, unless the seed is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rapt.audit.view import AdversaryView
from rapt.local.randomness import insecure_stream, worker_stream
from rapt.wire.manifest import Randomness

# Seeds that people choose: the small ones, and years.
SEEDS: Final = (*range(1001), 1234, 12345, 1337, *range(2000, 2031), 31337, 123456, 42424242)


@dataclass(frozen=True, kw_only=True)
class SharedNoise:
    """One test for noise that tokens have in common.

    Attributes:
        name: Name of the comparison, in words.
        agree: Pairs of records that speak for shared noise.
        pairs: Pairs of records that speak at all.
        p: Probability of so many, or more, if the noise is independent.
    """

    name: str
    agree: int
    pairs: int
    p: float


@dataclass(frozen=True, kw_only=True)
class KnownPlaintext:
    """Findings from the pairs of plain tokens and their privatized forms.

    Attributes:
        known: Pairs (k, M(k)) in the file.
        seeds: Number of seeds that were tried.
        seed: The one that draws these plain tokens; None when none does.
        tests: Tests for noise that tokens or records have in common.
    """

    known: int
    seeds: int
    seed: int | None
    tests: tuple[SharedNoise, ...]


def known_plaintext(view: AdversaryView) -> KnownPlaintext | None:
    """The attack on a file; None where it has no plain tokens."""
    plain = view.manifest.plain_tokens
    if plain.count == 0 or not view.records:
        return None
    k = np.array([record.plain_tokens or plain.fixed or () for record in view.records], dtype=np.int64)
    z = np.array([record.privatized_plain_tokens for record in view.records], dtype=np.int64)
    stated = view.manifest.randomness.insecure_seed
    seeds = SEEDS if stated is None else (stated, *SEEDS)
    tests = [] if plain.count < 2 else [*_compare_within_records(view, k, z)]
    if plain.count >= 2 and plain.fixed is not None:
        tests.append(_compare_between_records(k, z))
    return KnownPlaintext(
        known=int(k.size), seeds=len(set(seeds)), seed=_search_seeds(view, k, seeds), tests=tuple(tests)
    )


def _search_seeds(view: AdversaryView, k: NDArray[np.int64], seeds: tuple[int, ...]) -> int | None:
    pool = np.array(view.manifest.plain_tokens.pool, dtype=np.int64)
    # A pool of few words or a short sequence fits by chance: enough records that it does once in 10^12 at most.
    needed = int(np.ceil(12 / max(np.log10(len(pool)) * k.shape[1], 1e-9)))
    wanted = k[:1] if view.manifest.plain_tokens.fixed is not None else k[:needed]
    if len(pool) ** float(wanted.size) < 1e12:
        return None
    for seed in seeds:
        for rng in _iterate_generators(seed):
            if all(np.array_equal(pool[rng.integers(len(pool), size=k.shape[1])], row) for row in wanted):
                return seed
    return None


def _iterate_generators(seed: int) -> Iterator[np.random.Generator]:
    """Yield the generators that a seed may have been given to: our own streams, and numpy's."""
    yield insecure_stream(seed).generator
    yield worker_stream(Randomness(source="guessed", insecure_seed=seed), position=0).generator
    for kind in (np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64):
        yield np.random.Generator(kind(seed))


def _compare_within_records(view: AdversaryView, k: NDArray[np.int64], z: NDArray[np.int64]) -> Iterator[SharedNoise]:
    half = k.shape[1] // 2
    same = (k == z).astype(np.float64)[:, :, None]
    moves = (view.bundle.embeddings[z] - view.bundle.embeddings[k]).astype(np.float64)
    for name, values in (("whether tokens of a record changed", same), ("where tokens of a record went", moves)):
        yield _sign_test(name, values[:, :half].sum(axis=1), values[:, half:].sum(axis=1))


def _sign_test(name: str, left: NDArray[np.float64], right: NDArray[np.float64]) -> SharedNoise:
    pairs = len(left) // 2
    first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    product = ((left[first] - left[second]) * (right[first] - right[second])).sum(axis=1)
    agree, speak = int((product > 0).sum()), int((product != 0).sum())
    p = float(stats.binom.sf(agree - 1, speak, 0.5)) if speak else 1.0
    return SharedNoise(name=name, agree=agree, pairs=speak, p=p)


def _compare_between_records(k: NDArray[np.int64], z: NDArray[np.int64]) -> SharedNoise:
    half = k.shape[1] // 2
    changed = z != k
    # All unchanged is what many records have in common: it does not count, in either half.
    whole = changed[:, :half].any(axis=1) & changed[:, half:].any(axis=1)
    left, right = (
        _count_alike(z[changed[:, :half].any(axis=1), :half]),
        _count_alike(z[changed[:, half:].any(axis=1), half:]),
    )
    both = _count_alike(z[whole])
    pairs = len(z) * (len(z) - 1) // 2
    expected = left * right / pairs if pairs else 0.0
    return SharedNoise(
        name="outputs of two records, in both halves",
        agree=both,
        pairs=pairs,
        p=float(stats.poisson.sf(both - 1, expected)) if both else 1.0,
    )


def _count_alike(z: NDArray[np.int64]) -> int:
    """Pairs of rows that are equal."""
    if not z.size:
        return 0
    times = np.unique(z, axis=0, return_counts=True)[1]
    return int((times * (times - 1) // 2).sum())
