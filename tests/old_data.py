"""What a service of before migration 0004 has left: adapters in folders, files in `files/`, sizes that nobody counted.

Run as a program, it opens copies of that folder again and again, and is killed at every change of the disk in turn:

    python tests/old_data.py OLD COPIES BLOBS
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
from pathlib import Path

from sqlalchemy import create_engine, text

from rapt.service.storage.database import database_url
from rapt.service.storage.migrations import migrate
from rapt.service.storage.recovery import open_store

FILE = b"a privatized file"
# What the second model has is byte for byte what the first has.
ADAPTERS = {"aa": b"weights", "bb": b"weights", "cc": b"others"}
_CHANGES = frozenset({"os.rename", "os.remove", "shutil.rmtree"})


def write_old_data(data: Path, *, url: str | None = None) -> str:
    """Write it; returns the digest of the file."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest = hashlib.sha256(FILE).hexdigest()
    (data / "files" / digest[:2]).mkdir(parents=True)
    (data / "files" / digest[:2] / digest).write_bytes(FILE)
    for name, weights in {**ADAPTERS, "nobodys": b"x"}.items():
        folder = data / "adapters" / name
        folder.mkdir(parents=True)
        (folder / "rapt.json").write_bytes(b"{}")
        (folder / "adapter_model.safetensors").write_bytes(weights)
    engine = create_engine(database_url(url, file=data / "rapt.sqlite3"))
    with engine.begin() as connection:
        migrate(connection, to="0003")
        connection.execute(
            text(
                "INSERT INTO files (id, tenant, filename, purpose, bytes, sha256, created_at, vocabulary_hash, "
                "mechanism, insecure_seed, records, tokens, longest, plain_tokens, labels) VALUES "
                "('file-old', 'local', 'f', 'fine-tune', :bytes, :digest, 1, 'v', '{}', false, 1, 1, 1, 0, 0)"
            ),
            {"bytes": len(FILE), "digest": digest},
        )
        for name in ADAPTERS:
            connection.execute(
                text(
                    "INSERT INTO models (id, tenant, base, adapter, created_at) VALUES (:id, 'local', 'toy', :name, 1)"
                ),
                {"id": f"ft:{name}", "name": name},
            )
    engine.dispose()
    return digest


def killed_openings(old: Path, copies: Path, blobs: str) -> int:
    """Open one copy after the other, each killed one change later, until one is through; returns how many."""
    number = 0
    while True:
        data = copies / str(number)
        shutil.copytree(old, data)
        child = os.fork()
        if not child:
            _die_at(number)
            with open_store(data, blobs=f"{blobs}/{number}"):
                os._exit(0)
        _, status = os.waitpid(child, 0)
        number += 1
        if not os.WIFSIGNALED(status):
            assert status == 0
            return number


def _die_at(change: int) -> None:
    seen = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal seen
        # A folder is opened to be flushed: that is between the bytes and their row.
        if event in _CHANGES or (event == "open" and isinstance(arguments[0], Path) and arguments[0].is_dir()):
            if seen == change:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(count)


if __name__ == "__main__":
    killed_openings(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
