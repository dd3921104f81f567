"""Keys, usage and the audit log of a tenant; tenants, for an admin; and what says whether the service works.

`/v1/keys`, `/v1/usage` and `/v1/audit` are for every tenant, `/v1/admin` for keys of the role admin, and `/healthz`,
`/readyz` and `/metrics` for the operator.
"""

from __future__ import annotations

import shutil
import time
from typing import Annotated, Final

from fastapi import APIRouter, Query
from fastapi.responses import Response

from rapt.errors import UnavailableError
from rapt.service.http.admin_schemas import (
    AuditObject,
    DeletedTenant,
    KeyObject,
    KeyRequest,
    NewKeyObject,
    QuotasObject,
    QuotasRequest,
    RotationRequest,
    TenantObject,
    TenantRequest,
    UsageObject,
)
from rapt.service.http.assembly import Service
from rapt.service.http.bodies import BodyRoute
from rapt.service.http.parameters import AdminOf, After, CallerOf, Limit, make_cursor, make_list
from rapt.service.http.schemas import Health, ListOf
from rapt.service.storage.callers import AuditEntry, list_audit
from rapt.service.storage.key_rows import StoredKey, create_key, list_keys, revoke_key, rotate_key
from rapt.service.storage.tenant_rows import (
    Quotas,
    StoredTenant,
    create_tenant,
    delete_tenant,
    get_tenant,
    get_usage,
    list_tenants,
    set_quotas,
)
from rapt.version import __version__

_LEAST_ROOM: Final = 64 * 1024 * 1024  # bytes; with less, the next upload or state would fail half way


def make_key_router(service: Service) -> APIRouter:
    """The routes of a tenant's own keys and usage."""
    routes = APIRouter(route_class=BodyRoute, prefix="/v1", tags=["keys"])

    @routes.get("/keys")
    def list_own_keys(caller: CallerOf, after: After = None, limit: Limit = 20) -> ListOf[KeyObject]:
        """List the tenant's keys, newest first; the keys themselves are nowhere. An admin's are for admins to see."""
        found = list_keys(service.store, make_cursor(after, limit), caller=caller, tenant=caller.tenant)
        return make_list(found, show_key)

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
        """Return what the tenant has, and may have."""
        return show_usage(service, caller.tenant)

    @routes.get("/audit")
    def list_own_audit_log(caller: CallerOf, after: After = None, limit: Limit = 20) -> ListOf[AuditObject]:
        """Who changed what of the tenant's, newest first; also what an admin did to its keys and its quotas."""
        return make_list(list_audit(service.store, make_cursor(after, limit), about=caller.tenant), show_entry)

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
    """Return what a tenant has, and may have. Raises `NotFoundError`."""
    own, usage, settings = get_tenant(service.store, tenant).quotas, get_usage(service.store, tenant), service.settings
    return UsageObject(
        tenant=tenant,
        **vars(usage),
        quotas=QuotasObject(
            max_bytes=settings.tenant_bytes if own.max_bytes is None else own.max_bytes,
            max_jobs=settings.tenant_jobs if own.max_jobs is None else own.max_jobs,
            tokens_per_minute=service.quotas.limit_of(tenant),
        ),
    )


