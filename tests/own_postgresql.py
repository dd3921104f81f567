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


class OwnPostgresql:
    """A server in a folder, which can be stopped and started again."""

    def __init__(self, folder: Path, *, programs: Path, as_user: list[str], options: tuple[str, ...]) -> None:
        self.url = f"postgresql://rapt@/postgres?host={folder}"
        self._folder = folder
        self._command = [*as_user, programs / "postgres", "-D", folder / "data"]
        for option in ("listen_addresses=", f"unix_socket_directories={folder}", "fsync=off", *options):
            self._command += ["-c", option]
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Serve, and answer by the time this returns."""
        with (self._folder / "log").open("ab") as log:
            server = self._server = subprocess.Popen(self._command, stdout=log, stderr=log)
        wait_until(lambda: _answers(self._folder) or server.poll() is not None)
        assert server.poll() is None, (self._folder / "log").read_text()

    def stop(self) -> None:
        """End every connection at once, and then the server."""
        if self._server is not None:
            self._server.send_signal(2)
            self._server.wait()
            self._server = None


@contextmanager
def own_postgresql(*options: str) -> Iterator[OwnPostgresql]:
    """A server that runs, with an empty database; skips the test where none is installed."""
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
        subprocess.run(
            [*as_user, programs[-1], "-D", folder / "data", "-U", "rapt", "--auth=trust", "--no-sync", "-E", "UTF8"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        server = OwnPostgresql(folder, programs=programs[-1].parent, as_user=as_user, options=options)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answers(folder: Path) -> bool:
    try:
        psycopg.connect(host=str(folder), user="rapt", dbname="postgres").close()
    except psycopg.OperationalError:
        return False
    return True
