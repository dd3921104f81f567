"""Codes behind the service: files, jobs and predictions as those of tokens, on a codebook in the place of a model."""

from dataclasses import replace

import httpx2
import numpy as np
import openai
import pytest

from code_material import code_bundle, codes_manifest
from http_requests import done_job, upload
from rapt.errors import NotFoundError
from rapt.local.client import ServiceClient
from rapt.service.adapter.adapter_check import list_methods
from rapt.service.answers.prediction import ClassificationRow, classify
from rapt.service.backbone.layout import lay_out
from rapt.service.backbone.opening import load_backbone, load_served
from rapt.wire.code_bundle import write_code_bundle
from rapt.wire.mechanism_setting import MechanismSetting
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, dump_query, remove_labels, seal_manifest
from running_service import running_service, save_privatized

NAME = "reviews-codes"


def folder_of(bundle, folder):
    write_code_bundle(bundle, folder)
    return folder


@pytest.fixture(scope="module")
def code():
    return code_bundle(size=32, run=4)


@pytest.fixture(scope="module")
def served(code, tmp_path_factory):
    folder = folder_of(code, tmp_path_factory.mktemp("codes") / "bundle")
    return load_served(str(folder), name=NAME, precision="auto")


@pytest.fixture(scope="module")
def url(served, tmp_path_factory):
    with running_service(tmp_path_factory.mktemp("data"), backbones={NAME: served}) as found:
        yield found


@pytest.fixture(scope="module")
def http(url):
    with httpx2.Client(base_url=url, timeout=60, trust_env=False) as client:
        yield client


def file_of(code, labels, **others):
    """Texts whose codewords say their label: on one side of the first coordinate or on the other."""
    manifest = replace(codes_manifest(codewords=code.size, codes=code.codes, **others), vocabulary_hash=code.hash)
    sides = [np.flatnonzero((code.codewords[0, :, 0] > 0) == bool(label)) for label in (0, 1)]
    rng = np.random.default_rng(5)
    records = tuple(
        PrivatizedRecord(
            token_ids=(int(rng.choice(sides[label])),),
            label=label,
            second_token_ids=(int(rng.choice(sides[label])),) if manifest.pairs else None,
        )
        for label in labels
    )
    return PrivatizedFile(manifest=seal_manifest(manifest, records), records=records)


@pytest.fixture(scope="module")
def training(code):
    return file_of(code, [number % 2 for number in range(200)])


@pytest.fixture(scope="module")
def tuned(http, training, tmp_path_factory):
    path = save_privatized(training, tmp_path_factory.mktemp("files") / "training.jsonl")
    body = {"model": NAME, "training_file": upload(http, path).json()["id"], "seed": 1}
    return done_job(http, body)["fine_tuned_model"]


def test_a_head_is_tuned_on_codes_and_predicts_them(http, code, training, tuned):
    query = remove_labels(training)
    answer = http.post("/v1/classify", json={"model": tuned, **dump_query(query)}).json()["predictions"]
    right = sum(item["label_index"] == record.label for item, record in zip(answer, training.records, strict=True))
    assert right > 0.95 * len(training.records)
    assert http.get(f"/v1/models/{tuned}").json()["rapt"]["card"]["method"] == "linear_probing"


def test_the_official_client_follows_a_job_on_codes(url, training, tuned, tmp_path):
    path = save_privatized(training, tmp_path / "training.jsonl")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client, path.open("rb") as stream:
        file = client.files.create(file=stream, purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model=NAME, training_file=file.id, method={"type": "auto"})
        assert job.to_dict()["method"]["type"] == "linear_probing"
        assert tuned in [model.id for model in client.models.list()]


def test_pairs_of_codes_are_compared(http, code, tmp_path):
    training = file_of(code, [number % 2 for number in range(60)], pairs=True)
    path = save_privatized(training, tmp_path / "pairs.jsonl")
    model = done_job(http, {"model": NAME, "training_file": upload(http, path).json()["id"]})["fine_tuned_model"]
    answer = http.post("/v1/classify", json={"model": model, **dump_query(remove_labels(training))})
    assert len(answer.json()["predictions"]) == 60


def test_the_model_says_its_unit_and_offers_its_codebook_and_no_vocabulary(url, http, code, tuned, tmp_path):
    shown = http.get(f"/v1/models/{NAME}").json()["rapt"]
    assert (shown["unit"], shown["vocabulary_hash"], list(shown["methods"])) == ("text", code.hash, ["linear_probing"])
    with ServiceClient(url) as client:
        for model in (NAME, tuned):
            assert client.model(model).unit == "text"
            assert client.codebook(model, tmp_path / "code").hash == code.hash
        with pytest.raises(NotFoundError, match="/v1/codes"):
            client.vocabulary(NAME, tmp_path / "vocabulary")
    assert [item.name for item in tmp_path.iterdir()] == ["code"]


def test_tokens_for_a_codebook_and_codes_of_another_size_are_refused(http, code, training, tmp_path):
    def refusal(manifest, records=training.records):
        file = PrivatizedFile(manifest=seal_manifest(manifest, records), records=records)
        answer = upload(http, save_privatized(file, tmp_path / "file.jsonl"))
        assert answer.status_code == 400
        return answer.json()["error"]["message"]

    of_tokens = replace(training.manifest, mechanism=MechanismSetting(name="laplace", parameters={"eta": 50.0}))
    assert "with `epsilon`" in refusal(of_tokens)
    parameters = {**training.manifest.mechanism.parameters, "codewords": 64}
    other = replace(training.manifest, mechanism=MechanismSetting(name="subset", parameters=parameters))
    assert "codewords=32" in refusal(other)


def test_a_query_may_be_of_another_epsilon_over_the_same_codebook(http, code, tuned):
    query = remove_labels(file_of(code, [0, 1], epsilon=2.0, preferred=5))
    answer = http.post("/v1/classify", json={"model": tuned, **dump_query(query)})
    assert (answer.status_code, len(answer.json()["predictions"])) == (200, 2)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "lora"])
def test_what_adapts_layers_is_refused_on_a_codebook(http, training, method, tmp_path):
    path = save_privatized(training, tmp_path / "training.jsonl")
    file = upload(http, path).json()["id"]
    body = {"model": NAME, "training_file": file, "method": {"type": method, method: {"hyperparameters": {}}}}
    answer = http.post("/v1/fine_tuning/jobs", json=body)
    assert (answer.status_code, "linear_probing" in answer.json()["error"]["message"]) == (400, True)


def test_a_state_is_the_mean_of_the_codewords_of_its_text_side_by_side(tmp_path):
    code = code_bundle(codes=2, size=8, run=3)
    backbone = load_backbone(str(folder_of(code, tmp_path / "two")))
    assert list_methods(backbone) == ("linear_probing",)
    (state,) = classify(backbone, [ClassificationRow(token_ids=(5, 2))])
    wanted = np.concatenate([code.codewords[0, 5], code.codewords[1, 2]]) / 2
    np.testing.assert_allclose(state, wanted, rtol=1e-6)
    layout = lay_out(backbone, prompt_lengths=[0], privatized_plain_tokens=[()], texts=[(5, 2)], second_texts=[(1, 7)])
    vectors = backbone.embed(layout.token_ids)[0]
    np.testing.assert_allclose(vectors[2, :3], code.codewords[0, 1])
    np.testing.assert_allclose(vectors[3, 3:], code.codewords[1, 7])
