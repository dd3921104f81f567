"""An adapter as one run of bytes: its files in a ZIP archive, as a service keeps it and hands it out.

The same files are the same archive: sorted by name, not compressed (weights are noise to a compressor), with a fixed
date. Nobody needs this program to open one.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from typing import Final

from rapt.errors import WireError

_MOST_FILES: Final = 8
# All that `zipfile` makes of other bytes.
_DAMAGED: Final = (
    zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError, NotImplementedError, struct.error, OverflowError
)  # fmt: skip


def pack_adapter(files: Mapping[str, bytes]) -> bytes:
    """The archive of files, by name."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name])
    return packed.getvalue()


def unpack_adapter(archive: bytes) -> dict[str, bytes]:
    """The files in an archive of `pack_adapter`, in memory: no name in it is ever a path.

    What comes out is no larger than the archive: nothing is compressed, no two files share bytes, no name comes twice.

    Raises:
        WireError: It is none of ours.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            entries = opened.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise WireError("an adapter's archive must not be compressed; export it again")
            if len(entries) > _MOST_FILES or len({entry.filename for entry in entries}) != len(entries):
                raise WireError(
                    f"an adapter's archive must have at most {_MOST_FILES} files, each once; export it again"
                )
            if sum(max(entry.file_size, entry.compress_size) for entry in entries) > len(archive):
                raise WireError("an adapter's archive must be as large as its files; export it again")
            return {entry.filename: opened.read(entry) for entry in entries}
    except _DAMAGED:
        raise WireError("an adapter's archive must be whole; export it again") from None
