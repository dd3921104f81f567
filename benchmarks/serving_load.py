"""Everything at once at twice what the service can do: does it stay up, answer in bounded time, and keep its memory?

    OMP_NUM_THREADS=1 python benchmarks/serving_load.py --minutes 30 > docs/results/serving_load.json

A service is started in a process of its own, with its worker, four tenants and a tuned model each. First the rate of
predictions that it reaches with nothing else to do is measured; that is its capacity here. Then requests are sent at
`--factor` times that rate, whether or not answers come: predictions of 32 texts, uploads and deletions of files, tuning
jobs, requests that are wrong, and clients that leave before their answer. Nothing is sent again after a 429.

Prints one JSON object: answers by kind and status, times of the predictions that were accepted, and resident memory of
the serving process over time. Tuning goes on meanwhile, so the rate is more than `--factor` times what is left.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import statistics
import tempfile
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import torch
from serving_http import body_for, manifest_for, service_on
from serving_model import made_texts

from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.opening import load_backbone
from rapt.wire.privatized_file import PrivatizedRecord
from rapt.wire.privatized_writer import write_privatized_file

# A connection that was idle for longer is opened anew, s: the service closes those that were idle for five.
LONGEST_IDLE = 3.0
KEY = "of-this-measurement-only-0123456789"
TENANTS = ("ada", "ben", "cleo", "dan")
TEXTS = 32
# Share of each kind among the requests.
KINDS = {"predict": 0.84, "upload": 0.03, "delete": 0.03, "tune": 0.01, "look": 0.03, "wrong": 0.03, "leave": 0.03}
BOUNDARY = "rapt-measures-this"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


class Answers:
    """What came back, counted; safe to use from many threads."""

    def __init__(self) -> None:
        """Start empty."""
        self.statuses: Counter[tuple[str, str]] = Counter()
        self.accepted: list[tuple[float, float]] = []  # when, and how long, s
        self.without_retry_after = 0
        self._guard = Lock()

    def add(self, kind: str, status: str, *, at: float, seconds: float, retry_after: bool) -> None:
        """One answer."""
        with self._guard:
            self.statuses[kind, status] += 1
            if kind == "predict" and status == "200":
                self.accepted.append((at, seconds))
            self.without_retry_after += status == "429" and not retry_after


class Customer:
    """One connection of one of the tenants."""

    def __init__(self, url: str, key: str) -> None:
        """Not connected yet."""
        host, port = url.removeprefix("http://").split(":")
        self._host, self._port, self._key = host, int(port), key
        self._connection: http.client.HTTPConnection | None = None
        self._used = 0.0

    def ask(
        self, method: str, path: str, body: bytes = b"", *, kind: str = "application/json"
    ) -> tuple[int, bool, Any]:
        """Status, whether it says when to come again, and the JSON of an answer."""
        connection = self._connected()
        headers = {"authorization": f"Bearer {self._key}", "content-type": kind}
        connection.request(method, path, body=body or None, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        self._used = time.monotonic()
        return answer.status, "retry-after" in answer.headers, json.loads(content) if content else None

    def leave(self, path: str, body: bytes) -> None:
        """Ask, and hang up before the answer."""
        headers = {"authorization": f"Bearer {self._key}", "content-type": "application/json"}
        self._connected().request("POST", path, body=body, headers=headers)
        self.close()

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> http.client.HTTPConnection:
        idle, self._used = time.monotonic() - self._used, time.monotonic()
        if idle > LONGEST_IDLE:
            self.close()
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self._host, self._port, timeout=120)
        return self._connection


class Tenant:
    """What one tenant has, and the bodies that it sends."""

    def __init__(self, url: str, name: str, backbone: Backbone, *, seed: int, folder: Path) -> None:
        """Create it, upload a file, and tune a model."""
        generator = torch.Generator().manual_seed(seed)
        with closing(Customer(url, KEY)) as admin:
            admin.ask("POST", "/v1/admin/tenants", json.dumps({"name": name}).encode())
            self.key = admin.ask("POST", f"/v1/admin/tenants/{name}/keys")[2]["value"]
        self.form = form_of(backbone, generator, folder / f"{name}.jsonl")
        with closing(Customer(url, self.key)) as customer:
            file_id = customer.ask("POST", "/v1/files", self.form, kind=FORM)[2]["id"]
            self.job = job_body(backbone.model, file_id, epochs=10)
            first = job_body(backbone.model, file_id, epochs=1)
            job = customer.ask("POST", "/v1/fine_tuning/jobs", first)[2]["id"]
            model = model_of(customer, job)
        texts = made_texts(backbone, generator, count=TEXTS, low=10, high=40)
        self.query = json.dumps({"model": model, **body_for(backbone, texts)}).encode()
        self.uploaded: deque[str] = deque()
        self.wrong = [
            self.query[:-9],
            self.query.replace(model.encode(), b"ft:nobody:has:this:model"),
            self.query.replace(b'"eta": 75.0', b'"eta": -1.0'),
            json.dumps({"model": model, "manifest": {}, "records": [{"text": "plain"}]}).encode(),
        ]


def model_of(customer: Customer, job: str) -> str:
    """The name of what a job tunes, once it has; the measurement ends if it does not."""
    while True:
        found = customer.ask("GET", f"/v1/fine_tuning/jobs/{job}")[2]
        if found["fine_tuned_model"] is not None:
            return str(found["fine_tuned_model"])
        if found["status"] not in ("queued", "running"):
            raise SystemExit(f"the first job of a tenant must succeed, got status={found['status']}: {found['error']}")
        time.sleep(0.2)


def form_of(backbone: Backbone, generator: torch.Generator, path: Path) -> bytes:
    """A privatized file of 64 records, as the form in which it is uploaded."""
    with write_privatized_file(path, manifest_for(backbone, labels=("no", "yes"))) as writer:
        for number, text in enumerate(made_texts(backbone, generator, count=64, low=6, high=20)):
            writer.write(PrivatizedRecord(token_ids=text, label=number % 2))
    parts = (
        'content-disposition: form-data; name="purpose"\r\n\r\nfine-tune',
        'content-disposition: form-data; name="file"; filename="f"\r\n\r\n' + path.read_text(),
    )
    body = "".join(f"--{BOUNDARY}\r\n{part}\r\n" for part in parts)
    return f"{body}--{BOUNDARY}--\r\n".encode()


def job_body(model: str, file_id: str, *, epochs: int) -> bytes:
    """What asks for a run."""
    values = {"num_virtual_tokens": 5, "n_epochs": epochs, "batch_size": 16}
    method = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": values}}
    return json.dumps({"model": model, "training_file": file_id, "method": method, "seed": 1}).encode()


def send(tenant: Tenant, customer: Customer, kind: str, draw: random.Random) -> tuple[str, bool]:
    """One request; its status, and whether it says when to come again."""
    if kind == "leave":
        customer.leave("/v1/classify", tenant.query)
        return "left", False
    if kind == "predict":
        status, again, _ = customer.ask("POST", "/v1/classify", tenant.query)
    elif kind == "upload":
        status, again, answer = customer.ask("POST", "/v1/files", tenant.form, kind=FORM)
        if status == 200:
            tenant.uploaded.append(answer["id"])
    elif kind == "delete":
        file_id = tenant.uploaded.popleft() if tenant.uploaded else "file-000000000000000000000000"
        status, again, _ = customer.ask("DELETE", f"/v1/files/{file_id}")
    elif kind == "tune":
        status, again, _ = customer.ask("POST", "/v1/fine_tuning/jobs", tenant.job)
    elif kind == "look":
        status, again, _ = customer.ask("GET", draw.choice(("/v1/fine_tuning/jobs", "/v1/usage", "/v1/models")))
    else:
        status, again, _ = customer.ask("POST", "/v1/classify", draw.choice(tenant.wrong))
    return str(status), again


def capacity_of(url: str, tenants: list[Tenant], *, seconds: float, clients: int) -> float:
    """Predictions a second with nothing else to do, by clients that send when they have their answer."""
    end = time.monotonic() + seconds

    def one(number: int) -> int:
        tenant, done = tenants[number % len(tenants)], 0
        with closing(Customer(url, tenant.key)) as customer:
            while time.monotonic() < end:
                done += customer.ask("POST", "/v1/classify", tenant.query)[0] == 200
        return done

    with ThreadPoolExecutor(clients) as threads:
        return sum(threads.map(one, range(clients))) / seconds


def load(url: str, tenants: list[Tenant], *, rate: float, seconds: float, clients: int) -> tuple[Answers, float]:
    """Send at a rate, come what may; the answers, and the rate that was reached."""
    answers, turns, start = Answers(), iter(range(int(rate * seconds))), time.monotonic()
    guard = Lock()

    def one(number: int) -> None:
        draw = random.Random(number)
        tenant = tenants[number % len(tenants)]
        with closing(Customer(url, tenant.key)) as customer:
            while True:
                with guard:
                    turn = next(turns, None)
                if turn is None or time.monotonic() - start > 1.5 * seconds:
                    return
                time.sleep(max(0.0, start + turn / rate - time.monotonic()))
                kind = draw.choices(list(KINDS), weights=list(KINDS.values()))[0]
                begin, again = time.monotonic(), False
                try:
                    status, again = send(tenant, customer, kind, draw)
                except (OSError, http.client.HTTPException) as error:
                    status = type(error).__name__
                    customer.close()
                at, taken = begin - start, time.monotonic() - begin
                answers.add(kind, status, at=at, seconds=taken, retry_after=again)

    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(one, range(clients)))
    return answers, sum(answers.statuses.values()) / (time.monotonic() - start)


def resident(pid: int) -> float:
    """Memory of a process, MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def watch(pid: int, found: list[tuple[float, float]], done: Event, *, every: float) -> None:
    """Write down the memory of a process until the event."""
    start = time.monotonic()
    while not done.wait(every):
        found.append((round(time.monotonic() - start, 1), round(resident(pid), 1)))


