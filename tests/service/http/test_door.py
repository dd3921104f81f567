"""The door: what a key of each role may do, and how soon a revoked one may do nothing."""

import asyncio
import itertools
import json

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from http_requests import error_of, open_client
from rapt.errors import ForbiddenError, NotFoundError, QuotaError
from rapt.service.http import door
from rapt.service.http.completion_schemas import Completion, CompletionChoice
from rapt.service.http.door import Door
from rapt.service.http.routes.pieces import stream_events
from rapt.service.http.settings import load_settings
from rapt.service.storage.callers import LOCAL, OPERATOR, Caller
from rapt.service.storage.key_rows import create_key, revoke_key, rotate_key
from rapt.service.storage.recovery import open_store
from rapt.service.storage.tenant_rows import Quotas, create_tenant, delete_tenant
from running_service import running_service

ADMIN = "the-provider-s-own-key-of-32-chars"
TENANTS = ("local", "clinic")
ROLES = ("tenant", "admin")
# A key by whom it belongs to and what it may do.
HOLDERS = list(itertools.product(TENANTS, ROLES))
MADE_UP = "key-" + "0" * 24
PIECE = Completion(
    id="cmpl-1", created=1, model="m", choices=[CompletionChoice(index=0, text="good", finish_reason=None)]
)
MANY = 50


def client_of(url, key):
    return open_client(url, headers={"authorization": f"Bearer {key}"})


@pytest.fixture(scope="module")
def admin(backbones, tmp_path_factory):
    with (
        running_service(tmp_path_factory.mktemp("data"), backbones=backbones, settings={"admin_key": ADMIN}) as url,
        client_of(url, ADMIN) as http,
    ):
        assert http.post("/v1/admin/tenants", json={"name": "clinic"}).status_code == 200
        yield http


def new_key(admin, tenant, role):
    return admin.post(f"/v1/admin/tenants/{tenant}/keys", json={"role": role}).json()


@pytest.mark.parametrize("verb", ["rotate", "revoke"])
@pytest.mark.parametrize("prefix", ["/v1", "/v1/admin"])
@pytest.mark.parametrize("target", HOLDERS, ids="-".join)
@pytest.mark.parametrize("asker", HOLDERS, ids="-".join)
def test_a_key_touches_keys_of_its_own_role_or_below(admin, asker, target, prefix, verb):
    """A tenant's key rotated the admin's of its tenant, and was given a fresh admin key."""
    with client_of(admin.base_url, new_key(admin, *asker)["value"]) as http:
        key = new_key(admin, *target)
        answer = http.post(f"{prefix}/keys/{key['id']}/{verb}")
        if prefix == "/v1/admin":
            allowed = asker[1] == "admin"
        else:
            allowed = asker[0] == target[0] and ROLES.index(target[1]) <= ROLES.index(asker[1])
        with client_of(admin.base_url, key["value"]) as touched:
            assert touched.get("/v1/usage").status_code == (401 if allowed else 200)
        if allowed:
            assert (answer.status_code, answer.json()["role"]) == (200, target[1])
            assert ROLES.index(answer.json()["role"]) <= ROLES.index(asker[1])
        elif prefix == "/v1/admin":
            error_of(answer, 403, "permission_denied")
        else:
            error_of(answer, 404, "not_found")
            missing = http.post(f"{prefix}/keys/{MADE_UP}/{verb}")
            assert answer.content == missing.content
        for spent in (answer.json().get("id"), key["id"]):
            admin.post(f"/v1/admin/keys/{spent}/revoke")


