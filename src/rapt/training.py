"""The loop that trains a network: a schedule, a loss that must be finite, clipped gradients, batches of like lengths.

What is trained and on what is the caller's: a backbone that is to expect noise, or the networks of an attack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rapt.errors import TuningError

# Gradients of a longer L2 norm are scaled down to it.
LONGEST_GRADIENT: Final = 1.0

B = TypeVar("B")


class Trainer:
    """AdamW on some parameters, a step at a time."""

    def __init__(
        self,
        parameters: Mapping[float, Sequence[nn.Parameter]],
        *,
        weight_decay: float = 0.01,
        fused: bool = False,
        way_out: str = "lower the learning rate",
    ) -> None:
        """Take what is trained.

        Args:
            parameters: Parameters by their rate at its peak.
            weight_decay: Weight decay of AdamW.
            fused: Whether AdamW's fused kernel is used; it is faster, and its last bits differ.
            way_out: Advice to a user about a loss that is not finite.
        """
        self._peaks = tuple(parameters)
        self._all = [one for group in parameters.values() for one in group]
        self._optimizer = torch.optim.AdamW(
            [{"params": list(group), "lr": peak} for peak, group in parameters.items()],
            weight_decay=weight_decay,
            fused=fused,
        )
        self._way_out = way_out
        self._steps = 0

    def take(self, loss: Tensor, *, rate: float) -> float:
        """Make one step down a loss, a scalar with a gradient, at a share of the peak rates; returns its value.

        Raises:
            TuningError: The loss is not finite; the parameters are as they were.
        """
        value = loss.item()
        if not math.isfinite(value):
            raise TuningError(f"the loss must be finite, got another at step={self._steps + 1}; {self._way_out}")
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * rate
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._all, LONGEST_GRADIENT)
        self._optimizer.step()
        self._steps += 1
        return value

    def follow(
        self,
        batches: Iterable[B],
        loss: Callable[[B], Tensor],
        *,
        rate: Callable[[int], float],
        on_step: Callable[[int, float], None] = lambda step, value: None,
    ) -> None:
        """Make one step for each batch.

        Args:
            batches: Batches in their order.
            loss: Loss of one batch.
            rate: Share of the peak rates at a step, counted from 1 over the trainer's whole life.
            on_step: Called after each step with its number and its loss.

        Raises:
            TuningError: A loss is not finite.
        """
        for batch in batches:
            value = self.take(loss(batch), rate=rate(self._steps + 1))
            on_step(self._steps, value)


def scale_rate(step: int, steps: int, *, rise: float) -> float:
    """Share of the peak rate at a step, counted from 1: a linear rise over a share of the steps, then a linear fall."""
    first = max(1, math.ceil(rise * steps))
    return min(step / first, max(0.0, (steps - step + 1) / max(1, steps - first + 1)))


def batch_by_length(
    lengths: Sequence[int] | NDArray[np.int64], *, size: int, sorted_together: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Places of the texts of each batch of one pass, in random order: texts of about one length share a batch.

    Args:
        lengths: Tokens of each text.
        size: Texts of a batch; the last one of a group may have fewer.
        sorted_together: Batches that are cut out of one sorted group; more waste less on padding and mix less.
        rng: Draws the order.
    """
    counted = np.asarray(lengths)
    order = rng.permutation(len(counted))
    found = []
    for start in range(0, len(order), size * sorted_together):
        group = order[start : start + size * sorted_together]
        near = group[np.argsort(counted[group], kind="stable")]
        found += [near[at : at + size] for at in range(0, len(near), size)]
    for place in rng.permutation(len(found)):
        yield found[place]
