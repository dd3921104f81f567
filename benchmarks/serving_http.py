"""What the service adds to its backbone, over real HTTP on loopback; the load comes from a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/serving_http.py --requests 200 --adapters 10 10000

A service is started in a process of its own with as many tuned models as asked for, random ones, whose rows and files
are made beforehand. Then one client after another measures, all figures from one run:

- `idle`: median time of one request of one short text on a service that does nothing else, less that of the same row
  through the batcher without HTTP, which takes turns with it.
- `batch`: processor time of the serving process for one request of 16 texts, less that of the same rows without HTTP,
  as a part of the latter.
- `many`: requests a second of 16 clients at once with a model each, against one client after the other, and by the
  number of registered models; by processor time of the serving process, because the machine is shared.

Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2
import torch
from serving_model import made_adapter, made_texts

from rapt.service.model.adapter import Adapter, save_adapter
from rapt.service.model.backbone import Backbone, load_backbone
from rapt.service.model.inference import ClassificationRow
from rapt.service.model.serving import Predictor
from rapt.service.storage.callers import LOCAL
from rapt.service.storage.model_rows import StoredModel, insert_model
from rapt.service.storage.recovery import open_store
from rapt.wire.manifest import NO_PLAIN_TOKENS, Manifest, MechanismSetting, Randomness
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord
from rapt.wire.query import query_to_json

SERVE = """
from rapt.service.http.server import serve
from rapt.service.http.settings import load_settings

