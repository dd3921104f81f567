"""What Ray costs and gains when texts are privatized: start-up, overhead against one process, from one core to two.

    OMP_NUM_THREADS=1 python benchmarks/ray_scaling.py --texts 8000 --rounds 3

Texts of 5 to 40 random words of MiniLM's vocabulary, `laplace` at eta = 75, no labels, no ledger. Each round takes one
process, Ray with one core, and Ray with two, in turn, on clusters that are started anew and have drawn a few texts
before they are timed. `overhead` is the time with one core over that of one process; `efficiency` is the time with one
core over twice that with two. Nothing else should run meanwhile; `load` says what did. `processor` is the time of all
processors that each way takes, those of Ray's own processes counted; where other work runs, `processor_share`, one
process's over that of Ray with two cores, says what the clock cannot: it bounds the efficiency of two full cores from
above. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from results import digits, machine, publish, spread

from rapt.cluster import Cluster, join_cluster
from rapt.local.corpus import privatize_corpus
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer, find_whole_words
from rapt.local.randomness import secure_stream
from rapt.local.vocabulary import load_vocabulary
from rapt.wire.manifest import NO_PLAIN_TOKENS


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=int, default=8_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the result, beside printing it")
    arguments = parser.parse_args()
    vocabulary = load_vocabulary("minilm")
    privatizer = Privatizer(vocabulary, make_mechanism("laplace", vocabulary=vocabulary, eta=75.0), NO_PLAIN_TOKENS)
    words = vocabulary.tokens(find_whole_words(vocabulary, at_most=5_000))
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(words, size=rng.integers(5, 41))) for _ in range(arguments.texts)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "few.csv").write_text("text\n" + "\n".join(lines[:600]) + "\n")
        (folder / "all.csv").write_text("text\n" + "\n".join(lines) + "\n")
        rounds = [one_round(privatizer, folder) for _ in range(arguments.rounds)]
    result: dict[str, Any] = {
        "texts": arguments.texts,
        "seconds": {key: [digits(each[key]) for each in rounds] for key in rounds[0] if not key.startswith("cpu_")},
        "overhead": spread([each["ray_1"] / each["one_process"] for each in rounds]),
        "efficiency": spread([each["ray_1"] / (2 * each["ray_2"]) for each in rounds]),
        "two_processes": spread([each["one_process"] / (2 * each["two_processes"]) for each in rounds]),
        "processor": {
            key: [digits(each[f"cpu_{key}"]) for each in rounds] for key in ("one_process", "ray_1", "ray_2")
        },
        "processor_share": spread([each["cpu_one_process"] / each["cpu_ray_2"] for each in rounds]),
        "machine": machine(),
    }
    publish(result, file=arguments.json)


def one_round(privatizer: Privatizer, folder: Path) -> dict[str, float]:
    """Seconds of each way."""
    begun = used()
    found = {"one_process": seconds(privatizer, folder / "all.csv")}
    found["cpu_one_process"] = used() - begun
    found["two_processes"] = seconds(privatizer, folder / "all.csv", processes=2)
    for cores in (1, 2):
        begun = time.perf_counter()
        with join_cluster(cores=cores) as cluster:
            found[f"start_{cores}"] = time.perf_counter() - begun
            seconds(privatizer, folder / "few.csv", cluster=cluster)
            before = used()
            found[f"ray_{cores}"] = seconds(privatizer, folder / "all.csv", cluster=cluster)
            found[f"cpu_ray_{cores}"] = used() - before
    return found


def used() -> float:
    """Time of processors that this process and those below it have taken, s."""
    here = psutil.Process()
    return sum(sum(one.cpu_times()[:2]) for one in [here, *here.children(recursive=True)])


def seconds(privatizer: Privatizer, source: Path, *, cluster: Cluster | None = None, processes: int = 1) -> float:
    """Wall time of one file."""
    begun = time.perf_counter()
    privatize_corpus(
        source,
        source.with_suffix(".out"),
        privatizer=privatizer,
        label_column=None,
        stream=secure_stream(),
        cluster=cluster,
        processes=processes,
        overwrite=True,
    )
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
