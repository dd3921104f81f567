"""Soft embeddings: for each output y the mean vector of the words that it may have been, E[E(x) | M(x) = y].

Bayes' rule with the mechanism as channel and the words of public text as prior, one word at a time and without context
(a warm-up of the layers learns to use it). It is post-processing: it spends no budget. A channel with a closed form is
summed over exactly. Any other is drawn from; an output that is seen n times then has the mean of its n sources and, as
one more, of itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from rapt.errors import UsageError
from rapt.local.mechanisms import Mechanism
from rapt.local.mechanisms.interface import find_closed_channel
from rapt.local.vocabulary import Vocabulary
from rapt.this_machine import find_cache_folder
from rapt.whole_files import write_whole

# Draws where there is no closed form: with MiniLM about a minute of one core at η = 75.
DRAWS: Final = 1_000_000
# Share of the prior that is uniform over all eligible words: a word that public text lacks is rare, not impossible.
_UNSEEN: Final = 0.05
_DRAWN_AT_ONCE: Final = 50_000
_SUMMED_AT_ONCE: Final = 256
# Changes whenever the same question would be answered with other numbers.
_VERSION: Final = 1


@dataclass(frozen=True, eq=False)
class SoftEmbeddings:
    """Posterior means at one setting.

    Attributes:
        table: Row y is E[E(x) | y], (V, d), float32. Rows that a mechanism never puts out are the vocabulary's own.
        mass: P(y), (V,), float64; what several settings are weighed by.
    """

    table: NDArray[np.float32]
    mass: NDArray[np.float64]


def count_word_prior(texts: Iterable[Sequence[int]], *, vocabulary: Vocabulary) -> NDArray[np.float64]:
    """How often each token is in public texts, (V,), smoothed; sums to 1.

    Args:
        texts: Token ids of the texts.
        vocabulary: Vocabulary of the ids.
    """
    counts = np.zeros(vocabulary.size)
    for text in texts:
        np.add.at(counts, np.asarray(text, dtype=np.int64), 1.0)
    uniform = np.zeros(vocabulary.size)
    uniform[vocabulary.eligible] = 1.0 / len(vocabulary.eligible)
    smoothed: NDArray[np.float64] = (1.0 - _UNSEEN) * counts / max(1.0, counts.sum())
    return smoothed + (_UNSEEN if counts.any() else 1.0) * uniform


def soft_embeddings(
    vocabulary: Vocabulary,
    mechanism: Mechanism,
    *,
    prior: NDArray[np.float64],
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> SoftEmbeddings:
    """The posterior means of a mechanism on its vocabulary.

    Args:
        vocabulary: V tokens of d numbers.
        mechanism: Mechanism on that vocabulary.
        prior: Prior that `count_word_prior` gives, (V,).
        rng: Generator of the draws; public text and its noise protect nobody.
        draws: About how many, where the channel has no closed form.
    """
    own = vocabulary.embeddings.astype(np.float32)
    channel = find_closed_channel(mechanism)
    if channel is None:
        mass, sums = _draw_embeddings(own, mechanism, prior=prior, rng=rng, draws=draws)
    else:
        mass, sums = _sum_embeddings(own, channel, vocabulary.eligible, prior=prior)
    reached = mass > 0
    table = own.copy()
    table[reached] = (sums[reached] / mass[reached, None]).astype(np.float32)
    return SoftEmbeddings(table=table, mass=mass / mass.sum())


def load_soft_embeddings(
    vocabulary: Vocabulary, mechanism: Mechanism, *, prior: NDArray[np.float64], seed: int, draws: int = DRAWS
) -> SoftEmbeddings:
    """The same from the user's cache, if it was asked for before; else it is made and kept there.

    Args:
        vocabulary: Vocabulary, as above.
        mechanism: Mechanism, as above.
        prior: Prior, as above.
        seed: Seed of the draws.
        draws: Number of draws, as above.
    """
    setting = mechanism.setting
    question = [_VERSION, vocabulary.hash, setting.name, sorted(setting.parameters.items()), seed, draws]
    name = hashlib.sha256(json.dumps(question).encode() + prior.tobytes()).hexdigest()[:32]
    path = find_cache_folder() / "soft-embeddings" / f"{name}.safetensors"
    found = _read(path, shape=vocabulary.embeddings.shape)
    if found is None:
        found = soft_embeddings(vocabulary, mechanism, prior=prior, rng=np.random.default_rng(seed), draws=draws)
        _keep(found, path)
    return found


def average_settings(settings: Sequence[SoftEmbeddings]) -> NDArray[np.float32]:
    """The table for a reader who does not know which of the settings it was, each as likely, (V, d)."""
    mass = np.sum([item.mass for item in settings], axis=0)
    table = settings[0].table.copy()
    reached = mass > 0
    weighed = sum(item.table[reached] * item.mass[reached, None] for item in settings)
    table[reached] = (weighed / mass[reached, None]).astype(np.float32)
    return table


def _draw_embeddings(
    own: NDArray[np.float32],
    mechanism: Mechanism,
    *,
    prior: NDArray[np.float64],
    rng: np.random.Generator,
    draws: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # Systematic sampling: each word is a source as often as the prior says, to within one draw.
    ends = np.floor(draws * np.cumsum(prior) + rng.random()).astype(np.int64)
    sources = np.repeat(np.arange(len(prior)), np.diff(ends, prepend=0))
    outputs = np.empty_like(sources)
    for start in range(0, len(sources), _DRAWN_AT_ONCE):
        part = slice(start, start + _DRAWN_AT_ONCE)
        outputs[part] = mechanism.privatize(sources[part], rng=rng)
    pairs, times = np.unique(outputs * len(prior) + sources, return_counts=True)
    output, source = np.divmod(pairs, len(prior))
    sums = np.zeros(own.shape)
    for start in range(0, len(pairs), _DRAWN_AT_ONCE):
        part = slice(start, start + _DRAWN_AT_ONCE)
        found, first = np.unique(output[part], return_index=True)
        sums[found] += np.add.reduceat(own[source[part]] * times[part, None], first)
    seen = np.bincount(outputs, minlength=len(prior)).astype(np.float64)
    reached = seen > 0
    return seen + reached, sums + own * reached[:, None]


def _sum_embeddings(
    own: NDArray[np.float32],
    log_probabilities: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    eligible: NDArray[np.int64],
    *,
    prior: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    sources = np.flatnonzero(prior)
    mass, sums = np.zeros(len(prior)), np.zeros(own.shape)
    for start in range(0, len(sources), _SUMMED_AT_ONCE):
        block = sources[start : start + _SUMMED_AT_ONCE]
        joint = np.exp(log_probabilities(block)) * prior[block, None]
        mass[eligible] += joint.sum(axis=0)
        sums[eligible] += joint.astype(np.float32).T @ own[block]
    return mass, sums


def _read(path: Path, *, shape: tuple[int, ...]) -> SoftEmbeddings | None:
    try:
        found: dict[str, NDArray[Any]] = load_tensors(path.read_bytes())
        table, mass = found["table"], found["mass"]
    except (OSError, SafetensorError, KeyError):
        return None
    sound = table.shape == shape and table.dtype == np.float32 and mass.shape == shape[:1] and np.isfinite(table).all()
    return SoftEmbeddings(table=table, mass=mass) if sound else None


def _keep(found: SoftEmbeddings, path: Path) -> None:
    """Write it whole or not at all; a cache that cannot be written to costs a repetition, not the result."""
    with suppress(OSError, UsageError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, save_tensors({"table": found.table, "mass": found.mass}))
