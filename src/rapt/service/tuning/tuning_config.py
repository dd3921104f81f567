"""Settings of a tuning run: all of them public, checked when they are written down, before any work.

What each method trains and can be told is in `rapt.service.adapter.methods`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from rapt.errors import TuningError
from rapt.service.adapter.methods import METHODS, PROMPT_TUNING
from rapt.service.adapter.methods.method import INITIALIZATIONS, TASKS, MethodSettings
from rapt.wire.adapter_files import MOST_PROMPT_POSITIONS

# λ over a run, as a factor of its weight by the share of the run that is done.
SCHEDULES: Final[Mapping[str, Callable[[float], float]]] = {
    "constant": lambda done: 1.0,
    "rise": lambda done: done,
    "fall": lambda done: 1.0 - done,
}


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """Settings of the reconstruction of privatized tokens.

    Attributes:
        weight: λ; 0 keeps the plain tokens in the sequence and trains nothing on them (a control).
        head_size: c, width between the head's two linear layers.
        schedule: Course of λ over the run, a key of `SCHEDULES`.
    """

    # Paper: 1 with a loss summed over m. Ours is a mean; see docs/results/tuning.md for how 0.1 was chosen.
    weight: float = 0.1
    head_size: int = 96
    schedule: str = "constant"

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        if not math.isfinite(self.weight) or self.weight < 0:
            raise TuningError(f"the reconstruction weight must be finite and >= 0, got weight={self.weight}; lower it")
        if self.head_size < 1:
            raise TuningError(f"the reconstruction head must have a size >= 1, got head_size={self.head_size}")
        if self.schedule not in SCHEDULES:
            raise TuningError(
                f"the reconstruction schedule must be one of {', '.join(SCHEDULES)}, got schedule={self.schedule!r}"
            )

    def weight_at(self, done: float) -> float:
        """λ when a share `done` of the run is over."""
        return self.weight * SCHEDULES[self.schedule](done)


@dataclass(frozen=True, kw_only=True)
class TuningConfig(MethodSettings):
    """The settings of one run.

    Attributes:
        task: Task to learn, a key of `tasks.TASKS`.
        label_words: A public word for each class, for the task `label_words`; empty takes the names of the labels.
        method: A key of `METHODS`. The defaults suit prompt tuning; `make_default_config` knows those of the others.
        epochs: Passes over the records.
        batch_size: Records a step.
        micro_batch_size: Records that are computed at once, 0 for all of a step. It changes memory, not the gradient.
        learning_rate: Peak learning rate of the method; AdamW with warm-up and linear decay to 0.
        head_learning_rate: Peak learning rate of both heads; linear probing trains its head at the rate of the method.
        warmup: Share of the steps that the rate takes to rise.
        patience: Evaluations without a lower validation loss after which a run stops; 0 never stops early.
        seed: Seed of initialization and order. It protects nothing and hides nothing.
        reconstruction: None trains on the text alone and ignores the file's plain tokens.
    """

    task: str = "classification"
    label_words: tuple[str, ...] = ()
    method: str = PROMPT_TUNING
    epochs: int = 3
    batch_size: int = 32
    micro_batch_size: int = 0
    learning_rate: float = METHODS[PROMPT_TUNING].learning_rate
    head_learning_rate: float = 0.01
    warmup: float = 0.06
    patience: int = 0
    seed: int = 0
    reconstruction: ReconstructionConfig | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        _require_one_of("method", self.method, METHODS)
        _require_one_of("initialization", self.initialization, INITIALIZATIONS)
        for name in ("prompt_length", "epochs", "batch_size", "lora_rank"):
            _require_at_least(name, getattr(self, name), 1)
        for name in ("prompt_length", "lora_rank"):
            if getattr(self, name) > MOST_PROMPT_POSITIONS:
                raise TuningError(
                    f"{name} must be at most {MOST_PROMPT_POSITIONS}, which an adapter can hold; lower it"
                )
        for name in ("micro_batch_size", "patience", "reparametrization_size"):
            _require_at_least(name, getattr(self, name), 0)
        for name in ("learning_rate", "head_learning_rate", "lora_alpha"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise TuningError(f"{name} must be finite and above 0, got {name}={getattr(self, name)}")
        method = METHODS[self.method]
        if self.task in TASKS and self.task not in method.tasks:
            raise TuningError(
                f"{self.method} trains the head of the task {' or '.join(method.tasks)}, got task={self.task!r}; "
                "choose another method"
            )
        if not method.reconstructs and self.reconstruction is not None:
            raise TuningError(f"{self.method} has nothing that reconstruction could teach; tune without it")
        if self.reparametrization not in method.reparametrizations:
            raise TuningError(
                f"the reparametrization of {self.method} must be one of {', '.join(method.reparametrizations)}, "
                f"got reparametrization={self.reparametrization!r}"
            )
        if not 0 <= self.warmup < 1:
            raise TuningError(f"warmup must be a share from 0 to 1, got warmup={self.warmup}")
        if (self.initialization == "text") != bool(self.init_text):
            raise TuningError(
                f"initialization 'text' and an init_text go together, got initialization={self.initialization!r}; "
                "give both or neither"
            )

    def asks(self, setting: str) -> bool:
        """Whether the method can be told a setting, such as `lora_rank`; the others play no part in the run."""
        return any(option.setting == setting for option in METHODS[self.method].options)

    @property
    def prompt_positions(self) -> int:
        """Positions that the method takes in a sequence: only a soft prompt takes any."""
        return self.prompt_length if METHODS[self.method].prompt == "sequence" else 0

    @property
    def prefix_positions(self) -> int:
        """Positions that every attention layer sees before the sequence."""
        return self.prompt_length if METHODS[self.method].prompt == "attention" else 0


def make_default_config(method: str) -> TuningConfig:
    """The run that a method has where nothing else is said.

    Raises:
        TuningError: Nobody knows the method.
    """
    _require_one_of("method", method, METHODS)
    entry = METHODS[method]
    return TuningConfig(method=method, learning_rate=entry.learning_rate, reparametrization=entry.reparametrizations[0])


def list_card_settings(config: TuningConfig) -> dict[str, float | int | str | bool | None]:
    """The run as flat settings for a card: everything but the words of `init_text`."""
    flat: dict[str, float | int | str | bool | None] = {}
    for name in TuningConfig.__dataclass_fields__:
        value = getattr(config, name)
        if name in ("lora_targets", "label_words"):
            flat[name] = " ".join(value)
        elif name not in ("init_text", "reconstruction"):
            flat[name] = value
    if config.reconstruction is not None:
        own = config.reconstruction
        flat |= {f"reconstruction_{name}": getattr(own, name) for name in ReconstructionConfig.__dataclass_fields__}
    return flat


def _require_one_of(name: str, value: str, known: Mapping[str, object] | tuple[str, ...]) -> None:
    if value not in known:
        raise TuningError(f"the {name} must be one of {', '.join(known)}, got {name}={value!r}")


def _require_at_least(name: str, value: float, least: int) -> None:
    if not value >= least or not math.isfinite(value):
        raise TuningError(f"{name} must be at least {least}, got {name}={value}; raise it")
