"""A crowd's codes through HTTP into one pool, taken back, closed and tuned: how long it takes, in how much memory.

    OMP_NUM_THREADS=1 python benchmarks/pool_of_a_million.py --contributions 1000000 --single 300

A service in a process of its own, on loopback, with SQLite; its jobs run in another. So many contributors give one code
each with a key of their own and take it back; then all come as bytes, 1,000 in a request from one key, as a collector
sends who relays them, and last so many one by one again. The pool is closed, and a head is tuned on its file. Peaks of
memory are resident ones of the service in each phase, and of the job's process over its life; `client_s` of a phase is
processor time of this process, which draws the codes. One JSON object.
"""

from __future__ import annotations

import argparse
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx2
import numpy as np
from results import digits, machine, publish

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from rapt.local.codes.code_privatizer import read_code
from rapt.local.codes.subset import SubsetMechanism, make_subset
from rapt.wire.manifest import NO_PLAIN_TOKENS, Manifest, Randomness, dump_manifest
from rapt.wire.packed_contributions import MOST_AT_ONCE, pack_contributions
from rapt.wire.privatized_file import PrivatizedRecord
from running_service import serving_process

ADMIN = secrets.token_urlsafe(24)
DRAWN_AT_ONCE = 10_000
T = TypeVar("T")


def draw_crowd(mechanism: SubsetMechanism, count: int, *, rng: np.random.Generator) -> list[PrivatizedRecord]:
    """Codes of so many made-up texts with labels of two, which the first direction shows."""
    labels = rng.integers(2, size=count)
    states = rng.standard_normal((count, len(mechanism.bundle.directions)))
    states[:, 0] += 2 * labels - 1
    codes = mechanism.privatize(states / np.linalg.norm(states, axis=1, keepdims=True), rng=rng)
    return [
        PrivatizedRecord(token_ids=tuple(ids), label=label)
        for ids, label in zip(codes.tolist(), labels.tolist(), strict=True)
    ]


