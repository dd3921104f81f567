"""Bringing a database to the present form of the tables, one numbered step after the other (Alembic).

All steps of one opening are one transaction: a database is at one version or at another, never between.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from rapt.errors import UsageError

_FOLDER: Final = Path(__file__).parent
# Before there were migrations, the number of SQLite's own that marked the first form of the tables.
_FIRST_USER_VERSION: Final = 1
FIRST: Final = "0001"


def migrate(connection: Connection, *, to: str = "head") -> None:
    """Bring the tables to a version, by default the newest.

    Args:
        connection: In a transaction, with the write lock.
        to: A revision; another than the newest in tests only.

    Raises:
        UsageError: The database was written by a newer version.
    """
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.attributes["connection"] = connection
    found = MigrationContext.configure(connection).get_current_revision()
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    if found is not None and found not in known:
        raise UsageError(
            f"the database must be of a version up to {max(known)}, got a newer one; use the rapt that wrote it"
        )
    if found is not None and found == scripts.get_current_head():
        return
    if found is None and inspect(connection).has_table("files"):
        _check_first(connection)
        command.stamp(config, FIRST)
    # Alembic tells its log of every step; a service has its own.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    command.upgrade(config, to)


def _check_first(connection: Connection) -> None:
    version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    if version != _FIRST_USER_VERSION:
        raise UsageError(
            f"a database without migrations must be of version {_FIRST_USER_VERSION}, got version={version}; "
            "use the rapt that wrote it"
        )
