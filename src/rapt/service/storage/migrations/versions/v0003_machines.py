"""What several machines share on PostgreSQL, workers that live and tokens that tenants may have; and when files go."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0.4.0"
down_revision: Final = "0.3.0"


def upgrade() -> None:
    """Make the tables, and columns of which what is there says nothing: no file of it goes by itself."""
    op.create_table(
        "workers",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("place", sa.String, nullable=False),
        sa.Column("models", sa.JSON, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "token_buckets",
        sa.Column("tenant", sa.String, primary_key=True),
        sa.Column("level", sa.Float, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.add_column("files", sa.Column("expires_at", sa.BigInteger))
    op.create_index("ix_files_expires_at", "files", ["expires_at"])
    op.add_column("uploads", sa.Column("file_seconds", sa.BigInteger))
