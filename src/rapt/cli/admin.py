"""`rapt admin`: tenants, keys, quotas and the audit log of a service, on its data directory.

These commands are for the operator of the machine: they ask for no key. All but `delete-tenant` may be run while the
service runs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rapt.cli.options import AsJson, Blobs
from rapt.cli.output import format_table, say, show, show_json

if TYPE_CHECKING:
    from rapt.service.storage.store import Store
    from rapt.service.storage.tenant_rows import StoredTenant

_AT_ONCE: Final = 1000
_INSTEAD: Final = "give the --data of `rapt serve`, or begin a new one with `rapt admin create-key --new`"


class KeyRole(StrEnum):
    """Role of a key: what its holder may do."""

    TENANT = "tenant"
    ADMIN = "admin"


NewService = Annotated[
    bool, typer.Option("--new", help="Make the data directory of a service that has not been started yet.")
]
Data = Annotated[Path, typer.Option(envvar="RAPT_DATA_DIRECTORY", help="Data directory of the service.")]
Tenant = Annotated[str, typer.Argument(metavar="TENANT", help="Name of the tenant.")]
KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="Id of the key, such as key-1a2b; not the key.")]
MaxBytes = Annotated[int | None, typer.Option(min=0, metavar="N", help="Largest number of bytes of files.")]
MaxJobs = Annotated[int | None, typer.Option(min=0, metavar="N", help="Largest number of jobs that have not ended.")]
TokensPerMinute = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Largest number of tokens of predictions a minute.")
]

admin = typer.Typer(help="Tenants, keys and quotas of a service.")


@admin.callback()
def group() -> None:
    """Tenants, keys and quotas of a service."""


@admin.command("create-tenant")
def create_tenant(
    tenant: Tenant,
    data: Data = Path("rapt-data"),
    max_bytes: MaxBytes = None,
    max_jobs: MaxJobs = None,
    tokens_per_minute: TokensPerMinute = None,
    new: NewService = False,
) -> None:
    """Create a tenant; quotas that are left out are those of the service.

    \b
    Example:
      rapt admin create-tenant clinic --max-jobs 10
    """
    from rapt.service.storage import tenant_rows
    from rapt.service.storage.callers import OPERATOR

    quotas = tenant_rows.Quotas(max_bytes=max_bytes, max_jobs=max_jobs, tokens_per_minute=tokens_per_minute)
    with _open_store(data, new=new) as store:
        tenant_rows.create_tenant(store, tenant, quotas=quotas, caller=OPERATOR, now=int(time.time()))
    say(f"created the tenant {tenant}; give it a key with: rapt admin create-key {tenant}")


@admin.command("list-tenants")
def list_tenants(data: Data = Path("rapt-data"), as_json: AsJson = False) -> None:
    """List tenants, their quotas and what they use.

    \b
    Example:
      rapt admin list-tenants
    """
    from rapt.service.storage.database import Cursor
    from rapt.service.storage.tenant_rows import get_usage, list_tenants

    with _open_store(data) as store:
        found = list_tenants(store, Cursor(limit=_AT_ONCE, newest_first=False)).items
        usages = [get_usage(store, tenant.name) for tenant in found]
    if as_json:
        show_json({"tenants": [_dump_tenant(item) | vars(usage) for item, usage in zip(found, usages, strict=True)]})
        return
    _show_table(
        ("tenant", "files", "bytes", "of", "jobs", "of", "models", "tokens/min"),
        [
            (
                item.name,
                str(usage.files),
                str(usage.bytes),
                _write_quota(item.quotas.max_bytes),
                str(usage.jobs),
                _write_quota(item.quotas.max_jobs),
                str(usage.models),
                _write_quota(item.quotas.tokens_per_minute),
            )
            for item, usage in zip(found, usages, strict=True)
        ],
    )


@admin.command("set-quotas")
def set_quotas(
    tenant: Tenant,
    data: Data = Path("rapt-data"),
    max_bytes: MaxBytes = None,
    max_jobs: MaxJobs = None,
    tokens_per_minute: TokensPerMinute = None,
) -> None:
    """Replace all quotas of a tenant; those that are left out become those of the service.

    \b
    Example:
      rapt admin set-quotas clinic --max-bytes 1000000000 --tokens-per-minute 600000
    """
    from rapt.service.storage import tenant_rows
    from rapt.service.storage.callers import OPERATOR

    quotas = tenant_rows.Quotas(max_bytes=max_bytes, max_jobs=max_jobs, tokens_per_minute=tokens_per_minute)
    with _open_store(data) as store:
        tenant_rows.set_quotas(store, tenant, quotas, caller=OPERATOR)


@admin.command("delete-tenant")
def delete_tenant(
    tenant: Tenant,
    data: Data = Path("rapt-data"),
    blobs: Blobs = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete a tenant and everything it has: keys, jobs, models, files, uploads. This cannot be undone.

    The service must be stopped. While it runs, use its route instead, because it has models in memory.

    \b
    Example:
      rapt admin delete-tenant clinic
    """
    from rapt.service.storage import tenant_rows
    from rapt.service.storage.callers import OPERATOR
    from rapt.service.storage.data_directory import refuse_other_folder
    from rapt.service.storage.recovery import open_store

    refuse_other_folder(data, instead=_INSTEAD)
    if not yes:
        typer.confirm(f"Delete the tenant {tenant} and everything it has?", abort=True, err=True)
    with open_store(data, url=_read_database_url(), blobs=blobs) as store:
        tenant_rows.delete_tenant(store, tenant, caller=OPERATOR, now=int(time.time()))
    say(f"deleted the tenant {tenant}")