serve(load_settings({}))
"""


def register(data: Path, backbone: Backbone, *, count: int) -> list[str]:
    """Names of `count` tuned models: one saved adapter, copied, and a row for each."""
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, open_store(data) as store:
        source = Path(folder) / "adapter"
        save_adapter(made_adapter(backbone, generator), source)
        models = []
        for number in range(count):
            name = f"{number:024x}"
            shutil.copytree(source, store.directory.adapter(name))
            models.append(
                StoredModel(
                    id=f"ft:{backbone.model}:{LOCAL}:bench:{number}",
                    tenant=LOCAL,
                    base=backbone.model,
                    job_id=None,
                    adapter=name,
                    created_at=1,
                )
            )
        with store.database.write() as connection:
            for model in models:
                insert_model(connection, model)
    return [model.id for model in models]


def body_for(backbone: Backbone, texts: list[tuple[int, ...]]) -> dict[str, Any]:
    """A query without its model."""
    manifest = Manifest(
        model=backbone.model,
        vocabulary_hash=backbone.bundle.hash,
        mechanism=MechanismSetting(name="laplace", parameters={"eta": 75.0}),
        randomness=Randomness(source="benchmark", insecure_seed=0),
        plain_tokens=NO_PLAIN_TOKENS,
        labels=None,
        records=0,
        tokens=0,
        records_sha256="",
        created_by="benchmark",
    )
    records = tuple(PrivatizedRecord(token_ids=text) for text in texts)
    return query_to_json(PrivatizedFile(manifest=manifest, records=records))


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and its threads so far, s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(url: str, bodies: list[dict[str, Any]], *, clients: int, requests: int) -> None:
    """Send requests from `clients` connections, each its next one when it has its answer."""
    limits = httpx2.Limits(max_connections=clients)
    async with httpx2.AsyncClient(base_url=url, trust_env=False, limits=limits, timeout=120) as http:

        async def one(number: int) -> None:
            for turn in range(number, requests, clients):
                answer = await http.post("/v1/classify", json=bodies[turn % len(bodies)])
                answer.raise_for_status()

        await asyncio.gather(*(one(number) for number in range(clients)))


def run_load(url: str, bodies: Path, *, clients: int, requests: int) -> None:
    """The load generator, in its own process."""
    command = [sys.executable, __file__, "--load", url, str(bodies), str(clients), str(requests)]
    subprocess.run(command, check=True)


def idle(url: str, predictor: Predictor, adapter: Adapter, body: dict[str, Any], *, requests: int) -> dict[str, float]:
    """One request at a time, over HTTP and without, in turns."""
    row = ClassificationRow(adapter=adapter, token_ids=tuple(body["records"][0]["token_ids"]))
    times: dict[str, list[float]] = {"http": [], "direct": []}
    with httpx2.Client(base_url=url, trust_env=False, timeout=120) as http:
        for turn in range(requests + 5):
            start = time.perf_counter()
            http.post("/v1/classify", json=body).raise_for_status()
            middle = time.perf_counter()
            predictor.submit([row], tenant="a").future.result()
            end = time.perf_counter()
            if turn >= 5:
                times["http"].append(middle - start)
                times["direct"].append(end - middle)
    over, direct = (1000 * statistics.median(times[name]) for name in ("http", "direct"))
    lowest = 1000 * (min(times["http"]) - min(times["direct"]))
    return {"http_ms": over, "direct_ms": direct, "added_ms": over - direct, "added_by_the_fastest_ms": lowest}


def batch(
    url: str, pid: int, predictor: Predictor, adapter: Adapter, body: dict[str, Any], *, requests: int
) -> dict[str, float]:
    """Processor time of one request of 16 texts, in the serving process and of the same rows here."""
    rows = [ClassificationRow(adapter=adapter, token_ids=tuple(r["token_ids"])) for r in body["records"]]
    with httpx2.Client(base_url=url, trust_env=False, timeout=120) as http:
        for _ in range(3):
            http.post("/v1/classify", json=body).raise_for_status()
            predictor.submit(rows, tenant="a").future.result()
        before = cpu_seconds(pid)
        for _ in range(requests):
            http.post("/v1/classify", json=body).raise_for_status()
        served = (cpu_seconds(pid) - before) / requests
    before = time.process_time()
    for _ in range(requests):
        predictor.submit(rows, tenant="a").future.result()
    direct = (time.process_time() - before) / requests
    return {"served_cpu_ms": 1000 * served, "direct_cpu_ms": 1000 * direct, "added": served / direct - 1}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    backbone = load_backbone(arguments.model, precision="float32")
    generator = torch.Generator().manual_seed(1)
    adapter = made_adapter(backbone, generator)
    short = made_texts(backbone, generator, count=64, low=6, high=20)
    long = made_texts(backbone, generator, count=16, low=20, high=60)
    found: dict[str, Any] = {}
    predictor = Predictor(backbone)
    for count in arguments.adapters:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data"
            models = register(data, backbone, count=count)
            ready, bodies = Path(folder) / "ready", Path(folder) / "bodies.json"
            environment = os.environ | {
                "RAPT_DATA_DIRECTORY": str(data),
                "RAPT_PORT": "0",
                "RAPT_MODELS": arguments.model,
                "RAPT_READY_FILE": str(ready),
                "RAPT_TORCH_THREADS": "1",
                "RAPT_TENANT_TOKENS_PER_MINUTE": "1000000000",
            }
            process = subprocess.Popen([sys.executable, "-c", SERVE], env=environment, stderr=subprocess.DEVNULL)
            try:
                while not ready.exists():
                    if process.poll() is not None:
                        raise SystemExit("the service did not start")
                    time.sleep(0.1)
                started = cpu_seconds(process.pid)
                url = json.loads(ready.read_text())["url"]
                one = [
                    {"model": models[7919 * turn % len(models)], **body_for(backbone, [short[turn % len(short)]])}
                    for turn in range(max(arguments.requests, 16))
                ]
                bodies.write_text(json.dumps(one))
                own: dict[str, Any] = {"start_cpu_s": started}
                if count == arguments.adapters[0]:
                    own["idle"] = idle(url, predictor, adapter, one[0], requests=arguments.requests)
                    many = {"model": models[0], **body_for(backbone, long)}
                    own["batch"] = batch(url, process.pid, predictor, adapter, many, requests=arguments.requests // 8)
                run_load(url, bodies, clients=16, requests=arguments.requests)  # every adapter of it is read once
                for clients in (1, 16):
                    before, start = cpu_seconds(process.pid), time.perf_counter()
                    run_load(url, bodies, clients=clients, requests=arguments.requests)
                    wall = time.perf_counter() - start
                    spent = cpu_seconds(process.pid) - before
                    own[f"{clients} clients"] = {
                        "cpu_ms_a_request": 1000 * spent / arguments.requests,
                        "requests_a_second_of_wall_time": arguments.requests / wall,
                    }
                own["cpu_ratio"] = own["1 clients"]["cpu_ms_a_request"] / own["16 clients"]["cpu_ms_a_request"]
                found[f"{count} models"] = own
            finally:
                process.terminate()
                process.wait()
    predictor.close()
    first, last = (found[f"{count} models"]["16 clients"] for count in (arguments.adapters[0], arguments.adapters[-1]))
    found["throughput_of_most_to_fewest_models"] = first["cpu_ms_a_request"] / last["cpu_ms_a_request"]
    return found


def main() -> None:
    """Measure and print; with --load, be the load generator."""
    if sys.argv[1:2] == ["--load"]:
        url, bodies, clients, requests = sys.argv[2:]
        asyncio.run(load(url, json.loads(Path(bodies).read_text()), clients=int(clients), requests=int(requests)))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--adapters", type=int, nargs="+", default=[10, 10_000])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(measure(arguments), indent=2))


if __name__ == "__main__":
    main()
