"""`/v1/pools`: many contributors, one file. A contributor's key adds to its pool, takes back, and does nothing else."""

from __future__ import annotations

import functools
import hashlib
import io
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request

from rapt.centering import center_codes, estimate_center
from rapt.errors import UsageError
from rapt.service.http.admission import RECORDS_AT_ONCE
from rapt.service.http.assembly import Service
from rapt.service.http.bodies import BodyRoute, run_in_body_thread
from rapt.service.http.parameters import After, CallerOf, Limit, make_cursor, make_list
from rapt.service.http.pool_schemas import (
    ContributionObject,
    ContributionRequest,
    PoolKeysObject,
    PoolKeysRequest,
    PoolObject,
    PoolRequest,
    TakeBackRequest,
)
from rapt.service.http.routes.admin import show_new_key
from rapt.service.http.schemas import Deleted, ListOf
from rapt.service.http.shares import give_way
from rapt.service.storage.callers import DEVELOPER, Caller, mark_repeatable
from rapt.service.storage.file_rows import add_file
from rapt.service.storage.pool_rows import (
    StoredPool,
    begin_closing,
    begin_second_round,
    contribute,
    delete_pool,
    end_closing,
    get_pool,
    list_pools,
    make_pool_keys,
    open_pool,
    read_pool_manifest,
    take_back,
)
from rapt.wire.code_bundle import write_center
from rapt.wire.manifest import Manifest, Randomness, digest_setting, dump_manifest, parse_manifest
from rapt.wire.packed_contributions import unpack_contributions
from rapt.wire.privatized_file import (
    PrivatizedRecord,
    count_privatized_tokens,
    parse_record,
    seal_manifest,
    write_record_lines,
)
from rapt.wire.strict_json import dump_line, parse_document

_PACKED: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
# What a manifest says of the noise of many contributors, each of whom drew at home.
_RANDOMNESS: Final = Randomness(source="the contributors of a pool, each at home")


def pool_router(service: Service) -> APIRouter:
    """The routes of pools and their contributions."""
    routes = APIRouter(route_class=BodyRoute, prefix="/v1/pools", tags=["pools"])

    @routes.post("")
    def create_pool(request: PoolRequest, caller: CallerOf) -> PoolObject:
        """Open a pool whose contributions are privatized as the manifest says."""
        if request.least > request.most:
            raise UsageError(f"a pool must take its least number, got least={request.least}, most={request.most}")
        if (request.first or 0) > request.most:
            raise UsageError(f"a pool must take its first round, got first={request.first}, most={request.most}")
        stated = parse_manifest(request.manifest)
        service.gate.check_setting(stated)
        manifest, second = replace(seal_manifest(stated, ()), randomness=_RANDOMNESS), None
        if request.first is not None:
            service.gate.check_can_be_centered(manifest)
            second, manifest = manifest, replace(manifest, labels=None, label_privacy=None)
        pool = open_pool(
            service.store,
            manifest,
            setting=digest_setting(manifest),
            second=second,
            first=request.first or 0,
            least=request.least,
            most=request.most,
            caller=caller,
            now=int(time.time()),
            max_bytes=service.settings.tenant_bytes,
        )
        return show_pool(pool, service)

    @routes.get("")
    def list_all_pools(caller: CallerOf, after: After = None, limit: Limit = 20) -> ListOf[PoolObject]:
        """List pools, newest first."""
        page = list_pools(service.store, make_cursor(after, limit), tenant=caller.tenant)
        return make_list(page, functools.partial(show_pool, service=service))

    @routes.get("/{pool_id}")
    def retrieve_pool(pool_id: str, caller: CallerOf) -> PoolObject:
        """A pool: its setting, and how many contributions it has."""
        return show_pool(get_pool(service.store, pool_id, tenant=caller.tenant), service)

    @routes.delete("/{pool_id}")
    def remove_pool(pool_id: str, caller: CallerOf) -> Deleted:
        """Delete a pool with its contributions and keys; the file that it became stays."""
        delete_pool(service.store, pool_id, caller=caller, now=int(time.time()))
        return Deleted(id=pool_id, object="pool")

    @routes.post("/{pool_id}/keys")
    def create_keys(pool_id: str, caller: CallerOf, request: PoolKeysRequest | None = None) -> PoolKeysObject:
        """Create keys for contributors; they are shown this once."""
        if caller == DEVELOPER:
            raise UsageError(
                "keys of contributors must be asked for with a key, because the first one closes a service that "
                "is open without keys; make one for yourself with `rapt admin create-key`"
            )
        asked = request or PoolKeysRequest()
        made = make_pool_keys(
            service.store,
            pool_id,
            count=asked.count,
            room=asked.contributions,
            caller=caller,
            now=int(time.time()),
        )
        return PoolKeysObject(data=[show_new_key(*key) for key in made])

    @routes.post("/{pool_id}/contributions")
    def add_contribution(pool_id: str, request: ContributionRequest, caller: CallerOf) -> ContributionObject:
        """Add privatized records, all or none. The same receipt twice is one contribution."""
        given = (
            (one.receipt, parse_record(one.record, position=position))
            for position, one in enumerate((request, *request.others))
        )
        return _take(service, get_pool(service.store, pool_id, tenant=caller.tenant), request.setting, given, caller)

    @routes.post("/{pool_id}/contributions/packed", openapi_extra=_PACKED)
    async def add_packed_contributions(pool_id: str, request: Request, caller: CallerOf) -> ContributionObject:
        """Add privatized codes as bytes, at most 16 each in a pool of one codeword a text; all or none."""
        body = await request.body()

        def take() -> ContributionObject:
            pool = get_pool(service.store, pool_id, tenant=caller.tenant)
            setting, given = unpack_contributions(body, manifest=read_pool_manifest(pool))
            return _take(service, pool, setting, given, caller)

        return await run_in_body_thread(request, take)

    @routes.post("/{pool_id}/contributions/take-back")
    def take_contribution_back(pool_id: str, request: TakeBackRequest, caller: CallerOf) -> ContributionObject:
        """Take a contribution out again, until the pool is closed."""
        take_back(service.store, pool_id, receipt=request.receipt, caller=caller)
        return ContributionObject(pool=pool_id, taken=False)

    @routes.post("/{pool_id}/advance")
    def advance_pool(pool_id: str, caller: CallerOf) -> PoolObject:
        """Find the centre of the code from the first round, whose records are deleted, and begin the second round."""

        def center(pool: StoredPool, lines: list[str]) -> Manifest:
            assert pool.rounds is not None
            stated = read_pool_manifest(pool)
            code = service.gate.find_code(stated.vocabulary_hash)
            # Each line once: of one codeword a text there are few, and whoever writes waits meanwhile.
            read = {one: parse_record(parse_document(one, what="a contribution"), position=0) for one in set(lines)}
            ids = np.array([read[line].token_ids for line in lines], dtype=np.int64)
            found = center_codes(code, estimate_center(code, stated.mechanism, ids))
            second = parse_manifest(pool.rounds["manifest"])
            parameters = {**second.mechanism.parameters, "center": write_center(found)}
            return replace(second, mechanism=replace(second.mechanism, parameters=parameters))

        pool = begin_second_round(
            service.store,
            pool_id,
            center=center,
            setting=lambda manifest: digest_setting(service.gate.name_centered(manifest)),
            caller=caller,
        )
        return show_pool(pool, service)

    @routes.post("/{pool_id}/close")
    def close_pool(pool_id: str, caller: CallerOf) -> PoolObject:
        """Take nothing more, and make a file of the contributions, in a random order. Closing again is harmless."""
        pool, lines = begin_closing(service.store, pool_id, caller=caller, now=int(time.time()))
        if pool.file_id is not None:
            return show_pool(pool, service)
        body = "".join(lines).encode("ascii")
        with service.store.directory.stage(io.BytesIO(_seal(pool, body)), max_bytes=2**62) as staged:
            file = add_file(
                service.store,
                staged,
                service.gate.admit_file(staged.path),
                filename=f"{pool_id}.jsonl",
                caller=caller,
                now=int(time.time()),
                max_bytes=service.settings.tenant_bytes,
                counted=pool.bytes,
                # After a crash between the two halves the file that was made is the answer.
                request=mark_repeatable(f"close {pool_id}", "pool", pool_id),
            )
        return show_pool(end_closing(service.store, pool_id, file_id=file.id, tenant=caller.tenant), service)

    return routes


