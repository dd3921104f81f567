"""Tuned models, their predictions and their vocabularies over HTTP."""

import pytest

from closeness import assert_close
from http_requests import SECRET, done_job, error_of, job_body, open_client, upload
from rapt.errors import ServiceError, UsageError, WireError
from rapt.local.client import ServiceClient
from rapt.wire.adapter_files import CARD, WEIGHTS
from rapt.wire.privatized_file import dump_query, remove_labels


@pytest.fixture(scope="module")
def tuned(service, training_path):
    """The name of a model that was tuned over HTTP."""
    with open_client(service) as http:
        file = upload(http, training_path).json()
        return done_job(http, job_body(file["id"]))["fine_tuned_model"]


@pytest.fixture(scope="module")
def query(training_file):
    return dump_query(remove_labels(training_file))


def test_a_tuned_model_shows_its_card_and_a_base_model_does_not(http, tuned):
    base = http.get("/v1/models/bert-tiny").json()
    assert base["rapt"]["card"] is None
    model = http.get(f"/v1/models/{tuned}").json()
    assert (model["id"], model["object"]) == (tuned, "model")
    assert model["rapt"]["base"] == "bert-tiny"
    assert model["rapt"]["card"]["mechanism"] == {"name": "laplace", "parameters": {"eta": 60.0}}
    assert [item["id"] for item in http.get("/v1/models").json()["data"]][:1] == ["bert-tiny"]


def test_a_model_says_what_kind_its_base_is(http):
    base = http.get("/v1/models").json()["data"][0]
    assert base["rapt"]["kind"] == "encoder"
    assert "kind" in http.get("/openapi.json").json()["components"]["schemas"]["ModelDetail"]["required"]


def test_a_prediction_is_a_label_and_its_probabilities(http, tuned, query):
    answer = http.post("/v1/classify", json={"model": tuned, **query}).json()
    assert (answer["object"], answer["model"], answer["labels"]) == ("classification", tuned, ["no", "yes"])
    assert len(answer["predictions"]) == len(query["records"])
    for item in answer["predictions"]:
        assert_close(sum(item["probabilities"]), 1.0, width=2)
        assert item["label_index"] == item["probabilities"].index(max(item["probabilities"]))
        assert item["label"] == answer["labels"][item["label_index"]]


def test_a_model_that_a_client_fetched_is_imported_and_predicts_the_same(service, tuned, training_file):
    with ServiceClient(service) as client:
        files = client.adapter(tuned)
        made = client.import_adapter(files, suffix="again")
        assert made.id != tuned
        assert ":again:" in made.id
        assert client.model(made.id).card == client.model(tuned).card
        assert client.classify(made.id, training_file) == client.classify(tuned, training_file)
        for broken, error in (
            ({name: files[name] for name in files if name != CARD}, UsageError),
            ({**files, CARD: b"{}"}, WireError),
            ({**files, WEIGHTS: b"no weights"}, ServiceError),
        ):
            with pytest.raises(error):
                client.import_adapter(broken)


def test_labels_of_queries_are_not_looked_at(http, tuned, query, training_file):
    labelled = dump_query(training_file)
    answers = [http.post("/v1/classify", json={"model": tuned, **value}).json() for value in (query, labelled)]
    assert answers[0] == answers[1]


def test_a_query_that_was_privatized_otherwise_is_refused(http, tuned, query):
    manifest = query["manifest"]
    mechanism = {"name": "laplace", "parameters": {"eta": 59.0}}
    for change, status, code in (
        ({"mechanism": mechanism}, 400, "invalid_request"),
        ({"vocabulary_hash": "sha256:" + "0" * 64}, 409, "vocabulary_mismatch"),
        ({"mechanism": {"name": SECRET, "parameters": {"eta": 60.0}}}, 400, "invalid_mechanism"),
        ({"mechanism": {"name": "laplace", "parameters": {"eta": 0}}}, 400, "invalid_mechanism"),
        ({"schema": SECRET}, 400, "invalid_wire_format"),
        ({"records": 1}, 400, "invalid_wire_format"),
        ({"records_sha256": "0" * 64}, 400, "invalid_wire_format"),
        ({SECRET: SECRET}, 400, "invalid_wire_format"),
    ):
        body = {"model": tuned, "manifest": manifest | change, "records": query["records"]}
        error_of(http.post("/v1/classify", json=body), status, code)


@pytest.mark.parametrize(
    "records",
    [
        [{"text": SECRET}],
        [{"token_ids": SECRET}],
        [{"token_ids": [SECRET]}],
        [{"token_ids": [1], SECRET: 1}],
        [[1]],
        [],
    ],
    ids=["text", "string", "strings", "more", "list", "none"],
)
def test_a_text_in_place_of_ids_is_refused_without_a_word_of_it(http, tuned, query, records):
    response = http.post("/v1/classify", json={"model": tuned, "manifest": query["manifest"], "records": records})
    error_of(response, 400, response.json()["error"]["code"])


def test_only_a_tuned_model_classifies(http, query):
    error_of(http.post("/v1/classify", json={"model": "bert-tiny", **query}), 400, "invalid_request")
    error_of(http.post("/v1/classify", json={"model": "ft:bert-tiny:rapt:none", **query}), 404, "not_found")


def test_a_deleted_model_is_not_found_any_more(http, training_path, query):
    file_id = upload(http, training_path).json()["id"]
    model = done_job(http, job_body(file_id) | {"suffix": "mine"})["fine_tuned_model"]
    assert model.startswith("ft:bert-tiny:local:mine:")
    assert http.post("/v1/classify", json={"model": model, **query}).status_code == 200
    assert http.delete(f"/v1/models/{model}").json() == {"id": model, "object": "model", "deleted": True}
    error_of(http.post("/v1/classify", json={"model": model, **query}), 404, "not_found")
    error_of(http.get(f"/v1/models/{model}"), 404, "not_found")
    error_of(http.delete("/v1/models/bert-tiny"), 400, "invalid_request")


@pytest.mark.parametrize("file", ["", "/tokenizer.json", "/embeddings.safetensors"])
def test_a_vocabulary_is_fetched_once_and_then_only_asked_for(http, backbones, file):
    bundle = backbones["bert-tiny"].bundle
    answer = http.get(f"/v1/vocabularies/bert-tiny{file}")
    assert answer.status_code == 200
    assert answer.headers["etag"] == f'"{bundle.hash}"'
    again = http.get(f"/v1/vocabularies/bert-tiny{file}", headers={"if-none-match": f'"old", {answer.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert http.get(f"/v1/vocabularies/bert-tiny{file}", headers={"if-none-match": '"old"'}).status_code == 200
    error_of(http.get(f"/v1/vocabularies/none{file}"), 404, "not_found")


def test_a_tuned_model_stands_for_the_vocabulary_of_its_base(http, tuned):
    assert http.get(f"/v1/vocabularies/{tuned}").json() == http.get("/v1/vocabularies/bert-tiny").json()
