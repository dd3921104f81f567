"""Blocks of a corpus that are drawn on a Ray cluster: a task that is tried again draws the same bytes.

A block is what one task draws. Its stream follows from a key of the run and the position of its first record, so a task
whose worker or node was killed, before or after it had drawn, gives the same bytes wherever it is tried again. (Nodes
must compute alike: another kind of processor may round another way, and a rounded tie can fall otherwise.) Reading,
looking up in the ledger, accounting and writing stay in the process of the caller, in the order of the source: a block
is released once, when its lines are written, whatever happened to its task.

*The key* is drawn for the run, travels to the nodes with the setting, and is written nowhere by rapt. A run that goes
on after a kill has another one: what was written stays, and the rest, which never left, is drawn anew.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from rapt.cluster import Cluster
from rapt.local.randomness import block_stream
from rapt.local.records import Chunk, ChunkSetting, privatize_records
from rapt.wire.privatized_file import PrivatizedRecord


@dataclass(frozen=True)
class BlockSetting:
    """Setting of every block, on whichever node.

    Attributes:
        chunk: Privatization of the records.
        key: Secret key of the streams, 32 bytes.
    """

    chunk: ChunkSetting
    key: bytes = field(repr=False)


def privatize_on_cluster(
    chunks: Iterator[Chunk], setting: ChunkSetting, *, cluster: Cluster, key: bytes | None = None
) -> Generator[list[PrivatizedRecord], None, None]:
    """The records of each chunk, in order, drawn by tasks of a cluster.

    Args:
        chunks: Taken as cores become free.
        setting: Privatization of each chunk.
        cluster: Cluster that was joined; every node of it must be trusted as this machine is.
        key: Key of the streams, 32 bytes, never used before; None draws one.

    Raises:
        ClusterError: The reasons of `Cluster.run`.
        CorpusError: The reasons of `privatize_records`.
        UsageError: The reasons of `privatize_records`.
    """
    given = BlockSetting(setting, secrets.token_bytes(32) if key is None else key)
    for _, records in cluster.run(draw_block, chunks, setting=given, in_order=True):
        yield records


def draw_block(setting: BlockSetting, chunk: Chunk) -> list[PrivatizedRecord]:
    """The records of one chunk: the same whenever and wherever they are drawn."""
    stream = block_stream(setting.chunk.manifest.randomness, key=setting.key, position=chunk.position)
    return privatize_records(chunk, setting.chunk, stream=stream)
