"""What a warm-up or the training of a word head does, and for how long."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from rapt.errors import UsageError
from rapt.wire.manifest import Parameter


@dataclass(frozen=True, kw_only=True)
class WarmUpPlan:
    """All of a warm-up but its texts; everything in it is public.

    Attributes:
        model: Backbone of architecture `bert`, a name in `PUBLIC_MODELS` or a folder.
        mechanism: Name in `MECHANISMS`.
        options: Its options; not η.
        etas: Settings that the backbone shall expect, 1/distance; each batch is privatized at one of them.
        epochs: Passes over the public text, with fresh noise in each; may be a fraction, and 0 with soft embeddings.
        batch_size: Texts a step.
        learning_rate: At its peak; AdamW with warm-up and linear decay to 0.
        seed: Of order and noise. The text is public and the noise protects nobody.
        soft_embeddings: Whether each word vector is replaced by the mean over what the word may have been, E[E(x)|y].
    """

    model: str
    mechanism: str = "laplace"
    options: Mapping[str, Parameter] = field(default_factory=dict)
    etas: tuple[float, ...]
    epochs: float = 3.0
    batch_size: int = 32
    learning_rate: float = 3e-4
    seed: int = 0
    soft_embeddings: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        if not self.etas or any(not (math.isfinite(eta) and eta > 0) for eta in self.etas):
            raise UsageError("a warm-up must have an eta, and each finite and above 0; give --eta")
        if not (math.isfinite(self.epochs) and self.epochs >= 0 and (self.epochs > 0 or self.soft_embeddings)):
            raise UsageError(
                f"epochs must be finite and above 0, or 0 with soft embeddings, got epochs={self.epochs}; raise it"
            )
        _check_steps(batch_size=self.batch_size, learning_rate=self.learning_rate, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class WordHeadPlan:
    """How a word head is trained; for which mechanism and η says the card of its backbone.

    Attributes:
        epochs: Passes over the public text, with fresh noise in each; may be a fraction.
        batch_size: Texts a step.
        learning_rate: At its peak; AdamW with warm-up and linear decay to 0.
        seed: Of first weights, order and noise.
    """

    epochs: float = 1.0
    batch_size: int = 32
    # Far above the layers' rate: a small head that begins at nothing. As in the first trial; nothing else was tried.
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        if not (math.isfinite(self.epochs) and self.epochs > 0):
            raise UsageError(f"epochs must be finite and above 0, got epochs={self.epochs}; raise it")
        _check_steps(batch_size=self.batch_size, learning_rate=self.learning_rate, seed=self.seed)


def _check_steps(*, batch_size: int, learning_rate: float, seed: int) -> None:
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise UsageError(f"learning_rate must be finite and above 0, got learning_rate={learning_rate}")
    if batch_size < 2:
        raise UsageError(f"a batch must have at least 2 texts, got batch_size={batch_size}; raise it")
    if seed < 0:
        raise UsageError(f"the seed must be at least 0, got seed={seed}")
