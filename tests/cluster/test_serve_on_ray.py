"""`rapt serve --engine ray`: the answers of one machine, and none is lost when replicas, places or a head die."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from queue import Queue

import httpx2
import pytest
import torch

from blob_stores import has_s3, object_store, own_s3
from closeness import assert_close
from http_requests import ENDLESS, done_job, job_body, open_client, status_of, upload
from own_postgresql import own_postgresql
from rapt.cli.program import run as rapt
from rapt.errors import ClusterError, UnavailableError
from rapt.service.adapter.adapter import adapter_from_files, adapter_to_files
from rapt.service.answers.prediction import classify, row_of
from rapt.service.backbone.opening import load_backbone
from rapt.service.replicas.front import Replicas, ReplicaSettings
from rapt.service.tuning.tuner import tune
from rapt.service.tuning.tuning_config import TuningConfig
from rapt.wire.adapter_files import CARD, WEIGHTS, unpack_adapter
from rapt.wire.manifest import dump_manifest
from rapt.wire.privatized_file import PrivatizedRecord, dump_query, remove_labels, seal_manifest
from replica_material import make_plan
from running_service import save_privatized, serving_process, wait_until
from tiny_backbones import tiny_backbone
from tuning_material import manifest_for, separable_file

pytestmark = pytest.mark.ray
KEY = "k3y-Of-These-9-Tests"
ON_RAY = [sys.executable, "-m", "rapt", "serve", "--engine", "ray", "--replicas", "2"]
SECONDS = 600.0  # a limit for busy machines; no test waits for it to pass


needs_stores = pytest.mark.skipif(
    not has_s3() or "RAPT_TEST_POSTGRESQL" not in os.environ, reason="needs servers of PostgreSQL and S3"
)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("bert-tiny", precision="float32", device="cpu")


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A small decoder, and the folder that it is served from."""
    folder = tmp_path_factory.mktemp("writer") / "tiny-llama"
    return tiny_backbone("llama", folder), folder


class Served:
    """A service on a cluster of its own, and what tests ask of it."""

    def __init__(self, folder, process, url, backbone):
        self.folder, self.process = folder, process
        self.http = open_client(url, headers={"authorization": f"Bearer {KEY}"}, timeout=SECONDS)
        training = save_privatized(separable_file(backbone, records=32), folder / "training.jsonl")
        self.file = upload(self.http, training).json()["id"]
        self.model = done_job(self.http, job_body(self.file))["fine_tuned_model"]
        self.query = remove_labels(separable_file(backbone, records=2, seed=1))
        archive = self.http.get(f"/v1/models/{self.model}/adapter").content
        adapter = adapter_from_files(unpack_adapter(archive), backbone=backbone)
        self.expected = classify(backbone, [row_of(record, adapter=adapter) for record in self.query.records])

    def ask(self, **headers):
        """Ask for two labels."""
        return self.http.post("/v1/classify", json={"model": self.model, **dump_query(self.query)}, headers=headers)

    def find(self, title):
        """The processes of the cluster with a title, by id."""
        return find_processes(title, mark=f"RAPT_READY_FILE={self.folder}")

    def log(self):
        return (self.folder / "log").read_text()


