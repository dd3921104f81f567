"""The database: SQLite by default, PostgreSQL by URL, two ways in, and answers that still hold.

SQLite: write-ahead logging lets readers go on while one writes; a writer takes the lock when it begins (BEGIN
IMMEDIATE), so two of them queue and never fail halfway. `synchronous = FULL`: what was acknowledged survives a power
cut.

PostgreSQL: a writer takes one advisory lock when it begins, a reader sees one moment (REPEATABLE READ). So both have
the same rule, one writer at a time, and numbers are given in the order in which rows become visible: a cursor never
passes over a row that was written before it looked.

SQLite tells by one number whether anything was committed by anybody, in this process or another. Whenever it has
changed, the table of changes says which tenants' keys, quotas and models did, and their answers alone are forgotten: a
key that is revoked by the command line is refused by the very next request, and what one tenant writes costs the others
no question. PostgreSQL has no such number, so there nothing is kept.

A database that is away, locked or full raises `UnavailableError`: the same work may be done later. What it says of
itself is not passed on, because it may hold values; the kind of its error is in the log.
"""

from __future__ import annotations

import hashlib
import logging
import math
import sqlite3
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    Row,
    Table,
    create_engine,
    event,
    make_url,
    select,
    text,
    true,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionError
from sqlalchemy.pool import NullPool

from rapt.errors import NotFoundError, UnavailableError, UsageError
from rapt.service.storage.migrations import migrate

T = TypeVar("T")

# Some 10 MB of rows. Beyond it all are forgotten: whoever still asks is kept again.
_MOST_ANSWERS: Final = 20_000
_AT_HAND_ONLY: ContextVar[bool] = ContextVar("rapt_at_hand_only", default=False)
if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger(__name__)

CONNECTIONS: Final = 10
# How long a writer waits for the others, a request for a connection, and a connection for its server, s.
WAITING_SECONDS: Final = 30.0
_PATIENCE: Final = {"connect_timeout": 10}
_WRITES: Final = "rapt_writes"
_BESIDE: Final = "rapt_beside"
# Primary result codes of SQLite that tell of the moment and not of the statement: busy, locked, no memory, read-only,
# input or output, full, cannot open, locking protocol.
_SQLITE_AWAY: Final = frozenset({5, 6, 7, 8, 10, 13, 14, 15})
# Any number will do, as long as nothing else in the same database uses it.
_WRITE_LOCK: Final = 7_241_986_353
# Of the locks for names, whose numbers are pairs: they never meet the one above.
_NAME_LOCKS: Final = 724_198
# Of those for names that many add to at once, held by transactions: pairs again.
_SHARED_LOCKS: Final = 724_199

Stored = TypeVar("Stored", bound="DataclassInstance")


class WouldWait(Exception):
    """The work needs the database or the disk."""


@contextmanager
def forbid_waiting() -> Iterator[None]:
    """Within the block nothing waits: what would raises `WouldWait`, before it has changed anything."""
    token = _AT_HAND_ONLY.set(True)
    try:
        yield
    finally:
        _AT_HAND_ONLY.reset(token)


def refuse_to_wait() -> None:
    """Raise `WouldWait` within `forbid_waiting`; called before anything that waits for a disk or a server."""
    if _AT_HAND_ONLY.get():
        raise WouldWait


