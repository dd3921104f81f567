"""What the service adds to its backbone, over real HTTP on loopback; the load comes from a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/serving_http.py --rounds 7 --adapters 10 10000

A service is started in a process of its own for each number of tuned models; these are random, and their rows and files
are made beforehand. The arms of a figure take turns, so that a busy machine slows them alike:

- `idle`: one request of one short text at a time, and the same row through the same model called in process. Wall time,
  and processor time of all threads of the service. What threads waited for a processor, because the machine had other
  work, is counted by the kernel and given beside it.
- `batch`: processor time of the service for a request of 16 texts over that of the same rows in process.
- `many`: requests of 16 clients at once, which ask the registered models in turn, by how many are registered. The
  services run at the same time and are loaded in turn. By processor time, because the machine is shared.

Prints one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch
from serving_model import made_adapter, made_texts

from rapt.service.adapter.adapter import Adapter, adapter_to_files
from rapt.service.answers.prediction import ClassificationRow, classify
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.opening import load_backbone
from rapt.service.storage.blobs import LocalBlobs
from rapt.service.storage.callers import LOCAL
from rapt.service.storage.model_rows import StoredModel, insert_model
from rapt.service.storage.recovery import open_store
from rapt.wire.adapter_files import pack_adapter
from rapt.wire.manifest import NO_PLAIN_TOKENS, Manifest, Randomness
from rapt.wire.mechanism_setting import MechanismSetting
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, dump_query

SERVE = """
from rapt.service.http.server import serve
from rapt.service.http.settings import load_settings

