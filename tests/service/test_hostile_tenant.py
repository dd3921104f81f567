"""An ordinary tenant's key against a whole service with hard limits: it answers everybody else while it is attacked.

The service is a process of its own with 128 descriptors and so much memory beside what it has at rest; beyond it the
system gives it none. While each attack goes on, another tenant asks for its usage and for predictions, and `/healthz`
is asked by nobody in particular: all of it is answered, within generous seconds because the machine may be busy. How
much slower they get is measured by `benchmarks/hostile_tenant.py`.
"""

import hashlib
import io
import json
import os
import resource
import secrets
import socket
import stat
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Event, Thread
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx2
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from hostile_documents import MARKER, held, mutations_of
from http_requests import done_job, job_body, open_client, send, status_bytes, status_of, upload
from own_postgresql import own_postgresql
from rapt.wire.privatized_file import dump_query, remove_labels
from running_service import serving_process

MEBIBYTE = 2**20
MEMORY = 640 * MEBIBYTE  # beside what the service has at rest
DESCRIPTORS = 64
QUOTA = 8 * MEBIBYTE
PATIENCE = 20.0  # s, for an answer to somebody else
ADMIN = secrets.token_urlsafe(24)
CARD, WEIGHTS, CONFIG = "rapt.json", "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def world(tmp_path_factory, training_path, training_file):
    """A service, clients of the admin and of two tenants, and a model of each tenant."""
    folder = tmp_path_factory.mktemp("hostile")
    settings: dict[str, object] = {"admin_key": ADMIN, "job_slice_seconds": 1, "head_seconds": 2, "body_seconds": 2}
    with ExitStack() as stack:
        if "RAPT_TEST_POSTGRESQL" in os.environ:
            settings["database_url"] = stack.enter_context(own_postgresql()).url
        process, url = stack.enter_context(serving_process(folder, descriptors=DESCRIPTORS, **settings))

        def client(key, **more):
            headers = {"authorization": f"Bearer {key}"}
            return stack.enter_context(open_client(url, headers=headers, timeout=90, **more))

        found = SimpleNamespace(
            url=url,
            process=process,
            folder=folder,
            client=client,
            admin=client(ADMIN),
            keys={},
            models={},
            files={},
        )
        for name in ("ada", "bob"):
            found.admin.post("/v1/admin/tenants", json={"name": name, "max_bytes": QUOTA, "max_jobs": 20})
            found.keys[name] = found.admin.post(f"/v1/admin/tenants/{name}/keys").json()["value"]
        found.ada, found.bob = (client(found.keys[name]) for name in ("ada", "bob"))
        for name, http in (("ada", found.ada), ("bob", found.bob)):
            found.files[name] = upload(http, training_path).json()["id"]
            found.models[name] = done_job(http, job_body(found.files[name], n_epochs=1))["fine_tuned_model"]
        found.query = dump_query(remove_labels(training_file))
        archive = found.ada.get(f"/v1/models/{found.models['ada']}/adapter").content
        with zipfile.ZipFile(io.BytesIO(archive)) as packed:
            found.adapter = {name: packed.read(name) for name in packed.namelist()}
        at_rest = status_bytes(process.pid, "VmData")
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (at_rest + MEMORY, at_rest + MEMORY))
        found.at_rest = status_bytes(process.pid, "VmRSS")
        yield found


@contextmanager
def others_are_answered(world):
    """Within the block, and once more after it, another tenant gets all that it asks for in time."""
    over, slowest = Event(), {}
    query = {"model": world.models["bob"], **world.query}

    def ask(http: httpx2.Client) -> None:
        for path in ("/healthz", "/v1/usage", "/v1/classify"):
            start = time.monotonic()
            answer = once_more(lambda path=path: http.post(path, json=query) if "classify" in path else http.get(path))
            slowest[path] = max(slowest.get(path, 0.0), time.monotonic() - start)
            assert answer.status_code == 200, f"{path}: {answer.text[:500]}"

    def watch() -> None:
        with open_client(world.url, timeout=90, headers={"authorization": f"Bearer {world.keys['bob']}"}) as http:
            while not over.wait(0.15):
                ask(http)
            ask(http)

    with ThreadPoolExecutor(1) as threads:
        watching = threads.submit(watch)
        try:
            yield
        finally:
            over.set()
        watching.result()
    assert max(slowest.values()) < PATIENCE, slowest
    assert world.process.poll() is None
    assert status_bytes(world.process.pid, "VmHWM") < world.at_rest + MEMORY


