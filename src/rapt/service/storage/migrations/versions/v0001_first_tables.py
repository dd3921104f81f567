"""The tables of release 0.2.0, the first one."""

from __future__ import annotations

import secrets
from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0.2.0"
down_revision: Final = None

# The newest so many entries of the audit log cannot be deleted; `tidying` keeps as many of each tenant.
_IS_NEW: Final = "OLD.number > (SELECT max(number) FROM audit_log) - 100000"
_REFUSE_SQLITE: Final = """
CREATE TRIGGER audit_log_refuses_{verb} BEFORE {verb} ON audit_log WHEN {condition}
BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END
"""
_REFUSE_POSTGRESQL: Final = (
    """
CREATE FUNCTION audit_log_refuses() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN RAISE EXCEPTION 'the audit log is only added to'; END $$
""",
    f"""
CREATE FUNCTION audit_log_refuses_new() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN IF {_IS_NEW} THEN RAISE EXCEPTION 'the audit log is only added to'; END IF; RETURN OLD; END $$
""",
    """
CREATE TRIGGER audit_log_refuses_changes BEFORE UPDATE OR TRUNCATE ON audit_log
EXECUTE FUNCTION audit_log_refuses()
""",
    """
CREATE TRIGGER audit_log_refuses_deletion BEFORE DELETE ON audit_log
FOR EACH ROW EXECUTE FUNCTION audit_log_refuses_new()
""",
)


def upgrade() -> None:
    """Make the tables, the tenant of a service without keys, and the id of the service."""
    _make_tenants()
    _make_jobs()
    _make_uploads()
    _make_pools()


def _make_tenants() -> None:
    tenants = _make(
        "tenants",
        _text("name", unique=True),
        _number("created_at"),
        _number("max_bytes", nullable=True),
        sa.Column("max_jobs", sa.Integer),
        _number("tokens_per_minute", nullable=True),
        _number("served", server_default="0"),
    )
    op.bulk_insert(tenants, [{"name": "local", "created_at": 0}])
    _make(
        "api_keys",
        _text("id", unique=True),
        _text("tenant", index=True),
        _text("role"),
        _text("digest", unique=True),
        _number("created_at"),
        _number("expires_at", nullable=True),
        _number("revoked_at", nullable=True),
        _text("pool", nullable=True),
        _number("room", nullable=True),
    )
    audit = (_text("id", unique=True), _number("created_at"), _text("tenant", index=True))
    _make("audit_log", *audit, _text("key"), _text("action"), _text("object"))
    if op.get_bind().dialect.name == "sqlite":
        op.execute(_REFUSE_SQLITE.format(verb="UPDATE", condition="TRUE"))
        op.execute(_REFUSE_SQLITE.format(verb="DELETE", condition=_IS_NEW))
    else:
        for statement in _REFUSE_POSTGRESQL:
            op.execute(statement)
    op.bulk_insert(_make("identity", _text("id", unique=True)), [{"id": secrets.token_hex(16)}])


