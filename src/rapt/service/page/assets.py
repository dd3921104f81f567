"""Files of the page: HTML, style and scripts as they lie in `static`, and headers that let it load nothing else.

The page is one more client of the public API. It needs no key to be loaded, because there is nothing of anybody in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Final

ENTRY: Final = "index.html"
# Every file of the page, so that no name from outside is ever looked for on the disk.
ASSETS: Final[Mapping[str, str]] = {
    ENTRY: "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    **dict.fromkeys(
        (
            "account.js",
            "curves.js",
            "elements.js",
            "files.js",
            "job_view.js",
            "jobs.js",
            "keys.js",
            "models.js",
            "operation.js",
            "query.js",
            "service.js",
            "start.js",
            "status.js",
            "tenants.js",
            "try_it.js",
        ),
        "text/javascript; charset=utf-8",
    ),
}
PAGE_PATHS: Final = frozenset({"/", *(f"/page/{name}" for name in ASSETS if name != ENTRY)})

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


def contents() -> dict[str, bytes]:
    """The bytes of every file of the page."""
    static = files(__package__) / "static"
    return {name: (static / name).read_bytes() for name in ASSETS}
