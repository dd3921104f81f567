"""`/v1/pools`: many contributors, one file. A contributor's key adds to its pool, takes back, and does nothing else."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request

from rapt.centering import center_codes, estimate_center_of_counts
from rapt.errors import UsageError
from rapt.service.http.assembly import Service
from rapt.service.http.bodies import BodyRoute, run_in_body_thread
from rapt.service.http.parameters import After, CallerOf, Limit, make_cursor, make_list
from rapt.service.http.pool_files import count_codewords, open_pool_file
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
from rapt.service.storage.callers import DEVELOPER, Caller, mark_repeatable
from rapt.service.storage.contribution_rows import contribute, take_back
from rapt.service.storage.file_rows import add_file
from rapt.service.storage.pool_rows import (
    StoredPool,
    begin_closing,
    begin_second_round,
    delete_pool,
    end_closing,
    get_pool,
    list_pools,
    make_pool_keys,
    open_pool,
    read_pool_manifest,
)
from rapt.wire.code_bundle import write_center
from rapt.wire.manifest import Manifest, Randomness, digest_setting, dump_manifest, parse_manifest
from rapt.wire.packed_contributions import unpack_contributions
from rapt.wire.privatized_file import PrivatizedRecord, parse_record, seal_manifest, write_record_lines

_PACKED: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
# What a manifest says of the noise of many contributors, each of whom drew at home.
_RANDOMNESS: Final = Randomness(source="the contributors of a pool, each at home")


def make_pool_router(service: Service) -> APIRouter:
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

        def center(pool: StoredPool, lines: Iterable[str]) -> Manifest:
            assert pool.rounds is not None
            stated = read_pool_manifest(pool)
            code = service.gate.find_code(stated.vocabulary_hash)
            counts = count_codewords(lines, codes=code.codes, size=code.size)
            found = center_codes(code, estimate_center_of_counts(code, stated.mechanism, counts))
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
        pool = begin_closing(service.store, pool_id, caller=caller, now=int(time.time()))
        if pool.status == "closed":
            return show_pool(pool, service)
        if (file_id := pool.file_id) is None:
            with open_pool_file(service.store, service.gate, pool) as (staged, summary):
                file_id = add_file(
                    service.store,
                    staged,
                    summary,
                    filename=f"{pool_id}.jsonl",
                    caller=caller,
                    now=int(time.time()),
                    max_bytes=service.settings.tenant_bytes,
                    counted=pool.bytes,
                    # After a crash between the two halves the file that was made is the answer.
                    request=mark_repeatable(f"close {pool_id}", "pool", pool_id),
                ).id
        return show_pool(end_closing(service.store, pool_id, file_id=file_id, tenant=caller.tenant), service)

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
