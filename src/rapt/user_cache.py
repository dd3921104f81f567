"""Where everything that can be made again is kept: converted models and certificates."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`RAPT_CACHE_DIR`, or `rapt` in the user's cache folder."""
    if chosen := os.environ.get("RAPT_CACHE_DIR"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rapt"
