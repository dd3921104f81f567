"""The loop that trains a network: a schedule, losses that must be finite, clipped gradients, batches of like lengths.

What is trained and on what is the caller's: an adapter, a backbone that is to expect noise, the networks of an attack.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rapt.errors import TuningError

# Gradients of a longer L2 norm are scaled down to it.
LONGEST_GRADIENT: Final = 1.0
# Fields that AdamW remembers of a parameter.
_REMEMBERED: Final = ("step", "exp_avg", "exp_avg_sq")

B = TypeVar("B")
Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)
# Figures of a step, by name: losses in nats, shares of right answers.
Losses = Mapping[str, float]


def avoid_compiler(kind: type[Optimizer]) -> type[Optimizer]:
    """Return an optimizer class that does the same and does not import torch's compiler.

    Torch wraps these methods for programs that it compiles, and imports the compiler at their first call: more than a
    second of a process that tunes a head over codes, and nothing is compiled here.
    """
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in ("add_param_group", "zero_grad", "step")}
    return cast(type[Optimizer], type(kind.__name__, (kind,), plain | {"step": torch.no_grad()(plain["step"])}))


_AdamW: Final = avoid_compiler(torch.optim.AdamW)


@dataclass(frozen=True, eq=False)
class ParameterGroup:
    """Parameters that are trained alike.

    Attributes:
        parameters: Parameters by name; a name is in one group only.
        rate: Learning rate at its peak.
        weight_decay: Weight decay of AdamW.
    """

    parameters: Mapping[str, nn.Parameter]
    rate: float
    weight_decay: float = 0.01


class Trainer:
    """AdamW on some parameters, a step at a time."""

    def __init__(
        self,
        groups: Iterable[ParameterGroup],
        *,
        fused: bool = False,
        way_out: str = "lower the learning rate",
    ) -> None:
        """Take what is trained.

        Args:
            groups: Groups of parameters; one without any is left out.
            fused: Whether AdamW's fused kernel is used; it is faster, and its last bits differ.
            way_out: Advice to a user about a loss that is not finite.
        """
        self.steps = 0
        self._fused = fused
        groups = [group for group in groups if group.parameters]
        self._peaks = [group.rate for group in groups]
        self._parameters = {name: one for group in groups for name, one in group.parameters.items()}
        self._optimizer = _AdamW(
            [{"params": list(group.parameters.values()), "weight_decay": group.weight_decay} for group in groups],
            fused=fused or None,
        )
        self._way_out = way_out

    def follow(
        self, batches: Iterable[B], descend: Callable[[B], Losses], *, rate: Callable[[int], float]
    ) -> Iterator[Losses]:
        """Make one step for each batch, and yield its losses before the next batch is asked for.

        Args:
            batches: Batches in their order.
            descend: Function that adds the gradient of one batch, and returns its losses; see `back_propagate`.
            rate: Share of the peak rates at a step, counted from 1 over the trainer's whole life.

        Raises:
            TuningError: A loss or a gradient is not finite; the parameters are as they were before the step.
        """
        for batch in batches:
            self.clear()
            losses = descend(batch)
            length = float(nn.utils.clip_grad_norm_(list(self._parameters.values()), LONGEST_GRADIENT))
            if not all(map(math.isfinite, (*losses.values(), length))):
                raise TuningError(
                    f"the loss must stay finite, got nan or infinity after step={self.steps}; {self._way_out}"
                )
            self.steps += 1
            scale = rate(self.steps)
            for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
                group["lr"] = peak * scale
            self._optimizer.step()
            yield losses

    def clear(self) -> None:
        """Forget the gradients of all that is trained."""
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """A copy of all that the optimizer remembers, `field/parameter` -> tensor."""
        return {
            f"{field}/{name}": self._optimizer.state[parameter][field].detach().clone()
            for name, parameter in self._parameters.items()
            if parameter in self._optimizer.state
            for field in _REMEMBERED
        }

    def restore(self, state: Mapping[str, Tensor], *, steps: int) -> None:
        """Take a state that `state` gave after so many steps."""
        self.steps = steps
        for name, parameter in self._parameters.items():
            if f"step/{name}" in state:
                self._optimizer.state[parameter] = {
                    # AdamW wants the count of steps on the processor, and its fused kernel beside the parameter.
                    field: state[f"{field}/{name}"]
                    .clone()
                    .to("cpu" if field == "step" and not self._fused else parameter.device)
                    for field in _REMEMBERED
                }


def back_propagate(loss: Tensor) -> dict[str, float]:
    """Add the gradient of a scalar; returns its value under the name `loss`."""
    torch.autograd.backward(loss)
    return {"loss": loss.item()}


def scale_rate(step: int, steps: int, *, rise: float) -> float:
    """Share of the peak rate at a step, counted from 1: a linear rise over a share of the steps, then a linear fall.

    It is a function of the step, not of how often a schedule was asked, so a run that is resumed has the same.
    """
    first = max(1, round(rise * steps))
    return min(step / first, (steps - step + 1) / max(1, steps - first))


def batch_by_length(
    lengths: Sequence[int] | NDArray[np.int64],
    *,
    size: int,
    permute: Callable[[int], NDArray[np.int64]],
    sorted_together: int | None = None,
) -> Iterator[NDArray[np.int64]]:
    """Places of the texts of each batch of one pass, in random order: texts of about one length share a batch.

    Args:
        lengths: Tokens of each text.
        size: Texts of a batch; the last one of a group may have fewer.
        permute: Draws a random order of 0 to n - 1, (n,), for a given n.
        sorted_together: Batches that are cut out of one sorted group; more waste less on padding and mix less. None
            sorts all texts of the pass.
    """
    counted = np.asarray(lengths)
    order = permute(len(counted))
    together = size * sorted_together if sorted_together is not None else max(1, len(order))
    found = []
    for start in range(0, len(order), together):
        group = order[start : start + together]
        near = group[np.argsort(counted[group], kind="stable")]
        found += [near[at : at + size] for at in range(0, len(near), size)]
    for place in permute(len(found)):
        yield found[place]
