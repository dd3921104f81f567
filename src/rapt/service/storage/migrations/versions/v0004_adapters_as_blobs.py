"""Models name their adapters by digest, as files do, and a service has an id, which its blobs are claimed with."""

from __future__ import annotations

import secrets
from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0004"
down_revision: Final = "0003"


def upgrade() -> None:
    """Add the digest, still empty: bytes are brought along when the data directory is opened (`old_places`)."""
    op.add_column("models", sa.Column("sha256", sa.String, nullable=False, server_default=""))
    op.create_index("ix_models_sha256", "models", ["sha256"])
    identity = op.create_table(
        "identity",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, unique=True, nullable=False),
        sqlite_autoincrement=True,
    )
    op.bulk_insert(identity, [{"id": secrets.token_hex(16)}])
