"""A value handed to worker processes with its large arrays in memory that all of them share.

A vocabulary's table is 47 MB for MiniLM and gigabytes for a Llama. Pickled into a pipe, every worker would hold one of
its own. Arrays that are read-only, as tables are, go into an anonymous file instead, which each worker maps: it has no
name, so nothing can be left behind, and only processes that are given it can open it. What can be written to goes by
value. Where the system has no such files, everything does.

It is pickled, which is right here and nowhere else: both ends are this program, and the pipe between them is one that a
parent opened to its child. Nothing that came from outside is ever unpickled.
"""

from __future__ import annotations

import mmap
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, Final

# Shorter arrays are copied: a mapping has whole pages.
_LEAST_BYTES: Final = 2**16
# Where each array begins in the file, so that numbers of any width are aligned.
_ALIGNMENT: Final = 64


@dataclass(frozen=True)
class SharedValue:
    """A value that is ready to be given to processes that this one started.

    Attributes:
        pickled: All of it but the arrays in the file.
        spans: First byte and end of each of those.
        file: Descriptor of the anonymous file; None where there is none.
    """

    pickled: bytes
    spans: tuple[tuple[int, int], ...]
    file: int | None

    def send(self, connection: Connection, *, process: int) -> None:
        """Give the value to the process with this id, at the other end of the connection."""
        connection.send((self.pickled, self.spans))
        if self.file is not None and self.spans:
            send_handle(connection, self.file, process)


@contextmanager
def shared(value: object) -> Iterator[SharedValue]:
    """The value, to be sent as often as wanted within the block; who received it keeps it.

    Raises:
        OSError: There is no memory for it.
    """
    if sys.platform != "linux":
        yield SharedValue(pickle.dumps(value, protocol=5), (), None)
        return
    file = os.memfd_create("rapt", os.MFD_CLOEXEC)
    try:
        spans: list[tuple[int, int]] = []

        def keep(buffer: pickle.PickleBuffer) -> bool:
            """Write the array to the file; True leaves it among the pickled bytes."""
            with buffer.raw() as raw:
                if not raw.readonly or raw.nbytes < _LEAST_BYTES:
                    return True
                start = -(-(spans[-1][1] if spans else 0) // _ALIGNMENT) * _ALIGNMENT
                spans.append((start, start + raw.nbytes))
                written = 0
                while written < raw.nbytes:  # one call writes 2 GB at most
                    written += os.pwrite(file, raw[written:], start + written)
                return False

        pickled = pickle.dumps(value, protocol=5, buffer_callback=keep)
        yield SharedValue(pickled, tuple(spans), file)
    finally:
        os.close(file)


def receive_shared(connection: Connection) -> Any:
    """What `SharedValue.send` sent; its shared arrays are read-only.

    Raises:
        EOFError: Nobody is at the other end any more.
    """
    pickled, spans = connection.recv()
    if not spans:
        return pickle.loads(pickled)
    file = recv_handle(connection)
    try:
        mapped = memoryview(mmap.mmap(file, 0, access=mmap.ACCESS_READ))  # lives as long as an array in it
    finally:
        os.close(file)
    return pickle.loads(pickled, buffers=[mapped[start:end] for start, end in spans])
