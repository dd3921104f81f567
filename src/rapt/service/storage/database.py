"""The database: four tables in one SQLite file, and two ways in.

Write-ahead logging lets readers go on while one writes; a writer takes the lock when it begins (BEGIN IMMEDIATE), so
two of them queue and never fail halfway. `synchronous = FULL`: what was acknowledged survives a power cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import (
    JSON,
    URL,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    create_engine,
    event,
    select,
)

from rapt.errors import NotFoundError, UsageError

# Raised with every change of the tables. A newer file than this code knows is refused, never guessed at.
SCHEMA_VERSION: Final = 1
_WRITES: Final = "rapt_writes"

METADATA: Final = MetaData()

FILES: Final = Table(
    "files",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("id", String, unique=True, nullable=False),
    Column("filename", String, nullable=False),
    Column("purpose", String, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("sha256", String, nullable=False, index=True),
    Column("created_at", Integer, nullable=False),
    Column("vocabulary_hash", String, nullable=False),
    Column("mechanism", JSON, nullable=False),
    Column("insecure_seed", Boolean, nullable=False),
    Column("records", Integer, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("longest", Integer, nullable=False),
    Column("plain_tokens", Integer, nullable=False),
    Column("labels", Integer, nullable=False),
    sqlite_autoincrement=True,
)

JOBS: Final = Table(
    "jobs",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("id", String, unique=True, nullable=False),
    Column("model", String, nullable=False),
    # Not a foreign key: a job outlives its file, because a file must be deletable at any time after.
    Column("training_file", String, nullable=False, index=True),
    Column("status", String, nullable=False, index=True),
    Column("method", JSON, nullable=False),
    Column("seed", Integer, nullable=False),
    Column("suffix", String),
    Column("created_at", Integer, nullable=False),
    Column("finished_at", Integer),
    Column("fine_tuned_model", String),
    Column("trained_tokens", Integer),
    Column("error_code", String),
    Column("error_message", String),
    sqlite_autoincrement=True,
)

EVENTS: Final = Table(
    "events",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("id", String, unique=True, nullable=False),
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("created_at", Integer, nullable=False),
    Column("level", String, nullable=False),
    Column("type", String, nullable=False),
    Column("message", String, nullable=False),
    Column("data", JSON(none_as_null=True)),
    sqlite_autoincrement=True,
)

MODELS: Final = Table(
    "models",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("id", String, unique=True, nullable=False),
    Column("base", String, nullable=False),
    Column("job_id", String, ForeignKey("jobs.id"), nullable=False),
    Column("adapter", String, unique=True, nullable=False),
    Column("created_at", Integer, nullable=False),
    sqlite_autoincrement=True,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page of a list, and whether more follow."""

    items: tuple[T, ...]
    has_more: bool


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Where a page starts and how long it is: `after` is the id of the last item of the page before."""

    after: str | None = None
    limit: int = 20
    newest_first: bool = True


class Database:
    """One SQLite file; safe to use from many threads."""

    def __init__(self, path: Path) -> None:
        """Open the file, and make its tables if it is new.

        Raises:
            UsageError: It was written by a newer version.
        """
        self._engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": 30.0})
        _configure(self._engine)
        self._writing = self._engine.execution_options(**{_WRITES: True})
        with self.write() as connection:
            found = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            if found not in (0, SCHEMA_VERSION):
                raise UsageError(
                    f"the data directory must be of schema version {SCHEMA_VERSION}, got version={found}; "
                    "use the version of rapt that wrote it"
                )
            METADATA.create_all(connection)
            connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one moment of the database."""
        with self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A connection that holds the write lock: all of the block happens, or nothing."""
        with self._writing.begin() as connection:
            yield connection

    def close(self) -> None:
        """Let go of the file."""
        self._engine.dispose()


def find(connection: Connection, table: Table, id_: str) -> Row[Any]:
    """The row of an id.

    Raises:
        NotFoundError: There is none. The message does not repeat the id, which a stranger may have made up.
    """
    row = connection.execute(select(table).where(table.c.id == id_)).first()
    if row is None:
        raise NotFoundError(f"no such object among the {table.name}; list them to see what there is")
    return row


def page_of(
    connection: Connection, table: Table, cursor: Cursor, *, where: ColumnElement[bool]
) -> tuple[list[Row[Any]], bool]:
    """The rows of one page in order of creation, and whether more follow.

    Raises:
        NotFoundError: The cursor names no row of this list.
    """
    number = table.c.number
    query = select(table).where(where).order_by(number.desc() if cursor.newest_first else number.asc())
    if cursor.after is not None:
        start = connection.execute(select(number).where(where, table.c.id == cursor.after)).scalar()
        if start is None:
            raise NotFoundError(f"no such object among the {table.name} for the cursor after; start without it")
        query = query.where(number < start if cursor.newest_first else number > start)
    rows = list(connection.execute(query.limit(cursor.limit + 1)))
    return rows[: cursor.limit], len(rows) > cursor.limit


def _configure(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: object) -> None:
        # The driver must not begin transactions by itself: it would begin them late, and deferred.
        connection.isolation_level = None
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