class Remembered:
    """Answers by question; safe to use from many threads."""

    def __init__(
        self,
        version: Callable[[], int | None],
        list_changes: Callable[[int], Sequence[tuple[int, str]] | None],
        *,
        most: int = _MOST_ANSWERS,
    ) -> None:
        """Start with nothing remembered.

        Args:
            version: A number that changes whenever anything is committed; None if nobody knows.
            list_changes: Function that lists what was changed after the change of a number: the newest change of each
                scope, a table and a tenant with a space between, in order of their numbers; None if nobody knows.
            most: Answers that are kept.
        """
        self._version = version
        self._list_changes = list_changes
        self._most = most
        self._answers: dict[Hashable, Any] = {}
        self._questions: dict[str, set[Hashable]] = {}  # by scope
        self._holds_at: int | None = None
        # Numbers of the newest change that was seen, of all scopes and of each; of those that were forgotten, at most.
        self._seen = 0
        self._changed: dict[str, int] = {}
        self._changed_at_most = 0
        self._guard = Lock()

    def __len__(self) -> int:
        """Return the number of kept answers."""
        return len(self._answers)

    def ask(self, question: Hashable, look_up: Callable[[], T], *, scope: Callable[[Any], str]) -> T:
        """The answer to a question, looked up unless it is known to hold still. None, and what raises, is not kept.

        Args:
            question: Must be answered by the database alone: not by time, and not by who asks.
            look_up: Asks the database.
            scope: Says of an answer that is not None which rows it is made of: a table, or `table tenant`.
        """
        with self._guard:
            is_known = self._forget_changed()
            if is_known and question in self._answers:
                known: T = self._answers[question]
                return known
            before = self._seen
        answer = look_up()
        if answer is not None and is_known:
            self._keep(question, answer, scope(answer), before=before)
        return answer

    def _keep(self, question: Hashable, answer: object, scope: str, *, before: int) -> None:
        with self._guard:
            # Changes that are not seen yet are seen, and the answer forgotten, before anybody is given it.
            if self._changed.get(scope, self._changed_at_most) > before:
                return
            if len(self._answers) >= self._most:
                self._answers.clear()
                self._questions.clear()
            self._answers[question] = answer
            self._questions.setdefault(scope, set()).add(question)

    def _forget_changed(self) -> bool:
        """Forget what does not hold any more; whether the rest is known to hold."""
        version = self._version()
        if version is None:
            return False
        if version == self._holds_at:
            return True
        changes = self._list_changes(self._seen)
        if changes is None:
            return False
        for number, changed in changes:
            for scope in (changed, changed.partition(" ")[0]):
                for question in self._questions.pop(scope, ()):
                    self._answers.pop(question, None)
                self._changed[scope] = number
            self._seen = number
        if len(self._changed) > self._most:
            self._changed.clear()
            self._changed_at_most = self._seen
        self._holds_at = version
        return True


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page of a list, and whether more follow."""

    items: tuple[T, ...]
    has_more: bool


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Start and length of a page: `after` is the id of the last item of the page before."""

    after: str | None = None
    limit: int = 20
    newest_first: bool = True


