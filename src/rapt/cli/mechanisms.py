"""`rapt mechanisms`: what can replace a token, and how far its guarantee is proved."""

from __future__ import annotations

from rapt.cli.options import AsJson
from rapt.cli.output import show, show_json, table


def mechanisms(as_json: AsJson = False) -> None:
    """List the mechanisms with the status of their guarantee.

    \b
    Example:
      rapt mechanisms
    """
    from rapt.local.mechanisms import MECHANISMS

    listed = [
        {"name": name, "status": kind.status, "summary": (kind.__doc__ or "").strip().splitlines()[0]}
        for name, kind in MECHANISMS.items()
    ]
    if as_json:
        show_json({"mechanisms": listed})
    else:
        show(table(["mechanism", "guarantee", "what it does"], [list(entry.values()) for entry in listed]))
