"""Predictions of many tenants at once over real HTTP: shared passes, back-pressure, clients that leave."""

import json
import logging
import socket
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from closeness import assert_close
from http_requests import done_job, open_client
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, dump_query, remove_labels
from running_service import running_service, save_privatized, wait_until
from tuning_material import manifest_for, separable_file

MODELS = 3


def tuned_models(http, path, count):
    """Names of models tuned on one file, each with a prompt and a seed of its own."""
    with path.open("rb") as stream:
        file = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("f", stream)}).json()
    names = []
    for number in range(count):
        values = {"num_virtual_tokens": 2 + 3 * number, "n_epochs": 1, "batch_size": 16}
        method = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": values}}
        body = {"model": "bert-tiny", "training_file": file["id"], "method": method, "seed": number}
        names.append(done_job(http, body)["fine_tuned_model"])
    return names


@pytest.fixture(scope="module")
def models(service, training_path):
    with open_client(service) as http:
        return tuned_models(http, training_path, MODELS)


def test_many_tenants_at_once_get_the_answers_they_get_alone(http, models, backbones):
    bodies = []
    for number in range(8 * MODELS):
        file = separable_file(backbones["bert-tiny"], records=2, plain=4, fixed=True, seed=number)
        bodies.append({"model": models[number % MODELS], **dump_query(remove_labels(file))})

    def ask(body):
        answer = http.post("/v1/classify", json=body)
        assert answer.status_code == 200, answer.text
        return [item["probabilities"] for item in answer.json()["predictions"]]

    alone = [ask(body) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(ask, bodies))
    for found, expected in zip(together, alone, strict=True):
        assert_close(found, expected, of=backbones["bert-tiny"])
    texts = {name: ask({**bodies[0], "model": name}) for name in models}
    assert len({str(answer) for answer in texts.values()}) == MODELS  # else the law above would say nothing


def endless(backbone, model):
    """A request that keeps a small backbone busy for many seconds."""
    records = tuple(PrivatizedRecord(token_ids=(2204,) * 480, privatized_plain_tokens=()) for _ in range(1300))
    file = PrivatizedFile(manifest=manifest_for(backbone, labels=None), records=records)
    return json.dumps({"model": model, **dump_query(file)}).encode()


def test_a_full_service_says_when_to_come_back_and_forgets_who_leaves(backbones, tmp_path, caplog):
    backbone = backbones["bert-tiny"]
    with (
        running_service(tmp_path / "data", backbones=backbones, settings={"max_waiting_tokens": 10}) as url,
        open_client(url) as http,
        caplog.at_level(logging.INFO, logger="rapt"),
    ):
        training = save_privatized(separable_file(backbone, records=32), tmp_path / "training.jsonl")
        (model,) = tuned_models(http, training, 1)
        small = {"model": model, **dump_query(remove_labels(separable_file(backbone, records=2)))}
        host, port = url.removeprefix("http://").split(":")
        body = endless(backbone, model)
        head = (
            f"POST /v1/classify HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + body)
            wait_until(lambda: http.post("/v1/classify", json=small).status_code == 429)
            refused = http.post("/v1/classify", json=small)
            assert refused.json()["error"]["code"] == "busy"
            assert int(refused.headers["retry-after"]) >= 1
            assert "x-should-retry" not in refused.headers
            with (
                openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as official,
                pytest.raises(openai.RateLimitError),
            ):
                official.post("/classify", body=small, cast_to=object)
            assert http.get("/healthz").status_code == 200  # busy is not dead
        wait_until(lambda: any(" 499 " in message for message in caplog.messages))
        # The rows of who has left are gone: the next one is not refused and does not wait for them.
        assert http.post("/v1/classify", json=small).status_code == 200
