"""Documents over HTTP from a tenant with a key: refused in one line, or kept, listed and answered."""

import hashlib
import io
import json
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from hostile_documents import LONGEST_MESSAGE, MARKER, mutations_of
from http_requests import done_job, error_of, job_body, open_client, upload
from rapt.service.http.routes.answering import MOST_MODELS
from rapt.service.http.routes.classify import MOST_PROBABILITIES
from rapt.wire.privatized_file import PrivatizedFile, dump_query, remove_labels, seal_manifest
from running_service import running_service

CARD, WEIGHTS = "rapt.json", "adapter_model.safetensors"
ADAPTER_MEMORY = 20_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def http(backbones, folder):
    chosen = {"tenant_jobs": 100_000, "adapter_memory_bytes": ADAPTER_MEMORY}
    with (
        running_service(folder, backbones=backbones, settings=chosen) as url,
        open_client(url) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def file_id(http, training_path):
    return upload(http, training_path).json()["id"]


@pytest.fixture(scope="module")
def model(http, file_id):
    return done_job(http, job_body(file_id, n_epochs=1))["fine_tuned_model"]


@pytest.fixture(scope="module")
def files(http, model):
    with zipfile.ZipFile(io.BytesIO(http.get(f"/v1/models/{model}/adapter").content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def query(training_file):
    return dump_query(remove_labels(training_file))


def imported(http, files, **fields):
    card = {**json.loads(files[CARD]), "weights_sha256": hashlib.sha256(files[WEIGHTS]).hexdigest(), **fields}
    form = {"card": ("c", json.dumps(card).encode()), "weights": ("w", files[WEIGHTS])}
    if "adapter_config.json" in files:
        form["config"] = ("p", files["adapter_config.json"])
    return http.post("/v1/adapters", files=form)


def checked(answer):
    """Whether a request was taken; a refusal is one short line without what came in."""
    assert answer.status_code < 500, answer.text[:1000]
    if answer.status_code < 400:
        return True
    message = answer.json()["error"]["message"]
    assert "\n" not in message
    assert len(message) <= LONGEST_MESSAGE
    assert MARKER not in answer.text
    return False


def sent(http, path, body):
    return checked(http.post(path, content=json.dumps(body).encode(), headers={"content-type": "application/json"}))


@settings(max_examples=60)
@given(st.data())
def test_every_body_is_taken_or_refused_and_what_was_taken_is_listed(http, file_id, model, query, data):
    privacy = {"manifest": query["manifest"], "records": [{} for _ in query["records"]]}
    small = {"manifest": query["manifest"], "records": query["records"][:2]}
    ids = [1, 2]
    path, body = data.draw(
        st.sampled_from(
            [
                ("/v1/classify", {"model": model, **small}),
                ("/v1/completions", {"model": model, "prompt": [ids, ids], "rapt": privacy, "stop": ["a"]}),
                (
                    "/v1/chat/completions",
                    {
                        "model": model,
                        "messages": [{"role": "user", "content": [{"type": "token_ids", "token_ids": ids}]}],
                        "rapt": privacy,
                    },
                ),
                ("/v1/uploads", {"filename": "a", "purpose": "fine-tune", "bytes": 10, "mime_type": "text/plain"}),
                ("/v1/admin/tenants", {"name": "ada", "max_bytes": 1}),
            ]
        )
    )
    sent(http, path, data.draw(mutations_of(body)))
    for listed in ("/v1/files", "/v1/fine_tuning/jobs", "/v1/models", "/v1/admin/tenants"):
        assert http.get(listed).status_code == 200


@settings(max_examples=40)
@given(st.data())
def test_a_job_is_refused_or_made_and_shown_again(http, data):
    # Its file is not there, so what is refused for that reason had a good body.
    body = {**job_body("file-none"), "metadata": {"a": "b"}, "suffix": "mine", "rapt": {"priority": 1}}
    sent(http, "/v1/fine_tuning/jobs", data.draw(mutations_of(body)))
    assert http.get("/v1/fine_tuning/jobs").status_code == 200


@pytest.mark.parametrize("bad", ["\x00", "\x1b[2J", "a\x7f"])
def test_nothing_of_a_job_that_is_kept_or_looked_up_has_a_control_character(http, file_id, bad):
    for body in (
        job_body(bad),
        {**job_body(file_id), "model": bad},
        {**job_body(file_id), "validation_file": bad},
        {**job_body(file_id), "metadata": {"a": bad}},
        {**job_body(file_id), "metadata": {bad: "a"}},
        job_body(file_id, initialization="text", init_text=bad),
        job_body(file_id, task="label_words", label_words=["a", bad]),
        {**job_body(file_id), "suffix": bad},
    ):
        error_of(http.post("/v1/fine_tuning/jobs", json=body), 400, "invalid_request")


@settings(max_examples=40)
@given(st.data())
def test_an_adapter_is_refused_or_answers(http, files, query, data):
    card = data.draw(mutations_of(json.loads(files[CARD])))
    form = {"card": ("c", json.dumps(card).encode()), "weights": ("w", files[WEIGHTS])}
    answer = http.post("/v1/adapters", files=form)
    if checked(answer):
        name = answer.json()["id"]
        if sent(http, "/v1/classify", {"model": name, **query}):
            shown = http.post("/v1/classify", json={"model": name, **query}).json()["predictions"][0]["probabilities"]
            assert sum(shown) == pytest.approx(1, abs=1e-4)
        assert http.get(f"/v1/models/{name}").status_code == 200
        assert http.delete(f"/v1/models/{name}").status_code == 200
    assert http.get("/v1/models").status_code == 200


def test_what_comes_in_goes_out_as_it_was(http, files, query, model):
    answer = imported(http, files)
    assert answer.status_code == 200, answer.text
    name = answer.json()["id"]
    with zipfile.ZipFile(io.BytesIO(http.get(f"/v1/models/{name}/adapter").content)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files
    first, second = (http.post("/v1/classify", json={"model": one, **query}).json() for one in (model, name))
    assert first["predictions"] == second["predictions"]


def test_an_adapter_of_an_unknown_mechanism_is_refused(http, files):
    error = error_of(
        imported(http, files, mechanism={"name": MARKER, "parameters": {"eta": 1.0}}), 400, "invalid_mechanism"
    )
    assert MARKER not in error["message"]


def test_a_configuration_that_says_something_else_is_refused(http, files):
    config = {**json.loads(files["adapter_config.json"]), "num_virtual_tokens": 400}
    changed = {**files, "adapter_config.json": json.dumps(config).encode()}
    assert "num_virtual_tokens" in error_of(imported(http, changed), 400, "invalid_wire_format")["message"]


def test_an_answer_has_a_bound_before_anything_is_computed(http, files, training_file):
    tensors = load_tensors(files[WEIGHTS])
    width = tensors["classifier.weight"].shape[1]
    tensors |= {"classifier.weight": torch.zeros(1000, width), "classifier.bias": torch.zeros(1000)}
    wide = {CARD: files[CARD], WEIGHTS: save_tensors(tensors)}
    answer = imported(http, wide, labels=[str(number) for number in range(1000)])
    assert answer.status_code == 200, answer.text
    name = answer.json()["id"]
    plain = remove_labels(training_file)
    for count, status in ((2, 200), (MOST_PROBABILITIES // 1000 + 1, 413)):
        records = (plain.records * 10)[:count]
        asked = PrivatizedFile(manifest=seal_manifest(plain.manifest, records), records=records)
        found = http.post("/v1/classify", json={"model": name, **dump_query(asked)})
        assert found.status_code == status
        # As completions, too: 4,096 prompts of 1,000 classes took 13 s, and a thread of everybody's for most of it.
        prompts = [list(record.token_ids) for record in records]
        rest = [{"privatized_plain_tokens": list(record.privatized_plain_tokens)} for record in records]
        privacy = {"manifest": dump_query(asked)["manifest"], "records": rest}
        found = http.post("/v1/completions", json={"model": name, "prompt": prompts, "rapt": privacy, "logprobs": 2})
        assert found.status_code == status
    assert http.delete(f"/v1/models/{name}").status_code == 200


def test_the_models_of_a_request_fit_into_the_memory_for_adapters(http, files, training_file):
    names = [imported(http, files).json()["id"] for _ in range(6)]
    plain = remove_labels(training_file)

    def asked(models):
        records = plain.records[: len(models)]
        manifest = dump_query(PrivatizedFile(manifest=seal_manifest(plain.manifest, records), records=records))[
            "manifest"
        ]
        rest = [{"privatized_plain_tokens": list(record.privatized_plain_tokens)} for record in records]
        prompts = [list(record.token_ids) for record in records]
        privacy = {"manifest": manifest, "records": rest, "models": models}
        return http.post("/v1/completions", json={"model": names[0], "prompt": prompts, "rapt": privacy})

    assert asked(names[:2] * 3).status_code == 200
    assert f"at most {ADAPTER_MEMORY} bytes together" in error_of(asked(names), 413, "too_large")["message"]
    many = [f"ft:{number}" for number in range(MOST_MODELS + 1)]
    assert asked(many[:3]).status_code == 404
    for name in names:
        assert http.delete(f"/v1/models/{name}").status_code == 200
