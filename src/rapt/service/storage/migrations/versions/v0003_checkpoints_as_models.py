"""Checkpoints become models with a step; of the states of a run only the newest has a row. Models know their size."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0003"
down_revision: Final = "0002"


def upgrade() -> None:
    """Add what models say, and forget states that are not there any more."""
    for column in (
        sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("step", sa.Integer),
        sa.Column("metrics", sa.JSON(none_as_null=True)),
    ):
        op.add_column("models", column)
    op.create_index("uq_models_job_step", "models", ["job_id", "step"], unique=True)
    op.execute("DELETE FROM checkpoints WHERE folder IS NULL")
