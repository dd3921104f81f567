"""Pools of a service: opened, contributed to record by record, closed into a file."""

from __future__ import annotations

from collections.abc import Sequence

from rapt.errors import UsageError
from rapt.local.client.connection import Connection, quote_part
from rapt.local.client.objects import PoolInfo, read_answer, read_answers, read_pool_info
from rapt.local.client.steps import Steps
from rapt.wire.manifest import Manifest, digest_setting, dump_manifest
from rapt.wire.packed_contributions import RECEIPT_BYTES, pack_contributions
from rapt.wire.privatized_file import PrivatizedRecord, dump_record
from rapt.wire.strict_json import read_field


def open_pool(
    service: Connection, manifest: Manifest, *, least: int = 20, most: int = 100_000, first: int | None = None
) -> Steps[PoolInfo]:
    """A new pool, for contributions that are privatized as a manifest says.

    Args:
        service: Connection to the service.
        manifest: Manifest of a privatized file, the setting of which contributions must have.
        least: Number of contributions below which the pool cannot be closed.
        most: Number of contributions that it takes.
        first: Number of contributions of a first round, without labels, which give the centre of the code; None for one
            round.
    """
    body = {"manifest": dump_manifest(manifest), "least": least, "most": most}
    if first is not None:
        body["first"] = first
    answer = yield from service.ask("POST", "/v1/pools", json=body)
    return read_answer(read_pool_info, answer)


def get_pool(service: Connection, pool: str) -> Steps[PoolInfo]:
    """The pool of an id. Raises `NotFoundError`."""
    answer = yield from service.ask("GET", f"/v1/pools/{quote_part(pool)}")
    return read_answer(read_pool_info, answer)


def list_pools(service: Connection) -> Steps[list[PoolInfo]]:
    """The newest hundred pools of the tenant."""
    answer = yield from service.ask("GET", "/v1/pools", params={"limit": 100})
    return read_answers(read_pool_info, answer)


def make_pool_keys(service: Connection, pool: str, *, count: int = 1, contributions: int = 1) -> Steps[list[str]]:
    """New API keys that add so many contributions each to a pool, and do nothing else; shown this once."""
    body = {"count": count, "contributions": contributions}
    answer = yield from service.ask("POST", f"/v1/pools/{quote_part(pool)}/keys", json=body)
    return read_answers(lambda item: str(read_field(item, "value", str, what="a key")), answer)


def contribute(
    service: Connection, pool: PoolInfo, records: Sequence[PrivatizedRecord], *, setting: str, receipts: Sequence[str]
) -> Steps[None]:
    """Add privatized records to a pool, all or none; the same receipt twice is one contribution.

    Args:
        service: Connection to the service.
        pool: Pool, as the service describes it.
        records: 1 to 1,000 records, privatized by the manifest of the pool.
        setting: Digest of the manifest that they were privatized by, `digest_setting`.
        receipts: 24 hexadecimal digits for each that nobody else can guess, or 64; they take the contribution back.

    Raises:
        UsageError: The records were privatized by another setting than the pool's.
        ServiceError: The pool takes no more.
    """
    check_pool_setting(pool, setting)
    path = f"/v1/pools/{quote_part(pool.id)}/contributions"
    if pool.manifest.unit == "text" and {len(receipt) for receipt in receipts} == {2 * RECEIPT_BYTES}:
        body = pack_contributions(records, receipts, manifest=pool.manifest, setting=setting)
        yield from service.ask("POST", f"{path}/packed", content=body, repeatable=True)
        return
    first, *others = (
        {"receipt": receipt, "record": dump_record(record)} for receipt, record in zip(receipts, records, strict=True)
    )
    request = {"setting": setting, **first, "others": others}
    yield from service.ask("POST", path, json=request, repeatable=True)


def take_back(service: Connection, pool: str, *, receipt: str) -> Steps[None]:
    """Take a contribution out of an open pool. Raises `NotFoundError` where it is not in it."""
    path = f"/v1/pools/{quote_part(pool)}/contributions/take-back"
    yield from service.ask("POST", path, json={"receipt": receipt})


def advance_pool(service: Connection, pool: str) -> Steps[PoolInfo]:
    """End the first round of a pool: its codes become the centre of the code of the second, and are deleted."""
    answer = yield from service.ask("POST", f"/v1/pools/{quote_part(pool)}/advance")
    return read_answer(read_pool_info, answer)


def close_pool(service: Connection, pool: str) -> Steps[PoolInfo]:
    """Take nothing more into a pool; it becomes a file of the tenant, in a random order."""
    answer = yield from service.ask("POST", f"/v1/pools/{quote_part(pool)}/close", repeatable=True)
    return read_answer(read_pool_info, answer)


def delete_pool(service: Connection, pool: str) -> Steps[None]:
    """Delete a pool with its contributions and keys. Raises `NotFoundError`."""
    yield from service.ask("DELETE", f"/v1/pools/{quote_part(pool)}")


def check_pool_setting(pool: PoolInfo, setting: str) -> None:
    """Refuse a record that was privatized by another setting than a pool states and describes (`UsageError`)."""
    if digest_setting(pool.manifest) != setting or pool.setting != setting:
        raise UsageError(
            "a contribution must be privatized as the pool asks, with its codebook or vocabulary, mechanism, labels "
            "and plain tokens; privatize the text again"
        )
