"""Pools over HTTP: contributors add, take back and do nothing else; nothing is kept of who gave what, or when."""

import json
import secrets
import sqlite3
from dataclasses import replace

import httpx2
import pytest

from code_material import code_bundle, codes_manifest
from http_requests import done_job
from rapt.errors import UsageError, WireError
from rapt.service.backbone.opening import load_served
from rapt.service.storage import contribution_rows
from rapt.service.storage.callers import OPERATOR
from rapt.service.storage.key_rows import create_key
from rapt.service.storage.recovery import open_store
from rapt.service.storage.tenant_rows import ensure_tenant
from rapt.wire.code_bundle import write_code_bundle
from rapt.wire.manifest import dump_manifest, parse_manifest
from rapt.wire.packed_contributions import measure_contribution, pack_contributions, unpack_contributions
from rapt.wire.privatized_file import PrivatizedRecord
from rapt.wire.strict_json import dump_line
from running_service import running_service

NAME = "crowd-codes"


@pytest.fixture(scope="module")
def code():
    return code_bundle(size=16, run=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def key(data):
    with open_store(data) as store:
        ensure_tenant(store, "local", now=0)
        return create_key(store, tenant="local", role="tenant", caller=OPERATOR, now=0)[1]


@pytest.fixture(scope="module")
def url(code, data, key, tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes") / "bundle"
    write_code_bundle(code, folder)
    with running_service(data, backbones={NAME: load_served(str(folder), name=NAME, precision="auto")}) as found:
        yield found


def as_holder(url, key):
    return httpx2.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60, trust_env=False)


@pytest.fixture(scope="module")
def http(url, key):
    with as_holder(url, key) as client:
        yield client


@pytest.fixture
def pool(http, code):
    return opened(http, code, least=3, most=6)


def opened(http, code, **sizes):
    manifest = replace(codes_manifest(codewords=code.size), vocabulary_hash=code.hash)
    answer = http.post("/v1/pools", json={"manifest": dump_manifest(manifest), **sizes})
    assert answer.status_code == 200, answer.text
    return answer.json()


def contributor(http, url, pool, *, contributions=1):
    answer = http.post(f"/v1/pools/{pool['id']}/keys", json={"contributions": contributions})
    (made,) = answer.json()["data"]
    assert (made["role"], made["pool"]) == ("contributor", pool["id"])
    return as_holder(url, made["value"])


def give(client, pool, *, code=3, label=1, receipt=None, setting=None):
    body = {
        "setting": setting or pool["setting"],
        "receipt": receipt or secrets.token_hex(32),
        "record": {"token_ids": [code]} | ({} if label is None else {"label": label}),
    }
    return client.post(f"/v1/pools/{pool['id']}/contributions", json=body)


def count(http, pool):
    return http.get(f"/v1/pools/{pool['id']}").json()["contributions"]


def message(answer):
    return answer.json()["error"]["message"]


def test_a_crowd_gives_one_text_each_and_a_model_is_tuned_on_all(http, url, code):
    pool = opened(http, code, least=40)
    for number in range(40):
        with contributor(http, url, pool) as one:
            assert give(one, pool, code=number % 16, label=int(number % 16 > 7)).status_code == 200
    closed = http.post(f"/v1/pools/{pool['id']}/close").json()
    assert (closed["status"], closed["contributions"]) == ("closed", 40)
    content = http.get(f"/v1/files/{closed['file']}/content").text.splitlines()
    records = [json.loads(line)["token_ids"][0] for line in content[1:]]
    assert sorted(records) == sorted(number % 16 for number in range(40))
    assert records != [number % 16 for number in range(40)]  # one in 10^40 by chance
    job = done_job(http, {"model": NAME, "training_file": closed["file"]})
    assert job["fine_tuned_model"].startswith(f"ft:{NAME}:")
    assert http.post(f"/v1/pools/{pool['id']}/close").json() == closed  # again, and nothing happens


def test_no_file_is_made_below_the_least_number(http, url, pool):
    with contributor(http, url, pool, contributions=2) as one:
        give(one, pool)
        give(one, pool)
    answer = http.post(f"/v1/pools/{pool['id']}/close")
    assert (answer.status_code, "at least 3 contributions" in message(answer)) == (400, True)
    assert http.get(f"/v1/pools/{pool['id']}").json()["status"] == "open"


def test_the_same_receipt_is_one_contribution_and_takes_it_back(http, url, pool):
    receipt = secrets.token_hex(32)
    with contributor(http, url, pool, contributions=2) as one:
        for _ in range(3):
            assert give(one, pool, receipt=receipt).json()["taken"]
        assert count(http, pool) == 1
        answer = give(one, pool, code=4, receipt=receipt)
        assert (answer.status_code, "one contribution" in message(answer)) == (400, True)
        path = f"/v1/pools/{pool['id']}/contributions/take-back"
        assert one.post(path, json={"receipt": secrets.token_hex(32)}).status_code == 404
        assert one.post(path, json={"receipt": receipt}).json()["taken"] is False
        assert count(http, pool) == 0
        assert one.post(path, json={"receipt": receipt}).status_code == 404
        assert [give(one, pool).status_code for _ in range(3)] == [200, 200, 429]  # and has its room again


def test_many_are_taken_with_one_request_or_none_is(http, url, pool):
    def others(*codes):
        return [{"receipt": f"{code:064x}", "record": {"token_ids": [code], "label": 0}} for code in codes]

    with contributor(http, url, pool, contributions=5) as one:
        path = f"/v1/pools/{pool['id']}/contributions"
        body = {"setting": pool["setting"], "receipt": "f" * 64, "record": {"token_ids": [1], "label": 1}}
        assert one.post(path, json={**body, "others": others(2, 3)}).status_code == 200
        assert one.post(path, json={**body, "others": others(2, 3, 4)}).status_code == 200  # three of them again
        assert count(http, pool) == 4
        refused = {
            "bad record": (409, {**body, "others": others(5, 999)}),
            "two records of a receipt": (400, {**body, "receipt": f"{5:064x}", "others": others(5)}),
            "no room": (429, {**body, "others": others(5, 6)}),
            "too many": (400, {**body, "others": others(*range(1000))}),
        }
        for name, (status, given) in refused.items():
            assert one.post(path, json=given).status_code == status, name
        assert count(http, pool) == 4


def test_a_pool_is_bounded_in_bytes_and_its_manifest_is_short(http, url, code, pool, monkeypatch):
    manifest = replace(codes_manifest(codewords=code.size), vocabulary_hash=code.hash)
    long = dump_manifest(replace(manifest, labels=tuple(f"{'x' * 200}{number}" for number in range(500))))
    answer = http.post("/v1/pools", json={"manifest": long})
    assert (answer.status_code, "bytes" in message(answer)) == (413, True)
    monkeypatch.setattr(contribution_rows, "MOST_BYTES", len(dump_line(pool["manifest"])) + 100)
    with contributor(http, url, pool, contributions=100) as one:
        statuses = [give(one, pool).status_code for _ in range(6)]
    assert (statuses[0], statuses[-1]) == (200, 413)


def test_a_key_adds_as_many_as_it_may_and_a_pool_takes_as_many(http, url, pool):
    with contributor(http, url, pool) as one:
        assert give(one, pool).status_code == 200
        answer = give(one, pool)
        assert (answer.status_code, "as many contributions as it may" in message(answer)) == (429, True)
    with contributor(http, url, pool, contributions=100) as many:
        for _ in range(5):
            assert give(many, pool).status_code == 200
        assert (give(many, pool).status_code, count(http, pool)) == (413, 6)


def test_what_does_not_fit_the_pool_is_refused_and_nothing_of_it_stays(http, url, code, pool):
    with contributor(http, url, pool, contributions=9) as one:
        assert give(one, pool, code=16).status_code == 409  # no codeword
        assert give(one, pool, label=2).status_code == 400
        assert "setting of the pool" in message(give(one, pool, setting="0" * 64))
        assert give(one, pool, receipt="short").status_code == 400
        assert count(http, pool) == 0


def test_a_contributor_does_nothing_else(http, url, code, pool):
    other = opened(http, code, least=2)
    with contributor(http, url, pool) as one:
        assert one.get(f"/v1/pools/{pool['id']}").status_code == 200
        assert one.get(f"/v1/codes/{NAME}").status_code == 200
        assert give(one, other).status_code == 403
        for method, path in (
            ("GET", f"/v1/pools/{other['id']}"),
            ("GET", "/v1/pools"),
            ("DELETE", f"/v1/pools/{pool['id']}"),
            ("POST", f"/v1/pools/{pool['id']}/close"),
            ("POST", f"/v1/pools/{pool['id']}/keys"),
            ("GET", "/v1/files"),
            ("GET", "/v1/models"),
            ("GET", "/v1/keys"),
            ("GET", "/v1/usage"),
            ("GET", "/metrics"),
            ("POST", "/v1/classify"),
            ("POST", "/v1/fine_tuning/jobs"),
        ):
            assert one.request(method, path).status_code == 403, path


def test_a_closed_or_deleted_pool_has_no_keys_and_takes_nothing_back(http, url, code):
    pool, gone = (opened(http, code, least=2) for _ in range(2))
    receipt = secrets.token_hex(32)
    with contributor(http, url, pool, contributions=2) as one, contributor(http, url, gone) as late:
        give(one, pool, receipt=receipt)
        give(one, pool)
        http.post(f"/v1/pools/{pool['id']}/close")
        assert one.get(f"/v1/pools/{pool['id']}").status_code == 401
        answer = http.post(f"/v1/pools/{pool['id']}/contributions/take-back", json={"receipt": receipt})
        assert (answer.status_code, "closed" in message(answer)) == (400, True)
        assert http.delete(f"/v1/pools/{gone['id']}").json()["deleted"]
        assert late.get(f"/v1/pools/{gone['id']}").status_code == 401
        assert http.get(f"/v1/pools/{gone['id']}").status_code == 404


def test_the_key_of_a_contributor_is_listed_and_revoked_but_not_rotated(http, url, pool):
    with contributor(http, url, pool) as one:
        (listed,) = [item for item in http.get("/v1/keys").json()["data"] if item["pool"] == pool["id"]]
        assert http.post(f"/v1/keys/{listed['id']}/rotate").status_code == 400
        assert http.post(f"/v1/keys/{listed['id']}/revoke").status_code == 200
        assert give(one, pool).status_code == 401


def test_a_page_of_any_origin_may_contribute_with_a_key(http, url, pool):
    path = f"{url}/v1/pools/{pool['id']}/contributions"
    elsewhere = {"origin": "https://collector.example"}
    with httpx2.Client(trust_env=False) as browser:
        asked = browser.options(path, headers=elsewhere | {"access-control-request-method": "POST"})
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (204, "*")
        assert "authorization" in asked.headers["access-control-allow-headers"]
        assert browser.post(path, headers=elsewhere, json={}).status_code == 401
        assert browser.options(f"{url}/v1/files", headers=elsewhere).status_code == 401
    with contributor(http, url, pool) as one:
        one.headers["origin"] = "https://collector.example"
        assert give(one, pool).headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-origin" not in http.get("/v1/files").headers


def test_rows_of_contributions_say_nothing_of_who_when_and_in_which_order(data, http, url, pool):
    with contributor(http, url, pool, contributions=5) as one:
        for code in range(5):
            give(one, pool, code=code)
    (file,) = (path for path in data.rglob("*") if path.is_file() and path.read_bytes().startswith(b"SQLite"))
    with sqlite3.connect(file) as connection:
        columns = [column[0] for column in connection.execute("SELECT * FROM contributions").description]
        assert columns == ["pool_id", "receipt_digest", "line"]
        with pytest.raises(sqlite3.OperationalError, match="no such column: rowid"):
            connection.execute("SELECT rowid FROM contributions")
    entries = http.get("/v1/audit", params={"limit": 100}).json()["data"]
    assert not any("contribution" in entry["action"] for entry in entries)


def test_contributions_count_as_bytes_of_the_tenant_until_they_are_gone(http, url, pool):
    before = http.get("/v1/usage").json()["bytes"]
    receipt = secrets.token_hex(32)
    with contributor(http, url, pool) as one:
        give(one, pool, receipt=receipt)
        assert http.get("/v1/usage").json()["bytes"] > before
        one.post(f"/v1/pools/{pool['id']}/contributions/take-back", json={"receipt": receipt})
    assert http.get("/v1/usage").json()["bytes"] == before


def test_who_gave_to_the_first_of_two_rounds_has_given(http, url, code):
    pool = opened(http, code, least=2, first=20)
    assert (pool["round"], pool["first"], pool["manifest"]["labels"], pool["center"]) == (1, 20, None, None)
    receipt = secrets.token_hex(32)
    with contributor(http, url, pool) as one, contributor(http, url, pool, contributions=30) as many:
        assert give(one, pool, label=1).status_code == 400  # labels are for the second round
        assert give(one, pool, label=None, receipt=receipt).status_code == 200
        early = http.post(f"/v1/pools/{pool['id']}/advance")
        assert (early.status_code, "got 1; wait for more" in message(early)) == (400, True)
        assert [give(many, pool, label=None).status_code for _ in range(20)] == [200] * 20
        after = http.post(f"/v1/pools/{pool['id']}/advance").json()
        assert (after["round"], after["contributions"]) == (2, 0)
        assert after["manifest"]["labels"] == ["no", "yes"]
        assert after["manifest"]["vocabulary_hash"] != code.hash
        refused = give(one, after)
        assert (refused.status_code, "as many contributions as it may" in message(refused)) == (429, True)
        path = f"/v1/pools/{pool['id']}/contributions/take-back"
        assert one.post(path, json={"receipt": receipt}).status_code == 404  # it is in the centre
        assert give(many, pool, label=None).status_code == 400  # of the first round's setting
        assert [give(many, after).status_code for _ in range(2)] == [200, 200]
    closed = http.post(f"/v1/pools/{pool['id']}/close").json()
    manifest = json.loads(http.get(f"/v1/files/{closed['file']}/content").text.splitlines()[0])
    assert manifest["vocabulary_hash"] == code.hash
    assert manifest["mechanism"]["parameters"]["center"] == after["center"]


def test_two_rounds_are_of_a_code_that_has_no_centre(http, code):
    manifest = dump_manifest(replace(codes_manifest(codewords=code.size, pairs=True), vocabulary_hash=code.hash))
    answer = http.post("/v1/pools", json={"manifest": manifest, "first": 20})
    assert (answer.status_code, "a pool of two rounds must be of a code" in message(answer)) == (400, True)


def test_a_pool_takes_no_fewer_contributions_than_its_first_round_needs(http, code):
    manifest = dump_manifest(replace(codes_manifest(codewords=code.size), vocabulary_hash=code.hash))
    answer = http.post("/v1/pools", json={"manifest": manifest, "least": 2, "most": 20, "first": 21})
    assert (answer.status_code, "got first=21, most=20" in message(answer)) == (400, True)


@pytest.mark.parametrize(
    ("codewords", "labels", "size"), [(16, 2, 14), (4096, 2, 15), (65_536, 256, 15), (4096, 1000, 16)]
)
def test_a_contribution_is_at_most_16_bytes_beside_its_manifest(codewords, labels, size):
    manifest = codes_manifest(codewords=codewords, labels=tuple(map(str, range(labels))))
    assert measure_contribution(manifest) == size
    records = [
        PrivatizedRecord(token_ids=(codewords - 1,), label=labels - 1),
        PrivatizedRecord(token_ids=(0,), label=0),
    ]
    receipts, setting = [secrets.token_hex(12) for _ in records], "ab" * 32
    body = pack_contributions(records, receipts, manifest=manifest, setting=setting)
    assert len(body) == 32 + 2 * size
    assert unpack_contributions(body, manifest=manifest) == (setting, list(zip(receipts, records, strict=True)))
    for wrong in (body[:-1], body[:32], b"", body + b"x"):
        with pytest.raises(WireError):
            unpack_contributions(wrong, manifest=manifest)


def test_packed_contributions_of_several_codes_of_a_pair_without_labels_are_read_as_they_were():
    manifest = codes_manifest(codewords=300, codes=3, labels=None, pairs=True)
    records = [PrivatizedRecord(token_ids=(1, 2, 299), second_token_ids=(0, 256, 3))]
    body = pack_contributions(records, ["0" * 24], manifest=manifest, setting="ab" * 32)
    assert unpack_contributions(body, manifest=manifest)[1] == [("0" * 24, records[0])]
    with pytest.raises(UsageError, match="at most 1000 contributions"):
        unpack_contributions(body[:32] + body[32:] * 1001, manifest=manifest)


def test_packed_contributions_are_taken_and_refused_as_others_are(http, url, pool):
    manifest = parse_manifest(pool["manifest"])
    path = f"/v1/pools/{pool['id']}/contributions"

    def pack(code, label, *, receipt, setting=None):
        record = PrivatizedRecord(token_ids=(code,), label=label)
        return pack_contributions([record], [receipt], manifest=manifest, setting=setting or pool["setting"])

    with contributor(http, url, pool, contributions=2) as one:
        for _ in range(2):  # the same receipt twice is one contribution
            assert one.post(f"{path}/packed", content=pack(3, 1, receipt="a" * 24)).json()["taken"]
        assert count(http, pool) == 1
        refused = {
            "another record of the receipt": (400, pack(4, 1, receipt="a" * 24)),
            "no codeword": (409, pack(16, 1, receipt="b" * 24)),
            "no label": (400, pack(3, 2, receipt="b" * 24)),
            "another setting": (400, pack(3, 1, receipt="b" * 24, setting="0" * 64)),
            "cut": (400, pack(3, 1, receipt="b" * 24)[:-1]),
        }
        for name, (status, body) in refused.items():
            assert one.post(f"{path}/packed", content=body).status_code == status, name
        assert one.post(f"{path}/take-back", json={"receipt": "a" * 24}).status_code == 200
        assert count(http, pool) == 0
