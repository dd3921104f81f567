"""Figures that were measured before, by the vocabulary or code and the mechanism that they hold for, and no other."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any, Final

from rapt.severity import weigh_attack

# Written by tests/page_figures.py from the kept lines of docs/results.
_FILE: Final = "figures.json"


def find_figures(vocabulary_hash: str, mechanism: str) -> dict[str, Any] | None:
    """Return the figures of a setting at every strength that was measured, each with its severity; None where none is.

    Args:
        vocabulary_hash: Hash of the vocabulary, or of the code.
        mechanism: Name of the mechanism.
    """
    for known in _read_figures():
        if (known["hash"], known["mechanism"]) == (vocabulary_hash, mechanism):
            return known
    return None


@cache
def _read_figures() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((files(__package__) / _FILE).read_text(encoding="utf-8"))
    for known in found:
        for point in known["points"]:
            named = point["named"]
            named["severity"] = weigh_attack(named["value"], blind=named["blind"])
    return found
