"""Tenants, keys, audit log, uploads in parts, checkpoints, repeatable requests. What was there belongs to `local`."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0002"
down_revision: Final = "0001"

_REFUSE_SQLITE: Final = """
CREATE TRIGGER audit_log_refuses_{verb} BEFORE {verb} ON audit_log
BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END
"""
_REFUSE_FUNCTION: Final = """
CREATE FUNCTION audit_log_refuses() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN RAISE EXCEPTION 'the audit log is only added to'; END $$
"""
_REFUSE_POSTGRESQL: Final = """
CREATE TRIGGER audit_log_refuses_changes BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
EXECUTE FUNCTION audit_log_refuses()
"""


def upgrade() -> None:
    """Add who owns what, and what only makes sense once there are owners."""
    _tenants()
    _owners()
    _runs()
    _requests()


def _tenants() -> None:
    tenants = op.create_table(
        "tenants",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, unique=True, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("max_bytes", sa.BigInteger),
        sa.Column("max_jobs", sa.Integer),
        sa.Column("tokens_per_minute", sa.BigInteger),
        sa.Column("served", sa.BigInteger, nullable=False, server_default="0"),
        sqlite_autoincrement=True,
    )
    op.bulk_insert(tenants, [{"name": "local", "created_at": 0}])
    op.create_table(
        "api_keys",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, unique=True, nullable=False),
        sa.Column("tenant", sa.String, nullable=False, index=True),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("digest", sa.String, unique=True, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("revoked_at", sa.BigInteger),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "audit_log",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, unique=True, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("tenant", sa.String, nullable=False, index=True),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("action", sa.String, nullable=False),
        sa.Column("object", sa.String, nullable=False),
        sqlite_autoincrement=True,
    )
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(_REFUSE_SQLITE.format(verb=verb))
    else:
        op.execute(_REFUSE_FUNCTION)
        op.execute(_REFUSE_POSTGRESQL)


def _owners() -> None:
    for table in ("files", "jobs", "models"):
        op.add_column(table, sa.Column("tenant", sa.String, nullable=False, server_default="local"))
        op.create_index(f"ix_{table}_tenant", table, ["tenant", "number"])
    # An imported adapter has no job. Nothing refers to this table, so SQLite may rebuild it.
    with op.batch_alter_table("models") as models:
        models.alter_column("job_id", existing_type=sa.String, nullable=True)


def _runs() -> None:
    for column in (
        sa.Column("validation_file", sa.String),
        sa.Column("metadata", sa.JSON(none_as_null=True)),
        sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
        sa.Column("worker", sa.String),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
    ):
        op.add_column("jobs", column)
    op.create_index("ix_jobs_validation_file", "jobs", ["validation_file"])
    op.create_table(
        "checkpoints",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, unique=True, nullable=False),
        sa.Column("job_id", sa.String, sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("folder", sa.String, unique=True),
        sa.UniqueConstraint("job_id", "step", name="uq_checkpoints_job_step"),
        sqlite_autoincrement=True,
    )


def _requests() -> None:
    op.create_table(
        "uploads",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, unique=True, nullable=False),
        sa.Column("tenant", sa.String, nullable=False),
        sa.Column("filename", sa.String, nullable=False),
        sa.Column("purpose", sa.String, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("file_id", sa.String),
        sa.Index("ix_uploads_tenant", "tenant", "number"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "upload_parts",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, unique=True, nullable=False),
        sa.Column("upload_id", sa.String, sa.ForeignKey("uploads.id", ondelete="CASCADE"), nullable=False, index=True),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "repeatable_requests",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("tenant", sa.String, nullable=False),
        sa.Column("key_digest", sa.String, nullable=False),
        sa.Column("content_digest", sa.String, nullable=False),
        sa.Column("object", sa.String, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("tenant", "key_digest", name="uq_repeatable_requests_key"),
        sqlite_autoincrement=True,
    )
