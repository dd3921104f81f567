"""Writes docs/cli.md, the help of every command as a page; `make help-pages` runs it, and a test compares.

Run as `python -m rapt.cli.help_pages`.
"""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout
from typing import Final

import typer

from rapt.cli.output import show
from rapt.cli.program import COMMANDS, GROUPED, name_command, run


def _list_calls(name: str, group: typer.Typer) -> list[str]:
    below = [item.name or getattr(item.callback, "__name__", "") for item in group.registered_commands]
    return [name, *(f"{name} {command.replace('_', '-')}" for command in below)]


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
| 11 | a Ray cluster could not be joined, was lost, or is full |
| 130 | interrupted |

What one gives again and again can stand in `~/.config/rapt/config.toml` (or in `$XDG_CONFIG_HOME/rapt/`):

```toml
profile = "work"                          # the one that is taken when --profile and RAPT_PROFILE name none

[profiles.work]
service = "http://127.0.0.1:8420"         # --service
ca_file = "~/rapt-ca.pem"                 # --ca-file
api_key = "sk-..."                        # --api-key; the file must then be readable by you alone (chmod 600)
vocabulary = "minilm"                     # --vocabulary, where it has a default
codes = "minilm-codes"                    # --codes, where it has a default
```

The command line goes before the environment, and the environment before the profile. A key and a CA file of a profile
are used for the service of that profile alone. `rapt --install-completion` completes commands and options in bash, zsh
and fish.
"""
GROUPS: Final = tuple(call for name, group in GROUPED.items() for call in _list_calls(name, group))
_WIDTH: Final = "102"


def write_help_pages() -> str:
    """The page: an introduction and the help of every command, at a width that does not depend on the terminal."""
    calls = ["", *(name_command(command) for command in COMMANDS), *GROUPS]
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
