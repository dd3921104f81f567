"""How much slower one tenant gets while another attacks: its usage and its predictions, under each attack.

    python benchmarks/hostile_tenant.py --seconds 6 --rounds 3

A service in a process of its own, on a tiny BERT and one thread of torch; the attacker is another process with the key
of an ordinary tenant and eight connections, each its next request as soon as it has an answer. The victim asks for
`/v1/usage` and for the label of one text in turn, on one connection, with an ordinary client. Rest and attack take
turns, and a figure is the median of the victim's seconds under attack over that at rest before it.

All of it shares the machine, and what the attacker's client computes would slow the victim as well, which no service
can help. So that client is as cheap as it can be: requests are bytes made beforehand, sent on bare sockets, and of an
answer no more is read than it needs. It always has eight requests on their way; how many were answered in a second is
printed. Prints a table and one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import secrets
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import torch
from results import machine, publish
from serving_http import body_for, manifest_for, service_on
from serving_model import made_adapter

from rapt.service.adapter.adapter import CARD, PEFT_CONFIG, WEIGHTS, adapter_to_files
from rapt.service.backbone.opening import load_backbone
from rapt.wire.privatized_file import PrivatizedRecord, seal_manifest
from rapt.wire.privatized_writer import write_privatized_file

MODEL: Final = "bert-tiny"
CONNECTIONS: Final = 8
ADMIN: Final = secrets.token_urlsafe(24)
MEBIBYTE: Final = 2**20
AIM: Final = 2.0


class Bare:
    """One connection of the attacker's, with as little between it and the socket as there can be."""

    def __init__(self, url: str, key: str) -> None:
        """Connect at the first request."""
        self._parts = urlsplit(url)
        self._key = key
        self._socket: socket.socket | None = None

    def ask(self, method: str, path: str, body: bytes = b"", *, kind: str = "application/json") -> bytes:
        """The body of an answer, whatever its status."""
        head = f"{method} {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {self._key}\r\n"
        head += f"content-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        try:
            if self._socket is None:
                self._socket = socket.create_connection((self._parts.hostname, self._parts.port), timeout=120)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(head.encode())
            self._socket.sendall(body)
            return self._read(self._socket)
        except OSError:
            self.close()
            raise

    def _read(self, connection: socket.socket) -> bytes:
        found = b""
        while b"\r\n\r\n" not in found:
            found += self._more(connection)
        head, _, body = found.partition(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"content-length: ")
        while len(body) < int(length.partition(b"\r\n")[0]):
            body += self._more(connection)
        if b"connection: close" in head.lower():
            self.close()
        return body

    @staticmethod
    def _more(connection: socket.socket) -> bytes:
        more = connection.recv(MEBIBYTE)
        if not more:
            raise ConnectionResetError
        return more

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


# What one connection of the attacker does again and again, given what it has to know; returns how many answers it had.
Attack = Callable[[Bare, Mapping[str, Any]], int]


def send(http: httpx2.Client, path: str, body: bytes) -> httpx2.Response:
    """The answer to a body of JSON."""
    return http.post(path, content=body, headers={"content-type": "application/json"})


def import_adapter(http: httpx2.Client, world: Mapping[str, Any]) -> str:
    """The name of a new model of whoever asks."""
    kind, body = world["adapter"]
    answer = http.post("/v1/adapters", content=body, headers={"content-type": kind})
    return str(answer.raise_for_status().json()["id"])


def post(path: str, name: str) -> Attack:
    """Send one body of those that are known, again and again."""

    def post_one(bare: Bare, world: Mapping[str, Any]) -> int:
        bare.ask("POST", path, world[name])
        return 1

    return post_one


def get(path: str) -> Attack:
    """Ask for one path, again and again."""

    def get_one(bare: Bare, world: Mapping[str, Any]) -> int:
        del world
        bare.ask("GET", path)
        return 1

    return get_one


def bring_and_delete(bare: Bare, world: Mapping[str, Any]) -> int:
    """Import an adapter and delete the model."""
    kind, body = world["adapter"]
    name = json.loads(bare.ask("POST", "/v1/adapters", body, kind=kind)).get("id")
    bare.ask("DELETE", f"/v1/models/{name}")
    return 2


