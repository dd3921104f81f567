"""`/v1/keys`, `/v1/usage` and `/v1/audit`: what a tenant can see and change of itself."""

from __future__ import annotations

import time

from fastapi import APIRouter

from rapt.service.http.admin_schemas import (
    AuditObject,
    KeyObject,
    NewKeyObject,
    QuotasObject,
    RotationRequest,
    UsageObject,
)
from rapt.service.http.assembly import Service
from rapt.service.http.callers import CallerOf
from rapt.service.http.json_bodies import BodyRoute
from rapt.service.http.routes.pages import After, Limit, cursor, list_of
from rapt.service.http.schemas import ListOf
from rapt.service.storage.audit_rows import AuditEntry, list_audit
from rapt.service.storage.key_rows import StoredKey, list_keys, revoke_key, rotate_key
from rapt.service.storage.tenant_rows import get_tenant, usage_of


def router(service: Service) -> APIRouter:
    """The routes of a tenant's own keys and usage."""
    routes = APIRouter(route_class=BodyRoute, prefix="/v1", tags=["keys"])

    @routes.get("/keys")
    def list_own_keys(caller: CallerOf, after: After = None, limit: Limit = 20) -> ListOf[KeyObject]:
        """List the tenant's keys, newest first; the keys themselves are nowhere. An admin's are for admins to see."""
        found = list_keys(service.store, cursor(after, limit), caller=caller, tenant=caller.tenant)
        return list_of(found, show_key)

    @routes.post("/keys/{key_id}/rotate")
    def rotate_own_key(key_id: str, caller: CallerOf, request: RotationRequest | None = None) -> NewKeyObject:
        """Get a new key in place of an old one, which ends after the grace."""
        grace = (request or RotationRequest()).grace_seconds
        return show_new_key(
            *rotate_key(service.store, key_id, grace=grace, caller=caller, now=int(time.time()), tenant=caller.tenant)
        )

    @routes.post("/keys/{key_id}/revoke")
    def revoke_own_key(key_id: str, caller: CallerOf) -> KeyObject:
        """End a key now."""
        return show_key(revoke_key(service.store, key_id, caller=caller, now=int(time.time()), tenant=caller.tenant))

    @routes.get("/usage")
    def retrieve_usage(caller: CallerOf) -> UsageObject:
        """What the tenant has, and may have."""
        return show_usage(service, caller.tenant)

    @routes.get("/audit")
    def list_own_audit_log(caller: CallerOf, after: After = None, limit: Limit = 20) -> ListOf[AuditObject]:
        """Who changed what of the tenant's, newest first; also what an admin did to its keys and its quotas."""
        return list_of(list_audit(service.store, cursor(after, limit), about=caller.tenant), show_entry)

    return routes


def show_key(key: StoredKey) -> KeyObject:
    """A key in the shape of the API."""
    return KeyObject.model_validate(vars(key))


def show_new_key(key: StoredKey, value: str) -> NewKeyObject:
    """A new key, with the only sight of it."""
    return NewKeyObject.model_validate({**vars(key), "value": value})


def show_entry(entry: AuditEntry) -> AuditObject:
    """An entry of the audit log in the shape of the API."""
    return AuditObject(target=entry.object, **{name: value for name, value in vars(entry).items() if name != "object"})


def show_usage(service: Service, tenant: str) -> UsageObject:
    """What a tenant has, and may have. Raises `NotFoundError`."""
    own, usage, settings = get_tenant(service.store, tenant).quotas, usage_of(service.store, tenant), service.settings
    return UsageObject(
        tenant=tenant,
        **vars(usage),
        quotas=QuotasObject(
            max_bytes=settings.tenant_bytes if own.max_bytes is None else own.max_bytes,
            max_jobs=settings.tenant_jobs if own.max_jobs is None else own.max_jobs,
            tokens_per_minute=service.quotas.limit_of(tenant),
        ),
    )
