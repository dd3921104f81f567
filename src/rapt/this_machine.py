"""Facts of this machine alone: where what can be made again is kept, its memory, and which requests come from it."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_LEAST: Final = 1024 * 1024
# What is counted on where the system does not tell its memory, as Windows does not through Python's own library.
_SURELY: Final = 4 * 1024**3
# Where the memory of a control group stands: version 2, then 1.
_GROUPS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_FREE: Final = re.compile(r"^MemAvailable:\s*(\d+) kB$", re.MULTILINE)

# What browsers say of a request of a page to where it came from, and of one that no page made.
_OWN_SITE: Final = frozenset({"same-origin", "none"})
# What proxies say of those for whom they ask; besides these, whatever begins with `x-forwarded-`.
_FORWARDED: Final = frozenset(
    "forwarded via x-real-ip x-client-ip x-cluster-client-ip x-original-host x-original-url x-host true-client-ip "
    "cf-connecting-ip cf-ray fastly-client-ip fly-client-ip x-envoy-external-address x-appengine-user-ip".split()
)


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


def is_asked_from_here(headers: Mapping[str, str], *, scheme: str) -> bool:
    """Return whether a program of this machine asks, or a page of the very origin that is asked, and no other page.

    A page in the user's browser reaches loopback too, but the browser says of each request which origin it comes from,
    or that it is of another site; and a host name that was rebound to 127.0.0.1 is not a loopback name. A proxy on this
    machine asks for somebody who may be anywhere.

    Args:
        headers: Headers of a request that came over loopback, their names in small letters.
        scheme: Scheme of its URL.
    """
    if any(name in _FORWARDED or name.startswith("x-forwarded-") for name in headers):
        return False
    host = headers.get("host", "")
    name, colon, port = host.rpartition(":")
    has_port = bool(colon) and not host.endswith("]")
    if (has_port and not port.isdecimal()) or not is_loopback(name if has_port else host):
        return False
    own = f"{scheme}://{host}"
    return headers.get("origin", own) == own and headers.get("sec-fetch-site", "none") in _OWN_SITE


def measure_half_of_memory() -> int:
    """Half of the memory of this machine, or of the control group of this process, or 2 GiB if unknown; bytes."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else _SURELY
    for group in _GROUPS:
        try:
            said = group.read_text().strip()
        except OSError:
            continue
        if said.isdecimal():
            whole = min(whole, int(said))
    return max(whole // 2, _LEAST)


def measure_available_memory() -> int:
    """The memory that is free for a process on this machine, where the system tells it, else half of all; bytes."""
    half = measure_half_of_memory()
    try:
        told = _FREE.search(Path("/proc/meminfo").read_text())
    except OSError:
        told = None
    return half if told is None else min(2 * half, int(told[1]) * 1024)
