"""A PostgreSQL server of the tests' own: Debian's programs, a new folder, a socket in it and no port."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from running_service import wait_until


@contextmanager
def own_postgresql() -> Iterator[str]:
    """The URL of an empty database; skips the test where no server is installed."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("no PostgreSQL server is installed; try: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="rapt-pg-"))
    try:
        as_user: list[str] = []
        if os.geteuid() == 0:  # the server refuses to run as root
            account = pwd.getpwnam("postgres")
            os.chown(folder, account.pw_uid, account.pw_gid)
            as_user = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
        bin_, data = programs[-1].parent, folder / "data"
        subprocess.run(
            [*as_user, bin_ / "initdb", "-D", data, "-U", "rapt", "--auth=trust", "--no-sync", "-E", "UTF8"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen([*as_user, bin_ / "postgres", "-D", data, *options], stdout=log, stderr=log)
        try:
            wait_until(lambda: _answers(folder) or server.poll() is not None)
            assert server.poll() is None, (folder / "log").read_text()
            yield f"postgresql://rapt@/postgres?host={folder}"
        finally:
            server.terminate()
            server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answers(folder: Path) -> bool:
    try:
        psycopg.connect(host=str(folder), user="rapt", dbname="postgres").close()
    except psycopg.OperationalError:
        return False
    return True