class Database:
    """One database; safe to use from many threads and processes."""

    def __init__(self, url: URL, *, connections: int = CONNECTIONS, waiting: float = WAITING_SECONDS) -> None:
        """Open it, and bring its tables to the present form.

        Args:
            url: URL of the database.
            connections: The most that this process has open at once; whoever needs one more waits.
            waiting: Longest wait of a writer for the others, and of anybody for a connection, s.

        Raises:
            UsageError: It was written by a newer version.
            UnavailableError: It cannot be reached.
        """
        self._engine = _make_engine(url, connections=connections, waiting=waiting)
        self._writing = self._engine.execution_options(**{_WRITES: True})
        # Connections that hold a lock while others write: from the pool they would keep those from writing.
        self._locking = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=_PATIENCE)
        self._watching: sqlite3.Connection | None = None
        self.remembered = Remembered(self._read_version, self._list_changes)
        try:
            with self.write() as connection:
                migrate(connection)
        except BaseException:
            self._engine.dispose()
            raise
        if self.is_sqlite:
            # Asked for the number and the changes, under the lock of `remembered`; autocommit, so no read stays open.
            self._watching = sqlite3.connect(
                str(url.database), timeout=0, isolation_level=None, check_same_thread=False
            )

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a file of ours."""
        return self._engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one moment of the database. Raises `UnavailableError` while it is away."""
        refuse_to_wait()
        with _answering(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A connection that holds the write lock: all of the block happens, or nothing.

        Raises:
            UnavailableError: The database is away. If it went while the block was made to stay, it may have stayed.
        """
        refuse_to_wait()
        with _answering(), self._writing.begin() as connection:
            yield connection

    @contextmanager
    def add_beside(self, name: str) -> Iterator[Connection]:
        """A connection of one transaction that on PostgreSQL runs beside the writer, unless that one holds the name.

        For rows that have no number. Others add at the same moment, so each of its statements must hold whatever they
        do. Nothing in it may wait for the write lock. On SQLite it is `write`. Raises `UnavailableError` likewise.
        """
        refuse_to_wait()
        beside = self._engine.execution_options(**{_WRITES: self.is_sqlite, _BESIDE: name})
        with _answering(), beside.begin() as connection:
            yield connection

    @contextmanager
    def change_alone(self) -> Iterator[Connection]:
        """A connection each statement of which is a transaction of its own, beside whoever holds the write lock.

        For rows whose order nobody reads, such as buckets of tokens. Raises `UnavailableError` while it is away.
        """
        refuse_to_wait()
        with _answering(), self._engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def hold_name(self, name: str, *, shared: bool) -> Iterator[None]:
        """Hold PostgreSQL's lock for a name within the block: by one connection of its own, which ends with it.

        So it is held in whatever process on whatever machine, and let go of when that dies.
        """
        how = "pg_advisory_lock_shared" if shared else "pg_advisory_lock"
        with _answering(), self._locking.connect() as connection:
            connection.execute(text(f"SET lock_timeout = {math.ceil(1000 * WAITING_SECONDS)}"))
            connection.execute(text(f"SELECT {how}({_NAME_LOCKS}, {_number_name(name)})"))
            yield

    def check(self) -> None:
        """Ask it something. Raises `UnavailableError` if it does not answer."""
        with self.read() as connection:
            connection.execute(select(1))

    def forget_deleted(self) -> None:
        """Empty SQLite's log of writes, which still holds what was deleted; the file itself is overwritten at once."""
        if self.is_sqlite:
            with _answering(), self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                # Closed here: for as long as anybody holds the answer, the next who gets this connection cannot commit.
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").close()

    def close(self) -> None:
        """Let go of it."""
        if self._watching is not None:
            self._watching.close()
            self._watching = None
        self._engine.dispose()

    def _read_version(self) -> int | None:
        """Return SQLite's count of commits by all other connections, in whatever process."""
        if self._watching is None:
            return None
        try:
            return int(self._watching.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.OperationalError:  # busy for a moment: then it has to be asked
            return None

    def _list_changes(self, after: int) -> Sequence[tuple[int, str]] | None:
        """Return what SQLite's triggers have noted after the change of a number: a page or two, in memory."""
        if self._watching is None:
            return None
        try:
            query = "SELECT number, scope FROM changes WHERE number > ? ORDER BY number"
            return self._watching.execute(query, (after,)).fetchall()
        except sqlite3.OperationalError:
            return None


def database_url(setting: str | None, *, file: Path) -> URL:
    """Return the URL of the rows: that of a setting, or of an SQLite file.

    Raises:
        UsageError: The URL is not one of PostgreSQL. The message does not repeat it: a password may be in it.
    """
    if setting is None:
        return URL.create("sqlite", database=str(file))
    try:
        url = make_url(setting)
    except ArgumentError:
        url = URL.create("unreadable")
    if url.get_backend_name() != "postgresql" or not url.database:
        raise UsageError(
            "the setting database_url must be like postgresql://user@host/name; leave it out for SQLite in the data "
            "directory"
        )
    return url.set(drivername="postgresql+psycopg")


def hold_alone(connection: Connection, name: str) -> None:
    """Wait until nobody adds to what has a name, and keep others from it until this writer's transaction ends."""
    if connection.dialect.name != "sqlite":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_SHARED_LOCKS}, {_number_name(name)})"))