def times_of(accepted: list[tuple[float, float]]) -> dict[str, float]:
    """Return the times of answers, ms."""
    seconds = sorted(seconds for _, seconds in accepted)
    if len(seconds) < 2:
        return {"answers": len(seconds)}
    cuts = statistics.quantiles(seconds, n=100)
    figures = {"median": cuts[49], "p95": cuts[94], "p99": cuts[98], "longest": seconds[-1]}
    return {"answers": len(seconds), **{f"{name}_ms": round(1000 * value, 1) for name, value in figures.items()}}


def slope(memory: list[tuple[float, float]]) -> float:
    """Growth of memory in the second half, MiB a minute: least squares."""
    half = memory[len(memory) // 2 :]
    if len(half) < 2:
        return 0.0
    return 60 * statistics.linear_regression([at for at, _ in half], [value for _, value in half]).slope


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    backbone = load_backbone(arguments.model, precision="float32")
    seconds = 60 * arguments.minutes
    settings = {
        "RAPT_ADMIN_KEY": KEY,
        "RAPT_MAX_WAITING_TOKENS": str(arguments.waiting_tokens),
        "RAPT_TENANT_JOBS": "5",
        "RAPT_RUN_STATE_SECONDS": "2",
    }
    before = os.getloadavg()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url, pid = stack.enter_context(service_on(folder / "data", model=arguments.model, settings=settings))
        tenants = [Tenant(url, name, backbone, seed=seed, folder=folder) for seed, name in enumerate(TENANTS, start=1)]
        capacity = capacity_of(url, tenants, seconds=arguments.capacity_seconds, clients=16)
        memory: list[tuple[float, float]] = []
        done = Event()
        watcher = Thread(target=watch, args=(pid, memory, done), kwargs={"every": seconds / 60})
        watcher.start()
        try:
            rate = arguments.factor * capacity
            answers, reached = load(url, tenants, rate=rate, seconds=seconds, clients=arguments.clients)
        finally:
            done.set()
            watcher.join()
        with closing(Customer(url, KEY)) as customer:
            alive = customer.ask("GET", "/readyz")[0] == 200
    by_status: Counter[str] = Counter()
    for (_, status), count in answers.statuses.items():
        by_status[status] += count
    third = seconds / 3
    return {
        "model": arguments.model,
        "minutes": arguments.minutes,
        "capacity_predictions_a_second": round(capacity, 1),
        "wanted_requests_a_second": round(rate, 1),
        "reached_requests_a_second": round(reached, 1),
        "texts_a_prediction": TEXTS,
        "clients": arguments.clients,
        "waiting_tokens": arguments.waiting_tokens,
        "by_status": dict(sorted(by_status.items())),
        "server_errors": sum(count for status, count in by_status.items() if status.startswith("5")),
        "busy_429": by_status["429"],
        "busy_429_without_retry_after": answers.without_retry_after,
        "by_kind": {
            kind: {status: count for (own, status), count in sorted(answers.statuses.items()) if own == kind}
            for kind in KINDS
        },
        "accepted_predictions": times_of(answers.accepted),
        "accepted_predictions_by_third": [
            times_of([(at, taken) for at, taken in answers.accepted if part * third <= at < (part + 1) * third])
            for part in range(3)
        ],
        "memory_growth_in_second_half_mib_a_minute": round(slope(memory), 2),
        "memory_every_s": round(seconds / 60, 1),
        "memory_mib": [value for _, value in memory],
        "ready_afterwards": alive,
        "load_of_the_machine": [before, os.getloadavg()],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bert-tiny")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--factor", type=float, default=2.0, help="of the capacity")
    parser.add_argument("--clients", type=int, default=64, help="connections at once")
    parser.add_argument("--waiting-tokens", type=int, default=32_768, help="RAPT_MAX_WAITING_TOKENS")
    parser.add_argument("--capacity-seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(measure(arguments), indent=1))


if __name__ == "__main__":
    main()