def queue_and_cancel(bare: Bare, world: Mapping[str, Any]) -> int:
    """Ask for a long job, pause it, and cancel it."""
    job = json.loads(bare.ask("POST", "/v1/fine_tuning/jobs", world["job"])).get("id")
    for verb in ("pause", "resume", "cancel"):
        bare.ask("POST", f"/v1/fine_tuning/jobs/{job}/{verb}")
    return 4


def upload(bare: Bare, world: Mapping[str, Any]) -> int:
    """Send 3 MiB that are no privatized file."""
    kind, body = world["nothing"]
    bare.ask("POST", "/v1/files", body, kind=kind)
    return 1


def say_half(bare: Bare, world: Mapping[str, Any]) -> int:
    """Open a hundred connections that say half a request, and leave them."""
    del bare
    parts = urlsplit(world["url"])
    with ExitStack() as stack:
        for _ in range(100):
            connection = stack.enter_context(socket.create_connection((parts.hostname, parts.port)))
            with suppress(OSError):
                connection.sendall(b"GET /v1/files HTTP/1.1\r\nhost: a\r\n")
    return 100


ATTACKS: Final[Mapping[str, Attack]] = {
    "a body of 4 MB that is wrong everywhere": post("/v1/classify", "wrong"),
    "a body of 4 MB whose numbers are just few enough": post("/v1/classify", "long"),
    "predictions of 1,000 texts": post("/v1/classify", "many"),
    "predictions of one text": post("/v1/classify", "one"),
    "files of 3 MiB": upload,
    "adapters brought and deleted": bring_and_delete,
    "jobs queued, paused, resumed, cancelled": queue_and_cancel,
    "lists of everything": get("/v1/audit?limit=100"),
    "models that are not there": get("/v1/models/none"),
    "half a request on 100 connections": say_half,
}


def attack(name: str, key: str, world: Mapping[str, Any], over: Any, answered: Any) -> None:
    """Attack until it is over, and count answers; runs in a process of its own."""

    def one(_number: int) -> None:
        bare = Bare(world["url"], key)
        while not over.is_set():
            with suppress(OSError, ValueError):
                count = ATTACKS[name](bare, world)
                with answered.get_lock():
                    answered.value += count
        bare.close()

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(one, range(CONNECTIONS)))


def form(**fields: tuple[str | None, bytes]) -> tuple[str, bytes]:
    """The content type and the bytes of a form, of names of files and contents by field."""
    request = httpx2.Request("POST", "http://a", files=fields)
    return request.headers["content-type"], request.read()


def client(url: str, key: str) -> httpx2.Client:
    """A client with a key."""
    return httpx2.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=120, trust_env=False)


def waits(http: httpx2.Client, body: bytes, *, seconds: float) -> dict[str, list[float]]:
    """Seconds that each of the victim's requests took, for so long."""
    found: dict[str, list[float]] = {"usage": [], "prediction": []}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for kind in found:
            start = time.monotonic()
            answer = None
            while answer is None:
                with suppress(httpx2.RemoteProtocolError):  # a connection that it kept was closed: asked again
                    answer = http.get("/v1/usage") if kind == "usage" else send(http, "/v1/classify", body)
            if answer.status_code != 200:
                raise SystemExit(f"the victim was answered {answer.status_code}")
            found[kind].append(time.monotonic() - start)
    return found


