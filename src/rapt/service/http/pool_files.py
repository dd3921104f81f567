"""What a pool's contributions become, in constant memory: a file in a random order, or counts of codewords.

*Order.* Each line goes to one of 64 piles, drawn at random; the piles are shuffled one after the other. So every order
of all lines is as likely as every other (Rao 1961; Sandelius 1962), and only one pile is in memory at a time.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import DamagedError, UsageError
from rapt.service.http.admission import Gate
from rapt.service.http.shares import give_way
from rapt.service.storage.contribution_rows import iterate_lines
from rapt.service.storage.data_directory import StagedFile, explain_not_stored, write_staged
from rapt.service.storage.file_rows import FileSummary
from rapt.service.storage.pool_rows import StoredPool, get_pool, read_pool_manifest
from rapt.service.storage.store import Store
from rapt.wire.manifest import dump_manifest
from rapt.wire.privatized_file import PrivatizedRecord, count_privatized_tokens, parse_record
from rapt.wire.strict_json import dump_line, parse_document

_PILES: Final = 64
_LINES_AT_ONCE: Final = 1_000
# Different lines that are remembered as they were read: of codes with labels there are few.
_MOST_KNOWN: Final = 8_192


@contextmanager
def open_pool_file(store: Store, gate: Gate, pool: StoredPool) -> Iterator[tuple[StagedFile, FileSummary]]:
    """The file of a pool that takes no more, its manifest with counts and digest and its lines, and what is in it.

    Raises:
        NotFoundError: The pool was deleted meanwhile.
        UsageError: Another request has closed it meanwhile.
        UnavailableError: The disk is full, or broken.
    """
    directory, stated, read = store.directory, read_pool_manifest(pool), _make_reader()
    gate.check_setting(stated)
    digest, records, tokens, longest = hashlib.sha256(), 0, 0, 0
    with (
        closing(directory.arriving(max_bytes=2**62)) as body,
        closing(directory.arriving(max_bytes=2**62)) as file,
    ):
        with directory.scratch() as folder:
            for line in shuffle_lines(iterate_lines(store, pool.id), folder=folder):
                record = read(line)
                body.write(line)
                digest.update(line)
                records += 1
                tokens += count_privatized_tokens(record, stated)
                longest = max(longest, len(record.token_ids) + len(record.second_token_ids or ()))
                if records % _LINES_AT_ONCE == 0:
                    give_way()
        if records != pool.contributions:
            if get_pool(store, pool.id, tenant=pool.tenant).file_id is None:
                raise DamagedError("a pool must have the contributions that it has counted; tell the provider")
            raise UsageError("the pool was closed by another request meanwhile; ask for the pool")
        manifest = replace(stated, records=records, tokens=tokens, records_sha256=digest.hexdigest())
        file.write(dump_line(dump_manifest(manifest)).encode("ascii") + b"\n")
        body.seek(0)
        yield write_staged(body, file), FileSummary(manifest=manifest, longest=longest)


def shuffle_lines(lines: Iterable[str], *, folder: Path) -> Iterator[bytes]:
    """Yield lines of ASCII in a random order, each of all orders with the same probability.

    Args:
        lines: Lines with their ends.
        folder: Folder for the piles, which is made.

    Raises:
        UnavailableError: The disk is full, or broken.
    """
    source, given = secrets.SystemRandom(), iter(lines)
    try:
        folder.mkdir(mode=0o700)
        with ExitStack() as stack:
            piles = [stack.enter_context((folder / str(number)).open("w+b")) for number in range(_PILES)]
            while some := list(islice(given, _LINES_AT_ONCE)):
                for drawn, line in zip(os.urandom(len(some)), some, strict=True):
                    piles[drawn % _PILES].write(line.encode("ascii"))
            for pile in piles:
                pile.seek(0)
                mixed = pile.readlines()
                source.shuffle(mixed)
                yield from mixed
    except OSError as error:
        raise explain_not_stored(error) from None


def count_codewords(lines: Iterable[str], *, codes: int, size: int) -> NDArray[np.int64]:
    """Count how often each codeword was released.

    Args:
        lines: Records of codes.
        codes: Number r of codes of a text.
        size: Number N of codewords.

    Returns:
        Counts, (r, N).
    """
    read, given, counts = _make_reader(), iter(lines), np.zeros((codes, size), dtype=np.int64)
    while some := [read(line).token_ids for line in islice(given, _LINES_AT_ONCE)]:
        for run, ids in enumerate(np.array(some).T):
            counts[run] += np.bincount(ids, minlength=size)
        give_way()
    return counts


def _make_reader() -> Callable[[str | bytes], PrivatizedRecord]:
    """Make a function that reads the record in a line, once for lines that come often."""

    @lru_cache(maxsize=_MOST_KNOWN)
    def read(line: str | bytes) -> PrivatizedRecord:
        return parse_record(parse_document(line, what="a contribution"), position=0)

    return read
