"""A million codes in one pool: how long contributions, taking back, closing and tuning take, and in how much memory.

    OMP_NUM_THREADS=1 python benchmarks/pool_of_a_million.py --contributions 1000000 --through-http 300

A service in this process, on loopback, with SQLite; its jobs run in a process of their own. Most contributions are
written through the store's own function, 1,000 at a time, beside the running service; so many come one by one through
HTTP with a contributor's key, before and after the others, and some of those are taken back by their receipts. Then the
pool is closed and a head is tuned on its file, through HTTP. Peaks of memory are of this process in each phase, the
caller's lists included, and of the job's process over its life. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import numpy as np
from pool_of_codes import draw_crowd, state_setting
from results import digits, machine, publish

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from rapt.local.codes.code_privatizer import read_code
from rapt.local.codes.subset import make_subset
from rapt.service.backbone.opening import load_served
from rapt.service.storage.callers import OPERATOR, Caller
from rapt.service.storage.key_rows import create_key
from rapt.service.storage.pool_rows import contribute, get_pool
from rapt.service.storage.recovery import join_store, open_store
from rapt.service.storage.tenant_rows import ensure_tenant
from rapt.wire.code_bundle import write_code_bundle
from rapt.wire.manifest import dump_manifest
from rapt.wire.privatized_file import PrivatizedRecord, write_record_lines
from running_service import running_service

AT_ONCE = 1_000
DRAWN_AT_ONCE = 10_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--contributions", type=int, default=1_000_000)
    parser.add_argument("--through-http", type=int, default=300)
    parser.add_argument("--json", type=Path, help="file for the result, beside printing it")
    options = parser.parse_args()
    rng, code = np.random.default_rng(0), read_code("minilm-codes")
    mechanism = make_subset(code, epsilon=4.0)

    def draw(count: int) -> list[PrivatizedRecord]:
        codes, labels = draw_crowd(mechanism, count, rng=rng)
        return [
            PrivatizedRecord(token_ids=(one,), label=label)
            for one, label in zip(codes.tolist(), labels.tolist(), strict=True)
        ]

    manifest = state_setting(mechanism)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_code_bundle(code, folder / "codes")
        with open_store(folder / "data") as store:
            ensure_tenant(store, "ada", now=1)
            _, key = create_key(store, tenant="ada", role="tenant", caller=OPERATOR, now=1)
        backbones = {"codes": load_served(str(folder / "codes"), name="codes", precision="float32")}
        limits = {"tenant_bytes": 2**31, "job_process": True, "models": (str(folder / "codes"),)}
        with (
            running_service(folder / "data", backbones=backbones, settings=limits) as url,
            httpx2.Client(base_url=url, timeout=600) as client,
            join_store(folder / "data") as store,
        ):

            def ask(path: str, body: dict[str, object] | None = None, *, as_key: str = key) -> dict[str, object]:
                answer = client.post(path, json=body or {}, headers={"Authorization": f"Bearer {as_key}"})
                assert answer.status_code == 200, answer.text
                return answer.json()

            def timed(what: str, count: int) -> None:
                nonlocal begun
                found[what] = {
                    "seconds": digits(time.perf_counter() - begun),
                    "count": count,
                    "peak_mib": digits(peak()),
                }
                forget_peak()
                begun = time.perf_counter()

            pool = ask("/v1/pools", {"manifest": dump_manifest(manifest), "least": 10, "most": options.contributions})
            path, own = f"/v1/pools/{pool['id']}", options.through_http
            keys = ask(f"{path}/keys", {"count": 1, "contributions": 2 * own})["data"]
            contributor = keys[0]["value"]
            caller = Caller(tenant="ada", key="bulk", role="tenant")

            def one_by_one(what: str) -> list[str]:
                receipts = []
                for record in draw(own):
                    receipt = secrets.token_hex(32)
                    body = {
                        "setting": pool["setting"],
                        "receipt": receipt,
                        "record": {"token_ids": list(record.token_ids), "label": record.label},
                    }
                    ask(f"{path}/contributions", body, as_key=contributor)
                    receipts.append(receipt)
                timed(what, own)
                return receipts

            forget_peak()
            begun = time.perf_counter()
            first = one_by_one("first, one by one through HTTP")
            left = options.contributions - 2 * own
            drawing = 0.0
            while left:
                before = time.perf_counter()
                records = draw(min(DRAWN_AT_ONCE, left))
                drawing += time.perf_counter() - before
                for start in range(0, len(records), AT_ONCE):
                    part = records[start : start + AT_ONCE]
                    lines = {
                        secrets.token_hex(32): write_record_lines([one], manifest, first_position=0).lines.decode()
                        for one in part
                    }
                    contribute(
                        store,
                        str(pool["id"]),
                        lines=lines,
                        setting=str(pool["setting"]),
                        caller=caller,
                        max_bytes=2**31,
                    )
                left -= len(records)
            timed("in bulk through the store", options.contributions - 2 * own)
            found["in bulk through the store"]["of_which_drawing"] = digits(drawing)
            one_by_one("last, one by one through HTTP")
            for receipt in first:
                ask(f"{path}/contributions/take-back", {"receipt": receipt}, as_key=contributor)
            timed("taken back by receipt", own)
            assert get_pool(store, str(pool["id"]), tenant="ada").contributions == options.contributions - own
            closed = ask(f"{path}/close")
            timed("closed", options.contributions - own)
            client.headers.update({"Authorization": f"Bearer {key}"})
            asked = ask("/v1/fine_tuning/jobs", {"model": "codes", "training_file": closed["file"]})
            where = f"/v1/fine_tuning/jobs/{asked['id']}"
            while (done := client.get(where).json())["status"] in ("queued", "running"):
                time.sleep(0.5)
            timed("tuned", options.contributions - own)
            found["tuned"]["peak_mib_of_the_job"] = digits(max(map(peak, list_children())))
            assert done["status"] == "succeeded", json.dumps(done)
            database = sum(one.stat().st_size for one in (folder / "data").glob("rapt.sqlite3*"))
        result = {"contributions": options.contributions, "phases": found, "machine": machine()}
        result["database_mib_after"] = digits(database / 2**20)
    publish(result, file=options.json)


def peak(process: str = "self") -> float:
    """Peak of a process's memory since it was forgotten, MiB."""
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc", process, "status").read_text())[1]) / 1024


def list_children() -> list[str]:
    """The processes that this one has started."""
    return [one for path in Path("/proc/self/task").glob("*/children") for one in path.read_text().split()]


def forget_peak() -> None:
    """Begin to measure anew."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
