"""The tables, as the newest migration leaves them; a test compares the two.

`number` is the order of creation and what cursors run over; `id` is what clients see. Who owns a row is in `tenant`,
and every query that a request causes names it.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

METADATA: Final = MetaData()


def _make_number() -> Column[int]:
    return Column("number", Integer, primary_key=True)


def _make_id() -> Column[str]:
    return Column("id", String, unique=True, nullable=False)


def _make_tenant() -> Column[str]:
    return Column("tenant", String, nullable=False)


def _make_table(name: str, *parts: Column[Any] | Index | UniqueConstraint) -> Table:
    # Numbers are never given twice, so a cursor never meets another row under an old number.
    return Table(name, METADATA, *parts, sqlite_autoincrement=True)


TENANTS: Final = _make_table(
    "tenants",
    _make_number(),
    Column("name", String, unique=True, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # Quotas of its own; null where the setting of the service holds.
    Column("max_bytes", BigInteger),
    Column("max_jobs", Integer),
    Column("tokens_per_minute", BigInteger),
    # When the queue served it last, as a running number: the lowest is next.
    Column("served", BigInteger, nullable=False, server_default="0"),
)

KEYS: Final = _make_table(
    "api_keys",
    _make_number(),
    _make_id(),
    # Not a foreign key: a revoked key outlives its tenant, so that a service that had keys never opens again.
    Column("tenant", String, nullable=False, index=True),
    Column("role", String, nullable=False),
    Column("digest", String, unique=True, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    # Of a contributor: the pool that it may add to, and how many contributions it may still add.
    Column("pool", String),
    Column("room", BigInteger),
)

# Rows are only ever added; the migration puts triggers on it that refuse all else but to delete very old ones.
AUDIT: Final = _make_table(
    "audit_log",
    _make_number(),
    Column("id", String, unique=True, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("tenant", String, nullable=False, index=True),
    Column("key", String, nullable=False),
    Column("action", String, nullable=False),
    Column("object", String, nullable=False),
)

FILES: Final = _make_table(
    "files",
    _make_number(),
    _make_id(),
    _make_tenant(),
    Column("filename", String, nullable=False),
    Column("purpose", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String, nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("vocabulary_hash", String, nullable=False),
    Column("mechanism", JSON, nullable=False),
    Column("insecure_seed", Boolean, nullable=False),
    Column("records", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("longest", BigInteger, nullable=False),
    Column("plain_tokens", BigInteger, nullable=False),
    Column("labels", BigInteger, nullable=False),
    # Unix time from which on it goes by itself, s.
    Column("expires_at", BigInteger),
    Index("ix_files_tenant", "tenant", "number"),
    Index("ix_files_expires_at", "expires_at"),
)

JOBS: Final = _make_table(
    "jobs",
    _make_number(),
    _make_id(),
    _make_tenant(),
    Column("model", String, nullable=False),
    # Not foreign keys: a job outlives its files, because a file must be deletable at any time after.
    Column("training_file", String, nullable=False, index=True),
    Column("validation_file", String, index=True),
    Column("status", String, nullable=False, index=True),
    Column("method", JSON, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("suffix", String),
    Column("metadata", JSON(none_as_null=True)),
    Column("priority", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    Column("fine_tuned_model", String),
    Column("trained_tokens", BigInteger),
    Column("error_code", String),
    Column("error_message", String),
    # The worker that runs it, and how often it was started: a result of an earlier attempt is not taken.
    Column("worker", String),
    Column("attempt", Integer, nullable=False),
    # How often the process that ran it died since its last run state was kept, and the reason of the last death.
    Column("deaths", Integer, nullable=False),
    Column("last_death", String),
    Index("ix_jobs_tenant", "tenant", "number"),
)

EVENTS: Final = _make_table(
    "events",
    _make_number(),
    _make_id(),
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("level", String, nullable=False),
    Column("type", String, nullable=False),
    Column("message", String, nullable=False),
    Column("data", JSON(none_as_null=True)),
)

RUN_STATES: Final = _make_table(
    "run_states",
    _make_number(),
    _make_id(),
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("folder", String, unique=True, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    UniqueConstraint("job_id", "step", name="uq_run_states_job_step"),
)

MODELS: Final = _make_table(
    "models",
    _make_number(),
    _make_id(),
    _make_tenant(),
    Column("base", String, nullable=False),
    # Null for an adapter that was imported.
    Column("job_id", String, ForeignKey("jobs.id")),
    Column("adapter", String, unique=True, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # The size and the name of the adapter's blob.
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String, nullable=False, index=True),
    # The steps that the run of a checkpoint had made, and its figures by then; null for the result of a run.
    Column("step", BigInteger),
    Column("metrics", JSON(none_as_null=True)),
    Index("ix_models_tenant", "tenant", "number"),
    Index("uq_models_job_step", "job_id", "step", unique=True),
)

# The newest change of what is remembered, for each table and tenant: `scope` is both. Triggers write it, on SQLite.
CHANGES: Final = _make_table(
    "changes",
    _make_number(),
    Column("scope", String, unique=True, nullable=False),
)

# One row: the id of this service, which its blobs are claimed with.
IDENTITY: Final = _make_table(
    "identity",
    _make_number(),
    _make_id(),
)

UPLOADS: Final = _make_table(
    "uploads",
    _make_number(),
    _make_id(),
    Column("tenant", String, nullable=False),
    Column("filename", String, nullable=False),
    Column("purpose", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("status", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("file_id", String),
    # How long the file is kept that it becomes, s.
    Column("file_seconds", BigInteger),
    Index("ix_uploads_tenant", "tenant", "number"),
)

PARTS: Final = _make_table(
    "upload_parts",
    _make_number(),
    _make_id(),
    Column("upload_id", String, ForeignKey("uploads.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

REQUESTS: Final = _make_table(
    "repeatable_requests",
    _make_number(),
    Column("tenant", String, nullable=False),
    # Digests: a client may put anything into its idempotency key.
    Column("key_digest", String, nullable=False),
    Column("content_digest", String, nullable=False),
    Column("object", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("tenant", "key_digest", name="uq_repeatable_requests_key"),
)

# Workers on other machines, on PostgreSQL: where their locks are, and when they were last heard of by its clock.
WORKERS: Final = Table(
    "workers",
    METADATA,
    Column("name", String, primary_key=True),
    Column("place", String, nullable=False),
    Column("models", JSON, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
)

# Tokens of predictions that each tenant may have, for all serving processes, on PostgreSQL; times are of its clock.
BUCKETS: Final = Table(
    "token_buckets",
    METADATA,
    Column("tenant", String, primary_key=True),
    Column("level", Float, nullable=False),
    Column("at", Float, nullable=False),
)

POOLS: Final = _make_table(
    "pools",
    _make_number(),
    _make_id(),
    _make_tenant(),
    # The manifest that every contribution is privatized by, without counts, and its digest.
    Column("manifest", JSON, nullable=False),
    Column("setting", String, nullable=False),
    Column("least", BigInteger, nullable=False),
    Column("most", BigInteger, nullable=False),
    Column("status", String, nullable=False),
    # Those that are counted no more: of a pool that takes no more. The bytes are what its contributions may take.
    Column("contributions", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("file_id", String),
    # Of two rounds: how many contributions end the first, and the manifest of the second, until that has begun.
    Column("rounds", JSON),
    Index("ix_pools_tenant", "tenant", "number"),
)

# What is taken into an open pool is counted in one of several rows, so that those who give at once wait for none in
# common; each row has a part of the room that the pool has left, of contributions and of bytes.
COUNTERS: Final = Table(
    "pool_counters",
    METADATA,
    Column("pool_id", String, ForeignKey("pools.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("contributions", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("room", BigInteger, nullable=False),
    Column("bytes_room", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# Without a running number, a time or a key: rows are kept in the order of digests of what contributors alone know.
CONTRIBUTIONS: Final = Table(
    "contributions",
    METADATA,
    Column("pool_id", String, ForeignKey("pools.id", ondelete="CASCADE"), primary_key=True),
    Column("receipt_digest", String, primary_key=True),
    Column("line", String, nullable=False),
    sqlite_with_rowid=False,
)
