"""`rapt admin`: what a provider does to a data directory, with the service stopped or running."""

import json
import re
import time

import pytest

from rapt.service.storage.key_rows import find_holder
from rapt.service.storage.recovery import join_store, open_store


@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.delenv("RAPT_DATABASE_URL", raising=False)
    with open_store(tmp_path / "data"):
        pass
    return ("--data", tmp_path / "data")


def holder(at, key):
    with join_store(at[1]) as store:
        return find_holder(store, key.strip(), now=int(time.time()))


def test_a_tenant_gets_a_key_that_is_printed_alone_and_once(rapt, at):
    assert rapt("admin", "create-tenant", "clinic", *at, "--max-jobs", 3).code == 0
    made = rapt("admin", "create-key", "clinic", *at)
    assert re.fullmatch(r"rapt-[\w-]{43}\n", made.out)
    assert "only time" in made.err
    assert holder(at, made.out).tenant == "clinic"
    for show in ("list-keys", "list-tenants", "audit-log"):
        for outcome in (rapt("admin", show, *at), rapt("admin", show, *at, "--json")):
            assert outcome.code == 0
            assert "clinic" in outcome.out
            assert made.out.strip() not in outcome.out
    (tenant,) = [
        item for item in json.loads(rapt("admin", "list-tenants", *at, "--json").out)["tenants"] if item["max_jobs"]
    ]
    assert (tenant["name"], tenant["max_jobs"], tenant["files"]) == ("clinic", 3, 0)


def test_a_key_is_rotated_and_revoked_by_its_id(rapt, at):
    first = json.loads(rapt("admin", "create-key", *at, "--role", "admin", "--json").out)
    second = json.loads(rapt("admin", "rotate-key", first["id"], *at, "--json").out)
    assert holder(at, first["value"]) is None
    assert holder(at, second["value"]).role == "admin"
    assert rapt("admin", "revoke-key", second["id"], *at).code == 0
    assert holder(at, second["value"]) is None
    assert rapt("admin", "revoke-key", second["id"], *at).code == 9


def test_quotas_are_replaced_and_left_out_ones_are_the_services_again(rapt, at):
    rapt("admin", "create-tenant", "clinic", *at, "--max-jobs", 3)
    assert rapt("admin", "set-quotas", "clinic", *at, "--max-bytes", 10).code == 0
    tenants = json.loads(rapt("admin", "list-tenants", *at, "--json").out)["tenants"]
    assert [(item["max_bytes"], item["max_jobs"]) for item in tenants if item["name"] == "clinic"] == [(10, None)]
    assert rapt("admin", "set-quotas", "nobody", *at).code == 9


def test_a_tenant_is_deleted_when_the_service_is_stopped(rapt, at):
    rapt("admin", "create-tenant", "clinic", *at)
    with open_store(at[1]):  # as a service that runs has it open
        assert rapt("admin", "create-key", "clinic", *at).code == 0
        refused = rapt("admin", "delete-tenant", "clinic", *at, "--yes")
        assert (refused.code, "one service only" in refused.err) == (2, True)
    assert rapt("admin", "delete-tenant", "clinic", *at, "--yes").code == 0
    assert "clinic" not in rapt("admin", "list-tenants", *at).out


def test_a_name_that_cannot_be_one_is_one_clear_line(rapt, at):
    refused = rapt("admin", "create-tenant", "Clinic:1", *at)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "Clinic" not in refused.err


@pytest.mark.parametrize(
    "command",
    [
        ("create-tenant", "clinic"),
        ("list-tenants",),
        ("set-quotas", "clinic"),
        ("delete-tenant", "clinic", "--yes"),
        ("create-key",),
        ("list-keys",),
        ("rotate-key", "key-1"),
        ("revoke-key", "key-1"),
        ("audit-log",),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_folder_without_a_service_is_refused_and_nothing_is_made(rapt, tmp_path, monkeypatch, command, there):
    monkeypatch.delenv("RAPT_DATABASE_URL", raising=False)
    wrong = tmp_path / "wrong"
    if there:
        wrong.mkdir()
    outcome = rapt("admin", *command, "--data", wrong)
    assert (outcome.code, outcome.out) == (2, "")
    assert "must be that of a service" in outcome.err
    assert list(tmp_path.rglob("*")) == ([wrong] if there else [])


def test_the_first_key_of_a_new_service_is_made_when_it_is_said_to_be_new(rapt, tmp_path, monkeypatch):
    monkeypatch.delenv("RAPT_DATABASE_URL", raising=False)
    made = rapt("admin", "create-key", "--role", "admin", "--data", tmp_path / "data", "--new")
    assert made.code == 0
    assert holder(("--data", tmp_path / "data"), made.out).role == "admin"
