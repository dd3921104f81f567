"""What a warm-up does, and for how long."""

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
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UsageError(
                f"learning_rate must be finite and above 0, got learning_rate={self.learning_rate}; choose another"
            )
        if self.batch_size < 2:
            raise UsageError(f"a batch must have at least 2 texts, got batch_size={self.batch_size}; raise it")
        if self.seed < 0:
            raise UsageError(f"the seed must be at least 0, got seed={self.seed}; raise it")