def _number_name(name: str) -> int:
    """Return the number of 32 bits that stands for a name among PostgreSQL's locks."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big", signed=True)


def find(connection: Connection, table: Table, id_: str, *, tenant: str) -> Row[Any]:
    """The row of an id that belongs to a tenant.

    A row of somebody else is searched for and missed by the same query as one that never was.

    Raises:
        NotFoundError: There is none. The message does not repeat the id, which a stranger may have made up.
    """
    row = connection.execute(select(table).where(table.c.id == id_, table.c.tenant == tenant)).first()
    if row is None:
        raise NotFoundError(f"no such object among the {table.name}; list them to see what there is")
    return row


def read_page(
    connection: Connection, table: Table, cursor: Cursor, *, where: ColumnElement[bool] | None = None
) -> tuple[list[Row[Any]], bool]:
    """The rows of one page in order of creation, and whether more follow.

    Raises:
        NotFoundError: The cursor names no row of this list.
    """
    within = true() if where is None else where
    # A tenant is known by its name.
    number, id_ = table.c.number, table.c.id if "id" in table.c else table.c.name
    query = select(table).where(within).order_by(number.desc() if cursor.newest_first else number.asc())
    if cursor.after is not None:
        start = connection.execute(select(number).where(within, id_ == cursor.after)).scalar()
        if start is None:
            raise NotFoundError(f"no such object among the {table.name} for the cursor after; start without it")
        query = query.where(number < start if cursor.newest_first else number > start)
    rows = list(connection.execute(query.limit(cursor.limit + 1)))
    return rows[: cursor.limit], len(rows) > cursor.limit


def make_value(row: Row[Any], kind: type[Stored]) -> Stored:
    """The value in a row: each of its fields is the column of that name."""
    return kind(**{field.name: row._mapping[field.name] for field in fields(kind)})


@contextmanager
def _answering() -> Iterator[None]:
    """Within the block a database that is away raises `UnavailableError`."""
    try:
        yield
    except (DBAPIError, NoConnectionError) as error:
        if not _is_away(error):
            raise
        kind = type(error.orig if isinstance(error, DBAPIError) else error).__name__
        log.error("the database gave no answer: %s", kind)
        raise UnavailableError(
            f"the database must be reachable, got {kind}; try again later, and check its URL and that it runs"
        ) from None


def _is_away(error: DBAPIError | NoConnectionError) -> bool:
    """Whether the same statement may pass later."""
    if isinstance(error, NoConnectionError) or error.connection_invalidated:
        return True
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _SQLITE_AWAY
    return isinstance(error, OperationalError | InterfaceError)


def _make_engine(url: URL, *, connections: int, waiting: float) -> Engine:
    pool: dict[str, Any] = {"pool_size": connections, "max_overflow": 0, "pool_timeout": waiting}
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": waiting}, **pool)
        _configure_sqlite(engine)
        return engine
    # pre_ping: the server may have been restarted since a connection was last used.
    engine = create_engine(
        url,
        pool_pre_ping=True,
        isolation_level="REPEATABLE READ",
        connect_args=_PATIENCE,
        **pool,
    )
    lock_timeout = f"SET LOCAL lock_timeout = {math.ceil(1000 * waiting)}"

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        beside = options.get(_BESIDE)
        if options.get(_WRITES, False) or beside is not None:
            # In a statement of its own, at the level where the next one sees what the writer before has left.
            connection.execute(text(f"SET TRANSACTION ISOLATION LEVEL READ COMMITTED; {lock_timeout}"))
            if beside is None:
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_WRITE_LOCK})"))
            else:
                connection.execute(
                    text(f"SELECT pg_advisory_xact_lock_shared({_SHARED_LOCKS}, {_number_name(beside)})")
                )

    return engine


def _configure_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: object) -> None:
        # The driver must not begin transactions by itself: it would begin them late, and deferred.
        connection.isolation_level = None
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("isolation_level") == "AUTOCOMMIT":
            return
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get(_WRITES, False) else "BEGIN")
