"""The command line: one command a file, data on stdout, everything else on stderr, one line for an error.

A command imports the rooms it needs when it runs, so `rapt --help` and the commands of the trusted half never load the
service's libraries. `main` is the console script.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from types import FrameType

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process and leave with its exit code."""
    _open_missing_streams()
    from rapt.cli.program import run

    # A killed run, or one whose terminal is closed, cleans up like an interrupted one: writers remove what is half
    # written. Who wants it to outlive its terminal has SIGHUP ignored, as nohup does.
    signal.signal(signal.SIGTERM, _leave)
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _leave)
    # Python looks for garbage before it leaves, in all that torch and its kind have made, for nothing.
    atexit.register(gc.freeze)
    sys.exit(run(sys.argv[1:]))


def _open_missing_streams() -> None:
    """Open the null device where stdin, stdout or stderr was closed, here and in every process that is started.

    The first file that is opened would take its number, and what a library prints would be written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
