"""Bytes where they were before: adapters of an earlier version, and blobs of a service that keeps them elsewhere now.

Each is put where it belongs before its row says so, and deleted where it was after that. So a crash at any moment
leaves what the next start goes on with.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Final

from sqlalchemy import select, update

from rapt.service.storage.blobs_local import LocalBlobs
from rapt.service.storage.durable_files import StagedFile
from rapt.service.storage.named_blobs import named_blobs, naming
from rapt.service.storage.store import Store
from rapt.service.storage.tables import MODELS
from rapt.wire.adapter_files import pack_adapter

log = logging.getLogger(__name__)

# What a model names whose adapter was lost: no bytes are kept under it.
_NOTHING: Final = hashlib.sha256(b"").hexdigest()


def bring_along(store: Store) -> int:
    """Put everything where it belongs, before anybody looks; for the one serving process. Returns how much it was."""
    return _adapters(store) + _blobs(store)


def _adapters(store: Store) -> int:
    folder = store.directory.old_adapters
    with store.database.read() as connection:
        old = connection.execute(select(MODELS.c.number, MODELS.c.adapter).where(MODELS.c.sha256 == "")).all()
    for row in old:
        change = update(MODELS).where(MODELS.c.number == row.number)
        files = _files_in(folder / row.adapter)
        if not files:
            log.error("the adapter of model number %d is missing", row.number)
            with store.database.write() as connection:
                connection.execute(change.values(sha256=_NOTHING))
            continue
        with (
            store.directory.stage_bytes(pack_adapter(files)) as staged,
            naming(store, staged),
            store.database.write() as connection,
        ):
            # The size too: before it was counted it was 0, and an archive is a little larger than its files.
            connection.execute(change.values(sha256=staged.sha256, bytes=staged.bytes))
        shutil.rmtree(folder / row.adapter)
    if folder.exists():
        shutil.rmtree(folder)  # with what no row has named
    return len(old)


def _files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


def _blobs(store: Store) -> int:
    here = LocalBlobs(store.directory.blobs)
    if isinstance(store.blobs, LocalBlobs) and store.blobs.root == here.root:
        return 0
    with store.database.read() as connection:
        named = named_blobs(connection)
    moved = 0
    for name in list(here.list()):
        if name in named:
            store.blobs.put(StagedFile(path=here.path(name), bytes=here.size(name), sha256=name))
            moved += 1
        here.delete(name)
    here.disclaim()
    return moved