def find_processes(title, *, mark):
    """The processes with a title and a setting in their environment, by id."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if title in (path / "cmdline").read_bytes() and mark.encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:  # it has ended
            continue
    return found


@pytest.fixture(scope="module")
def served(backbone, writer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    settings = {"models": f"bert-tiny,{writer[1]}", "admin_key": KEY, "precision": "float32", "run_state_seconds": 0}
    with serving_process(folder, command=ON_RAY, **settings) as (process, url):
        found = Served(folder, process, url, backbone)
        yield found
        found.http.close()


def check(served, answers, backbone):
    for answer in answers:
        assert answer.status_code == 200, answer.text
        found = [item["probabilities"] for item in answer.json()["predictions"]]
        assert_close(found, served.expected, of=backbone)


def test_labels_are_those_of_one_machine_and_clients_steer_no_proxy_of_ray(served, backbone):
    check(served, [served.ask()], backbone)
    # Ray Serve's own proxies obey these; here they are a client's words, and no such proxy listens.
    spoofed = {"serve_multiplexed_model_id": "other", "x-request-timeout-seconds": "0.0001", "x-request-id": "mine"}
    answer = served.ask(**spoofed, **{"x-forwarded-for": "127.0.0.1"})
    check(served, [answer], backbone)
    assert answer.headers["x-request-id"].startswith("req_")
    with socket.socket() as one:
        assert one.connect_ex(("127.0.0.1", 8000)) != 0
    without = httpx2.post(f"{served.http.base_url}/v1/classify", json={}, headers={"x-forwarded-for": "127.0.0.1"})
    assert without.status_code == 401


def write(served, backbone):
    """The pieces of a drawn text, as they come."""
    record = PrivatizedRecord(token_ids=(5, 9, 17, 30))
    manifest = dump_manifest(seal_manifest(manifest_for(backbone, labels=None), [record]))
    body = {"model": backbone.model, "prompt": list(record.token_ids), "max_tokens": 40, "seed": 7, "stream": True}
    with served.http.stream("POST", "/v1/completions", json=body | {"rapt": {"manifest": manifest}}) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))["choices"][0]


def test_a_text_goes_on_behind_what_was_told_when_its_replica_is_killed(served, writer):
    whole = list(write(served, writer[0]))
    assert whole[-1]["finish_reason"] in ("length", "stop")
    pieces = write(served, writer[0])
    begun = [next(pieces)]
    for replica in served.find(b"ServeReplica"):
        os.kill(replica, signal.SIGKILL)
    found = "".join(piece["text"] for piece in [*begun, *pieces])
    assert found == "".join(piece["text"] for piece in whole)


def test_a_body_is_limited_at_the_door(served):
    def pieces():
        for _ in range(6):
            yield b" " * 2**20

    refused = served.http.post("/v1/classify", content=pieces(), headers={"content-type": "application/json"})
    assert refused.status_code == 413


def test_replicas_that_are_killed_lose_no_request(served, backbone):
    replicas = served.find(b"ServeReplica")
    assert len(replicas) == 2
    for replica in replicas:
        os.kill(replica, signal.SIGSTOP)  # what is asked now is on its way until they die
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(served.ask) for _ in range(24)]
        wait_until(lambda: any(future.running() for future in asked))
        for replica in replicas:
            os.kill(replica, signal.SIGKILL)
        check(served, [future.result() for future in asked], backbone)
    assert not set(served.find(b"ServeReplica")) & set(replicas)


def test_replicas_are_replaced_without_a_lost_request(served, backbone):
    before = served.find(b"ServeReplica")
    served.process.send_signal(signal.SIGHUP)
    answers = []

    def is_done():
        answers.append(served.ask())
        return "replicas were replaced: done" in served.log()

    wait_until(is_done)
    check(served, answers, backbone)
    wait_until(lambda: not set(served.find(b"ServeReplica")) & set(before))


def test_a_job_whose_place_is_killed_goes_on_from_its_state(served):
    kill_place_and_go_on(served.http, served.file, lambda: served.find(b"ray::JobPlace"))


def kill_place_and_go_on(http, file, find_places):
    """Kill the place of a long job, and see that another one does not begin anew."""
    job = http.post("/v1/fine_tuning/jobs", json=job_body(file, **ENDLESS)).json()["id"]
    where = f"/v1/fine_tuning/jobs/{job}"

    def steps(message):
        """Steps that were told since the last event that begins so."""
        events = [event["message"] for event in http.get(f"{where}/events?limit=100").json()["data"]]
        since = next((number for number, one in enumerate(events) if one.startswith(message)), 0)
        return [int(one[5:].partition("/")[0]) for one in events[:since] if one.startswith("step ")]

    wait_until(lambda: max(steps("the job is running"), default=0) >= 128)
    places = find_places()
    assert places
    for place in places:
        os.kill(place, signal.SIGKILL)
    lost = "the process that ran the job died: its node was lost, or its worker was killed"
    wait_until(lambda: steps(lost))
    assert min(steps(lost)) > 64  # of 32,000, every 64th is told: what began anew would tell that
    assert http.post(f"{where}/cancel").status_code == 200
    wait_until(lambda: status_of(http, job) == "cancelled")


@needs_stores
def test_jobs_on_other_nodes_find_all_in_postgresql_and_s3(backbone, nodes, tmp_path):
    with own_s3(), object_store("s3://") as blobs, own_postgresql() as server, nodes(count=2) as held:
        settings = {"admin_key": KEY, "precision": "float32", "run_state_seconds": 0}
        settings |= {"database_url": server.url, "blobs": blobs}
        command = [*ON_RAY[:-1], "1", "--ray-address", held.address]
        with serving_process(tmp_path, command=command, **settings) as (process, url):
            served = Served(tmp_path, process, url, backbone)
            check(served, [served.ask()], backbone)
            mark = f"AWS_ENDPOINT_URL={os.environ['AWS_ENDPOINT_URL']}"
            kill_place_and_go_on(served.http, served.file, lambda: find_processes(b"ray::JobPlace", mark=mark))
            served.http.close()
        assert list((tmp_path / "data" / "blobs").iterdir()) == []


def test_a_lost_cluster_is_one_line_and_comes_back(served, backbone):
    for process in served.find(b"gcs_server"):
        os.kill(process, signal.SIGKILL)
    wait_until(lambda: served.http.get("/readyz").status_code == 503)
    answer = served.ask()
    if answer.status_code != 200:  # else it is back already
        assert answer.status_code == 503
        assert "the cluster that computes predictions must be there, and is away" in answer.json()["error"]["message"]
    assert served.http.get("/v1/files").status_code == 200
    wait_until(lambda: served.http.get("/readyz").status_code == 200)
    check(served, [served.ask()], backbone)


def refuse_to_replace(served, backbone, *, reason):
    """Ask for new replicas, and see that the old ones answer until the log says why there are none, and then."""
    served.process.send_signal(signal.SIGHUP)
    answers = []

    def is_told():
        answers.append(served.ask())
        return f"replicas were replaced: {reason}" in served.log()

    wait_until(is_told)
    check(served, [*answers, *(served.ask() for _ in range(8))], backbone)


def test_replicas_that_cannot_start_take_the_place_of_none(served, writer, backbone):
    weights, before = writer[1] / "model.safetensors", served.find(b"ServeReplica")
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    refuse_to_replace(served, backbone, reason="every node of the cluster must be able to hold a replica")
    assert served.find(b"ServeReplica") == before
    weights.write_bytes(content)


def test_replicas_that_fail_when_they_load_take_the_place_of_none(served, writer, backbone):
    """A node is asked for files and not for what is in them: Serve begins to replace, and gives up."""
    tokenizer = writer[1] / "tokenizer.json"
    content = tokenizer.read_text()
    changed = json.loads(content)
    vocabulary = changed["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    tokenizer.write_text(json.dumps(changed))
    refuse_to_replace(served, backbone, reason="the replicas must start, got")
    tokenizer.write_text(content)


def test_replicas_come_with_load_and_go_without_it_and_no_request_is_lost(backbone, tmp_path):
    settings = {"admin_key": KEY, "precision": "float32", "most_replicas": 2, "replica_requests": 1}
    settings |= {"replica_up_seconds": 1, "replica_down_seconds": 2}
    one = [word if word != "2" else "1" for word in ON_RAY]
    with serving_process(tmp_path, command=one, **settings) as (process, url):
        served, answers = Served(tmp_path, process, url, backbone), []
        assert len(served.find(b"ServeReplica")) == 1
        with ThreadPoolExecutor(8) as pool:

            def is_scaled():
                answers.extend(pool.map(lambda _: served.ask(), range(32)))
                return len(served.find(b"ServeReplica")) == 2

            wait_until(is_scaled)

        def is_alone():  # one request after the other, while the second replica goes
            answers.append(served.ask())
            return len(served.find(b"ServeReplica")) == 1

        wait_until(is_alone)
        check(served, [*answers, served.ask()], backbone)
        served.http.close()


@pytest.mark.skipif("RAPT_TEST_POSTGRESQL" not in os.environ, reason="needs a PostgreSQL server")
def test_services_on_one_postgresql_share_replicas_models_and_the_tokens_of_a_minute(backbone, nodes, tmp_path):
    with nodes() as held, own_postgresql() as server, ExitStack() as stack:
        command = [*ON_RAY[:-1], "1", "--ray-address", held.address]
        settings = {"admin_key": KEY, "precision": "float32", "worker_in_service": False, "keep_replicas": True}
        settings |= {"database_url": server.url, "blobs": f"file://{tmp_path / 'blobs'}"}
        clients = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            _, url = stack.enter_context(serving_process(tmp_path / name, command=command, **settings))
            clients.append(stack.enter_context(open_client(url, timeout=SECONDS)))
        one, two = clients
        admin = {"authorization": f"Bearer {KEY}"}
        quota = {"name": "ada", "tokens_per_minute": 1_000}
        assert one.post("/v1/admin/tenants", json=quota, headers=admin).status_code == 200
        key = one.post("/v1/admin/tenants/ada/keys", headers=admin).json()["value"]
        for client in clients:
            client.headers["authorization"] = f"Bearer {key}"
        config = TuningConfig(epochs=1, batch_size=16)
        files = adapter_to_files(tune(backbone, separable_file(backbone, records=32), config=config))
        form = {"card": ("c", files[CARD]), "weights": ("w", files[WEIGHTS])}
        model = one.post("/v1/adapters", files=form).json()["id"]
        asked = remove_labels(separable_file(backbone, records=8, seed=1))
        query, begun = {"model": model, **dump_query(asked)}, time.monotonic()
        answers = [client.post("/v1/classify", json=query) for client in (one, two)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].json()["predictions"] == answers[1].json()["predictions"]
        cost = sum(len(record.token_ids) for record in asked.records)
        taken = 2

        def is_refused():
            nonlocal taken
            status = clients[taken % 2].post("/v1/classify", json=query).status_code
            taken += status == 200
            return status == 429

        wait_until(is_refused)
        assert taken * cost <= 1_000 * (1 + (time.monotonic() - begun) / 60)  # with what flowed in meanwhile


@needs_stores
def test_a_job_that_finds_no_core_of_the_cluster_is_told_to_who_runs_the_service(backbone, nodes, tmp_path):
    with own_s3(), object_store("s3://") as blobs, own_postgresql() as server, nodes() as held:
        settings = {"admin_key": KEY, "database_url": server.url, "blobs": blobs}
        command = [*ON_RAY[:-1], "1", "--ray-address", held.address]  # the replica has the only core
        with serving_process(tmp_path, command=command, **settings) as (_, url):
            with open_client(url, headers={"authorization": f"Bearer {KEY}"}, timeout=SECONDS) as http:
                training = save_privatized(separable_file(backbone, records=32), tmp_path / "training.jsonl")
                file = upload(http, training).json()["id"]
                assert http.post("/v1/fine_tuning/jobs", json=job_body(file)).status_code == 200
            wait_until(lambda: "a job waits for a core of the cluster" in (tmp_path / "log").read_text())


def plan(**changes):
    return make_plan(**{"torch_threads": 1, **changes})


@contextmanager
def replicas_of(plan, address):
    settings = ReplicaSettings(plan=plan, address=address, keep=False, jobs=None, jobs_at_once=1, shares_disk=False)
    replicas = Replicas(settings)
    try:
        replicas.start()
        yield replicas
    finally:
        replicas.close()


def start(plan, address):
    with replicas_of(plan, address):
        pass


def test_nodes_that_cannot_hold_a_replica_are_one_line(nodes, tmp_path):
    with nodes() as held:
        with pytest.raises(ClusterError, match=r"every node of the cluster must have rapt 0\.0\.1") as caught:
            start(plan(version="0.0.1"), held.address)
        assert "\n" not in str(caught.value)
        with pytest.raises(ClusterError, match="every node of the cluster must be able to hold a replica") as caught:
            start(plan(models={"bert-tiny": str(tmp_path / "nowhere")}), held.address)
        assert "\n" not in str(caught.value)


def test_an_adapter_that_finds_the_object_store_full_is_one_line_to_who_asks_and_others_are_answered(backbone, nodes):
    full = {"local_fs_capacity_threshold": 0.0, "local_fs_monitor_interval_ms": 10}
    small = tune(backbone, separable_file(backbone, records=16), config=TuningConfig(epochs=1))
    large = replace(small, tuned=replace(small.tuned, prompt=torch.zeros(2**18, backbone.embedding_size)))
    given = plan(vocabularies={"bert-tiny": backbone.bundle.hash}, adapter_bytes=2**30)
    with nodes(system=full) as held, replicas_of(given, held.address) as replicas:

        def ask(adapter):
            said = Queue()
            row = row_of(PrivatizedRecord(token_ids=(2000, 2001)), adapter=adapter)
            replicas.ask("bert-tiny", [row], tenant="ada", cost=2, on_said=lambda *told: said.put(told))
            return said.get(timeout=SECONDS)

        for _ in range(2):
            kind, error = ask(large)
            assert (kind, type(error)) == ("error", UnavailableError)
            assert "the object store of a node must have room, and is full" in str(error)
            assert ask(small)[0] == "answers"


def test_a_service_without_a_cluster_at_the_address_says_so_in_one_line(tmp_path, capsys, monkeypatch):
    given = ["--data", str(tmp_path), "--port", "0", "--model", "bert-tiny", "--engine", "ray"]
    assert rapt(["serve", *given, "--ray-address", "127.0.0.1:9"]) == 2
    assert "must find a database and an object store from every node" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setenv("RAPT_WORKER_IN_SERVICE", "false")
    assert rapt(["serve", *given, "--ray-address", "127.0.0.1:9"]) == 11
    assert "nothing answers there" in capsys.readouterr().err.splitlines()[-1]