def make_admin_router(service: Service) -> APIRouter:
    """The routes of whoever runs the service."""
    routes = APIRouter(route_class=BodyRoute, prefix="/v1/admin", tags=["admin"])

    @routes.post("/tenants")
    def create(request: TenantRequest, caller: AdminOf) -> TenantObject:
        """Create a tenant with quotas of its own."""
        quotas = Quotas(**request.model_dump(exclude={"name"}))
        return _show_tenant(
            create_tenant(service.store, request.name, quotas=quotas, caller=caller, now=int(time.time()))
        )

    @routes.get("/tenants")
    def list_all_tenants(caller: AdminOf, after: After = None, limit: Limit = 20) -> ListOf[TenantObject]:
        """List tenants, newest first."""
        del caller
        return make_list(list_tenants(service.store, make_cursor(after, limit)), _show_tenant)

    @routes.get("/tenants/{tenant}")
    def retrieve(tenant: str, caller: AdminOf) -> TenantObject:
        """A tenant, with its own quotas."""
        del caller
        return _show_tenant(get_tenant(service.store, tenant))

    @routes.get("/tenants/{tenant}/usage")
    def retrieve_usage_of(tenant: str, caller: AdminOf) -> UsageObject:
        """Return what a tenant has, and may have."""
        del caller
        return show_usage(service, tenant)

    @routes.post("/tenants/{tenant}")
    def change_quotas(tenant: str, request: QuotasRequest, caller: AdminOf) -> TenantObject:
        """Replace all quotas of a tenant."""
        return _show_tenant(set_quotas(service.store, tenant, Quotas(**request.model_dump()), caller=caller))

    @routes.delete("/tenants/{tenant}")
    def remove(tenant: str, caller: AdminOf) -> DeletedTenant:
        """Delete a tenant and everything it has: keys, jobs, models, files, uploads. There is no way back."""
        removed = delete_tenant(service.store, tenant, caller=caller, now=int(time.time()))
        for adapter in removed.adapters:
            service.adapters.drop(adapter)
        return DeletedTenant(id=tenant)

    @routes.post("/tenants/{tenant}/keys")
    def create_key_of(tenant: str, caller: AdminOf, request: KeyRequest | None = None) -> NewKeyObject:
        """Create a key of a tenant; it is shown this once."""
        role = (request or KeyRequest()).role
        return show_new_key(*create_key(service.store, tenant=tenant, role=role, caller=caller, now=int(time.time())))

    @routes.get("/keys")
    def list_all_keys(
        caller: AdminOf,
        after: After = None,
        limit: Limit = 20,
        tenant: Annotated[str | None, Query(max_length=32, description="keys of this one only")] = None,
    ) -> ListOf[KeyObject]:
        """List keys, newest first."""
        return make_list(list_keys(service.store, make_cursor(after, limit), caller=caller, tenant=tenant), show_key)

    @routes.post("/keys/{key_id}/rotate")
    def rotate(key_id: str, caller: AdminOf, request: RotationRequest | None = None) -> NewKeyObject:
        """Create a key in place of an old one, which ends after the grace."""
        grace = (request or RotationRequest()).grace_seconds
        return show_new_key(*rotate_key(service.store, key_id, grace=grace, caller=caller, now=int(time.time())))

    @routes.post("/keys/{key_id}/revoke")
    def revoke(key_id: str, caller: AdminOf) -> KeyObject:
        """End a key now."""
        return show_key(revoke_key(service.store, key_id, caller=caller, now=int(time.time())))

    @routes.get("/audit")
    def list_audit_log(caller: AdminOf, after: After = None, limit: Limit = 20) -> ListOf[AuditObject]:
        """Who changed what, newest first."""
        del caller
        return make_list(list_audit(service.store, make_cursor(after, limit)), show_entry)

    return routes


def _show_tenant(tenant: StoredTenant) -> TenantObject:
    return TenantObject(id=tenant.name, created_at=tenant.created_at, **vars(tenant.quotas))


def make_health_router(service: Service) -> APIRouter:
    """The routes of operation."""
    routes = APIRouter(route_class=BodyRoute, tags=["health"])

    @routes.get("/healthz")
    async def healthz() -> Health:  # async: it answers also while every thread is busy
        """Say that the service answers, and its version."""
        return Health(version=__version__)

    @routes.get("/readyz")
    def readyz() -> Health:
        """The service can work: its database answers, its disk has room, its worker and its replicas live."""
        service.store.database.check()
        if shutil.disk_usage(service.store.directory.root).free < _LEAST_ROOM:
            raise UnavailableError("the disk must have room for what comes in; make some")
        if service.settings.worker_in_service and not service.runner.is_alive():
            raise UnavailableError("the worker must live; restart the service")
        if service.replicas is not None and not service.replicas.is_there:
            raise UnavailableError("the cluster of the replicas must be there; start it again")
        return Health(version=__version__)

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics(caller: AdminOf) -> Response:
        """Figures in Prometheus's text format."""
        del caller
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes
