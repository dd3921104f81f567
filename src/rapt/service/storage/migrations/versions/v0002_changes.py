"""What changed of what is remembered: one row for each tenant and table, with a number that is never given twice.

SQLite's triggers write it, whoever makes the change: this process, a worker, or the command line. On PostgreSQL nothing
is remembered, and the table stays empty.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0.3.0"
down_revision: Final = "0.2.0"

# Columns whose change counts. Others change all the time: who was served last, how much a contributor may still add.
_WATCHED: Final = {
    "api_keys": ("tenant", "id, tenant, role, digest, expires_at, revoked_at, pool"),
    "tenants": ("name", "name, max_bytes, max_jobs, tokens_per_minute"),
    "models": ("tenant", "id, tenant, base, job_id, adapter, bytes, sha256, step, metrics"),
}
# Deleted and inserted, because a trigger's own conflict clause gives way to that of the statement which fires it.
_NOTE: Final = """
CREATE TRIGGER {table}_{name} AFTER {when} ON {table}
BEGIN
    DELETE FROM changes WHERE scope = '{table} ' || {row}.{tenant};
    INSERT INTO changes (scope) VALUES ('{table} ' || {row}.{tenant});
END
"""


def upgrade() -> None:
    """Make the table, and what fills it."""
    op.create_table(
        "changes",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("scope", sa.String, unique=True, nullable=False),
        sqlite_autoincrement=True,
    )
    if op.get_bind().dialect.name != "sqlite":
        return
    for table, (tenant, columns) in _WATCHED.items():
        for name, when, row in (
            ("notes_insert", "INSERT", "NEW"),
            ("notes_delete", "DELETE", "OLD"),
            ("notes_update_from", f"UPDATE OF {columns}", "OLD"),
            ("notes_update_to", f"UPDATE OF {columns}", "NEW"),
        ):
            op.execute(_NOTE.format(table=table, name=name, when=when, row=row, tenant=tenant))
