"""Two tenants and an admin on one service, over HTTP: nobody sees, changes or guesses what belongs to another."""

import io
import re
import statistics
import time
import zipfile
from dataclasses import replace

import openai
import pytest
from scipy import stats

from http_requests import done_job, job_body, open_client
from rapt.errors import NotFoundError, QuotaError, UsageError
from rapt.service.http.quotas import TokenQuotas
from rapt.service.http.settings import load_settings
from rapt.service.storage.callers import OPERATOR
from rapt.service.storage.file_rows import get_file
from rapt.service.storage.recovery import open_store
from rapt.service.storage.tenant_rows import Quotas, create_tenant, delete_tenant
from rapt.wire.privatized_file import PrivatizedFile, dump_query, remove_labels
from running_service import running_service, save_privatized
from significance import ALPHA

ADMIN = "the-provider-s-own-key-of-32-chars"


def client_of(url, key):
    return open_client(url, headers={"authorization": f"Bearer {key}"})


@pytest.fixture(scope="module")
def url(backbones, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with running_service(folder, backbones=backbones, settings={"admin_key": ADMIN}) as found:
        yield found


@pytest.fixture(scope="module")
def admin(url):
    with client_of(url, ADMIN) as http:
        yield http


def newcomer(admin, name, **quotas):
    assert admin.post("/v1/admin/tenants", json={"name": name, **quotas}).status_code == 200
    return admin.post(f"/v1/admin/tenants/{name}/keys").json()["value"]


@pytest.fixture(scope="module")
def ada(url, admin):
    with client_of(url, newcomer(admin, "ada")) as http:
        yield http


@pytest.fixture(scope="module")
def bob(url, admin):
    with client_of(url, newcomer(admin, "bob")) as http:
        yield http


def upload(http, path, **headers):
    with path.open("rb") as stream:
        return http.post(
            "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("mine.jsonl", stream)}, headers=headers
        )


@pytest.fixture(scope="module")
def owned(ada, training_path):
    """What Ada has: a file, a job that has ended, and its model."""
    file = upload(ada, training_path).json()["id"]
    job, model = tuned_on(ada, file)
    assert re.fullmatch(r"ft:bert-tiny:ada:mine:[0-9a-f]{12}", model)
    checkpoint = f"{model}:ckpt-step-8"
    assert ada.get(f"/v1/models/{checkpoint}").status_code == 200
    return {"file": file, "job": job, "model": model, "checkpoint": checkpoint}


def tuned_on(http, file):
    job = done_job(http, job_body(file) | {"suffix": "mine"})
    return job["id"], job["fine_tuned_model"]


ROUTES = [
    ("GET", "/v1/files/{file}", None),
    ("GET", "/v1/files/{file}/content", None),
    ("DELETE", "/v1/files/{file}", None),
    ("GET", "/v1/files?after={file}", None),
    ("GET", "/v1/fine_tuning/jobs/{job}", None),
    ("GET", "/v1/fine_tuning/jobs/{job}/events", None),
    ("GET", "/v1/fine_tuning/jobs/{job}/checkpoints", None),
    ("POST", "/v1/fine_tuning/jobs/{job}/cancel", None),
    ("POST", "/v1/fine_tuning/jobs/{job}/pause", None),
    ("POST", "/v1/fine_tuning/jobs/{job}/resume", None),
    ("GET", "/v1/fine_tuning/jobs?after={job}", None),
    ("GET", "/v1/models/{model}", None),
    ("DELETE", "/v1/models/{model}", None),
    ("GET", "/v1/models/{checkpoint}", None),
    ("GET", "/v1/models/{checkpoint}/adapter", None),
    ("DELETE", "/v1/models/{checkpoint}", None),
    ("GET", "/v1/vocabularies/{model}", None),
    ("POST", "/v1/fine_tuning/jobs", lambda ids: {"model": "bert-tiny", "training_file": ids["file"]}),
]
MADE_UP = {"file": "file-" + "0" * 24, "job": "ftjob-" + "0" * 24, "model": "ft:bert-tiny:ada:mine:" + "0" * 12}
MADE_UP["checkpoint"] = MADE_UP["model"] + ":ckpt-step-8"


@pytest.mark.parametrize(("method", "path", "body"), ROUTES, ids=[f"{route[0]} {route[1]}" for route in ROUTES])
def test_what_is_a_strangers_answers_as_what_never_was(bob, ada, owned, method, path, body):
    answers = [
        bob.request(method, path.format(**ids), json=None if body is None else body(ids)) for ids in (owned, MADE_UP)
    ]
    (theirs, nothing) = answers
    assert theirs.status_code == nothing.status_code == 404
    assert theirs.content == nothing.content
    ignored = ("x-request-id", "date")
    headers = [{name: value for name, value in answer.headers.items() if name not in ignored} for answer in answers]
    assert headers[0] == headers[1]
    assert ada.get(f"/v1/files/{owned['file']}").status_code == 200


def test_a_strangers_model_does_not_classify(bob, owned, training_file):
    query = dump_query(remove_labels(training_file))
    answers = [bob.post("/v1/classify", json={"model": ids["model"], **query}) for ids in (owned, MADE_UP)]
    assert answers[0].status_code == answers[1].status_code == 404
    assert answers[0].content == answers[1].content


def test_lists_have_what_is_the_tenants_own(ada, bob, owned):
    assert [item["id"] for item in ada.get("/v1/files").json()["data"]] == [owned["file"]]
    assert owned["model"] in [item["id"] for item in ada.get("/v1/models").json()["data"]]
    assert [item["id"] for item in bob.get("/v1/models").json()["data"]] == ["bert-tiny"]
    for path in ("/v1/files", "/v1/fine_tuning/jobs"):
        assert bob.get(path).json()["data"] == []


def assert_same_time(first, second):
    """Two ways take the same time: the difference within alternating pairs has no sign, by Wilcoxon's test."""
    p = stats.wilcoxon([a - b for a, b in zip(first, second, strict=True)]).pvalue
    assert p >= ALPHA, f"Wilcoxon rejects: n={len(first)} p={p:.2e} medians={statistics.median(first):.2e}"


def times_of(asks, *, pairs):
    """Seconds of each, in pairs that alternate their order."""
    found = [[], []]
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 else (1, 0):
            start = time.perf_counter()
            asks[which]()
            found[which].append(time.perf_counter() - start)
    return found


def test_the_time_does_not_tell_a_strangers_file_from_none(tmp_path):
    with open_store(tmp_path) as store:
        file_id = some_file(store)

        def ask(id_):
            with pytest.raises(NotFoundError):
                get_file(store, id_, tenant="bob")

        assert_same_time(*times_of([lambda: ask(file_id), lambda: ask(MADE_UP["file"])], pairs=300))


@pytest.mark.parametrize("seed", range(5))
def test_the_test_of_time_can_fail(tmp_path, seed):
    """The twin looks the row up first and then whose it is, as one would write it without thinking."""
    del seed  # of the machine's noise: five runs
    with open_store(tmp_path) as store:
        file_id = some_file(store)

        def ask(id_):
            try:
                get_file(store, id_, tenant="ada")
            except NotFoundError:
                return
            get_file(store, id_, tenant="ada")

        with pytest.raises(AssertionError, match="Wilcoxon rejects"):
            assert_same_time(*times_of([lambda: ask(file_id), lambda: ask(MADE_UP["file"])], pairs=300))


def some_file(store):
    from sqlalchemy import insert

    from rapt.service.storage.tables import FILES

    row = {"id": "file-" + "a" * 24, "tenant": "ada", "filename": "f", "purpose": "fine-tune", "bytes": 1, "labels": 2}
    row |= {"sha256": "0", "created_at": 1, "vocabulary_hash": "h", "mechanism": {}, "records": 1, "tokens": 1}
    with store.database.write() as connection:
        connection.execute(insert(FILES).values(**row, longest=1, plain_tokens=0, insecure_seed=False))
    return row["id"]


def test_only_an_admin_comes_to_the_admins_routes(admin, ada, url):
    for path in ("/v1/admin/tenants", "/v1/admin/keys", "/v1/admin/audit", "/metrics", "/v1/admin/tenants/bob"):
        answer = ada.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")
        assert admin.get(path).status_code in (200, 404)
    with openai.OpenAI(base_url=f"{url}/v1", api_key=ada.headers["authorization"][7:]) as official:
        with pytest.raises(openai.PermissionDeniedError):
            official.get("/admin/tenants", cast_to=object)
        with pytest.raises(openai.AuthenticationError):
            official.with_options(api_key="rapt-made-up").models.list()


def test_a_revoked_key_is_refused_at_once_and_a_rotated_one_after_its_grace(admin, url):
    value = newcomer(admin, "cyd")
    with client_of(url, value) as cyd:
        (key,) = cyd.get("/v1/keys").json()["data"]
        assert value not in str(key)
        new = cyd.post(f"/v1/keys/{key['id']}/rotate", json={"grace_seconds": 3600}).json()
        assert cyd.get("/v1/usage").status_code == 200  # in the grace both are good
        with client_of(url, new["value"]) as fresh:
            assert fresh.get("/v1/usage").json()["tenant"] == "cyd"
            assert cyd.post(f"/v1/keys/{key['id']}/revoke").json()["revoked_at"] > 0
            assert cyd.get("/v1/usage").status_code == 401
            assert fresh.get("/v1/usage").status_code == 200


def test_a_quota_answers_429_and_says_when_to_come_again(admin, url, training_path, training_file, owned, ada):
    value = newcomer(admin, "dan", max_bytes=training_path.stat().st_size, max_jobs=0)
    with client_of(url, value) as dan, openai.OpenAI(base_url=f"{url}/v1", api_key=value, max_retries=0) as official:
        file = upload(dan, training_path).json()["id"]
        full = upload(dan, training_path)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert full.headers["x-should-retry"] == "false"  # time alone will not help
        with pytest.raises(openai.RateLimitError) as error:
            official.fine_tuning.jobs.create(model="bert-tiny", training_file=file)
        assert int(error.value.response.headers["retry-after"]) >= 1
        assert dan.get("/v1/usage").json()["quotas"]["max_jobs"] == 0
    card = ada.get(f"/v1/models/{owned['model']}").json()["rapt"]["card"]
    added = card["prompt_length"] + card["plain_tokens"]  # positions that each record takes beside its text
    tokens = training_file.manifest.tokens + added * training_file.manifest.records
    assert admin.post("/v1/admin/tenants/ada", json={"tokens_per_minute": tokens}).status_code == 200
    query = {"model": owned["model"], **dump_query(remove_labels(training_file))}
    assert ada.post("/v1/classify", json=query).status_code == 200
    again = ada.post("/v1/classify", json=query)
    assert again.status_code == 429
    assert 1 <= int(again.headers["retry-after"]) <= 60
    admin.post("/v1/admin/tenants/ada", json={})


def test_both_texts_of_a_pair_take_from_the_tokens_of_a_minute(admin, training_file, ada, tmp_path):
    """Only the first was counted once, so a pair passed by its quota."""
    records = tuple(replace(record, second_token_ids=record.token_ids) for record in training_file.records)
    pairs = PrivatizedFile(manifest=replace(training_file.manifest, pairs=True), records=records)
    file = upload(ada, save_privatized(pairs, tmp_path / "pairs.jsonl")).json()["id"]
    _, model = tuned_on(ada, file)
    query = dump_query(remove_labels(pairs))
    limit = {"tokens_per_minute": 2 * training_file.manifest.tokens - 1}
    assert admin.post("/v1/admin/tenants/ada", json=limit).status_code == 200
    rest = [{name: value for name, value in record.items() if name != "token_ids"} for record in query["records"]]
    prompts = [record["token_ids"] for record in query["records"]]
    privacy = {"manifest": query["manifest"], "records": rest}
    for route, body in (("classify", query), ("completions", {"prompt": prompts, "rapt": privacy})):
        answer = ada.post(f"/v1/{route}", json={"model": model, **body})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    admin.post("/v1/admin/tenants/ada", json={})
    assert ada.delete(f"/v1/models/{model}").json()["deleted"]
    assert ada.delete(f"/v1/files/{file}").json()["deleted"]


def test_a_bucket_of_tokens_fills_evenly(tmp_path):
    now = [0.0]
    with open_store(tmp_path) as store:
        create_tenant(store, "ada", quotas=Quotas(tokens_per_minute=60), caller=OPERATOR, now=1)
        quotas = TokenQuotas(store, default=5, clock=lambda: now[0])
        quotas.spend_tokens("ada", 60)
        with pytest.raises(QuotaError) as error:
            quotas.spend_tokens("ada", 10)
        assert error.value.retry_after == pytest.approx(10.0)
        now[0] = 10.0
        quotas.spend_tokens("ada", 10)
        now[0] = 10_000.0  # a bucket holds no more than a minute's
        quotas.spend_tokens("ada", 60)
        with pytest.raises(QuotaError):
            quotas.spend_tokens("ada", 1)
        with pytest.raises(QuotaError, match="send several") as error:
            quotas.spend_tokens("local", 6)
        assert error.value.retry_after is None
        delete_tenant(store, "ada", caller=OPERATOR, now=2)
        with pytest.raises(QuotaError):
            quotas.spend_tokens("ada", 1)


def test_a_request_sent_twice_under_one_key_makes_one_object(bob, training_path):
    first, second = (upload(bob, training_path, **{"idempotency-key": "abc"}).json() for _ in range(2))
    assert first == second
    body = job_body(first["id"]) | {"metadata": {"run": "x"}}
    jobs = [bob.post("/v1/fine_tuning/jobs", json=body, headers={"idempotency-key": "j"}).json() for _ in range(2)]
    assert jobs[0]["id"] == jobs[1]["id"]
    other = bob.post("/v1/fine_tuning/jobs", json={**body, "seed": 7}, headers={"idempotency-key": "j"})
    assert other.status_code == 400
    found = bob.get("/v1/fine_tuning/jobs", params={"metadata[run]": "x"}).json()["data"]
    assert [job["id"] for job in found] == [jobs[0]["id"]]
    assert bob.get("/v1/fine_tuning/jobs", params={"metadata[run]": "y"}).json()["data"] == []
    for path in (f"/v1/fine_tuning/jobs/{jobs[0]['id']}/cancel",):
        bob.post(path)


def test_a_file_comes_in_parts(url, admin, training_path):
    content = training_path.read_bytes()
    value = newcomer(admin, "eve")
    with openai.OpenAI(base_url=f"{url}/v1", api_key=value, max_retries=0) as official:
        done = official.uploads.upload_file_chunked(
            file=training_path, mime_type="application/jsonl", purpose="fine-tune", part_size=len(content) // 3
        )
        assert done.status == "completed"
        assert official.files.content(done.file.id).read() == content
        begun = official.uploads.create(bytes=10, filename="x", mime_type="text/plain", purpose="fine-tune")
        part = official.uploads.parts.create(begun.id, data=b"12345")
        with pytest.raises(openai.BadRequestError, match="bytes=5"):
            official.uploads.complete(begun.id, part_ids=[part.id])
        with pytest.raises(openai.APIStatusError, match="must have 10 bytes together"):
            official.uploads.parts.create(begun.id, data=b"123456")
        other = official.uploads.parts.create(begun.id, data=b"abcde")
        with pytest.raises(openai.BadRequestError, match="first line"):  # put together, it is no privatized file
            official.uploads.complete(begun.id, part_ids=[part.id, other.id])
        assert official.uploads.cancel(begun.id).status == "cancelled"
        with pytest.raises(openai.BadRequestError, match="status=cancelled"):
            official.uploads.parts.create(begun.id, data=b"1")
    with client_of(url, value) as eve:
        assert eve.get("/v1/usage").json()["bytes"] == len(content)


def test_an_adapter_goes_out_and_comes_in_and_answers_the_same(ada, bob, owned, training_file):
    query = dump_query(remove_labels(training_file))
    answer = ada.get(f"/v1/models/{owned['model']}/adapter")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert set(files) == {"adapter_model.safetensors", "adapter_config.json", "rapt.json"}
    assert bob.get(f"/v1/models/{owned['model']}/adapter").status_code == 404
    form = {"card": ("c", files["rapt.json"]), "weights": ("w", files["adapter_model.safetensors"])}
    model = bob.post("/v1/adapters", files=form, data={"suffix": "from-ada"}).json()
    assert re.fullmatch(r"ft:bert-tiny:bob:from-ada:[0-9a-f]{12}", model["id"])
    answers = [
        http.post("/v1/classify", json={"model": name, **query}).json()["predictions"]
        for http, name in ((ada, owned["model"]), (bob, model["id"]))
    ]
    assert answers[0] == answers[1]
    for broken in (
        {**form, "weights": ("w", files["adapter_model.safetensors"][:-1])},
        {**form, "weights": ("w", b"\x80\x04N.")},  # a pickle is bytes that do not fit the digest, and nothing else
        {**form, "card": ("c", files["adapter_config.json"])},
        {**form, "card": ("c", files["rapt.json"].replace(b"bert-tiny", b"bert-none"))},
    ):
        assert bob.post("/v1/adapters", files=broken).status_code in (400, 404)
    assert bob.delete(f"/v1/models/{model['id']}").json()["deleted"]


def test_a_deleted_tenant_is_gone_for_its_key_too(admin, url, training_path):
    value = newcomer(admin, "flo")
    with client_of(url, value) as flo:
        upload(flo, training_path)
        assert admin.delete("/v1/admin/tenants/flo").json() == {"id": "flo", "object": "tenant", "deleted": True}
        assert flo.get("/v1/files").status_code == 401
    assert admin.get("/v1/admin/tenants/flo").status_code == 404
    log = admin.get("/v1/admin/audit", params={"limit": 3}).json()["data"]
    assert (log[0]["action"], log[0]["key"]) == ("tenant.delete", "settings")


def test_figures_and_readiness(admin, url):
    with open_client(url) as http:
        assert http.get("/healthz").json()["status"] == http.get("/readyz").json()["status"] == "ok"
        assert http.get("/metrics").status_code == 401
    text = admin.get("/metrics").text
    # Of the whole process, so other services of these tests may have counted before.
    assert re.search(r'rapt_requests_total\{method="GET",route="/readyz",status="200"\} [1-9]', text)
    assert "rapt_request_seconds_bucket" in text
    assert '"ada"' not in text


def test_a_service_without_keys_does_not_listen_beyond_this_machine(backbones, tmp_path):
    with (
        pytest.raises(UsageError, match="listen on loopback only"),
        running_service(tmp_path, backbones=backbones, settings={"host": "0.0.0.0"}),
    ):
        pass


def test_half_a_certificate_or_none_that_can_be_read_does_not_start(backbones, tmp_path):
    files = {"tls_cert": tmp_path / "none.pem", "tls_key": tmp_path / "none.pem"}
    assert load_settings(files).tls_cert == files["tls_cert"]
    with (
        pytest.raises(UsageError, match="must be a readable certificate"),
        running_service(tmp_path, backbones=backbones, settings=files),
    ):
        pass
