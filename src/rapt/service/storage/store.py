"""The state of a service: a database and a data directory that always agree.

Order of writes: bytes first, then the row that names them; to delete, the row first, then the bytes. So a crash leaves
at worst bytes that no row names, and the next start (`recovery`) deletes those.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import RLock

from rapt.service.storage.data_directory import DataDirectory
from rapt.service.storage.database import Database


@dataclass(frozen=True, eq=False)
class Store:
    """Where everything is. The functions of the `..._rows` modules take one.

    Attributes:
        database: Rows.
        directory: Bytes.
        naming: Held while bytes of a file get or lose their row, so that one client's deletion cannot take away the
            same bytes that another has just uploaded. Only the one serving process names files.
    """

    database: Database
    directory: DataDirectory
    naming: RLock = field(default_factory=RLock)