@pytest.mark.parametrize("tenant", TENANTS)
def test_a_tenants_key_sees_no_admins_key_in_the_list_nor_by_a_cursor(admin, tenant):
    high, low = new_key(admin, tenant, "admin"), new_key(admin, tenant, "tenant")
    with client_of(admin.base_url, low["value"]) as http:
        assert {key["role"] for key in http.get("/v1/keys").json()["data"]} == {"tenant"}
        found, missing = (http.get("/v1/keys", params={"after": id_}) for id_ in (high["id"], MADE_UP))
        assert found.status_code == 404
        assert found.content == missing.content
    with client_of(admin.base_url, high["value"]) as http:
        assert {key["role"] for key in http.get("/v1/keys").json()["data"]} == {"tenant", "admin"}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/admin/tenants", {"name": "mine"}),
        ("GET", "/v1/admin/tenants", None),
        ("GET", "/v1/admin/tenants/clinic", None),
        ("GET", "/v1/admin/tenants/clinic/usage", None),
        ("POST", "/v1/admin/tenants/clinic", {"max_jobs": 1}),
        ("DELETE", "/v1/admin/tenants/clinic", None),
        ("POST", "/v1/admin/tenants/clinic/keys", {"role": "admin"}),
        ("POST", "/v1/admin/tenants/clinic/keys", {"role": "tenant"}),
        ("GET", "/v1/admin/keys", None),
        ("GET", "/v1/admin/audit", None),
        ("GET", "/metrics", None),
    ],
)
@pytest.mark.parametrize("tenant", TENANTS)
def test_a_tenants_key_comes_to_no_route_of_an_admin(admin, tenant, method, path, body):
    with client_of(admin.base_url, new_key(admin, tenant, "tenant")["value"]) as http:
        error_of(http.request(method, path, json=body), 403, "permission_denied")


def test_neither_the_tenant_local_nor_the_callers_own_is_deleted_over_http(admin):
    own = new_key(admin, "clinic", "admin")
    with client_of(admin.base_url, own["value"]) as http:
        for tenant in ("clinic", LOCAL):
            error_of(http.delete(f"/v1/admin/tenants/{tenant}"), 400, "invalid_request")
        error_of(admin.delete(f"/v1/admin/tenants/{LOCAL}"), 400, "invalid_request")
        assert http.get("/v1/usage").status_code == 200


def test_a_tenant_sees_what_an_admin_did_to_it_and_nothing_of_others(admin):
    admin.post("/v1/admin/tenants", json={"name": "seen"})
    admin.post("/v1/admin/tenants", json={"name": "unseen"})
    first = new_key(admin, "seen", "tenant")
    spied = new_key(admin, "seen", "admin")
    new_key(admin, "unseen", "tenant")
    admin.post("/v1/admin/tenants/seen", json={"max_jobs": 3})
    with client_of(admin.base_url, first["value"]) as http:
        log = http.get("/v1/audit").json()["data"]
        assert [(entry["action"], entry["target"], entry["key"]) for entry in log] == [
            ("tenant.quotas", "seen", "settings"),
            ("key.create", spied["id"], "settings"),
            ("key.create", first["id"], "settings"),
            ("tenant.create", "seen", "settings"),
        ]
    with client_of(admin.base_url, new_key(admin, LOCAL, "tenant")["value"]) as http:
        assert "unseen" not in {
            entry["target"] for entry in http.get("/v1/audit", params={"limit": 100}).json()["data"]
        }
    admin.delete("/v1/admin/tenants/seen")
    admin.post("/v1/admin/tenants", json={"name": "seen"})
    with client_of(admin.base_url, new_key(admin, "seen", "tenant")["value"]) as http:
        assert [entry["action"] for entry in http.get("/v1/audit").json()["data"]] == ["key.create", "tenant.create"]


def test_whoever_has_the_data_directory_may_do_all_of_it(tmp_path):
    with open_store(tmp_path) as store:
        key, _ = create_key(store, tenant=LOCAL, role="admin", caller=OPERATOR, now=5)
        assert rotate_key(store, key.id, grace=0, caller=OPERATOR, now=6)[0].role == "admin"
        delete_tenant(store, LOCAL, caller=OPERATOR, now=7)


