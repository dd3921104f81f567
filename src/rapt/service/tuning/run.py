"""One run and its state: made step by step, stopped anywhere, and continued to the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from rapt.errors import TuningError
from rapt.service.adapter.adapter import Adapter
from rapt.service.backbone.backbone import Backbone
from rapt.service.tuning.losses import Tuning
from rapt.service.tuning.processes import ALONE, Processes
from rapt.service.tuning.result import Best, Evaluation, Progress, adapter_of, evaluate
from rapt.service.tuning.run_state import RunIdentity, RunState, check_same_run, identity
from rapt.service.tuning.tuning_config import TuningConfig
from rapt.wire.privatized_file import PrivatizedFile


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Outcome of a batch: L_task, L_rec where there is one, right answers, and all of them."""

    task: float
    reconstruction: float | None
    right: float
    answers: int

    @property
    def finite(self) -> bool:
        return math.isfinite(self.task + (self.reconstruction or 0.0))


class Run:
    """A run after `step` of its `steps` steps."""

    def __init__(
        self,
        backbone: Backbone,
        training: PrivatizedFile,
        *,
        validation: PrivatizedFile | None,
        config: TuningConfig,
        warn: Callable[[str], None],
        processes: Processes = ALONE,
    ) -> None:
        """Stand before the first step. The files must have been checked."""
        self.config = config
        self.steps_per_epoch = batches_per_epoch(len(training.records), size=config.batch_size)
        self.steps = config.epochs * self.steps_per_epoch
        self.step = 0
        self._backbone, self._training, self._validation = backbone, training, validation
        self._warn = warn
        self._processes = processes
        self._tuning = Tuning(backbone, training.manifest, config)
        self._optimizer = Optimizer(self._tuning, config, steps=self.steps)
        self._micro = config.micro_batch_size
        self._best = Best()
        self._latest: Progress | None = None
        self._lengths = [len(record.token_ids) for record in training.records]
        self._epoch, self._batches = -1, [[0]]

    @property
    def done(self) -> bool:
        """Whether the last step was made, or validation says that no step is worth making any more."""
        tired = self.config.patience > 0 and self._best.since >= self.config.patience
        return self.step == self.steps or tired

    @property
    def at_end_of_epoch(self) -> bool:
        """Whether the latest step was the last of its epoch."""
        return self.step % self.steps_per_epoch == 0

    def make_step(self) -> Progress:
        """Take the next batch, change the parameters by its gradient, and evaluate at the end of an epoch.

        Raises:
            TuningError: The loss or its gradient is not finite, or memory is too small for one record. The parameters
                are then as they were before the step.
        """
        positions = self._next_batch()
        self._optimizer.clear()
        weight = 0.0
        if self.config.reconstruction is not None:
            weight = self.config.reconstruction.weight_at(self.step / self.steps)
        found = self._gradients(positions, weight=weight)
        if not (found.finite and math.isfinite(self._optimizer.clip())):
            raise TuningError(
                f"the loss must stay finite, got nan or infinity at step={self.step}; lower the learning rate, "
                "or continue from the state before"
            )
        self._optimizer.apply(self.step)
        rate = self.config.learning_rate * rate_scale(self.step, steps=self.steps, warmup=self.config.warmup)
        epoch = self.step // self.steps_per_epoch
        self.step += 1
        evaluation = self._evaluation()
        self._latest = Progress(
            step=self.step,
            steps=self.steps,
            epoch=epoch,
            task_loss=found.task,
            reconstruction_loss=found.reconstruction,
            accuracy=found.right / found.answers,
            learning_rate=rate,
            validation_loss=None if evaluation is None else evaluation.loss,
            validation_accuracy=None if evaluation is None else evaluation.accuracy,
            last=self.done,
        )
        return self._latest

    def state(self) -> RunState:
        """A copy of the state."""
        tensors = {f"parameter/{name}": value.detach().clone() for name, value in self._tuning.trained().items()}
        tensors |= {f"optimizer/{name}": value for name, value in self._optimizer.state().items()}
        tensors |= {f"best/{name}": value for name, value in self._best.parameters.items()}
        return RunState(
            run=self._identity(),
            step=self.step,
            micro_batch_size=self._micro,
            tensors=tensors,
            best_loss=self._best.loss,
            best_accuracy=self._best.accuracy,
            best_step=self._best.step,
            evaluations_since=self._best.since,
            metrics=self._metrics(),
        )

    def restore(self, state: RunState) -> None:
        """Go back to a state.

        Raises:
            VocabularyError: It is of another backbone.
            TuningError: It is of another run.
        """
        check_same_run(state, self._identity())
        parameters, best = state.part("parameter"), state.part("best")
        trained = self._tuning.trained()
        if {name: value.shape for name, value in parameters.items()} != {name: p.shape for name, p in trained.items()}:
            raise TuningError("a run state must hold what its run trains, got one of an earlier rapt; start a new run")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(parameters[name])
        self._optimizer.restore(state.part("optimizer"))
        self._micro, self.step = state.micro_batch_size, state.step
        self._best = Best(
            loss=state.best_loss,
            accuracy=state.best_accuracy,
            step=state.best_step,
            since=state.evaluations_since,
            parameters=best,
        )

    def take_best(self) -> None:
        """Go back to the parameters of the lowest validation loss, if there was a validation file."""
        with torch.no_grad():
            for name, value in self._best.parameters.items():
                self._tuning.trained()[name].copy_(value)

    def adapter(self) -> Adapter:
        """Return the adapter that the run would leave now."""
        return adapter_of(self._backbone, self._training, self._tuning, config=self.config, metrics=self._metrics())

    def _identity(self) -> RunIdentity:
        return identity(self._backbone, self.config, training=self._training, validation=self._validation)

    def _next_batch(self) -> list[int]:
        epoch, place = divmod(self.step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._batches = batches_of_epoch(
                self._lengths, size=self.config.batch_size, seed=self.config.seed, epoch=epoch
            )
        return self._batches[place]

    def _gradients(self, positions: Sequence[int], *, weight: float) -> _Found:
        """Add the gradient of a batch, and say what it came to.

        In parts if memory is too small for all of it at once: the parts' losses are weighted to the same mean.
        """
        while True:
            try:
                return self._gradients_in_parts(positions, weight=weight)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                at_once = min(self._micro or len(positions), len(positions))
                if at_once == 1:
                    raise TuningError(
                        "memory must hold one record at least, got too little; choose a smaller model or privatize "
                        "with a lower --truncate"
                    ) from None
                self._micro = at_once // 2
            self._optimizer.clear()  # outside of `except`: the traceback holds on to the memory of the failed pass
            self._warn(
                f"memory is too small for {at_once} records at once: computing {self._micro} at a time from "
                f"step={self.step} on, with the same gradient"
            )

    def _gradients_in_parts(self, positions: Sequence[int], *, weight: float) -> _Found:
        records = self._training.records
        answers = self._tuning.answers([records[position] for position in positions])
        task = right = reconstruction = 0.0
        for part in parts_of_batch(self._processes.share(positions), size=self._micro):
            losses = self._tuning.losses([records[position] for position in part])
            of_answers, of_rows = losses.total / answers, losses.rows / len(positions)
            torch.autograd.backward(losses.combined(weight=weight, of_answers=of_answers, of_rows=of_rows))
            task += losses.task.item() * of_answers
            right += losses.right.item()
            if losses.reconstruction is not None:
                reconstruction += losses.reconstruction.item() * of_rows
        self._processes.sum_gradients(self._tuning.trained().values())
        task, reconstruction, right = self._processes.sum(task, reconstruction, right)
        return _Found(
            task=task,
            reconstruction=None if self.config.reconstruction is None else reconstruction,
            right=right,
            answers=answers,
        )

    def _evaluation(self) -> Evaluation | None:
        if self._validation is None or not self.at_end_of_epoch:
            return None
        size = self._micro or self.config.batch_size
        found = evaluate(self._tuning, self._validation, batch_size=size)
        self._best = self._best.after(found, step=self.step, tuning=self._tuning)
        return found

    def _metrics(self) -> dict[str, float | int]:
        metrics: dict[str, float | int] = {"steps": self.step}
        if self._latest is not None:
            metrics["final_task_loss"] = self._latest.task_loss
            if self._latest.reconstruction_loss is not None:
                metrics["final_reconstruction_loss"] = self._latest.reconstruction_loss
        if self._best.parameters:
            metrics |= {"validation_loss": self._best.loss, "validation_accuracy": self._best.accuracy}
            metrics |= {"best_step": self._best.step}
        return metrics


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was too small."""
    # torch has a class of its own for a GPU's memory only; for the processor's, its message is all there is.
    words = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in words


# AdamW with warm-up, linear decay and clipped gradients, its state by the names of the parameters.
#
# The rate of a step is a function of the step, not of how often a schedule was asked, so a resumed run has the same.


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
        """Forget the gradients of all that is trained."""
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


# The order of the records: every one once an epoch, in batches of similar length.
#
# The order of an epoch is a function of the seed and the epoch alone. So a run that is resumed knows where it was from
# its step, and no state of a generator has to be kept.


# Rows of one length share a batch: sorting within this many batches keeps padding low and order random enough.
_SORTED_TOGETHER: Final = 16
# Apart from the seeds of initialization, and from those of other epochs: prime, and larger than any number of epochs.
_EPOCHS_APART: Final = 1_000_003


def batches_of_epoch(lengths: Sequence[int], *, size: int, seed: int, epoch: int) -> list[list[int]]:
    """Positions of the records of each batch, in the order in which they are taken.

    Args:
        lengths: Length of each record, tokens.
        size: Records a batch; the last one of a group may have fewer.
        seed: Seed of the run.
        epoch: Epoch, from 0.
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
    """Count the batches that `batches_of_epoch` gives."""
    return math.ceil(records / size)


def parts_of_batch(batch: Sequence[int], *, size: int) -> list[Sequence[int]]:
    """A batch in micro-batches of at most `size` records; 0 leaves it whole. An empty one has no parts."""
    size = size or max(1, len(batch))
    return [batch[first : first + size] for first in range(0, len(batch), size)]
