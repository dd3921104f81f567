"""The command line: one command a file, data on stdout, everything else on stderr, one line for an error.

A command imports the rooms it needs when it runs, so `rapt --help` and the commands of the trusted half never load the
service's libraries. `main` is the console script.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process and leave with its exit code."""
    from rapt.cli.program import run

    # A killed run cleans up like an interrupted one: writers remove what is half written.
    signal.signal(signal.SIGTERM, _leave)
    sys.exit(run(sys.argv[1:]))


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
