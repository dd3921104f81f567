"""Searches everything that a service kept for the plain text that it must never have seen.

The search is for any run of five words of any text, without regard to case and to what stands between the words, in
UTF-8, UTF-16 and escaped JSON, so a text that was cut off, logged in pieces or stored in a page of a database is found
too. A word is a run of three or more ASCII letters and digits: shorter ones abound in tables of numbers.
Text that was encrypted or compressed would not be found; nothing in the service does either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Runs of four common words are shared by chance; runs of five are not, in what a service writes.
RUN: Final = 5
_WORD: Final = re.compile(rb"[a-z0-9]{3,}")
_ESCAPE: Final = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)

Run = tuple[bytes, ...]


@dataclass(frozen=True)
class LeakCheck:
    """Result of the search for leaks: counts and file names only.

    Attributes:
        files: Number of files read.
        bytes: Size of the files, in bytes.
        runs: Number of different runs of words that were searched for.
        leaked: Names of files, relative to the folder, that hold at least one run.
    """

    files: int
    bytes: int
    runs: int
    leaked: tuple[str, ...]


def search_folder(folder: Path, texts: Iterable[str]) -> LeakCheck:
    """Search every file under a folder for runs of words of the texts."""
    wanted = cut_runs(texts)
    files, size, leaked = 0, 0, []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        files, size = files + 1, size + len(content)
        if holds_any(content, wanted):
            leaked.append(str(path.relative_to(folder)))
    return LeakCheck(files=files, bytes=size, runs=len(wanted), leaked=tuple(leaked))


def cut_runs(texts: Iterable[str]) -> frozenset[Run]:
    """Every run of five words of the texts, in lower case."""
    return frozenset(run for text in texts for run in _iterate_runs(text.encode("utf-8")))


def holds_any(content: bytes, wanted: frozenset[Run]) -> bool:
    """Whether bytes hold one of the runs, in any of the readings."""
    return any(not wanted.isdisjoint(_iterate_runs(reading)) for reading in _iterate_readings(content))


def _iterate_readings(content: bytes) -> Iterator[bytes]:
    yield content
    if b"\0" in content:
        yield content.replace(b"\0", b"")  # UTF-16: every other byte of an ASCII letter is 0
    if b"\\" in content:
        yield _ESCAPE.sub(_unescape, content)


def _unescape(escape: re.Match[bytes]) -> bytes:
    return chr(int(escape[1], 16)).encode("utf-8", errors="replace") if escape[1] else b" "


def _iterate_runs(text: bytes) -> Iterator[Run]:
    words = _WORD.findall(text.lower())
    return zip(*(words[start:] for start in range(RUN)), strict=False)
