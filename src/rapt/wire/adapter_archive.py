"""An adapter as one run of bytes: its files in a ZIP archive, as a service keeps it and hands it out.

The same files are the same archive: sorted by name, not compressed (weights are noise to a compressor), with a fixed
date. Nobody needs this program to open one.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

from rapt.errors import WireError


def pack_adapter(files: Mapping[str, bytes]) -> bytes:
    """The archive of files, by name."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name])
    return packed.getvalue()


def unpack_adapter(archive: bytes) -> dict[str, bytes]:
    """The files in an archive of `pack_adapter`, in memory: no name in it is ever a path.

    Raises:
        WireError: It is none of ours.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in opened.infolist()):
                raise WireError("an adapter's archive must not be compressed; export it again")
            return {name: opened.read(name) for name in opened.namelist()}
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError):  # all that `zipfile` makes of other bytes
        raise WireError("an adapter's archive must be whole; export it again") from None
