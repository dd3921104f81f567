"""Facts of this machine alone: where results that can be made again are kept, and which addresses stay on it."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path


def find_cache_folder() -> Path:
    """Return `RAPT_CACHE_DIR`, or `rapt` in the user's cache folder."""
    if chosen := os.environ.get("RAPT_CACHE_DIR"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rapt"


def is_loopback(host: str) -> bool:
    """Return whether a name or address, without a port, reaches this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
