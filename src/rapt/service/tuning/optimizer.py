"""AdamW with warm-up, linear decay and clipped gradients, its state by the names of the parameters.

The rate of a step is a function of the step, not of how often a schedule was asked, so a resumed run has the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from rapt.service.tuning.losses import Tuning
from rapt.service.tuning.tuning_config import TuningConfig

# Heads are decayed a little, as usual; a prompt, a prefix or a pair is not: 0 is no better place for it than another.
_HEAD_DECAY: Final = 0.01
_STATE: Final = ("step", "exp_avg", "exp_avg_sq")


class Optimizer:
    """Makes the steps of one run."""

    def __init__(self, tuning: Tuning, config: TuningConfig, *, steps: int) -> None:
        """Start at the first of `steps` steps."""
        self._parameters = tuning.trained()
        self._config = config
        self._steps = steps
        method = [value for name, value in self._parameters.items() if name.startswith("method.")]
        heads = [value for name, value in self._parameters.items() if not name.startswith("method.")]
        head_rate = config.head_learning_rate if method else config.learning_rate
        groups = [
            {"params": method, "peak": config.learning_rate, "weight_decay": 0.0},
            {"params": heads, "peak": head_rate, "weight_decay": _HEAD_DECAY},
        ]
        self._adamw = torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0)

    def clear(self) -> None:
        """Forget the gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def clip(self) -> float:
        """Scale the gradients down to the longest norm that is allowed; returns the norm they had."""
        limit = self._config.max_gradient_norm or torch.inf
        return float(torch.nn.utils.clip_grad_norm_(list(self._parameters.values()), limit))

    def apply(self, step: int) -> None:
        """Change the parameters by step number `step`, from 0."""
        scale = rate_scale(step, steps=self._steps, warmup=self._config.warmup)
        for group in self._adamw.param_groups:
            group["lr"] = group["peak"] * scale
        self._adamw.step()

    def state(self) -> dict[str, Tensor]:
        """A copy of all that it remembers, `field/parameter` -> tensor."""
        return {
            f"{field}/{name}": self._adamw.state[parameter][field].detach().clone()
            for name, parameter in self._parameters.items()
            if parameter in self._adamw.state
            for field in _STATE
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take a state that `state` gave."""
        for name, parameter in self._parameters.items():
            if f"step/{name}" in state:
                self._adamw.state[parameter] = {
                    # The count of steps stays on the processor: AdamW wants it there.
                    field: state[f"{field}/{name}"].clone().to("cpu" if field == "step" else parameter.device)
                    for field in _STATE
                }


def rate_scale(step: int, *, steps: int, warmup: float) -> float:
    """Share of the peak rate at a step from 0: a linear rise over the warm-up, then a linear fall to 0 at the end."""
    warm = max(1, round(warmup * steps))
    return min((step + 1) / warm, (steps - step) / max(1, steps - warm))
