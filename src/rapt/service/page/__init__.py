"""The page for the provider and the tenant: static files in the browser, and the public API behind them."""

from __future__ import annotations

from typing import Final

from rapt.page_parts import ENTRY, list_assets, list_paths, read_contents

ASSETS: Final = list_assets(
    (
        ENTRY,
        "account.js",
        "curves.js",
        "files.js",
        "first_steps.js",
        "job_view.js",
        "jobs.js",
        "keys.js",
        "models.js",
        "operation.js",
        "predictions.js",
        "query.js",
        "search.js",
        "service.js",
        "start.js",
        "tenants.js",
        "try_it.js",
    )
)
PAGE_PATHS: Final = list_paths(ASSETS)


def contents() -> dict[str, bytes]:
    """The bytes of every file of the page."""
    return read_contents(__package__, ASSETS)
