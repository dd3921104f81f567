"""What is told of a run while it runs."""

from __future__ import annotations

from dataclasses import dataclass

from rapt.errors import TuningError


class TuningCancelled(TuningError):
    """Somebody asked the run to stop. What was reached was handed to `on_checkpoint`."""

    code = "cancelled"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step of a run. Losses in nats; accuracy is that of the step's own batch, by the labels in the file.

    Attributes:
        step: Steps made, this one included.
        steps: Of the whole run.
        epoch: From 0.
        task_loss: L_task.
        reconstruction_loss: L_rec, if there is one.
        accuracy: Share of right answers.
        learning_rate: Of the method, in this step.
        validation_loss: L_task on the validation file, at a step after which it was evaluated.
        validation_accuracy: Likewise.
        last: Whether no step follows: all were made, or validation says that none is worth making.
    """

    step: int
    steps: int
    epoch: int
    task_loss: float
    reconstruction_loss: float | None
    accuracy: float
    learning_rate: float = 0.0
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    last: bool = False