@admin.command("create-key")
def create_key(
    tenant: Annotated[str, typer.Argument(metavar="[TENANT]", help="Name of the tenant.")] = "local",
    data: Data = Path("rapt-data"),
    role: Annotated[
        KeyRole, typer.Option(help="Role of the key; an admin may also manage tenants and keys.")
    ] = KeyRole.TENANT,
    as_json: AsJson = False,
    new: NewService = False,
) -> None:
    """Create a key and print it. It is shown only once: the service stores a digest.

    \b
    Example:
      rapt admin create-key clinic
      rapt admin create-key --role admin --new
    """
    from rapt.service.storage import key_rows
    from rapt.service.storage.callers import OPERATOR

    with _open_store(data, new=new) as store:
        now = int(time.time())
        key, value = key_rows.create_key(store, tenant=tenant, role=role.value, caller=OPERATOR, now=now)
    _show_key(key.id, value, as_json=as_json)


@admin.command("list-keys")
def list_keys(
    data: Data = Path("rapt-data"),
    tenant: Annotated[str | None, typer.Option(help="List the keys of this tenant only.")] = None,
    as_json: AsJson = False,
) -> None:
    """List ids, roles and times of keys; the keys themselves are not stored.

    \b
    Example:
      rapt admin list-keys --tenant clinic
    """
    from rapt.service.storage.database import Cursor
    from rapt.service.storage.key_rows import list_keys

    with _open_store(data) as store:
        found = list_keys(store, Cursor(limit=_AT_ONCE, newest_first=False), tenant=tenant).items
    if as_json:
        show_json({"keys": [vars(key) for key in found]})
        return
    _show_table(
        ("key", "tenant", "role", "created", "expires", "revoked"),
        [
            (
                key.id,
                key.tenant,
                key.role,
                _write_time(key.created_at),
                _write_time(key.expires_at),
                _write_time(key.revoked_at),
            )
            for key in found
        ],
    )


@admin.command("rotate-key")
def rotate_key(
    key_id: KeyId,
    data: Data = Path("rapt-data"),
    grace: Annotated[int, typer.Option(min=0, metavar="SECONDS", help="Time for which the old key stays valid.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Create a key in place of another and print it; the old key ends after --grace.

    \b
    Example:
      rapt admin rotate-key key-1a2b --grace 86400
    """
    from rapt.service.storage import key_rows
    from rapt.service.storage.callers import OPERATOR

    with _open_store(data) as store:
        key, value = key_rows.rotate_key(store, key_id, grace=grace, caller=OPERATOR, now=int(time.time()))
    _show_key(key.id, value, as_json=as_json)


@admin.command("revoke-key")
def revoke_key(key_id: KeyId, data: Data = Path("rapt-data")) -> None:
    """Revoke a key at once.

    \b
    Example:
      rapt admin revoke-key key-1a2b
    """
    from rapt.service.storage import key_rows
    from rapt.service.storage.callers import OPERATOR

    with _open_store(data) as store:
        key_rows.revoke_key(store, key_id, caller=OPERATOR, now=int(time.time()))


@admin.command("audit-log")
def audit_log(
    data: Data = Path("rapt-data"),
    last: Annotated[int, typer.Option(min=1, max=100_000, metavar="N", help="Number of entries.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Show who changed what, the latest last. The log holds ids, and nothing that a user wrote.

    \b
    Example:
      rapt admin audit-log --last 20
    """
    from rapt.service.storage.callers import list_audit
    from rapt.service.storage.database import Cursor

    with _open_store(data) as store:
        found = list_audit(store, Cursor(limit=last)).items[::-1]
    if as_json:
        show_json({"entries": [vars(entry) for entry in found]})
        return
    _show_table(
        ("time", "tenant", "key", "action", "object"),
        [(_write_time(entry.created_at), entry.tenant, entry.key, entry.action, entry.object) for entry in found],
    )


@contextmanager
def _open_store(data: Path, *, new: bool = False) -> Iterator[Store]:
    from rapt.service.storage.data_directory import refuse_other_folder
    from rapt.service.storage.recovery import join_store

    if not new:
        refuse_other_folder(data, instead=_INSTEAD)
    with join_store(data, url=_read_database_url()) as store:
        yield store


def _read_database_url() -> str | None:
    # Not an option: a URL may hold a password, and a command line is seen by everybody on the machine.
    return os.environ.get("RAPT_DATABASE_URL")


def _show_key(key_id: str, value: str, *, as_json: bool) -> None:
    if as_json:
        show_json({"id": key_id, "value": value})
        return
    show(value)
    say(f"this is the only time that the key {key_id} is shown")


def _show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    show(format_table(header, rows))


def _dump_tenant(tenant: StoredTenant) -> dict[str, Any]:
    return {"name": tenant.name, "created_at": tenant.created_at} | vars(tenant.quotas)


def _write_quota(quota: int | None) -> str:
    return "default" if quota is None else str(quota)


def _write_time(seconds: int | None) -> str:
    return "-" if seconds is None else datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
