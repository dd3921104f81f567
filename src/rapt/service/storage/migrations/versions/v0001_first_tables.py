"""Files, jobs, events, models: the tables of a service with one user."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0001"
down_revision: Final = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "files",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, unique=True, nullable=False),
        sa.Column("filename", sa.String, nullable=False),
        sa.Column("purpose", sa.String, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String, nullable=False, index=True),
        sa.Column("created_at", sa.Integer, nullable=False),
        sa.Column("vocabulary_hash", sa.String, nullable=False),
        sa.Column("mechanism", sa.JSON, nullable=False),
        sa.Column("insecure_seed", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("records", sa.Integer, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("longest", sa.Integer, nullable=False),
        sa.Column("plain_tokens", sa.Integer, nullable=False),
        sa.Column("labels", sa.Integer, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "jobs",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, unique=True, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("training_file", sa.String, nullable=False, index=True),
        sa.Column("status", sa.String, nullable=False, index=True),
        sa.Column("method", sa.JSON, nullable=False),
        sa.Column("seed", sa.Integer, nullable=False),
        sa.Column("suffix", sa.String),
        sa.Column("created_at", sa.Integer, nullable=False),
        sa.Column("finished_at", sa.Integer),
        sa.Column("fine_tuned_model", sa.String),
        sa.Column("trained_tokens", sa.BigInteger),
        sa.Column("error_code", sa.String),
        sa.Column("error_message", sa.String),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "events",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, unique=True, nullable=False),
        sa.Column("job_id", sa.String, sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
        sa.Column("created_at", sa.Integer, nullable=False),
        sa.Column("level", sa.String, nullable=False),
        sa.Column("type", sa.String, nullable=False),
        sa.Column("message", sa.String, nullable=False),
        sa.Column("data", sa.JSON(none_as_null=True)),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "models",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, unique=True, nullable=False),
        sa.Column("base", sa.String, nullable=False),
        sa.Column("job_id", sa.String, sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("adapter", sa.String, unique=True, nullable=False),
        sa.Column("created_at", sa.Integer, nullable=False),
        sqlite_autoincrement=True,
    )
