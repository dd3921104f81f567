"""The state of a service: a database, a data directory and a store of blobs that always agree.

Order of writes: bytes first, then the row that names them; to delete, the row first, then the bytes. So a crash leaves
at worst bytes that no row names, and the next start (`recovery`) deletes those.
"""

from __future__ import annotations

from dataclasses import dataclass

from rapt.service.storage.blob_store import BlobStore
from rapt.service.storage.data_directory import DataDirectory
from rapt.service.storage.database import Database


@dataclass(frozen=True, eq=False)
class Store:
    """Where everything is. The functions of the `..._rows` modules take one.

    Attributes:
        database: Rows.
        directory: What is on its way, states of runs, locks.
        blobs: Files and adapters, by their digests; which of them are needed is known to `named_blobs`.
    """

    database: Database
    directory: DataDirectory
    blobs: BlobStore
