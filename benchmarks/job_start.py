"""How long a job waits for its process: one that imports what it needs, and one that is forked from one that has.

    OMP_NUM_THREADS=1 python benchmarks/job_start.py --model bert-tiny --rounds 3

Each process loads the model and is given a job without a file, which ends at once. Both ways take turns. Seconds of the
clock until the job has ended, and of the processor in the process that ran it. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from results import machine, publish, spread

from rapt.service.backbone.opening import import_for
from rapt.service.jobs.fork_server import open_fork_server
from rapt.service.jobs.job_limits import JobLimits, JobSettings
from rapt.service.jobs.tuning_process import ChildSettings, TuningProcess, run_jobs
from rapt.service.storage.job_rows import StoredJob
from rapt.service.storage.recovery import open_store


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="bert-tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the result, beside printing it")
    arguments = parser.parse_args()
    import_for([arguments.model])
    found: dict[str, list[tuple[float, float]]] = {"imports": [], "forked": []}
    with open_fork_server(run_jobs) as server, tempfile.TemporaryDirectory() as folder:
        with open_store(Path(folder) / "data") as store:
            settings = ChildSettings(
                data_directory=str(store.directory.root),
                database_url=None,
                database_connections=4,
                blobs=None,
                models={arguments.model: arguments.model},
                precision="float32",
                device="cpu",
                torch_threads=1,
                debug=False,
                jobs=JobSettings(tenant_bytes=1, limits=JobLimits(memory_bytes=2**30)),
            )
            empty: dict[str, Any] = {field.name: None for field in fields(StoredJob)}
            job = StoredJob(**{**empty, "id": "ftjob-0", "model": arguments.model, "attempt": 1})
            for _ in range(arguments.rounds):
                for way, forks in (("imports", None), ("forked", server)):
                    process = TuningProcess(settings, fork_server=forks)
                    start = time.monotonic()
                    outcome = process.run(job, lambda: False)
                    found[way].append((time.monotonic() - start, _measure_processor_seconds(process.pid)))
                    assert outcome.kind == "failed", outcome
                    process.close()
    ways = {
        way: dict(
            zip(("seconds", "processor_seconds"), map(spread, map(list, zip(*measured, strict=True))), strict=True)
        )
        for way, measured in found.items()
    }
    publish({"model": arguments.model, "rounds": arguments.rounds, **ways, "machine": machine()}, file=arguments.json)


def _measure_processor_seconds(pid: int | None) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