def state_setting(mechanism: SubsetMechanism) -> Manifest:
    """The manifest of a pool of such codes."""
    return Manifest(
        model=mechanism.bundle.model,
        vocabulary_hash=mechanism.bundle.hash,
        mechanism=mechanism.setting,
        randomness=Randomness(source="a benchmark"),
        plain_tokens=NO_PLAIN_TOKENS,
        labels=("no", "yes"),
        records=0,
        tokens=0,
        records_sha256="",
        created_by="a benchmark",
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contributions", type=int, default=1_000_000)
    parser.add_argument("--single", type=int, default=300)
    parser.add_argument("--database-url", help="PostgreSQL in the place of SQLite")
    parser.add_argument("--json", type=Path, help="file for the result, beside printing it")
    options = parser.parse_args()
    rng, mechanism = np.random.default_rng(0), make_subset(read_code("minilm-codes"), epsilon=4.0)
    manifest, own = state_setting(mechanism), options.single
    phases: dict[str, dict[str, float]] = {}
    settings = {"admin_key": ADMIN, "models": "minilm-codes", "tenant_bytes": 2**31, "job_process": True}
    if options.database_url:
        settings["database_url"] = options.database_url
    with (
        tempfile.TemporaryDirectory() as name,
        serving_process(Path(name), **settings) as (process, url),
        httpx2.Client(base_url=url, timeout=3600, trust_env=False) as http,
    ):

        def ask(path: str, body: object = None, *, key: str) -> dict[str, object]:
            content = {"content": body} if isinstance(body, bytes) else {"json": body or {}}
            answer = http.post(path, headers={"authorization": f"Bearer {key}"}, **content)
            assert answer.status_code == 200, answer.text
            return answer.json()

        def timed(what: str, count: int, work: Callable[[], T]) -> T:
            forget_peak(process.pid)
            wall, processor, served = time.perf_counter(), time.process_time(), used(process.pid)
            found = work()
            phases[what] = {
                "count": count,
                "seconds": digits(time.perf_counter() - wall),
                "client_s": digits(time.process_time() - processor),
                "service_s": digits(used(process.pid) - served),
                "service_peak_mib": digits(peak(process.pid)),
            }
            print(what, phases[what], file=sys.stderr, flush=True)
            return found

        ask("/v1/admin/tenants", {"name": "ada", "max_bytes": 2**31}, key=ADMIN)
        key = ask("/v1/admin/tenants/ada/keys", key=ADMIN)["value"]
        asked = {"manifest": dump_manifest(manifest), "least": 10, "most": options.contributions}
        pool = ask("/v1/pools", asked, key=key)
        path, setting = f"/v1/pools/{pool['id']}", str(pool["setting"])
        holders = [one["value"] for one in ask(f"{path}/keys", {"count": max(1, own)}, key=key)["data"]]
        (relay,) = ask(f"{path}/keys", {"contributions": options.contributions}, key=key)["data"]

        def give(records: list[PrivatizedRecord], *, key: str) -> list[str]:
            receipts = [secrets.token_hex(12) for _ in records]
            body = pack_contributions(records, receipts, manifest=manifest, setting=setting)
            ask(f"{path}/contributions/packed", body, key=key)
            return receipts

        def one_by_one() -> list[str]:
            drawn = draw_crowd(mechanism, own, rng=rng)
            return [give([record], key=key)[0] for record, key in zip(drawn, holders, strict=False)]

        def relayed(count: int) -> None:
            while count:
                drawn = draw_crowd(mechanism, min(DRAWN_AT_ONCE, count), rng=rng)
                for start in range(0, len(drawn), MOST_AT_ONCE):
                    give(drawn[start : start + MOST_AT_ONCE], key=relay["value"])
                count -= len(drawn)

        def take_back(receipts: list[str]) -> None:
            for receipt, key in zip(receipts, holders, strict=False):
                ask(f"{path}/contributions/take-back", {"receipt": receipt}, key=key)

        timed("relayed, 1,000 at once", options.contributions - own, lambda: relayed(options.contributions - own))
        receipts = timed("one by one", own, one_by_one)
        timed("taken back", own, lambda: take_back(receipts))
        timed("one by one again", own, one_by_one)
        database = sum(one.stat().st_size for one in Path(name).glob("data/rapt.sqlite3*"))
        closed = timed("closed", options.contributions, lambda: ask(f"{path}/close", key=key))
        assert closed["contributions"] == options.contributions
        http.headers["authorization"] = f"Bearer {key}"
        body = {"model": "minilm-codes", "training_file": closed["file"]}

        def tune() -> None:
            where = f"/v1/fine_tuning/jobs/{ask('/v1/fine_tuning/jobs', body, key=key)['id']}"
            while (job := http.get(where).json())["status"] in ("queued", "running"):
                time.sleep(0.2)
            assert job["status"] == "succeeded", job

        timed("tuned", options.contributions, tune)
        phases["tuned"]["job_peak_mib"] = digits(max(map(peak, list_children(process.pid))))
    publish(
        {
            "contributions": options.contributions,
            "database": "PostgreSQL" if options.database_url else "SQLite",
            "database_mib_before_closing": digits(database / 2**20),
            "client_peak_mib": digits(peak("self")),
            "phases": phases,
            "machine": machine(),
        },
        file=options.json,
    )


def peak(process: int | str) -> float:
    """Peak of a process's resident memory since it was forgotten, MiB."""
    return int(re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{process}/status").read_text())[1]) / 1024


def used(process: int) -> float:
    """Processor time of a process, s."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def list_children(process: int) -> list[int]:
    """The processes that a process has started."""
    found = Path(f"/proc/{process}/task").glob("*/children")
    return [int(one) for path in found for one in path.read_text().split()]


def forget_peak(process: int) -> None:
    """Begin to measure anew."""
    Path(f"/proc/{process}/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
