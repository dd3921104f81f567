"""A database that cannot be used: refused in one line that does not repeat its URL. No server is needed for that."""

import pytest

from rapt.errors import UnavailableError, UsageError
from rapt.service.storage.database import database_url
from rapt.service.storage.recovery import open_store


@pytest.mark.parametrize("setting", ["mysql://x@y/z", "postgresql://", "nonsense", "sqlite:///x.db"])
def test_a_url_that_is_none_of_postgresql_is_refused_and_not_repeated(setting, tmp_path):
    with pytest.raises(UsageError, match="database_url must be like") as error:
        database_url(setting, file=tmp_path / "x")
    assert "x@y" not in str(error.value)
    assert "x.db" not in str(error.value)


def test_a_server_that_does_not_answer_is_one_clear_line(tmp_path):
    with (
        pytest.raises(UnavailableError, match="database must be reachable") as error,
        open_store(tmp_path, url=f"postgresql://rapt:a-password@/postgres?host={tmp_path}"),
    ):
        pass
    assert "a-password" not in str(error.value)
