"""A file that is there whole or not at all, whatever happens while it is written."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: str) -> Path:
    """Write the content, UTF-8, under its final name once it is on the disk. Returns the path.

    Raises:
        OSError: It cannot be written; nothing of it is left, and what was there before stays.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        return partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
