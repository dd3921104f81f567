"""Where the command line writes: data to stdout, progress and remarks to stderr.

With `--json` exactly one JSON document stands on stdout. On a terminal progress is a bar; elsewhere it is plain lines,
one for each tenth of the work, so that a log stays readable.

What the encoding of a stream does not have is written in ASCII, never refused: a result that took hours must not be
lost because a terminal knows no ε. A stdout that takes no more, be it full or closed, is an error.
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rapt.errors import CorpusError
from rapt.narration import Meter
from rapt.severity import Severity, paint
from rapt.whole_files import write_whole

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from rapt.audit.intervals import Share


# What stands for a letter where a stream's encoding does not have it.
_IN_ASCII = {
    **{"ε": "eps", "η": "eta", "δ": "delta", "λ": "lambda", "α": "alpha", "β": "beta", "σ": "sigma", "χ": "chi"},
    **{"μ": "mu", "Σ": "sum", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "·": "*", "×": "x", "±": "+-", "∞": "inf"},
    **{"─": "-", "│": "|", "–": "-", "—": "-", "−": "-", "…": "...", "’": "'", "→": "->", "\u00a0": " "},
}
_HANDLER = "rapt.cli.output"

# Errors and remarks of the library name arguments of Python in backquotes, because programs see them too. Here they
# become the options that stand for them: those of the same name, and these others.
_SAME_NAME = (
    "author backbone codes delimiter denoised encoder epsilon eta evaluation label_column labels language_model ledger "
    "limit model original out own_texts plain_tokens policy public public_text receipt target_column text_column_2 "
    "truncate vocabulary allow_unproved=True insecure=True overwrite=True public_labels=True resume=True"
).split()
OPTIONS: Final[Mapping[str, str]] = {
    **{name: "--" + name.removesuffix("=True").replace("_", "-") for name in _SAME_NAME},
    "epsilons": "--epsilon",
    "etas": "--eta",
    "file_format": "--format",
    "header=False": "--no-header",
    "key": "--ledger-key",
    "label_column=None": "--no-label",
    "ledger=None": "--no-ledger",
    "order_key=None": "--keep-order",
    "second_column": "--text-column-2",
    "truncate_to": "--truncate",
    "trusted=True": "--trust-vocabulary",
}
_ARGUMENT: Final = re.compile(r"`([a-z][a-z0-9_]*)(?:=(\w+))?`")

# How a line begins that is said even to who wants to hear nothing, and how those begin that are said in this run.
_ALARMS = ("rapt: warning: ", "rapt: error: ")
_spoken: tuple[str, ...] = ("",)

# Between two plain lines at least this long passes, in seconds, when the end of the work is not known.
_PLAIN_INTERVAL = 5.0


def write_in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return what is written for the first letter that an encoding lacks; an error handler of `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        return codecs.replace_errors(error)
    letter, after = error.object[error.start], error.start + 1
    if "\udc80" <= letter <= "\udcff":  # a byte of a file's name that is no text here goes out as it came in
        return bytes([ord(letter) - 0xDC00]), after
    written = _IN_ASCII.get(letter)
    return (letter.encode("ascii", "backslashreplace").decode("ascii") if written is None else written), after


def accept_every_letter() -> None:
    """Make stdout and stderr write in ASCII the letters that their encodings lack."""
    codecs.register_error(_HANDLER, write_in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def be_quiet(quiet: bool) -> None:
    """Choose for the rest of a run whether warnings and errors alone are said, without progress and remarks."""
    global _spoken
    _spoken = _ALARMS if quiet else ("",)


def name_options(line: str) -> str:
    """Return a line of the library with the options of the command line in place of the arguments of Python."""

    def name_option(found: re.Match[str]) -> str:
        whole, (name, value) = found[0].strip("`"), found.groups()
        if whole in OPTIONS:
            return OPTIONS[whole]
        return f"{OPTIONS[name]} {value}" if name in OPTIONS and value is not None else found[0]

    return _ARGUMENT.sub(name_option, line)


def say(line: str) -> None:
    """Write one line for people to stderr; a stderr that takes nothing stops no work."""
    line = name_options(line)
    if not line.startswith(_spoken):
        return
    if sys.stderr:  # None where it is closed
        with suppress(OSError, ValueError):
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


def show(text: str) -> None:
    """Write text to stdout: it is what was asked for.

    Raises:
        CorpusError: Stdout is full or closed.
    """
    with _refuse_lost_output():
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def is_coloured() -> bool:
    """Return whether stdout is a terminal whose user has not asked for no colours (https://no-color.org)."""
    return bool(sys.stdout) and sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def show_finding(text: str, severity: Severity) -> None:
    """Write a finding to stdout, in the colour of its severity on a terminal. Raises as `show`."""
    show(paint(text, severity) if is_coloured() else text)


def show_file(path: Path) -> None:
    """Write the bytes of a file to stdout. Raises as `show`."""
    with path.open("rb") as stream, _refuse_lost_output():
        sys.stdout.flush()
        shutil.copyfileobj(stream, sys.stdout.buffer)
        sys.stdout.buffer.flush()


@contextmanager
def _refuse_lost_output() -> Iterator[None]:
    """Refuse a stdout that is full or closed (`CorpusError`)."""
    try:
        if not sys.stdout:  # as `rapt ... >&-` leaves it
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        yield
    except OSError as error:
        flush_stdout()
        raise CorpusError(
            f"standard output must take the result, got {error.strerror or type(error).__name__}; "
            "send it to a file with room"
        ) from None


def show_json(value: Mapping[str, Any]) -> None:
    """Write the one JSON document of a run to stdout, on one line. Raises as `show`."""
    show(format_json(value))


def format_json(value: Mapping[str, Any]) -> str:
    """Write a value as JSON on one line; letters that stdout lacks are escaped, so that none is changed."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeError:
        return json.dumps(value, ensure_ascii=True, allow_nan=False)
    return line


def flush_stdout() -> bool:
    """Return whether stdout took all that was written; if not, drop the rest, which Python would try again."""
    with suppress(OSError, ValueError):
        if sys.stdout:
            sys.stdout.flush()
        return True
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    return False


def write_output(path: Path, content: str, *, overwrite: bool) -> None:
    """Write a file that the user named; it appears only when it is whole.

    Raises:
        CorpusError: The file cannot be written.
        UsageError: Something that must not be replaced appeared there meanwhile.
    """
    try:
        write_whole(path, content, overwrite=overwrite)
    except OSError as error:
        raise CorpusError(
            f"the output must be writable, got {error.strerror or type(error).__name__}; choose another folder"
        ) from None


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out columns of text under a header, two spaces apart, the first to the left and numbers to the right.

    Args:
        header: Name of each column.
        rows: Cells of each row, one for each column.

    Returns:
        Lines joined by newlines, without trailing spaces.
    """
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    rule = ["─" * width for width in widths]
    lines = []
    for line in [header, rule, *rows]:
        cells = [
            cell.rjust(width) if _is_numeric(rows, column) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


@contextmanager
def meter(what: str, *, total: int | None = None, unit: str = "") -> Iterator[Meter]:
    """Open a meter on stderr for one piece of work: a bar on a terminal, plain lines elsewhere."""
    if sys.stderr and sys.stderr.isatty() and _spoken != _ALARMS:
        with _make_bar() as progress:
            yield _BarMeter(progress, progress.add_task(what, total=total, note="", unit=unit))
    else:
        yield _LineMeter(what, total=total, unit=unit)


class _BarMeter:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def __call__(self, done: int, /, *, total: int | None = None, note: str = "") -> None:
        self._progress.update(self._task, completed=done, note=note)
        if total is not None:
            self._progress.update(self._task, total=total)


class _LineMeter:
    def __init__(self, what: str, *, total: int | None, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._shown_tenth = 0
        self._shown_at = time.monotonic()

    def __call__(self, done: int, /, *, total: int | None = None, note: str = "") -> None:
        self._total = total or self._total
        if self._total:
            tenth = 10 * done // self._total
            if tenth <= self._shown_tenth:
                return
            self._shown_tenth = tenth
        elif time.monotonic() - self._shown_at < _PLAIN_INTERVAL:
            return
        self._shown_at = time.monotonic()
        of = f" of {self._total:,}" if self._total else ""
        unit = f" {self._unit}" if self._unit else ""
        say(f"{self._what}: {done:,}{of}{unit}" + (f"; {note}" if note else ""))


def _make_bar() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        transient=False,
    )


def _is_numeric(rows: Sequence[Sequence[str]], column: int) -> bool:
    cells = [row[column] for row in rows]
    return column > 0 and bool(cells) and all(cell[:1].isdigit() or cell[:1] in "-−+.≤≥" for cell in cells if cell)


def format_share(share: Share) -> tuple[str, str]:
    """Format a share and its interval, in percent."""
    return f"{share.value:.1%}", f"{share.low:.1%} to {share.high:.1%}"
