"""How much faster two processes privatize a file than one: the whole command, as ratios within one run.

    python benchmarks/two_processes.py sst2/train.tsv --text-column sentence --texts 10000 40000 --rounds 3

The first texts of a shuffled TSV file, `rapt privatize --eta 75`, plain tokens and labels as they come, a key from the
operating system. Both commands take turns and compute on one thread a process. Seconds of the clock, from the start of
Python to the whole file. `start_seconds` are those of 40 texts, where hardly anything is computed, and
`ratio_without_start` is of what is left of both. Nothing else should run meanwhile. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from results import digits, machine, publish, spread

START_TEXTS: Final = 40
THREADS: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="TSV file with a header")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--texts", type=int, nargs="+", default=[10_000, 40_000])
    parser.add_argument("--eta", type=float, default=75.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the result, beside printing it")
    arguments = parser.parse_args()

    header, *lines = arguments.source.read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(lines)
    with tempfile.TemporaryDirectory() as folder:
        measured = {}
        for count in (START_TEXTS, *arguments.texts):
            source = Path(folder) / f"{count}.tsv"
            source.write_text("\n".join([header, *lines[:count]]) + "\n", encoding="utf-8")
            measured[count] = [
                {processes: seconds(source, processes, arguments) for processes in (1, 2)}
                for _ in range(arguments.rounds)
            ]
    start = {processes: min(each[processes] for each in measured[START_TEXTS]) for processes in (1, 2)}
    result: dict[str, Any] = {
        "eta": arguments.eta,
        "rounds": arguments.rounds,
        "start_seconds": {str(processes): digits(start[processes]) for processes in (1, 2)},
        "at_texts": {str(count): compared(measured[count], start=start) for count in arguments.texts},
        "machine": machine(),
    }
    publish(result, file=arguments.json)


def compared(rounds: list[dict[int, float]], *, start: dict[int, float]) -> dict[str, Any]:
    """Seconds of both commands and how many times faster two processes are."""
    return {
        "seconds": {str(processes): [digits(each[processes]) for each in rounds] for processes in (1, 2)},
        "ratio": spread([each[1] / each[2] for each in rounds]),
        "ratio_without_start": spread([(each[1] - start[1]) / (each[2] - start[2]) for each in rounds]),
    }


def seconds(source: Path, processes: int, arguments: argparse.Namespace) -> float:
    """Wall time of one command."""
    command = [sys.executable, "-m", "rapt", "privatize", str(source), str(source.with_suffix(".out")), "--overwrite"]
    command += ["--no-ledger", "--keep-order"]
    command += ["--eta", str(arguments.eta), "--text-column", arguments.text_column, "--processes", str(processes)]
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=os.environ | dict.fromkeys(THREADS, "1"))
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