serve(load_settings({}))
"""


def register(data: Path, backbone: Backbone, *, count: int, apart: bool = False) -> list[str]:
    """Names of `count` tuned models: one adapter in as many archives, which differ, or `apart` as many adapters."""
    generator = torch.Generator().manual_seed(0)
    files = adapter_to_files(made_adapter(backbone, generator))
    with open_store(data) as store:
        models = []
        for number in range(count):
            files = adapter_to_files(made_adapter(backbone, generator)) if apart else files
            archive = pack_adapter(files | {"number": b"%d" % number})
            digest = hashlib.sha256(archive).hexdigest()
            path = LocalBlobs(store.directory.blobs).path(digest)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(archive)
            models.append(
                StoredModel(
                    id=f"ft:{backbone.model}:{LOCAL}:bench:{number}",
                    tenant=LOCAL,
                    base=backbone.model,
                    job_id=None,
                    adapter=f"{number:024x}",
                    created_at=1,
                    bytes=len(archive),
                    sha256=digest,
                )
            )
        with store.database.write() as connection:
            for model in models:
                insert_model(connection, model)
    return [model.id for model in models]


def manifest_for(backbone: Backbone, *, labels: tuple[str, ...] | None = None) -> Manifest:
    """A manifest that counts nothing yet."""
    return Manifest(
        model=backbone.model,
        vocabulary_hash=backbone.bundle.hash,
        mechanism=MechanismSetting(name="laplace", parameters={"eta": 75.0}),
        randomness=Randomness(source="benchmark", insecure_seed=0),
        plain_tokens=NO_PLAIN_TOKENS,
        labels=labels,
        records=0,
        tokens=0,
        records_sha256="",
        created_by="benchmark",
    )


def body_for(backbone: Backbone, texts: list[tuple[int, ...]]) -> dict[str, Any]:
    """A query without its model."""
    records = tuple(PrivatizedRecord(token_ids=text) for text in texts)
    return dump_query(PrivatizedFile(manifest=manifest_for(backbone), records=records))


def spent(pid: int) -> tuple[float, float]:
    """Return the processor time of all threads of a process so far, and the time they waited for a processor, s."""
    ran = waited = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            own = (task / "schedstat").read_text().split()
            ran, waited = ran + int(own[0]), waited + int(own[1])
    return ran / 1e9, waited / 1e9


@contextmanager
def service_on(data: Path, *, model: str, settings: Mapping[str, str] | None = None) -> Iterator[tuple[str, int]]:
    """URL and process id of a service in a process of its own; `settings` as environment variables."""
    ready = data.parent / "ready"
    ready.unlink(missing_ok=True)  # of a service before it that was cut off
    environment = os.environ | {
        "RAPT_DATA_DIRECTORY": str(data),
        "RAPT_PORT": "0",
        "RAPT_MODELS": model,
        "RAPT_READY_FILE": str(ready),
        "RAPT_TORCH_THREADS": "1",
        "RAPT_TENANT_TOKENS_PER_MINUTE": "1000000000",
        **(settings or {}),
    }
    process = subprocess.Popen([sys.executable, "-c", SERVE], env=environment, stderr=subprocess.DEVNULL)
    try:
        while not ready.exists():
            if process.poll() is not None:
                raise SystemExit("the service did not start")
            time.sleep(0.1)
        yield json.loads(ready.read_text())["url"], process.pid
    finally:
        process.terminate()
        process.wait()


class Client:
    """One connection that stays open, with as little between it and the socket as there can be."""

    def __init__(self, url: str) -> None:
        """Connect."""
        host, port = url.removeprefix("http://").split(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=120)

    def classify(self, body: bytes) -> bytes:
        """The answer to a query."""
        self._connection.request("POST", "/v1/classify", body=body, headers={"content-type": "application/json"})
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise SystemExit(f"the service answered {answer.status}")
        return content

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def load(url: str, bodies: list[bytes], *, clients: int, requests: int) -> None:
    """Send requests from `clients` connections, each the next one of all when it has its answer."""
    turns: SimpleQueue[int] = SimpleQueue()
    for turn in range(requests):
        turns.put(turn)

    def send(_: int) -> None:
        with closing(Client(url)) as client, suppress(Empty):
            while True:
                client.classify(bodies[turns.get_nowait() % len(bodies)])

    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(send, range(clients)))


def run_load(url: str, bodies: Path, *, clients: int, requests: int) -> None:
    """The load generator, in its own process."""
    subprocess.run([sys.executable, __file__, "--load", url, str(bodies), str(clients), str(requests)], check=True)


def spread(values: list[float]) -> dict[str, float]:
    """Median, and the middle half."""
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": round(median, 3), "lower_quartile": round(low, 3), "upper_quartile": round(high, 3)}


def idle(
    url: str, pid: int, backbone: Backbone, adapter: Adapter, body: dict[str, Any], *, requests: int
) -> dict[str, Any]:
    """One request at a time, over HTTP and in process, in turns; ms."""
    rows = [ClassificationRow(adapter=adapter, token_ids=tuple(body["records"][0]["token_ids"]))]
    sent = json.dumps(body).encode()
    found: dict[str, list[float]] = {"http": [], "in_process": [], "added": [], "added_without_waiting": []}
    served = direct = 0.0
    with closing(Client(url)) as client:
        for turn in range(requests + 20):
            cpu, waited = spent(pid)
            own_wait = spent(os.getpid())[1]
            start = time.perf_counter()
            client.classify(sent)
            over = time.perf_counter() - start
            cpu_after, waited_after = spent(pid)
            own_wait, before = spent(os.getpid())[1] - own_wait, spent(os.getpid())
            start = time.perf_counter()
            classify(backbone, rows)
            alone = time.perf_counter() - start
            after = spent(os.getpid())
            if turn >= 20:
                served += cpu_after - cpu
                direct += after[0] - before[0]
                found["http"].append(1000 * over)
                found["in_process"].append(1000 * alone)
                found["added"].append(1000 * (over - alone))
                waits = waited_after - waited + own_wait - (after[1] - before[1])
                found["added_without_waiting"].append(1000 * (over - alone - waits))
    return {
        **{f"{name}_ms": spread(values) for name, values in found.items()},
        "difference_of_medians_ms": statistics.median(found["http"]) - statistics.median(found["in_process"]),
        "added_cpu_ms": 1000 * (served - direct) / requests,
        "requests": requests,
    }


def batch(
    url: str, pid: int, backbone: Backbone, adapter: Adapter, body: dict[str, Any], *, rounds: int, requests: int
) -> dict[str, Any]:
    """Processor time of requests of 16 texts in the service, over that of the same rows in process."""
    rows = [ClassificationRow(adapter=adapter, token_ids=tuple(r["token_ids"])) for r in body["records"]]
    sent = json.dumps(body).encode()
    found: dict[str, list[float]] = {"served": [], "direct": [], "added": []}
    with closing(Client(url)) as client:
        for turn in range(rounds + 1):
            before = spent(pid)[0]
            for _ in range(requests):
                client.classify(sent)
            served = spent(pid)[0] - before
            before = time.process_time()
            for _ in range(requests):
                classify(backbone, rows)
            direct = time.process_time() - before
            if turn:
                found["served"].append(1000 * served / requests)
                found["direct"].append(1000 * direct / requests)
                found["added"].append(served / direct - 1)
    return {
        "served_cpu_ms": spread(found["served"]),
        "direct_cpu_ms": spread(found["direct"]),
        "added_share": spread(found["added"]),
        "texts": len(rows),
        "tokens": sum(len(row.token_ids) for row in rows),
        "rounds": rounds,
        "requests_a_round": requests,
    }


def many(
    services: dict[int, tuple[str, int, Path]], *, rounds: int, requests: int, clients: int = 16
) -> dict[str, Any]:
    """Processor time of each service for the same load, in turns."""
    found: dict[int, list[float]] = {count: [] for count in services}
    walls: dict[int, list[float]] = {count: [] for count in services}
    for turn in range(rounds + 1):
        for count, (url, pid, bodies) in services.items():
            before, start = spent(pid)[0], time.perf_counter()
            run_load(url, bodies, clients=clients, requests=requests)
            if turn:  # in the first, every adapter that is asked for is read from the disk
                found[count].append(1000 * (spent(pid)[0] - before) / requests)
                walls[count].append(requests / (time.perf_counter() - start))
    least, most = min(services), max(services)
    ratios = [few / lots for few, lots in zip(found[least], found[most], strict=True)]
    return {
        **{
            f"{count} models": {
                "cpu_ms_a_request": spread(found[count]),
                "requests_a_second_of_wall_time": spread(walls[count]),
            }
            for count in services
        },
        "throughput_of_most_over_fewest": spread(ratios),
        "clients": clients,
        "rounds": rounds,
        "requests_a_round": requests,
        "models_that_are_asked": requests,
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    backbone = load_backbone(arguments.model, precision="float32")
    generator = torch.Generator().manual_seed(1)
    adapter = made_adapter(backbone, generator)
    short = made_texts(backbone, generator, count=64, low=6, high=20)
    long = made_texts(backbone, generator, count=16, low=12, high=36)
    found: dict[str, Any] = {"model": arguments.model, "load_before": os.getloadavg()}
    counts = sorted(arguments.adapters) if "many" in arguments.parts else arguments.adapters[:1]
    with ExitStack() as stack:
        services = {}
        for count in counts:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            models = register(folder / "data", backbone, count=count)
            one = [
                json.dumps({"model": models[7919 * turn % count], **body_for(backbone, [short[turn % len(short)]])})
                for turn in range(arguments.requests)
            ]
            bodies = folder / "bodies.json"
            bodies.write_text(json.dumps(one))
            url, pid = stack.enter_context(service_on(folder / "data", model=arguments.model))
            services[count] = url, pid, bodies
            if count == counts[0]:
                first = models[0]
        url, pid, _ = services[counts[0]]
        if "idle" in arguments.parts:
            body = {"model": first, **body_for(backbone, short[:1])}
            found["idle"] = idle(url, pid, backbone, adapter, body, requests=arguments.requests)
        if "batch" in arguments.parts:
            body = {"model": first, **body_for(backbone, long)}
            found["batch"] = batch(url, pid, backbone, adapter, body, rounds=arguments.rounds, requests=5)
        if "many" in arguments.parts:
            found["many"] = many(services, rounds=arguments.rounds, requests=arguments.requests)
    return found | {"load_after": os.getloadavg()}


def main() -> None:
    """Measure and print; with --load, be the load generator."""
    if sys.argv[1:2] == ["--load"]:
        url, bodies, clients, requests = sys.argv[2:]
        sent = [body.encode() for body in json.loads(Path(bodies).read_text())]
        load(url, sent, clients=int(clients), requests=int(requests))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--parts", nargs="+", default=["idle", "batch", "many"], choices=["idle", "batch", "many"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=200, help="of `idle`, and of a round of `many`")
    parser.add_argument("--adapters", type=int, nargs="+", default=[10, 10_000])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(measure(arguments), indent=2))


if __name__ == "__main__":
    main()