def measure(
    world: Mapping[str, Any],
    keys: Mapping[str, str],
    body: bytes,
    *,
    names: list[str],
    seconds: float,
    rounds: int,
) -> Any:
    """Measure medians and slowest answers at rest and under each attack, and their ratio, for each kind of request."""
    rows = []
    for name in names:
        found: dict[str, dict[str, list[float]]] = {"rest": {}, "attack": {}}
        answers = 0
        for _ in range(rounds):
            with client(world["url"], keys["victim"]) as http:
                for when in found:
                    spawn = multiprocessing.get_context("spawn")
                    over, answered = spawn.Event(), spawn.Value("q", 0)
                    attacker = spawn.Process(target=attack, args=(name, keys["attacker"], world, over, answered))
                    if when == "attack":
                        attacker.start()
                        while not answered.value and attacker.is_alive():  # until it has begun
                            time.sleep(0.1)
                        time.sleep(1.0)
                        answers -= answered.value
                    for kind, values in waits(http, body, seconds=seconds).items():
                        found[when].setdefault(kind, []).extend(values)
                    if when == "attack":
                        answers += answered.value
                        over.set()
                        attacker.join()
        for kind in ("usage", "prediction"):
            rest, under = (statistics.median(found[when][kind]) for when in found)
            slowest = max(found["attack"][kind])
            row = {"attack": name, "request": kind, "rest_ms": 1000 * rest, "attack_ms": 1000 * under}
            row |= {"slowest_ms": 1000 * slowest, "ratio": under / rest, "n": len(found["attack"][kind])}
            rows.append(row | {"answers_to_the_attacker_a_second": answers / (rounds * seconds)})
            print(
                f"{name:48} {kind:10} {1000 * rest:8.1f} ms {1000 * under:8.1f} ms  x {under / rest:5.2f}  "
                f"slowest {1000 * slowest:6.0f} ms; {answers / (rounds * seconds):5.0f} answers a second",
                flush=True,
            )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="of rest and of attack in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--attacks", nargs="+", metavar="WORD", help="only attacks with one of these in their names")
    parser.add_argument("--json", type=Path, help="file for the result, beside printing it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    backbone = load_backbone(MODEL, precision="float32", device="cpu")
    eligible = [int(token) for token in backbone.bundle.eligible]
    files = adapter_to_files(made_adapter(backbone, torch.Generator().manual_seed(0)))
    records = [PrivatizedRecord(token_ids=tuple(eligible[at : at + 8]), label=at % 2) for at in range(64)]
    manifest = seal_manifest(manifest_for(backbone, labels=("no", "yes")), records)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "training.jsonl"
        with write_privatized_file(path, manifest) as writer:
            for record in records:
                writer.write(record)
        settings = {"RAPT_ADMIN_KEY": ADMIN, "RAPT_TENANT_JOBS": "20"}
        url, _ = stack.enter_context(service_on(Path(folder) / "data", model=MODEL, settings=settings))
        admin, keys = stack.enter_context(client(url, ADMIN)), {}
        for name in ("attacker", "victim"):
            admin.post("/v1/admin/tenants", json={"name": name}).raise_for_status()
            keys[name] = admin.post(f"/v1/admin/tenants/{name}/keys").raise_for_status().json()["value"]
        world: dict[str, Any] = {
            "url": url,
            "adapter": form(card=("c", files[CARD]), weights=("w", files[WEIGHTS]), config=("p", files[PEFT_CONFIG])),
            "nothing": form(purpose=(None, b"fine-tune"), file=("f", bytes(3 * MEBIBYTE))),
        }
        names = {}
        for name, key in keys.items():
            with client(url, key) as http:
                names[name] = import_adapter(http, world)
                sent = {"file": ("f", path.read_bytes())}
                stored = http.post("/v1/files", data={"purpose": "fine-tune"}, files=sent).raise_for_status()
                world.setdefault("file", stored.json()["id"])  # the attacker's, who comes first
        world["wrong"] = b'{"model": "m", "manifest": {}, "records": [' + b"1," * (2 * MEBIBYTE - 4096) + b"1]}"
        world["long"] = world["wrong"].replace(b"1,1,1,", b"12345,")[: 4 * MEBIBYTE - 4096]
        many = body_for(backbone, 1000 * [tuple(eligible[:16])])
        world["many"] = json.dumps({"model": names["attacker"], **many}).encode()
        few = body_for(backbone, [tuple(eligible[:16])])
        world["one"] = json.dumps({"model": names["attacker"], **few}).encode()
        method = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": {"n_epochs": 1000, "batch_size": 1}}}
        world["job"] = json.dumps({"model": MODEL, "training_file": world["file"], "method": method}).encode()
        body = json.dumps({"model": names["victim"], **few}).encode()
        wanted = arguments.attacks or [""]
        chosen = [name for name in ATTACKS if any(word in name for word in wanted)]
        rows = measure(world, keys, body, names=chosen, seconds=arguments.seconds, rounds=arguments.rounds)
    slower = [row for row in rows if row["ratio"] > AIM]
    print(f"slower than {AIM:g} times: {len(slower)} of {len(rows)}")
    publish({"machine": machine(), "aim": AIM, "rows": rows}, file=arguments.json)


if __name__ == "__main__":
    main()
