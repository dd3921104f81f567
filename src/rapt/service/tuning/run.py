"""One run and its state: made step by step, stopped anywhere, and continued to the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from rapt.errors import TuningError
from rapt.service.adapter.adapter import Adapter
from rapt.service.backbone.backbone import Backbone
from rapt.service.backbone.placement import is_out_of_memory
from rapt.service.backbone.steering import recompute_layers
from rapt.service.tuning.losses import Tuning
from rapt.service.tuning.processes import ALONE, Processes
from rapt.service.tuning.result import Best, Progress, adapter_of, evaluate
from rapt.service.tuning.run_state import RunIdentity, RunState, check_same_run, identity
from rapt.service.tuning.tuning_config import TuningConfig
from rapt.training import Losses, ParameterGroup, Trainer, batch_by_length, scale_rate
from rapt.wire.privatized_file import PrivatizedFile

# Heads are decayed a little, as usual; a prompt, a prefix or a pair is not: 0 is no better place for it than another.
_HEAD_DECAY: Final = 0.01
# Rows of one length share a batch: sorting within this many batches keeps padding low and order random enough.
_SORTED_TOGETHER: Final = 16
# Apart from the seeds of initialization, and from those of other epochs: prime, and larger than any number of epochs.
_EPOCHS_APART: Final = 1_000_003


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
        recompute: bool = False,
    ) -> None:
        """Stand before the first step. The files must have been checked."""
        self.config = config
        self.steps_per_epoch = batches_per_epoch(len(training.records), size=config.batch_size)
        self.steps = config.epochs * self.steps_per_epoch
        self._backbone, self._training, self._validation = backbone, training, validation
        self._warn = warn
        self._processes = processes
        self._tuning = Tuning(backbone, training.manifest, config)
        self._trainer = Trainer(
            _make_parameter_groups(self._tuning, config),
            way_out="lower the learning rate, or continue from the state before",
        )
        self._micro = config.micro_batch_size
        self._recomputes = recompute or backbone.fetches_layers
        self._best = Best()
        self._losses: Losses = {}

    @property
    def step(self) -> int:
        """Number of steps made."""
        return self._trainer.steps

    @property
    def done(self) -> bool:
        """Whether the last step was made, or validation says that no step is worth making any more."""
        tired = self.config.patience > 0 and self._best.since >= self.config.patience
        return self.step == self.steps or tired

    @property
    def at_end_of_epoch(self) -> bool:
        """Whether the latest step was the last of its epoch."""
        return self.step % self.steps_per_epoch == 0

    def make_steps(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Progress]:
        """Make the steps that are left, each when it is asked for, and evaluate at the end of an epoch.

        Args:
            should_stop: Asked before each step; yes ends the steps early.

        Raises:
            TuningError: The loss or its gradient is not finite, or memory is too small for one record. The parameters
                are then as they were before the step.
        """
        for losses in self._trainer.follow(
            self._iterate_batches(should_stop),
            self._descend,
            rate=lambda step: scale_rate(step, self.steps, rise=self.config.warmup),
        ):
            self._losses, validation = losses, self._evaluate()
            yield Progress(
                step=self.step,
                steps=self.steps,
                epoch=(self.step - 1) // self.steps_per_epoch,
                losses=losses,
                validation=validation,
                last=self.done,
            )

    def state(self) -> RunState:
        """A copy of the state."""
        tensors = {f"parameter/{name}": value.detach().clone() for name, value in self._tuning.trained().items()}
        tensors |= {f"optimizer/{name}": value for name, value in self._trainer.state().items()}
        tensors |= {f"best/{name}": value for name, value in self._best.parameters.items()}
        return RunState(
            run=self._make_identity(),
            step=self.step,
            micro_batch_size=self._micro,
            tensors=tensors,
            best_losses=self._best.losses,
            best_step=self._best.step,
            evaluations_since=self._best.since,
            losses=self._losses,
        )

    def restore(self, state: RunState) -> None:
        """Go back to a state.

        Raises:
            VocabularyError: It is of another backbone.
            TuningError: It is of another run.
        """
        check_same_run(state, self._make_identity())
        parameters, best = state.part("parameter"), state.part("best")
        trained = self._tuning.trained()
        if {name: value.shape for name, value in parameters.items()} != {name: p.shape for name, p in trained.items()}:
            raise TuningError("a run state must hold what its run trains, got other parameters; start a new run")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(parameters[name])
        self._trainer.restore(state.part("optimizer"), steps=state.step)
        self._micro, self._losses = state.micro_batch_size, state.losses
        self._best = Best(
            losses=state.best_losses, step=state.best_step, since=state.evaluations_since, parameters=best
        )

    def take_best(self) -> None:
        """Go back to the parameters of the lowest validation loss, if there was a validation file."""
        with torch.no_grad():
            for name, value in self._best.parameters.items():
                self._tuning.trained()[name].copy_(value)

    def adapter(self) -> Adapter:
        """Return the adapter that the run would leave now."""
        metrics = {"step": self.step, **self._losses}
        if self._best.parameters:
            metrics |= {"best_step": self._best.step, **self._best.losses}
        return adapter_of(self._backbone, self._training, self._tuning, config=self.config, metrics=metrics)

    def _make_identity(self) -> RunIdentity:
        return identity(self._backbone, self.config, training=self._training, validation=self._validation)

    def _iterate_batches(self, should_stop: Callable[[], bool]) -> Iterator[list[int]]:
        lengths = [len(record.token_ids) for record in self._training.records]
        size, seed = self.config.batch_size, self.config.seed
        batches: list[list[int]] = []
        while not (self.done or self._processes.as_first_says(should_stop())):
            epoch, place = divmod(self.step, self.steps_per_epoch)
            if not (place and batches):
                batches = list_batches(lengths, size=size, seed=seed, epoch=epoch)
            yield batches[place]

    def _descend(self, positions: Sequence[int]) -> Losses:
        """Add the gradient of a batch, and return what it came to.

        In parts if memory is too small for all of it at once: the parts' losses are weighted to the same mean.
        """
        while True:
            try:
                return self._descend_in_parts(positions)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                at_once = min(self._micro or len(positions), len(positions))
                if at_once == 1 and (self._recomputes or not self._backbone.sites.layers):
                    raise TuningError(
                        "memory must hold one record at least, got too little; choose a smaller model or privatize "
                        "with a lower `truncate_to`"
                    ) from None
                self._recomputes = self._recomputes or at_once == 1
                self._micro = max(1, at_once // 2)
            self._trainer.clear()  # outside of `except`: the traceback holds on to the memory of the failed pass
            if at_once > 1:
                told = f"memory is too small for {at_once} records at once: computing {self._micro} at a time"
            else:
                told = (
                    "memory is too small for one record: computing each layer again in place of keeping what it holds"
                )
            self._warn(f"{told} from step={self.step} on, with the same gradient")

    def _descend_in_parts(self, positions: Sequence[int]) -> Losses:
        records = self._training.records
        answers = self._tuning.answers([records[position] for position in positions])
        reconstructs = self.config.reconstruction
        weight = 0.0 if reconstructs is None else reconstructs.weight_at(self.step / self.steps)
        task = right = reconstruction = 0.0
        for part in split_batch(self._processes.share(positions), size=self._micro):
            with recompute_layers(self._recomputes):
                losses = self._tuning.losses(
                    [records[position] for position in part], draws=[(self.step, position) for position in part]
                )
            of_answers, of_rows = losses.total / answers, losses.rows / len(positions)
            torch.autograd.backward(losses.combined(weight=weight, of_answers=of_answers, of_rows=of_rows))
            task += losses.task.item() * of_answers
            right += losses.right.item()
            if losses.reconstruction is not None:
                reconstruction += losses.reconstruction.item() * of_rows
        self._processes.sum_gradients(self._tuning.trained().values())
        task, reconstruction, right = self._processes.sum(task, reconstruction, right)
        return {
            "train_loss": task,
            **({} if reconstructs is None else {"reconstruction_loss": reconstruction}),
            "train_mean_token_accuracy": right / answers,
        }

    def _evaluate(self) -> Losses:
        if self._validation is None or not self.at_end_of_epoch:
            return {}
        size = self._micro or self.config.batch_size
        found = evaluate(self._tuning, self._validation, batch_size=size)
        self._best = self._best.after(found, step=self.step, tuning=self._tuning)
        return found


def _make_parameter_groups(tuning: Tuning, config: TuningConfig) -> list[ParameterGroup]:
    trained = tuning.trained()
    method = {name: value for name, value in trained.items() if name.startswith("method.")}
    heads = {name: value for name, value in trained.items() if name not in method}
    head_rate = config.head_learning_rate if method else config.learning_rate
    return [
        ParameterGroup(method, config.learning_rate, weight_decay=0.0),
        ParameterGroup(heads, head_rate, weight_decay=_HEAD_DECAY),
    ]


def list_batches(lengths: Sequence[int], *, size: int, seed: int, epoch: int) -> list[list[int]]:
    """Positions of the records of each batch, in the order in which they are taken; every record comes once.

    The order is a function of the seed and the epoch alone. So a run that is resumed knows where it was from its step,
    and no state of a generator has to be kept.

    Args:
        lengths: Length of each record, tokens.
        size: Records a batch; the last one of a group may have fewer.
        seed: Seed of the run.
        epoch: Epoch, from 0.
    """
    generator = torch.Generator().manual_seed((seed + 1) * _EPOCHS_APART + epoch)

    def permute(count: int) -> NDArray[np.int64]:
        drawn: NDArray[np.int64] = torch.randperm(count, generator=generator).numpy()
        return drawn

    batches = batch_by_length(lengths, size=size, permute=permute, sorted_together=_SORTED_TOGETHER)
    return [batch.tolist() for batch in batches]


def batches_per_epoch(records: int, *, size: int) -> int:
    """Count the batches that `list_batches` gives."""
    return math.ceil(records / size)


def split_batch(batch: Sequence[int], *, size: int) -> list[Sequence[int]]:
    """A batch in micro-batches of at most `size` records; 0 leaves it whole. An empty one has no parts."""
    size = size or max(1, len(batch))
    return [batch[first : first + size] for first in range(0, len(batch), size)]