def _make_jobs() -> None:
    _make(
        "files",
        *(_text("id", unique=True), _text("tenant"), _text("filename"), _text("purpose")),
        *(_number("bytes"), _text("sha256", index=True), _number("created_at")),
        *(_text("vocabulary_hash"), sa.Column("mechanism", sa.JSON, nullable=False)),
        sa.Column("insecure_seed", sa.Boolean, nullable=False),
        *(_number(name) for name in ("records", "tokens", "longest", "plain_tokens", "labels")),
        sa.Index("ix_files_tenant", "tenant", "number"),
    )
    _make(
        "jobs",
        *(_text("id", unique=True), _text("tenant"), _text("model")),
        *(_text("training_file", index=True), _text("validation_file", index=True, nullable=True)),
        *(_text("status", index=True), sa.Column("method", sa.JSON, nullable=False), _number("seed")),
        *(_text("suffix", nullable=True), _json("metadata"), sa.Column("priority", sa.Integer, nullable=False)),
        *(_number("created_at"), _number("finished_at", nullable=True)),
        *(_text("fine_tuned_model", nullable=True), _number("trained_tokens", nullable=True)),
        *(_text("error_code", nullable=True), _text("error_message", nullable=True)),
        *(_text("worker", nullable=True), sa.Column("attempt", sa.Integer, nullable=False)),
        *(sa.Column("deaths", sa.Integer, nullable=False), _text("last_death", nullable=True)),
        sa.Index("ix_jobs_tenant", "tenant", "number"),
    )
    _make(
        "events",
        *(_text("id", unique=True), _owner("job_id", "jobs.id"), _number("created_at")),
        *(_text("level"), _text("type"), _text("message"), _json("data")),
    )
    _make(
        "run_states",
        *(_text("id", unique=True), _owner("job_id", "jobs.id"), _number("created_at"), _number("step")),
        *(_text("folder", unique=True), _number("bytes")),
        sa.UniqueConstraint("job_id", "step", name="uq_run_states_job_step"),
    )
    _make(
        "models",
        *(_text("id", unique=True), _text("tenant"), _text("base")),
        sa.Column("job_id", sa.String, sa.ForeignKey("jobs.id")),
        *(_text("adapter", unique=True), _number("created_at"), _number("bytes"), _text("sha256", index=True)),
        *(_number("step", nullable=True), _json("metrics")),
        sa.Index("ix_models_tenant", "tenant", "number"),
        sa.Index("uq_models_job_step", "job_id", "step", unique=True),
    )


def _make_uploads() -> None:
    _make(
        "uploads",
        *(_text("id", unique=True), _text("tenant"), _text("filename"), _text("purpose"), _number("bytes")),
        *(_text("status"), _number("created_at"), _number("expires_at"), _text("file_id", nullable=True)),
        sa.Index("ix_uploads_tenant", "tenant", "number"),
    )
    part = (_text("id", unique=True), _owner("upload_id", "uploads.id"))
    _make("upload_parts", *part, _number("bytes"), _text("sha256"), _number("created_at"))
    _make(
        "repeatable_requests",
        *(_text("tenant"), _text("key_digest"), _text("content_digest"), _text("object"), _number("created_at")),
        sa.UniqueConstraint("tenant", "key_digest", name="uq_repeatable_requests_key"),
    )


def _make_pools() -> None:
    _make(
        "pools",
        *(_text("id", unique=True), _text("tenant"), sa.Column("manifest", sa.JSON, nullable=False), _text("setting")),
        *(_number("least"), _number("most"), _text("status"), _number("contributions"), _number("bytes")),
        *(_number("created_at"), _text("file_id", nullable=True)),
        sa.Index("ix_pools_tenant", "tenant", "number"),
    )
    owner = sa.ForeignKey("pools.id", ondelete="CASCADE")
    op.create_table(
        "contributions",
        sa.Column("pool_id", sa.String, owner, primary_key=True),
        sa.Column("receipt_digest", sa.String, primary_key=True),
        sa.Column("line", sa.String, nullable=False),
        sqlite_with_rowid=False,
    )


def _make(name: str, *parts: Any) -> sa.Table:
    return op.create_table(name, sa.Column("number", sa.Integer, primary_key=True), *parts, sqlite_autoincrement=True)


def _text(name: str, *, nullable: bool = False, unique: bool | None = None, index: bool | None = None) -> Any:
    return sa.Column(name, sa.String, nullable=nullable, unique=unique, index=index)


def _number(name: str, *, nullable: bool = False, server_default: str | None = None) -> Any:
    return sa.Column(name, sa.BigInteger, nullable=nullable, server_default=server_default)


def _json(name: str) -> Any:
    return sa.Column(name, sa.JSON(none_as_null=True))


def _owner(name: str, of: str) -> Any:
    key = sa.ForeignKey(of, ondelete="CASCADE")
    return sa.Column(name, sa.String, key, nullable=False, index=True)
