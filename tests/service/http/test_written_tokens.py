"""Tokens that a model writes count against the tenant's tokens a minute, and those it did not write are given back."""

import pytest

from http_requests import error_of, open_client
from rapt.errors import QuotaError
from rapt.service.http.quotas import TokenQuotas
from rapt.service.storage.callers import LOCAL, OPERATOR
from rapt.service.storage.database import forbid_waiting
from rapt.service.storage.recovery import open_store
from rapt.service.storage.tenant_rows import Quotas, ensure_tenant, set_quotas
from rapt.wire.manifest import dump_manifest
from rapt.wire.privatized_file import PrivatizedRecord, seal_manifest
from running_service import running_service, wait_until
from tiny_backbones import tiny_backbone
from tuning_material import manifest_for

LIMIT = 1200
PROMPTS, MOST = 20, 50


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    return tiny_backbone("llama", tmp_path_factory.mktemp("llama") / "writer")


@pytest.fixture
def http(writer, tmp_path):
    settings = {"tenant_tokens_per_minute": LIMIT}
    with (
        running_service(tmp_path, backbones={writer.model: writer}, settings=settings) as url,
        open_client(url, timeout=120) as client,
    ):
        yield client


def asked(writer, *, prompts=PROMPTS, most=MOST, **more):
    ids = [int(writer.bundle.eligible[5])] * 4
    records = [PrivatizedRecord(token_ids=tuple(ids))] * prompts
    manifest = dump_manifest(seal_manifest(manifest_for(writer, labels=None), records))
    body = {"model": writer.model, "prompt": [ids] * prompts, "max_tokens": most, "rapt": {"manifest": manifest}}
    return body | more


def test_what_may_be_written_must_be_within_the_quota(http, writer):
    # Read alone, 160 tokens would be let in.
    error = error_of(http.post("/v1/completions", json=asked(writer, prompts=40)), 429, "rate_limit_exceeded")
    assert f"tokens of a minute, {LIMIT}, got {40 * (4 + MOST)}" in error["message"]


def test_a_client_that_leaves_gets_back_what_was_not_written_for_it(http, writer):
    with http.stream("POST", "/v1/completions", json=asked(writer, stream=True)) as stream:
        next(stream.iter_lines())
    # 1,080 of 1,200 were taken: without the rest of them it would last 38 s until there are 880 again.
    wait_until(lambda: http.post("/v1/completions", json=asked(writer, most=40)).status_code == 200)


def test_a_bucket_is_never_more_than_full_by_what_is_given_back(tmp_path):
    now = 0.0
    with open_store(tmp_path) as store:
        ensure_tenant(store, LOCAL, now=0)
        quotas = TokenQuotas(store, default=60, clock=lambda: now)
        quotas.give_back(LOCAL, 50)  # of a tenant that has taken nothing
        quotas.spend_tokens(LOCAL, 60)
        quotas.give_back(LOCAL, 50)
        quotas.spend_tokens(LOCAL, 50)
        quotas.give_back(LOCAL, 500)
        quotas.spend_tokens(LOCAL, 60)
        with pytest.raises(QuotaError, match="at most 60 tokens"):
            quotas.spend_tokens(LOCAL, 1)


def test_what_is_given_back_asks_nothing_of_the_database(tmp_path):
    """The event loop gives it back; with PostgreSQL each time was a question on it."""
    with open_store(tmp_path) as store:
        ensure_tenant(store, LOCAL, now=0)
        quotas = TokenQuotas(store, default=60, clock=lambda: 0.0)
        quotas.spend_tokens(LOCAL, 60)
        set_quotas(store, LOCAL, Quotas(), caller=OPERATOR)  # so that it is not remembered
        with forbid_waiting():
            quotas.give_back(LOCAL, 60)
        quotas.spend_tokens(LOCAL, 60)
