"""What every page of ours is made of: style, elements, one way to ask where it came from, and headers of its answers.

A page is HTML, style and scripts as they lie in folders called `static`, its own and the one here. It loads nothing
from elsewhere, and there is nothing of anybody in it: so it needs no key to be loaded, and asks for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Final

from rapt.severity import PALETTE

ENTRY: Final = "index.html"
# Parts that every page has.
STYLE: Final = "style.css"
SHARED: Final = (STYLE, "icon.svg", "connection.js", "elements.js", "sections.js", "status.js")
_TYPES: Final[Mapping[str, str]] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".js": "text/javascript; charset=utf-8",
}

# No inline script or style, nothing from elsewhere, in nobody's frame; and no script may write HTML from a string.
CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def list_assets(own: Iterable[str]) -> dict[str, str]:
    """List every file of a page with its media type, so that no name from outside is looked for on the disk.

    Args:
        own: Names of the page's own files; those of all pages are added.
    """
    return {name: _TYPES[f".{name.rpartition('.')[2]}"] for name in (*own, *SHARED)}


def list_paths(assets: Iterable[str]) -> frozenset[str]:
    """List the paths of a page: its entry at the root, the other files below `/page`."""
    return frozenset({"/", *(f"/page/{name}" for name in assets if name != ENTRY)})


def read_contents(package: str, assets: Iterable[str]) -> dict[str, bytes]:
    """Read every file of a page; the colours come before its style.

    Args:
        package: Package with the page's own files in its folder `static`.
        assets: Names of all files.
    """
    own, shared = files(package) / "static", files(__package__) / "static"
    read = {name: ((shared if name in SHARED else own) / name).read_bytes() for name in assets}
    return read | {STYLE: PALETTE.encode() + read[STYLE]}
