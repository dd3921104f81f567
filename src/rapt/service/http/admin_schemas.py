"""The shapes of what an operator sees: tenants, their quotas and their use, keys, and the audit log."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from rapt.service.jobs.method_options import Request

# Up to what every JSON reader still counts exactly.
Count = Annotated[int, Field(ge=0, le=2**53)]


class QuotasRequest(Request):
    """Quotas of a tenant; what is left out or null is as the service's settings say."""

    max_bytes: Count | None = None
    max_jobs: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    tokens_per_minute: Count | None = None


class TenantRequest(QuotasRequest):
    """A tenant to be created."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")]


class KeyRequest(Request):
    """A key to be created."""

    role: Literal["tenant", "admin"] = "tenant"


class RotationRequest(Request):
    """How long the old key stays good."""

    grace_seconds: Annotated[int, Field(ge=0, le=30 * 24 * 3600)] = 0


class QuotasObject(BaseModel):
    """Quotas that hold for a tenant: its own, or the service's."""

    max_bytes: int
    max_jobs: int
    tokens_per_minute: int


class UsageObject(BaseModel):
    """Usage and quotas of a tenant."""

    object: Literal["usage"] = "usage"
    tenant: str
    bytes: int
    jobs: int = Field(description="number of jobs that have not ended")
    files: int
    models: int
    quotas: QuotasObject


class TenantObject(BaseModel):
    """A tenant. Its quotas are null where the service's settings hold."""

    id: str = Field(description="name of the tenant")
    object: Literal["tenant"] = "tenant"
    created_at: int
    max_bytes: int | None
    max_jobs: int | None
    tokens_per_minute: int | None


class DeletedTenant(BaseModel):
    """Answer to the deletion of a tenant and of all it had."""

    id: str
    object: Literal["tenant"] = "tenant"
    deleted: Literal[True] = True


class KeyObject(BaseModel):
    """Description of an API key, without the key."""

    id: str
    object: Literal["api_key"] = "api_key"
    tenant: str
    role: Literal["contributor", "tenant", "admin"]
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    pool: str | None = Field(default=None, description="the pool that the key of a contributor adds to")


class NewKeyObject(KeyObject):
    """A new API key, shown this once."""

    value: str = Field(description="the key; nobody can show it again")


class AuditObject(BaseModel):
    """One line of the audit log."""

    id: str
    object: Literal["audit_entry"] = "audit_entry"
    created_at: int
    tenant: str = Field(description="tenant of the key that made the change")
    key: str = Field(description="id of the key it was done with")
    action: str
    target: str = Field(description="id of what it was done to")
