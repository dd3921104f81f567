"""The models of the game: each tuned on a random half of the texts, drawn for it alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from rapt.audit.artefact.texts import TokenTexts, tuning_file
from rapt.errors import AuditError
from rapt.local.mechanisms.interface import Mechanism
from rapt.local.vocabulary import Vocabulary
from rapt.service.model.adapter import Adapter
from rapt.service.model.backbone import Backbone
from rapt.service.model.tuner import TuningConfig, tune
from rapt.wire.manifest import NO_PLAIN_TOKENS, PlainTokens

_TRIES = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Workshop:
    """Where models are tuned: everything that the attacker knows about how the attacked one was.

    Attributes:
        backbone: Frozen.
        vocabulary: Of the backbone.
        mechanism: Through which the texts went; None for models tuned on the clear text.
        config: Of each run but for its seed, which nobody knows of another's run.
        plain_tokens: Of its files; none for runs without reconstruction.
    """

    backbone: Backbone
    vocabulary: Vocabulary
    mechanism: Mechanism | None
    config: TuningConfig
    plain_tokens: PlainTokens = NO_PLAIN_TOKENS

    @property
    def tuned_on(self) -> str:
        """`clear` or `privatized`: the text that its models see."""
        return "clear" if self.mechanism is None else "privatized"

    def tune(self, texts: TokenTexts, *, seed: int) -> Adapter:
        """A model tuned on a fresh release of these texts."""
        file = tuning_file(
            texts,
            vocabulary=self.vocabulary,
            mechanism=self.mechanism,
            rng=np.random.default_rng([seed, 3]),
            plain_tokens=self.plain_tokens,
        )
        return tune(self.backbone, file, config=replace(self.config, seed=seed), on_warning=lambda warning: None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Models:
    """Models and what each was tuned on.

    Attributes:
        adapters: N of them.
        members: Which of the n texts each had, (N, n).
    """

    adapters: tuple[Adapter, ...]
    members: NDArray[np.bool_] = field(repr=False)


def tune_models(
    workshop: Workshop,
    texts: TokenTexts,
    *,
    models: int,
    seed: int,
    share: float = 0.5,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Models:
    """Models tuned on a random part of the texts each.

    Args:
        workshop: Tunes them.
        texts: To draw from.
        models: N.
        seed: Of parts, noise and runs.
        share: Of the texts that each model gets.
        on_progress: Called with the number of models tuned.

    Raises:
        AuditError: There are too few texts to draw parts with every class.
        TuningError: A model cannot be tuned.
    """
    rng = np.random.default_rng([seed, 5])
    members = np.stack([_part(texts, share=share, rng=rng) for _ in range(models)])
    adapters = []
    for model in range(models):
        adapters.append(workshop.tune(texts.at(np.flatnonzero(members[model])), seed=seed * 10_007 + model))
        on_progress(model + 1)
    return Models(adapters=tuple(adapters), members=members)


def _part(texts: TokenTexts, *, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    size, labels = round(share * len(texts)), np.asarray(texts.labels)
    for _ in range(_TRIES):
        chosen = np.zeros(len(texts), dtype=bool)
        chosen[rng.permutation(len(texts))[:size]] = True
        if len(np.unique(labels[chosen])) == len(texts.names):
            return chosen
    raise AuditError(
        f"a random part of the texts must hold each of {len(texts.names)} classes, got parts of {size} without one; "
        "give more texts of the rare classes, or leave those classes out"
    )
