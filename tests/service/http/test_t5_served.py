"""A T5 behind the service: the same story as any other backbone, whether it chooses among classes or writes."""

import io
import math
import zipfile
from dataclasses import replace

import openai
import pytest

from closeness import assert_close
from http_requests import done_job, job_body, open_client, upload
from rapt.service.adapter.adapter import load_adapter
from rapt.service.answers.decoding import DecodingBatch
from rapt.service.answers.generation import GenerationRow, Sampling
from rapt.service.answers.prediction import ClassificationRow, classify
from rapt.wire.manifest import dump_manifest
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, dump_query, remove_labels, seal_manifest
from running_service import running_service, save_privatized
from tiny_backbones import tiny_backbone
from tuning_material import manifest_for


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return tiny_backbone("t5", tmp_path_factory.mktemp("t5") / "tiny-t5")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def url(t5, data):
    with running_service(data, backbones={t5.model: t5}) as found:
        yield found


@pytest.fixture(scope="module")
def http(url):
    with open_client(url) as client:
        yield client


def client_of(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def client(url):
    with client_of(url) as official:
        yield official


@pytest.fixture(scope="module")
def training(t5):
    ids = t5.bundle.eligible
    records = tuple(
        PrivatizedRecord(
            token_ids=tuple(int(ids[(17 * number + 2 * place + number % 2) % len(ids)]) for place in range(5)),
            label=number % 2,
        )
        for number in range(24)
    )
    return PrivatizedFile(manifest=seal_manifest(manifest_for(t5), records), records=records)


def tuned(http, t5, training, folder, **hyperparameters):
    path = save_privatized(training, folder / "training.jsonl")
    body = job_body(upload(http, path).json()["id"], num_virtual_tokens=3, batch_size=8, **hyperparameters)
    return done_job(http, body | {"model": t5.model})["fine_tuned_model"]


@pytest.mark.parametrize("task", ["classification", "label_words"])
def test_a_t5_is_tuned_and_asked_over_http(http, t5, training, task, tmp_path):
    words = {"label_words": ["no", "yes"]} if task == "label_words" else {}
    model = tuned(http, t5, training, tmp_path, task=task, **words)
    with zipfile.ZipFile(io.BytesIO(http.get(f"/v1/models/{model}/adapter").content)) as archive:
        archive.extractall(tmp_path / "adapter")
    query = remove_labels(training)
    answer = http.post("/v1/classify", json={"model": model, **dump_query(query)})
    assert answer.status_code == 200, answer.text
    adapter = load_adapter(tmp_path / "adapter", backbone=t5)
    rows = [ClassificationRow(adapter=adapter, token_ids=record.token_ids) for record in query.records]
    for found, expected in zip(answer.json()["predictions"], classify(t5, rows), strict=True):
        assert_close(found["probabilities"], expected, of=t5)


def test_the_label_of_a_t5_comes_as_a_completion(http, t5, training, tmp_path):
    model = tuned(http, t5, training, tmp_path)
    record = remove_labels(training).records[0]
    manifest = dump_manifest(seal_manifest(manifest_for(t5, labels=None), [record]))
    body = {"model": model, "prompt": list(record.token_ids), "logprobs": 2, "rapt": {"manifest": manifest}}
    choice = http.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["text"] in ("no", "yes")
    assert_close(sum(map(math.exp, choice["logprobs"]["top_logprobs"][0].values())), 1.0, width=2)


METHODS = {
    "prompt_tuning": {"num_virtual_tokens": 3},
    "prefix_tuning": {"num_virtual_tokens": 2},
    "lora": {"r": 2},
}


@pytest.fixture(scope="module")
def writers(http, t5, tmp_path_factory):
    """A model of each method that was tuned to write, and its adapter, by its name; the bare backbone too."""
    folder = tmp_path_factory.mktemp("writers")
    ids = [int(i) for i in t5.bundle.eligible]
    records = tuple(
        PrivatizedRecord(token_ids=(ids[n], ids[n + 1]), target_ids=(ids[2 * n % 20], ids[3 * n % 20]))
        for n in range(16)
    )
    manifest = replace(manifest_for(t5, labels=None), targets="public")
    path = save_privatized(
        PrivatizedFile(manifest=seal_manifest(manifest, records), records=records), folder / "targets.jsonl"
    )
    file_id = upload(http, path).json()["id"]
    found = {t5.model: None}
    for method, values in METHODS.items():
        values = {"n_epochs": 3, "batch_size": 8, "learning_rate": 0.5, "task": "generation", **values}
        body = {"model": t5.model, "training_file": file_id, "seed": 5}
        job = done_job(http, body | {"method": {"type": method, method: {"hyperparameters": values}}})
        model = job["fine_tuned_model"]
        with zipfile.ZipFile(io.BytesIO(http.get(f"/v1/models/{model}/adapter").content)) as archive:
            archive.extractall(folder / method)
        found[model] = load_adapter(folder / method, backbone=t5)
    return found


def texts_for(t5, count):
    ids = [int(i) for i in t5.bundle.eligible]
    return [[ids[(7 * number + place) % len(ids)] for place in range(1 + number % 4)] for number in range(count)]


def privacy(t5, prompts, **more):
    manifest = seal_manifest(manifest_for(t5, labels=None), [PrivatizedRecord(token_ids=tuple(ids)) for ids in prompts])
    return {"rapt": {"manifest": dump_manifest(manifest), **more}}


def test_models_of_every_method_and_the_bare_one_write_in_one_request_what_each_writes_alone(client, t5, writers):
    prompts = texts_for(t5, 8)
    models = list(writers) * 2
    asked = {"max_tokens": 6, "temperature": 0, "logprobs": 3}
    mixed = client.completions.create(
        model=t5.model, prompt=prompts, extra_body=privacy(t5, prompts, models=models), **asked
    )
    first = []
    for prompt, model, choice in zip(prompts, models, mixed.choices, strict=True):
        row = GenerationRow(
            token_ids=tuple(prompt), adapter=writers[model], most_tokens=6, sampling=Sampling(temperature=0)
        )
        batch = DecodingBatch(t5)
        tokens = [*batch.join([row]), *(batch.step()[0] for _ in range(5))]
        ends = [token.token_id for token in tokens].index(t5.frame.eos_id) if choice.finish_reason == "stop" else 6
        assert_close(choice.logprobs.token_logprobs, [token.logprob for token in tokens[:ends]], of=t5)
        first.append(tokens[0].logprob)
    assert len(set(first)) == len(first)  # so a model in the place of another would be seen
    assert mixed.usage.prompt_tokens == sum(map(len, prompts))
    assert mixed.usage.completion_tokens == sum(len(choice.logprobs.tokens) for choice in mixed.choices)


def test_a_tuned_t5_answers_a_chat_streamed_as_whole(client, t5, writers):
    ids = texts_for(t5, 3)[2]
    for model in writers:
        asked = {
            "model": model,
            "messages": [{"role": "user", "content": [{"type": "token_ids", "token_ids": ids}]}],
            "max_tokens": 5,
            "seed": 3,
            "extra_body": privacy(t5, [ids]),
        }
        whole = client.chat.completions.create(**asked, logprobs=True)
        events = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        text = "".join(event.choices[0].delta.content for event in events if event.choices)
        assert text == whole.choices[0].message.content
        assert events[-1].usage == whole.usage
        assert whole.usage.completion_tokens == len(whole.choices[0].logprobs.content)


def test_a_tuned_t5_refuses_what_was_privatized_otherwise(client, t5, writers):
    ids = texts_for(t5, 1)[0]
    body = privacy(t5, [ids])
    body["rapt"]["manifest"]["mechanism"]["parameters"]["eta"] *= 2
    for model in list(writers)[1:]:
        with pytest.raises(openai.BadRequestError, match="privatized as the training text was"):
            client.completions.create(model=model, prompt=ids, extra_body=body)


def test_too_much_to_write_at_once_is_refused_as_too_large(t5, tmp_path):
    prompts = texts_for(t5, 20)
    settings = {"max_waiting_tokens": 600}
    with running_service(tmp_path, backbones={t5.model: t5}, settings=settings) as url, client_of(url) as client:
        with pytest.raises(openai.APIStatusError, match="send fewer prompts at once") as error:
            client.completions.create(model=t5.model, prompt=prompts, max_tokens=500, extra_body=privacy(t5, prompts))
        assert error.value.status_code == 413
        some = client.completions.create(
            model=t5.model, prompt=prompts[0], max_tokens=3, extra_body=privacy(t5, prompts[:1])
        )
        assert some.usage.completion_tokens <= 3
