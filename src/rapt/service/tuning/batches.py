"""The order of the records: every one once an epoch, in batches of similar length.

The order of an epoch is a function of the seed and the epoch alone. So a run that is resumed knows where it was from
its step, and no state of a generator has to be kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch

# Rows of one length share a batch: sorting within this many batches keeps padding low and order random enough.
_SORTED_TOGETHER: Final = 16
# Apart from the seeds of initialization, and from those of other epochs: prime, and larger than any number of epochs.
_EPOCHS_APART: Final = 1_000_003


def batches_of_epoch(lengths: Sequence[int], *, size: int, seed: int, epoch: int) -> list[list[int]]:
    """Positions of the records of each batch, in the order in which they are taken.

    Args:
        lengths: Of the records.
        size: Records a batch; the last one of a group may have fewer.
        seed: Of the run.
        epoch: From 0.
    """
    generator = torch.Generator().manual_seed((seed + 1) * _EPOCHS_APART + epoch)
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    span = size * _SORTED_TOGETHER
    batches: list[list[int]] = []
    for start in range(0, len(shuffled), span):
        near = sorted(shuffled[start : start + span], key=lengths.__getitem__)
        batches += [near[first : first + size] for first in range(0, len(near), size)]
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


def batches_per_epoch(records: int, *, size: int) -> int:
    """How many batches `batches_of_epoch` gives."""
    return math.ceil(records / size)


def parts_of_batch(batch: Sequence[int], *, size: int) -> list[Sequence[int]]:
    """A batch in micro-batches of at most `size` records; 0 leaves it whole. An empty one has no parts."""
    size = size or max(1, len(batch))
    return [batch[first : first + size] for first in range(0, len(batch), size)]
