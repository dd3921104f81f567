"""Writes docs/cli.md, the help of every command as a page; `make help-pages` runs it, and a test compares.

Run as `python -m rapt.cli.help_pages`.
"""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout
from typing import Final

from rapt.cli.output import show
from rapt.cli.program import COMMANDS, run

_INTRODUCTION: Final = """\
# The command line

What `--help` says, written by `make help-pages`. Data goes to stdout, everything else to stderr. With `--json` one JSON
document stands on stdout. An error is one line, `rapt: error: ...`, and an exit code:

| code | meaning |
|---|---|
| 0 | done |
| 1 | a defect of rapt; `RAPT_DEBUG=1` shows the traceback, which may quote a text |
| 2 | an argument breaks a rule |
| 3 | a file of texts cannot be read, or an output cannot be written |
| 4 | a privatized file, manifest or card is malformed, truncated or unknown |
| 5 | a vocabulary is missing, damaged, or not the one that was promised |
| 6 | a privacy parameter is outside its domain |
| 7 | tuning could not start, or had to stop |
| 8 | an audit cannot say anything true about this input |
| 9 | the service refused, or could not be reached |
| 10 | a ledger is damaged, busy, or without its key, or a release would spend more than it allows |
| 130 | interrupted |
"""
GROUPS: Final = (
    "vocabulary",
    "vocabulary fetch",
    "vocabulary vectors",
    "ledger",
    "ledger show",
    "ledger verify",
    "ledger cap",
    "pool",
    "pool open",
    "pool show",
    "pool keys",
    "pool close",
    "pool delete",
    "admin",
    "admin create-tenant",
    "admin list-tenants",
    "admin set-quotas",
    "admin delete-tenant",
    "admin create-key",
    "admin list-keys",
    "admin rotate-key",
    "admin revoke-key",
    "admin audit-log",
)
_WIDTH: Final = "102"


def write_help_pages() -> str:
    """The page: an introduction and the help of every command, at a width that does not depend on the terminal."""
    calls = ["", *(command.__name__.replace("_", "-") for command in COMMANDS), *GROUPS]
    return "\n".join([_INTRODUCTION, *(_write_page(call.split()) for call in calls)])


def _write_page(call: list[str]) -> str:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _WIDTH
    try:
        with redirect_stdout(io.StringIO()) as printed:
            run([*call, "--help"])
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    title = " ".join(["rapt", *call])
    return f"## {title}\n\n```text\n{printed.getvalue().rstrip()}\n```\n"


if __name__ == "__main__":
    show(write_help_pages().rstrip("\n"))
