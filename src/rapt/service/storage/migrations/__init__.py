"""Bringing a database to the present form of the tables, one numbered step after the other (Alembic).

All steps of one opening are one transaction: a database is at one version or at another, never between.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from rapt.errors import UsageError

_FOLDER: Final = Path(__file__).parent
# A step is named after its release; before the first release, steps had numbers.
_UNRELEASED: Final = re.compile(r"000[1-6]")


def migrate(connection: Connection) -> None:
    """Bring the tables to the newest version.

    Args:
        connection: A connection in a transaction, with the write lock.

    Raises:
        UsageError: The database was written by a newer version, or by one from before the first release.
    """
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.attributes["connection"] = connection
    found = MigrationContext.configure(connection).get_current_revision()
    scripts = ScriptDirectory.from_config(config)
    newest = str(scripts.get_current_head())
    if found == newest:
        return
    if _UNRELEASED.fullmatch(found or "") or (found is None and inspect(connection).has_table("files")):
        raise UsageError(
            "the database must be of a released version, got one from before 0.2.0; begin with a new data directory"
        )
    if found is not None and found not in {script.revision for script in scripts.walk_revisions()}:
        raise UsageError(
            f"the database must be of a version up to {newest}, got a newer one; use the rapt that wrote it"
        )
    # Alembic tells its log of every step; a service has its own.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    command.upgrade(config, "head")
