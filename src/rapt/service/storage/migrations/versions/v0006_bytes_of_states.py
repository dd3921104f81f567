"""States of runs say how many bytes they have, because those of a job that rests count in its tenant's quota."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0006"
down_revision: Final = "0005"


def upgrade() -> None:
    """Add it; a state of before counts nothing, and the next one of its run takes its place."""
    op.add_column("checkpoints", sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"))
