"""`/v1/admin`: tenants, their keys and quotas, the audit log. For keys of the role admin."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query

from rapt.service.http.admin_schemas import (
    AuditObject,
    DeletedTenant,
    KeyObject,
    KeyRequest,
    NewKeyObject,
    QuotasRequest,
    RotationRequest,
    TenantObject,
    TenantRequest,
    UsageObject,
)
from rapt.service.http.assembly import Service
from rapt.service.http.callers import AdminOf
from rapt.service.http.json_bodies import BodyRoute
from rapt.service.http.routes.keys import show_entry, show_key, show_new_key, show_usage
from rapt.service.http.routes.pages import After, Limit, cursor, list_of
from rapt.service.http.schemas import ListOf
from rapt.service.storage.audit_rows import list_audit
from rapt.service.storage.key_rows import create_key, list_keys, revoke_key, rotate_key
from rapt.service.storage.tenant_rows import (
    Quotas,
    StoredTenant,
    create_tenant,
    delete_tenant,
    get_tenant,
    list_tenants,
    set_quotas,
)


def router(service: Service) -> APIRouter:
    """The routes of whoever runs the service."""
    routes = APIRouter(route_class=BodyRoute, prefix="/v1/admin", tags=["admin"])

    @routes.post("/tenants")
    def create(request: TenantRequest, caller: AdminOf) -> TenantObject:
        """Create a tenant."""
        quotas = Quotas(**request.model_dump(exclude={"name"}))
        return _show_tenant(
            create_tenant(service.store, request.name, quotas=quotas, caller=caller, now=int(time.time()))
        )

    @routes.get("/tenants")
    def list_all_tenants(caller: AdminOf, after: After = None, limit: Limit = 20) -> ListOf[TenantObject]:
        """List tenants, newest first."""
        del caller
        return list_of(list_tenants(service.store, cursor(after, limit)), _show_tenant)

    @routes.get("/tenants/{tenant}")
    def retrieve(tenant: str, caller: AdminOf) -> TenantObject:
        """A tenant, with its own quotas."""
        del caller
        return _show_tenant(get_tenant(service.store, tenant))

    @routes.get("/tenants/{tenant}/usage")
    def retrieve_usage_of(tenant: str, caller: AdminOf) -> UsageObject:
        """What a tenant has, and may have."""
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
        return list_of(list_keys(service.store, cursor(after, limit), caller=caller, tenant=tenant), show_key)

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
        return list_of(list_audit(service.store, cursor(after, limit)), show_entry)

    return routes


def _show_tenant(tenant: StoredTenant) -> TenantObject:
    return TenantObject(id=tenant.name, created_at=tenant.created_at, **vars(tenant.quotas))