def once_more(ask):
    """An answer; as every client does, it asks again where a connection that it kept was closed meanwhile."""
    for _ in range(4):
        try:
            return ask()
        except httpx2.RemoteProtocolError:
            continue
    return ask()


def at_once(world, requests, *, threads=8):
    """The answers to requests of the tenant, each a function of a client, from so many threads."""
    clients = [world.client(world.keys["ada"]) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda pair: pair[1](clients[pair[0] % threads]), enumerate(requests)))


def show_lists(http):
    for path in ("/v1/files", "/v1/fine_tuning/jobs", "/v1/models", "/v1/keys", "/v1/audit", "/v1/usage"):
        answer = http.get(path)
        assert answer.status_code == 200, answer.text[:500]
        assert answer.headers["cache-control"] == "no-store"


def test_no_key_of_a_tenant_becomes_an_admins_or_ends_one(world):
    admins = world.admin.post("/v1/admin/tenants/ada/keys", json={"role": "admin"}).json()
    with others_are_answered(world):
        requests: list[Callable[[httpx2.Client], httpx2.Response]] = [
            lambda http, verb=verb, prefix=prefix: http.post(f"{prefix}/keys/{admins['id']}/{verb}")
            for verb in ("rotate", "revoke")
            for prefix in ("/v1", "/v1/admin", "/v1/./admin", "/v1/admin/tenants/ada")
        ]
        requests += [
            lambda http: http.post("/v1/admin/tenants/ada/keys", json={"role": "admin"}),
            lambda http: http.delete("/v1/admin/tenants/ada"),
            lambda http: http.delete("/v1/admin/tenants/local"),
            lambda http: http.post("/v1/admin/tenants/ada", json={"max_bytes": 10**12}),
            lambda http: http.get(f"/v1/files/{world.files['bob']}"),
            lambda http: http.get(f"/v1/models/{world.models['bob']}"),
            lambda http: send(http, "/v1/classify", {"model": world.models["bob"], **world.query}),
        ]
        for answer in at_once(world, requests):
            held(answer, (403, 404, 405))
        shown = {key["id"]: key["role"] for key in world.ada.get("/v1/keys").json()["data"]}
        assert set(shown.values()) == {"tenant"}
        made = at_once(world, 30 * [lambda http: http.post("/v1/keys/none/rotate", json={"grace_seconds": 2**31})])
        assert {answer.status_code for answer in made} == {400}
    assert world.client(admins["value"]).get("/v1/admin/tenants").status_code == 200


WRONG = ["1", '""', "null", "[]", "{}", '{"a":1}', "[1]", f'"{MARKER}"', "1.5", "true", "-1", "[[[[]]]]"]


@pytest.mark.parametrize("size", [MEBIBYTE, 4 * MEBIBYTE - 4096, 5 * MEBIBYTE])
def test_a_body_that_is_wrong_a_million_times_is_refused_at_the_first(world, size, rng):
    texts = []
    for path, frame in (
        ("/v1/classify", '{"model": "m", "manifest": {}, "records": [%s]}'),
        ("/v1/completions", '{"model": "m", "rapt": {"manifest": {}}, "prompt": [%s]}'),
        ("/v1/completions", '{"model": "m", "rapt": {"manifest": {"eta": [%s]}}, "prompt": [[1]]}'),
        ("/v1/chat/completions", '{"model": "m", "rapt": {"manifest": {}}, "messages": [%s]}'),
        ("/v1/fine_tuning/jobs", '{"model": "m", "training_file": [%s]}'),
        ("/v1/uploads/none/complete", '{"part_ids": [%s]}'),
        ("/v1/keys/none/rotate", "[%s]"),
    ):
        item = WRONG[int(rng.integers(len(WRONG)))]
        texts.append((path, frame % ",".join(size // (len(item) + 1) * [item])))
        texts.append((path, frame % ("9" * size)))
        texts.append((path, frame % ('"' + size * "x" + '"')))
    chosen = [texts[int(place)] for place in rng.permutation(len(texts))[:8]]
    with others_are_answered(world):
        for answer in at_once(
            world,
            [
                lambda http, path=path, text=text: http.post(
                    path, content=text.encode(), headers={"content-type": "application/json"}
                )
                for path, text in chosen
            ],
        ):
            held(answer, (400, 404, 413, 429))


def test_jobs_that_take_everything_leave_the_queue_to_others(world, training_path):
    file, short = world.files["ada"], job_body(world.files["bob"], n_epochs=1)
    sizes = [
        {"batch_size": 1024, "n_epochs": 1000},
        {"num_virtual_tokens": 256},
        {"n_epochs": 10**9},
        {"batch_size": 10**400},
        {"learning_rate": 1e-320},
        {"learning_rate": 100.0, "n_epochs": 1},
        {"reconstruction": {"hidden_size": 8192}},
        {"task": "label_words", "label_words": 1000 * ["word"]},
        {"initialization": "text", "init_text": 4096 * "x"},
        {"label_words": 100_000 * [MARKER]},
    ]
    methods = [job_body(file, **size) for size in sizes] + [
        {**job_body(file), "method": {"type": "p_tuning", "p_tuning": {"hyperparameters": wide}}}
        for wide in ({"encoder": "lstm", "encoder_hidden_size": 8192}, {"encoder_hidden_size": 4096})
    ]
    with others_are_answered(world):
        for answer in at_once(
            world, [lambda http, body=body: send(http, "/v1/fine_tuning/jobs", body) for body in methods]
        ):
            held(answer)
        for answer in at_once(
            world, 30 * [lambda http: send(http, "/v1/fine_tuning/jobs", job_body(file, batch_size=1, n_epochs=1000))]
        ):
            held(answer, (200, 429))
        done_job(world.bob, short)
        active = [
            job["id"]
            for job in world.ada.get("/v1/fine_tuning/jobs?limit=100").json()["data"]
            if job["status"] in ("queued", "running", "paused")
        ]
        verbs = ("pause", "resume", "cancel", "cancel", "resume")
        for answer in at_once(
            world,
            [
                lambda http, job=job, verb=verb: http.post(f"/v1/fine_tuning/jobs/{job}/{verb}")
                for verb in verbs
                for job in active
            ],
        ):
            held(answer)
        assert {status_of(world.ada, job) for job in active} <= {"cancelled", "failed", "succeeded"}
    show_lists(world.ada)


def test_adapters_that_no_run_has_left_are_refused_or_answer(world, rng):
    tensors, card = load_tensors(world.adapter[WEIGHTS]), json.loads(world.adapter[CARD])
    width = tensors["classifier.weight"].shape[1]
    kinds = [
        (tensors | {"prompt_embeddings": torch.zeros(15_000, width)}, card | {"prompt_length": 15_000}),
        (tensors | {"classifier.bias": torch.tensor([float("nan"), 0])}, card),
        (tensors | {"classifier.bias": torch.tensor([3e38, -3e38])}, card),
        ({name: tensor.to(torch.int8) for name, tensor in tensors.items()}, card),
        ({name: tensor.to(torch.complex64) for name, tensor in tensors.items()}, card),
        ({name: tensor.bool() for name, tensor in tensors.items()}, card),
        (tensors, card | {"task": "generation"}),
        (tensors, card | {"method": "lora"}),
        (tensors, card | {"prompt_length": -1}),
        (tensors, card | {"plain_tokens": 10**401}),
        (
            tensors | {"classifier.weight": torch.zeros(64_000, width), "classifier.bias": torch.zeros(64_000)},
            card | {"labels": [str(number) for number in range(64_000)]},
        ),
        (
            tensors | {"classifier.weight": torch.zeros(1000, width), "classifier.bias": torch.zeros(1000)},
            card | {"labels": [str(number) for number in range(1000)]},
        ),
    ]

    def bring(http, weights, card):
        digest = hashlib.sha256(weights).hexdigest()
        form = {"card": ("c", json.dumps(card | {"weights_sha256": digest}).encode()), "weights": ("w", weights)}
        return http.post("/v1/adapters", files=form | {"config": ("p", world.adapter[CONFIG])})

    spoiled = bytearray(world.adapter[WEIGHTS])
    for place in rng.integers(len(spoiled), size=16):
        spoiled[int(place)] ^= int(rng.integers(1, 256))
    with others_are_answered(world):
        answers = at_once(
            world,
            [
                *(lambda http, kind=kind: bring(http, save_tensors(kind[0]), kind[1]) for kind in kinds),
                lambda http: bring(http, bytes(spoiled), card),
                lambda http: bring(http, world.adapter[WEIGHTS][:-1], card),
            ],
        )
        # The last kind, of a thousand classes, is as it should be; at once with the others it may find no room.
        answers.append(bring(world.ada, save_tensors(kinds[-1][0]), kinds[-1][1]))
        taken = [answer.json()["id"] for answer in map(held, answers) if answer.status_code == 200]
        assert answers[-1].status_code == 200
        records = 64 * world.query["records"][:1]
        for name in taken:
            privacy = {"manifest": world.query["manifest"], "records": [{} for _ in records]}
            prompts = [[1] for _ in records]
            held(send(world.ada, "/v1/classify", {"model": name, **world.query}))
            body = {
                "model": name,
                "prompt": prompts,
                "logprobs": 20,
                "rapt": privacy | {"models": len(records) * [name]},
            }
            held(send(world.ada, "/v1/completions", body))
            held(send(world.ada, "/v1/completions", body | {"rapt": privacy | {"models": 65_536 * [name]}}))
        for name in taken:
            assert world.ada.delete(f"/v1/models/{name}").status_code == 200
    show_lists(world.ada)


def test_connections_that_say_nothing_or_dribble_or_do_not_read_leave_room(world):
    parts = urlsplit(world.url)
    key = b"authorization: Bearer " + world.keys["ada"].encode() + b"\r\n"
    beginnings = [
        b"",
        b"\x16\x03\x01",
        b"GET /v1/files HTTP/1.1\r\nhost: a\r\n",
        b"POST /v1/classify HTTP/1.1\r\nhost: a\r\ncontent-length: 4000000\r\n" + key + b"\r\n{",
        b"POST /v1/files HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n" + key + b"\r\n1\r\n",
        100 * (b"GET /v1/vocabularies/bert-tiny/embeddings.safetensors HTTP/1.1\r\nhost: a\r\n" + key + b"\r\n"),
        b"GET /style.css HTTP/1.1\r\nhost: a\r\n\r\n",
    ]
    with ExitStack() as stack, others_are_answered(world):
        for number in range(140):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.settimeout(PATIENCE)
            connection.connect((parts.hostname, parts.port))
            connection.sendall(beginnings[number % len(beginnings)])
        Event().wait(1.0)  # what dribbles has its time: others ask meanwhile
        assert httpx2.get(f"{world.url}/readyz", trust_env=False, timeout=PATIENCE).status_code == 200


def test_uploads_stay_within_the_quota_however_many_come_at_once(world):
    def used():
        stored = [path for path in (world.folder / "data").rglob("*") if path.is_file() and "rapt.db" not in path.name]
        return sum(path.stat().st_size for path in stored)

    before, most, over = used(), [0], Event()

    def watch():
        while not over.wait(0.02):
            try:
                most[0] = max(most[0], used())
            except FileNotFoundError:  # gone between its name and its size
                continue

    content = os.urandom(3 * MEBIBYTE)
    watcher = Thread(target=watch)
    watcher.start()
    try:
        with others_are_answered(world):
            begun = world.ada.post(
                "/v1/uploads", json={"filename": "f", "purpose": "fine-tune", "bytes": 2**30, "mime_type": "x"}
            ).json()["id"]
            files, part = {"file": ("f", content)}, {"data": ("f", content)}
            answers = at_once(
                world,
                8 * [
                    lambda http: http.post("/v1/files", data={"purpose": "fine-tune"}, files=files),
                    lambda http: http.post(f"/v1/uploads/{begun}/parts", files=part),
                    lambda http: http.post("/v1/adapters", files={"card": ("c", b"{}"), "weights": ("w", content)}),
                ],
            )  # fmt: skip
            for answer in answers:
                held(answer)
            assert any(answer.status_code == 429 for answer in answers)
            kept = [answer.json()["id"] for answer in answers if "upload.part" in answer.text]
            for answer in at_once(
                world,
                [
                    lambda http, ids=ids: send(
                        http, f"/v1/uploads/{begun}/complete", {"part_ids": ids, "md5": 32 * "0"}
                    )
                    for ids in (kept, kept[:1], 10_000 * ["none"], kept * 2)
                ]
                * 4,
            ):
                held(answer)
            assert send(world.ada, f"/v1/uploads/{begun}/cancel", {}).status_code == 200
    finally:
        over.set()
        watcher.join()
    assert most[0] - before <= QUOTA + MEBIBYTE
    assert used() - before < MEBIBYTE
    show_lists(world.ada)


def test_forms_with_endless_parts_are_refused_in_constant_memory(world):
    piece = 1024 * b"x\r\n--"
    starts = (
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="',
        b"--b\r\nx",
        b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n',
        b"\r\n",
        b"--b--\r\n",
    )

    def endless(start):
        yield start
        for _ in range(8 * MEBIBYTE // len(piece)):
            yield piece

    headers = {"content-type": "multipart/form-data; boundary=b"}
    with others_are_answered(world):
        for path in ("/v1/files", "/v1/adapters", "/v1/uploads/none/parts"):
            for answer in at_once(
                world,
                [
                    lambda http, path=path, start=start: http.post(path, content=endless(start), headers=headers)
                    for start in starts
                ],
                threads=2,
            ):
                held(answer)


@pytest.mark.parametrize("count", [40, pytest.param(1500, marks=pytest.mark.slow)])
def test_poison_in_any_document_is_refused_or_shown_again(world, training_path, count):
    lines = training_path.read_bytes().splitlines()
    manifest = json.loads(lines[0])
    query = {"manifest": world.query["manifest"], "records": world.query["records"][:2]}
    privacy = {"manifest": query["manifest"], "records": [{}, {}]}
    model = world.models["ada"]
    bodies = [
        ("/v1/classify", {"model": model, **query}),
        ("/v1/completions", {"model": model, "prompt": [[1, 2], [3]], "rapt": privacy, "stop": ["a"], "seed": 1}),
        ("/v1/fine_tuning/jobs", {**job_body("file-none"), "metadata": {"a": "b"}, "suffix": "mine"}),
        ("/v1/uploads", {"filename": "a", "purpose": "fine-tune", "bytes": 10, "mime_type": "text/plain"}),
        ("/v1/uploads/none/complete", {"part_ids": ["a"], "md5": 32 * "0"}),
        ("/v1/keys/none/rotate", {"grace_seconds": 1}),
    ]

    @settings(max_examples=count, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def attack(data):
        if data.draw(st.integers(0, 3)):
            path, body = data.draw(st.sampled_from(bodies))
            held(send(world.ada, path, data.draw(mutations_of(body))))
        else:
            first = json.dumps(data.draw(mutations_of(manifest))).encode()
            files = {
                "file": (
                    f"{MARKER}\ud800\x00".encode("utf-8", "surrogatepass").decode("latin-1"),
                    b"\n".join([first, *lines[1:]]),
                )
            }
            held(world.ada.post("/v1/files", data={"purpose": "fine-tune"}, files=files))

    with others_are_answered(world):
        attack()
    show_lists(world.ada)


ODD = ["%00", "%ff", "%ed%a0%80", "%22", "'", "..%2f..", "%2e%2e", "9" * 401, "x" * 4000, "1e400", "[", "%0d%0aa:b"]


def test_odd_paths_queries_methods_and_headers_are_refused(world, rng):
    paths = [
        "/v1/files/{}",
        "/v1/files/{}/content",
        "/v1/models/{}",
        "/v1/models/{}/adapter",
        "/v1/uploads/{}/complete",
    ]
    paths += ["/v1/fine_tuning/jobs/{}", "/v1/fine_tuning/jobs/{}/events", "/v1/keys/{}/rotate", "/v1/vocabularies/{}"]
    paths += ["/v1/files?after={}", "/v1/files?limit={}", "/v1/fine_tuning/jobs?metadata[{}]=a", "/v1/audit?after={}"]
    methods = ["GET", "HEAD", "POST", "DELETE", "OPTIONS", "TRACE", "PATCH", "FOO"]
    requests = [
        lambda http, method=method, path=path, odd=odd: http.request(method, path.format(odd))
        for method in methods
        for path in paths
        for odd in ODD
    ]
    with others_are_answered(world):
        for place in rng.permutation(len(requests))[:200]:
            answer = requests[int(place)](world.ada)
            assert answer.status_code in (200, 400, 404, 405), answer.text[:300]
        for headers in (
            {"idempotency-key": 10_000 * "k"},
            {"range": 3000 * "bytes=0-1,"},
            {"content-encoding": "gzip"},
            {"x-forwarded-for": "127.0.0.1"},
            {f"x-{number}": "y" for number in range(500)},
        ):
            answer = world.ada.post("/v1/fine_tuning/jobs", json=job_body("file-none"), headers=headers)
            assert answer.status_code in (400, 404, 415)


def test_nothing_of_all_that_lies_open_or_in_the_log(world):
    for path in (world.folder / "data").rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path.name
    log = (world.folder / "log").read_text()
    assert "Traceback" not in log
    assert " failed: " not in log  # what nobody foresaw
    assert MARKER not in log
    assert all(key not in log for key in (ADMIN, *world.keys.values()))
