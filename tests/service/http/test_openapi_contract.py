"""The whole OpenAPI document against the running service: requests made from it, good ones and bad ones.

Whatever is sent, no answer is an error of the service, has a status or a type that the document does not name, or a
body of another shape. Made-up ids meet nothing, so in part of the requests real ones stand in their place.
"""

from dataclasses import replace

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import strategies
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from rapt.wire.privatized_file import PrivatizedFile
from rapt.wire.query import query_to_json, seal, without_labels
from running_service import running_service, wait_until
from tiny_backbones import tiny_backbone

KEY = "made-for-these-tests-only-0123456789"
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
# Of each operation: at most 700 requests in CI, 14,000 with --slow.
EXAMPLES = [15, pytest.param(300, marks=pytest.mark.slow)]
# Fields of bodies that a good one need not have.
OPTIONS = {"method", "seed", "suffix", "metadata", "max_tokens", "logprobs", "temperature", "top_p", "stream", "n"}
# What has to be reached: else all of it could be refused at the door, and the test would pass.
REACHED = {
    "POST /v1/fine_tuning/jobs",
    "GET /v1/fine_tuning/jobs/{job_id}/events",
    "POST /v1/classify",
    "POST /v1/completions",
    "POST /v1/chat/completions",
    "GET /v1/files/{file_id}/content",
    "GET /v1/models/{model_id}/adapter",
    "GET /v1/vocabularies/{model}",
    "GET /v1/admin/tenants/{tenant}/usage",
    "POST /v1/admin/tenants",
}


@pytest.fixture(scope="module")
def both(backbones, tmp_path_factory):
    decoder = tiny_backbone("llama", tmp_path_factory.mktemp("llama") / "writer")
    return {**backbones, decoder.model: decoder}


@pytest.fixture(scope="module")
def real(both, training_path, training_file, tmp_path_factory):
    """A service with something in it, and what stands for a made-up value of each name."""
    data = tmp_path_factory.mktemp("data")
    settings = {"api_key": KEY}
    with running_service(data, backbones=both, settings=settings) as url, session() as http:
        file = http_post(http, url, training_path)
        method = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": {"n_epochs": 1, "batch_size": 32}}}
        body = {"model": "bert-tiny", "training_file": file, "method": method}
        job = http.post(f"{url}/v1/fine_tuning/jobs", json=body).json()["id"]

        def shown():
            return http.get(f"{url}/v1/fine_tuning/jobs/{job}").json()

        wait_until(lambda: shown()["status"] == "succeeded")
        model = shown()["fine_tuned_model"]
    query = query_to_json(without_labels(training_file))
    prompts = [record["token_ids"] for record in query["records"]]
    rest = [{name: value for name, value in record.items() if name != "token_ids"} for record in query["records"]]
    values = {
        "model": model,
        "model_id": model,
        "file_id": file,
        "job_id": job,
        "tenant": "local",
        "after": job,
    }
    privacy = {"manifest": query["manifest"], "records": rest}
    one = PrivatizedFile(manifest=training_file.manifest, records=training_file.records[:1])
    alone = query_to_json(without_labels(replace(one, manifest=seal(one.manifest, one.records))))
    content = [{"type": "token_ids", "token_ids": prompts[0]}]
    bodies = {
        "/v1/fine_tuning/jobs": body,
        "/v1/classify": {"model": model, **query},
        "/v1/completions": {"model": model, "prompt": prompts, "rapt": privacy},
        "/v1/chat/completions": {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "rapt": {"manifest": alone["manifest"], "records": rest[:1]},
        },
    }
    # Jobs that are asked for now stay in the queue: nothing here waits for one.
    settings["worker_in_service"] = False
    with running_service(data, backbones=both, settings=settings) as url:
        yield url, values, bodies


def session():
    made = requests.Session()
    made.trust_env = False
    made.headers["authorization"] = f"Bearer {KEY}"  # for the requests that put something there
    return made


def http_post(http, url, path):
    with path.open("rb") as stream:
        answer = http.post(f"{url}/v1/files", data={"purpose": "fine-tune"}, files={"file": ("f", stream)})
    return answer.json()["id"]


def with_real_values(case, values, bodies, *, real_ids, made_up):
    """The request with real ids in place of made-up ones if asked for, and a good body but for the made-up fields."""
    for place in (case.path_parameters, case.query):
        for name in set(place or {}) & set(values):
            if real_ids and name == "after" and not case.path.endswith("/jobs"):
                del place[name]  # the real one is a job: a page of anything else would not be found
            elif real_ids:
                place[name] = values[name]
    if isinstance(case.body, dict) and case.path in bodies:
        case.body = {**bodies[case.path], **{name: value for name, value in case.body.items() if name in made_up}}
    return case


@pytest.mark.parametrize("examples", EXAMPLES)
def test_every_answer_is_one_that_the_document_names(real, examples):
    url, values, bodies = real
    with session() as http:
        document = http.get(f"{url}/openapi.json").json()
        schema = schemathesis.openapi.from_dict(document)
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) == sum(len(methods) for methods in document["paths"].values())
        answered = set()
        for operation in operations:
            if 200 in send(operation, http, url, values, bodies, examples):
                answered.add(operation.label)
        assert answered >= REACHED


def send(operation, http, url, values, bodies, examples):
    """The statuses of the answers to made-up requests to one operation."""
    statuses = set()
    made = operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE)
    if any(True for _ in operation.iter_parameters()) or operation.body:
        made |= operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
    # What the other requests need must stay.
    ids = strategies.just(False) if operation.method.upper() == "DELETE" else strategies.booleans()
    fields = strategies.sampled_from(sorted({*OPTIONS, *bodies.get(operation.path, ())}))

    @hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate,),
    )
    @hypothesis.given(case=made, real_ids=ids, made_up=strategies.sets(fields, max_size=4))
    def one(case, real_ids, made_up):
        case = with_real_values(case, values, bodies, real_ids=real_ids, made_up=made_up)
        answer = case.call(base_url=url, session=http, headers={"authorization": f"Bearer {KEY}"}, timeout=60)
        case.validate_response(answer, checks=CHECKS)
        statuses.add(answer.status_code)

    one()
    return statuses
