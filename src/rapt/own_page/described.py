"""Statements, ledgers and figures that were measured before, as plain values, which the page shows.

A figure is found by the vocabulary or code and the mechanism that it holds for, and no other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from typing import Any, Final

from rapt.local.codes.text_statement import TextStatement
from rapt.local.ledger_report import LedgerSummary
from rapt.local.statement import PrivacyStatement
from rapt.severity import Severity, weigh_attack, weigh_use


def describe_statement(statement: PrivacyStatement | TextStatement) -> dict[str, Any]:
    """Describe a statement as plain values for the page: what is protected, how well, and what is not."""
    if isinstance(statement, TextStatement):
        bounds: Sequence[dict[str, Any]] = [
            {
                "what": f"one of {guess.among:,} texts that are as likely",
                "right": guess.right,
                "blind": guess.blind,
                "severity": weigh_attack(guess.right, blind=guess.blind),
            }
            for guess in statement.guesses
        ]
    else:
        bounds = [
            {
                "what": bound.meaning,
                "right": bound.right_guess,
                "blind": 0.5,
                "severity": weigh_attack(bound.right_guess, blind=0.5),
            }
            for bound in (*statement.pairs, *statement.texts[:1])
        ]
    return {
        "says": statement.unit,
        "warning": statement.warning,
        "severity": Severity.PLAIN if statement.warning is None else Severity.BAD,
        "bounds": bounds,
        "not_protected": [asdict(exposure) for exposure in statement.not_protected],
        "page": statement.to_text(),
    }


def describe_ledger(found: LedgerSummary) -> dict[str, Any]:
    """Describe what was spent and what is left as plain values, without a text or a hash of one."""
    budgets = {}
    for budget, spent in found.spent.items():
        cap = found.caps.of(budget)
        used = [
            share
            for share in (
                None if cap.in_all is None else spent.in_all / cap.in_all,
                None if cap.on_text is None else spent.most_on_one_text / cap.on_text,
            )
            if share is not None
        ]
        budgets[budget] = {
            "in_all": spent.in_all,
            "most_on_one_text": spent.most_on_one_text,
            "cap_in_all": cap.in_all,
            "cap_on_one_text": cap.on_text,
            "used": max(used, default=None),
            "severity": weigh_use(max(used, default=0.0)),
        }
    return {
        "texts": found.texts,
        "releases": found.releases,
        "tokens": found.tokens,
        "rows": found.rows,
        "first": found.first,
        "last": found.last,
        "budgets": budgets,
        "settings": [
            {
                "kind": spending.kind,
                "mechanism": _name_mechanism(spending.setting),
                "releases": spending.releases,
                "tokens": spending.tokens,
                "in_all": spending.in_all,
            }
            for spending in found.settings
        ],
    }


def _name_mechanism(setting: Mapping[str, Any]) -> str:
    stated = setting["mechanism"]
    if isinstance(stated, str):
        return f"{stated}, ε = {setting['epsilon']:g}, {setting['classes']} classes"
    parameters = stated["parameters"]
    letters = {"eta": "η", "epsilon": "ε"}
    said = ", ".join(f"{letter} = {parameters[name]:g}" for name, letter in letters.items() if name in parameters)
    return f"{stated['name']}, {said}"


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
