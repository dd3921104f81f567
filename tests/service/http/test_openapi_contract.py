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

from rapt.wire.manifest import dump_manifest
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, dump_query, remove_labels, seal_manifest
from running_service import running_service, wait_until
from tiny_backbones import tiny_backbone
from tuning_material import manifest_for

KEY = "made-for-these-tests-only-0123456789"
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
# Of each operation, in CI and with --slow: some 350 requests and some 14,000.
EXAMPLES, MANY = 5, 300
# Of the document, by how its paths begin: with --slow each is a test of its own, which takes minutes.
PARTS = [
    "/v1/admin/audit",
    "/v1/admin/keys",
    "/v1/admin/tenants",
    "/v1/adapters",
    "/v1/audit",
    "/v1/chat",
    "/v1/classify",
    "/v1/codes",
    "/v1/completions",
    "/v1/files",
    "/v1/fine_tuning",
    "/v1/keys",
    "/v1/models",
    "/v1/pools",
    "/v1/uploads",
    "/v1/usage",
    "/v1/vocabularies",
    "/healthz",
    "/metrics",
    "/readyz",
]
# Fields of bodies that a good one need not have.
OPTIONS = {
    "method",
    "seed",
    "suffix",
    "metadata",
    "max_tokens",
    "logprobs",
    "temperature",
    "top_p",
    "stream",
    "stop",
    "n",
}
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
    writers = [tiny_backbone(kind, tmp_path_factory.mktemp(kind) / f"tiny-{kind}") for kind in ("llama", "t5")]
    return {**backbones, **{writer.model: writer for writer in writers}}


@pytest.fixture(scope="module")
def real(both, training_path, training_file, tmp_path_factory):
    """A service with something in it, and what stands for a made-up value of each name."""
    data = tmp_path_factory.mktemp("data")
    settings = {"admin_key": KEY}
    with running_service(data, backbones=both, settings=settings) as url, session() as http:
        file = http_post(http, url, training_path)
        method = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": {"n_epochs": 1, "batch_size": 32}}}
        body = {"model": "bert-tiny", "training_file": file, "method": method}
        job = http.post(f"{url}/v1/fine_tuning/jobs", json=body).json()["id"]

        def shown():
            return http.get(f"{url}/v1/fine_tuning/jobs/{job}").json()

        wait_until(lambda: shown()["status"] == "succeeded")
        model = shown()["fine_tuned_model"]
    query = dump_query(remove_labels(training_file))
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
    alone = dump_query(remove_labels(replace(one, manifest=seal_manifest(one.manifest, one.records))))
    bodies = {
        "/v1/fine_tuning/jobs": [body],
        "/v1/classify": [{"model": model, **query}],
        "/v1/completions": [{"model": model, "prompt": prompts, "rapt": privacy}],
        "/v1/chat/completions": [
            chat_body(model, prompts[0], {"manifest": alone["manifest"], "records": rest[:1]}),
        ],
    }
    for writer in (backbone for backbone in both.values() if backbone.kind != "encoder"):
        ids, privacy = written_to(writer)
        bodies["/v1/completions"].append({"model": writer.model, "prompt": ids, "rapt": privacy})
        bodies["/v1/chat/completions"].append(chat_body(writer.model, ids, privacy))
    # Jobs that are asked for now stay in the queue: nothing here waits for one.
    settings["worker_in_service"] = False
    with running_service(data, backbones=both, settings=settings) as url:
        yield url, values, bodies


def written_to(backbone):
    """Ids that a bare backbone can go on from, and what is said of them."""
    ids = [int(token_id) for token_id in backbone.bundle.eligible[:3]]
    manifest = seal_manifest(manifest_for(backbone, labels=None), [PrivatizedRecord(token_ids=tuple(ids))])
    return ids, {"manifest": dump_manifest(manifest)}


def chat_body(model, ids, privacy):
    content = [{"type": "token_ids", "token_ids": ids}]
    return {"model": model, "messages": [{"role": "user", "content": content}], "rapt": privacy}


def session():
    made = requests.Session()
    made.trust_env = False
    made.headers["authorization"] = f"Bearer {KEY}"  # for the requests that put something there
    return made


def http_post(http, url, path):
    with path.open("rb") as stream:
        answer = http.post(f"{url}/v1/files", data={"purpose": "fine-tune"}, files={"file": ("f", stream)})
    return answer.json()["id"]


def with_real_values(case, values, bodies, *, real_ids, made_up, which):
    """The request with real ids in place of made-up ones if asked for, and a good body but for the made-up fields."""
    for place in (case.path_parameters, case.query):
        for name in set(place or {}) & set(values):
            if real_ids and name == "after" and not case.path.endswith("/jobs"):
                del place[name]  # the real one is a job: a page of anything else would not be found
            elif real_ids:
                place[name] = values[name]
    if isinstance(case.body, dict) and case.path in bodies:
        good = bodies[case.path][which]
        case.body = {**good, **{name: value for name, value in case.body.items() if name in made_up}}
    return case


def operations_of(http, url):
    document = http.get(f"{url}/openapi.json").json()
    found = [operation.ok() for operation in schemathesis.openapi.from_dict(document).get_all_operations()]
    assert len(found) == sum(len(methods) for methods in document["paths"].values())
    return found


def test_every_answer_is_one_that_the_document_names(real):
    url, values, bodies = real
    with session() as http:
        answered = {
            operation.label
            for operation in operations_of(http, url)
            # A few made-up requests may all be refused; what can be reached is reached by more of them.
            if 200 in send(operation, http, url, values, bodies, EXAMPLES)
            or (operation.label in REACHED and 200 in send(operation, http, url, values, bodies, 16 * EXAMPLES))
        }
    assert answered >= REACHED


def test_every_operation_is_in_one_part_of_the_document(real):
    with session() as http:
        for operation in operations_of(http, real[0]):
            assert len([part for part in PARTS if operation.path.startswith(part)]) == 1, operation.label


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_so_it_is_with_many_more_requests(real, part):
    url, values, bodies = real
    with session() as http:
        for operation in operations_of(http, url):
            if operation.path.startswith(part):
                send(operation, http, url, values, bodies, MANY)


def send(operation, http, url, values, bodies, examples):
    """The statuses of the answers to made-up requests to one operation."""
    statuses = set()
    made = operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE)
    if any(True for _ in operation.iter_parameters()) or operation.body:
        made |= operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
    # What the other requests need must stay.
    ids = strategies.just(False) if operation.method.upper() == "DELETE" else strategies.booleans()
    good = bodies.get(operation.path, [{}])
    fields = strategies.sampled_from(sorted({*OPTIONS, *good[0]}))

    @hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate,),
    )
    @hypothesis.given(
        case=made,
        real_ids=ids,
        made_up=strategies.sets(fields, max_size=4),
        which=strategies.integers(0, len(good) - 1),
    )
    def one(case, real_ids, made_up, which):
        case = with_real_values(case, values, bodies, real_ids=real_ids, made_up=made_up, which=which)
        answer = case.call(base_url=url, session=http, headers={"authorization": f"Bearer {KEY}"}, timeout=60)
        case.validate_response(answer, checks=CHECKS)
        statuses.add(answer.status_code)

    one()
    return statuses