def test_the_store_itself_hands_out_no_higher_role_and_no_keys_without_end(tmp_path):
    low = Caller(tenant="ada", key="key-low", role="tenant")
    with open_store(tmp_path) as store:
        create_tenant(store, "ada", quotas=Quotas(), caller=OPERATOR, now=4)
        with pytest.raises(ForbiddenError, match="or a lower one"):
            create_key(store, tenant="ada", role="admin", caller=low, now=5)
        high, _ = create_key(store, tenant="ada", role="admin", caller=OPERATOR, now=5)
        with pytest.raises(NotFoundError):
            rotate_key(store, high.id, grace=0, caller=low, now=6)
        key, _ = create_key(store, tenant="ada", role="tenant", caller=low, now=7)
        for _ in range(98):
            key, _ = rotate_key(store, key.id, grace=100, caller=low, now=8)
        with pytest.raises(QuotaError, match="at most 100 good keys"):
            rotate_key(store, key.id, grace=100, caller=low, now=8)
        create_key(store, tenant="ada", role="tenant", caller=low, now=200)  # the graces are over


def test_answers_are_nothing_for_a_cache_but_for_what_is_public(admin):
    for path in ("/v1/keys", "/v1/files", "/v1/admin/keys", "/v1/none", "/metrics"):
        assert admin.get(path).headers["cache-control"] == "no-store"
    assert admin.post("/v1/admin/tenants/local/keys").headers["cache-control"] == "no-store"
    assert admin.get("/v1/vocabularies/bert-tiny").headers["cache-control"] == "no-cache"


@pytest.fixture
def answered(tmp_path, monkeypatch):
    """Messages of the answer to a route, whose key is revoked after a number of pieces."""
    monkeypatch.setattr(door, "_BETWEEN_LOOKS", 0.0)
    with open_store(tmp_path) as store:
        create_tenant(store, "ada", quotas=Quotas(), caller=OPERATOR, now=1)
        key, value = create_key(store, tenant="ada", role="tenant", caller=OPERATOR, now=1)

        def ask(path, revoked_after):
            ended, messages = [], []
            app = FastAPI()

            async def pieces(piece):
                for made in range(MANY):
                    if made == revoked_after:
                        revoke_key(store, key.id, caller=OPERATOR, now=2)
                    yield piece

            @app.get("/events")
            async def events():
                return stream_events(pieces(PIECE), on_end=lambda: ended.append(True))

            @app.get("/bytes")
            async def content():
                return StreamingResponse(pieces(b"0123"), headers={"content-length": str(4 * MANY)})

            async def receive():
                await asyncio.Event().wait()

            async def send(message):
                messages.append(message)

            headers = [(b"authorization", f"Bearer {value}".encode()), (b"host", b"127.0.0.1")]
            scope = {"type": "http", "asgi": {"spec_version": "2.4"}, "http_version": "1.1", "method": "GET"}
            scope |= {
                "path": path,
                "raw_path": path.encode(),
                "query_string": b"",
                "headers": headers,
                "scheme": "http",
            }
            asyncio.run(Door(app, settings=load_settings({}), store=store)(scope, receive, send))
            return messages, ended

        yield ask


def test_a_stream_whose_key_is_revoked_ends_with_an_event_that_says_so(answered):
    messages, ended = answered("/events", 3)
    body = b"".join(message.get("body", b"") for message in messages).decode()
    events = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
    assert len(events) == 3 + 2
    assert [json.loads(event)["choices"][0]["text"] for event in events[:3]] == ["good"] * 3
    assert json.loads(events[3])["error"]["code"] == "invalid_api_key"
    assert events[4] == "[DONE]"
    assert messages[-1]["more_body"] is False
    assert ended == [True]  # nothing more is computed for it


def test_bytes_whose_key_is_revoked_are_cut_off_before_their_end(answered):
    messages, _ = answered("/bytes", 3)
    assert b"".join(message.get("body", b"") for message in messages) == b"0123" * 3
    assert messages[-1]["more_body"] is True


@pytest.mark.parametrize("path", ["/events", "/bytes"])
def test_an_answer_whose_key_stays_good_is_whole(answered, path):
    messages, _ = answered(path, None)
    assert messages[-1]["more_body"] is False
    body = b"".join(message.get("body", b"") for message in messages)
    assert body.count(b"good") == MANY if path == "/events" else body == b"0123" * MANY
