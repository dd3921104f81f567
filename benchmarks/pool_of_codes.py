"""A crowd's codes through HTTP into one pool, closed and tuned: how long it takes, and what a contribution weighs.

    OMP_NUM_THREADS=1 python benchmarks/pool_of_codes.py --contributions 100000 --single 500

A service in a process thread of its own, on loopback, with SQLite. First so many contributors give one code each with a
key of their own; the rest come 1,000 in a request from one key, as a collector who relays them sends. Then the pool is
closed and a head is tuned on the file. One JSON object with seconds of wall time and processor time.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from http_requests import done_job
from rapt.local.codes.code_privatizer import read_code
from rapt.local.codes.subset import make_subset
from rapt.service.backbone.opening import load_served
from rapt.service.storage.callers import OPERATOR
from rapt.service.storage.key_rows import create_key
from rapt.service.storage.recovery import open_store
from rapt.service.storage.tenant_rows import ensure_tenant
from rapt.wire.code_bundle import write_code_bundle
from rapt.wire.manifest import NO_PLAIN_TOKENS, Manifest, Randomness, dump_manifest
from running_service import running_service

AT_ONCE = 1_000


def draw_crowd(mechanism, count, *, rng):
    """Codewords of so many made-up texts, (count,), and their labels of two, which the first direction shows."""
    labels = rng.integers(2, size=count)
    states = rng.standard_normal((count, len(mechanism.bundle.directions)))
    states[:, 0] += 2 * labels - 1
    return mechanism.privatize(states / np.linalg.norm(states, axis=1, keepdims=True), rng=rng)[:, 0], labels


def state_setting(mechanism):
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


def contribution(code, label):
    """A code and a label, with a receipt."""
    return {"receipt": secrets.token_hex(32), "record": {"token_ids": [int(code)], "label": int(label)}}


def main():
    """Read the command line, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contributions", type=int, default=100_000)
    parser.add_argument("--single", type=int, default=500)
    options = parser.parse_args()
    rng, code = np.random.default_rng(0), read_code("minilm-codes")
    mechanism = make_subset(code, epsilon=4.0)
    codes, labels = draw_crowd(mechanism, options.contributions, rng=rng)
    figures: dict[str, float] = {"contributions": options.contributions, "single": options.single}
    with tempfile.TemporaryDirectory() as work:
        data, folder = Path(work) / "data", Path(work) / "code"
        write_code_bundle(code, folder)
        with open_store(data) as store:
            ensure_tenant(store, "local", now=0)
            key = create_key(store, tenant="local", role="tenant", caller=OPERATOR, now=0)[1]
        served = load_served(str(folder), name="codes", precision="auto")
        with (
            running_service(data, backbones={"codes": served}) as url,
            httpx2.Client(
                base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=600, trust_env=False
            ) as http,
        ):

            def timed(name, work):
                wall, processor = time.perf_counter(), time.process_time()
                found = work()
                figures[f"{name}_s"] = round(time.perf_counter() - wall, 2)
                figures[f"{name}_processor_s"] = round(time.process_time() - processor, 2)
                return found

            def ask(path, body, **others):
                answer = http.post(path, json=body, **others)
                answer.raise_for_status()
                return answer.json()

            pool = ask(
                "/v1/pools",
                {"manifest": dump_manifest(state_setting(mechanism)), "least": 100, "most": options.contributions},
            )
            path = f"/v1/pools/{pool['id']}"
            keys = ask(f"{path}/keys", {"count": options.single}) if options.single else {"data": []}
            given = [contribution(*pair) for pair in zip(codes, labels, strict=True)]

            def one_by_one():
                for one, holder in zip(given, keys["data"], strict=False):
                    headers = {"authorization": f"Bearer {holder['value']}"}
                    ask(f"{path}/contributions", {"setting": pool["setting"], **one}, headers=headers)

            def relayed():
                for first in range(options.single, options.contributions, AT_ONCE):
                    one, *others = given[first : first + AT_ONCE]
                    ask(f"{path}/contributions", {"setting": pool["setting"], **one, "others": others})

            timed("single_requests", one_by_one)
            timed("relayed", relayed)
            closed = timed("closing", lambda: ask(f"{path}/close", {}))
            figures["bytes_a_record"] = round(
                len(http.get(f"/v1/files/{closed['file']}/content").content) / options.contributions, 1
            )
            body = {"model": "codes", "training_file": closed["file"]}
            figures["status"] = timed("tuning", lambda: done_job(http, body))["status"]
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
