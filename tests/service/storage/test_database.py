"""The connections that are handed around: whoever gets one next must be able to use it."""

import pytest
from sqlalchemy import Engine, event, text

from rapt.service.storage.database import Database, database_url


@pytest.fixture
def database(tmp_path):
    opened = Database(database_url(None, file=tmp_path / "rows.sqlite3"))
    yield opened
    opened.close()


@pytest.fixture
def held():
    """All cursors, held as a debugger or the garbage collector may hold them."""
    cursors = []

    def hold(_connection, cursor, *_rest):
        cursors.append(cursor)

    event.listen(Engine, "after_cursor_execute", hold)
    yield cursors
    event.remove(Engine, "after_cursor_execute", hold)


def test_a_log_that_was_emptied_leaves_a_connection_that_commits(database, held):
    """A service was watched under load by a list of all objects: requests were answered 500 until the list was gone."""
    for _ in range(3):
        database.forget_deleted()
        with database.write() as connection:
            connection.execute(text("UPDATE jobs SET status = status"))
    assert held
