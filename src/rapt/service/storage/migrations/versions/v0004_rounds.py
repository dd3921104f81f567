"""Pools of two rounds: what a pool needs before its second round, and how it goes on."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0.4.0.rounds"
down_revision: Final = "0.4.0"


def upgrade() -> None:
    """Add the column; pools that are there have one round."""
    op.add_column("pools", sa.Column("rounds", sa.JSON))