def _take(
    service: Service, pool: StoredPool, setting: str, given: Iterable[tuple[str, PrivatizedRecord]], caller: Caller
) -> ContributionObject:
    """Take records with their receipts into a pool, all or none."""
    manifest = read_pool_manifest(pool)
    service.gate.check_setting(manifest)
    lines: dict[str, str] = {}
    for position, (receipt, record) in enumerate(given):
        service.gate.check_record(record, manifest, position=position)
        line = write_record_lines([record], manifest, first_position=position).lines.decode("ascii")
        if lines.setdefault(receipt, line) != line:
            raise UsageError("a receipt must be of one contribution; make one for each record")
    contribute(
        service.store,
        pool.id,
        lines=lines,
        setting=setting,
        caller=caller,
        max_bytes=service.settings.tenant_bytes,
    )
    return ContributionObject(pool=pool.id, taken=True)


def _seal(pool: StoredPool, body: bytes) -> bytes:
    """The file of a pool: its manifest with counts and digest, and its lines."""
    stated = read_pool_manifest(pool)
    records = tokens = 0
    for line in io.BytesIO(body):  # one at a time: a pool of a million fits into memory as bytes, and not as records
        tokens += count_privatized_tokens(parse_record(parse_document(line, what="a contribution"), position=0), stated)
        records += 1
        if records % RECORDS_AT_ONCE == 0:
            give_way()
    manifest = replace(stated, records=records, tokens=tokens, records_sha256=hashlib.sha256(body).hexdigest())
    return dump_line(dump_manifest(manifest)).encode("ascii") + b"\n" + body


def show_pool(pool: StoredPool, service: Service) -> PoolObject:
    """A pool in the shape of the API; its manifest as those write it who privatize with the code that it is of."""
    manifest = read_pool_manifest(pool)
    center = manifest.mechanism.center
    return PoolObject(
        id=pool.id,
        status=pool.status,
        manifest=pool.manifest if center is None else dump_manifest(service.gate.name_centered(manifest)),
        round=1 if pool.rounds is None or pool.is_first_round else 2,
        first=None if pool.rounds is None else pool.rounds["first"],
        center=center,
        setting=pool.setting,
        least=pool.least,
        most=pool.most,
        contributions=pool.contributions,
        created_at=pool.created_at,
        file=pool.file_id,
    )
