"""Counters of open pools, in rows of their own in place of one number in the row of the pool."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0.5.0"
down_revision: Final = "0.4.0.rounds"


def upgrade() -> None:
    """Make the table. Contributions that are there are counted in one row; the next one shares the room out."""
    op.create_table(
        "pool_counters",
        sa.Column("pool_id", sa.String, sa.ForeignKey("pools.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("contributions", "bytes", "room", "bytes_room")),
        sqlite_with_rowid=False,
    )
    op.execute(
        "INSERT INTO pool_counters SELECT pools.id, 0, count(*), sum(length(line)), 0, 0 "
        "FROM pools JOIN contributions ON contributions.pool_id = pools.id GROUP BY pools.id"
    )
    op.execute("UPDATE pools SET contributions = 0 WHERE id IN (SELECT pool_id FROM pool_counters)")
