"""Progress of a run, thinned out: a step takes milliseconds, an event takes a write to the disk."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from rapt.service.tuning.tuner import Progress

STEPS_BETWEEN_EVENTS: Final = 10
# A long run has its events further apart, so that no job fills the database.
MOST_EVENTS: Final = 500


class ProgressEvents:
    """Takes every step; reports the means since the last report, every few steps and at the last one."""

    def __init__(self, report: Callable[[str, dict[str, Any]], None]) -> None:
        """Report to `report(message, data)`."""
        self._report = report
        self._since: list[Progress] = []

    def add(self, progress: Progress) -> None:
        """One step was made."""
        self._since.append(progress)
        every = max(STEPS_BETWEEN_EVENTS, math.ceil(progress.steps / MOST_EVENTS))
        last = progress.last or progress.step == progress.steps
        if progress.step % every and not last and not _shows_validation(progress):
            return
        task = _mean([item.task_loss for item in self._since])
        reconstruction = [item.reconstruction_loss for item in self._since if item.reconstruction_loss is not None]
        data = {
            "step": progress.step,
            "total_steps": progress.steps,
            "epoch": progress.epoch + 1,
            "train_loss": task,
            "reconstruction_loss": _mean(reconstruction) if reconstruction else None,
            "accuracy": _mean([item.accuracy for item in self._since]),
            **validation_figures(progress),
        }
        self._since.clear()
        self._report(f"step {progress.step}/{progress.steps}: training loss={task:.4f}", data)


def validation_figures(progress: Progress) -> dict[str, float | int]:
    """What validation came to after a step, under the names that OpenAI gives it; nothing where there was none."""
    if progress.validation_loss is None or progress.validation_accuracy is None:
        return {}
    return {
        "full_valid_loss": progress.validation_loss,
        "full_valid_mean_token_accuracy": progress.validation_accuracy,
    }


def _shows_validation(progress: Progress) -> bool:
    """Whether a step was validated after; of a run of very many epochs, only some."""
    epochs = progress.steps * (progress.epoch + 1) // progress.step
    return progress.validation_loss is not None and not (progress.epoch + 1) % math.ceil(epochs / MOST_EVENTS)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
