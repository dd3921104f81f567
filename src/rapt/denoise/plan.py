"""Plan of a warm-up, and the public text that it learns from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rapt.errors import CorpusError, UsageError
from rapt.local.corpus import read_corpus
from rapt.local.vocabulary import Vocabulary
from rapt.wire.mechanism_setting import Parameter


@dataclass(frozen=True, kw_only=True)
class WarmUpPlan:
    """All of a warm-up but its texts; everything in it is public.

    Attributes:
        model: Backbone of architecture `bert`, a name in `PUBLIC_MODELS` or a folder.
        mechanism: Name in `MECHANISMS`.
        options: Options of the mechanism; not η.
        etas: Settings that the backbone shall expect, 1/distance; each batch is privatized at one of them.
        epochs: Passes over the public text, with fresh noise in each; may be a fraction, and 0 with soft embeddings.
        batch_size: Texts a step.
        learning_rate: Learning rate at its peak; AdamW with warm-up and linear decay to 0.
        seed: Seed of order and noise. The text is public and the noise protects nobody.
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
            raise UsageError("a warm-up must have an eta, and each finite and above 0; give `etas`")
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


# Shorter texts have no context to learn from; longer ones are cut into windows, which cost less than their square.
SHORTEST: Final = 4
WINDOW: Final = 48
# Texts held out: enough for a figure to two digits, too few to be missed.
MOST_HELD_OUT: Final = 512
LEAST_TEXTS: Final = 64


@dataclass(frozen=True, kw_only=True)
class PublicTexts:
    """Content tokens of public texts; no window is in both parts."""

    training: tuple[tuple[int, ...], ...]
    held_out: tuple[tuple[int, ...], ...]


def read_public_texts(files: Iterable[Path], *, vocabulary: Vocabulary, text_column: str = "text") -> PublicTexts:
    """The windows of all files, in the order of a hash, a twentieth of them held out.

    Raises:
        CorpusError: A file cannot be read, or all of them hold fewer than `LEAST_TEXTS` windows.
    """
    found: dict[tuple[int, ...], bytes] = {}
    for path in files:
        texts = [record.text for record in read_corpus(path, text_column=text_column, label_column=None)]
        for ids in vocabulary.encode(texts):
            for start in range(0, len(ids), WINDOW):
                window = tuple(ids[start : start + WINDOW])
                if len(window) >= SHORTEST:
                    found.setdefault(window, hashlib.sha256(repr(window).encode()).digest())
    if len(found) < LEAST_TEXTS:
        raise CorpusError(
            f"a warm-up needs at least {LEAST_TEXTS} different public texts of {SHORTEST} tokens, got {len(found)}; "
            "add public text"
        )
    ordered = sorted(found, key=found.__getitem__)
    held_out = min(MOST_HELD_OUT, len(ordered) // 20 + 1)
    return PublicTexts(training=tuple(ordered[held_out:]), held_out=tuple(ordered[:held_out]))


@dataclass(frozen=True, kw_only=True)
class Explained:
    """Share of the teacher's variance that a backbone gets right on held-out privatized text, 1 at best.

    It is below 0 for one that would do better to answer with a constant.

    Attributes:
        eta: η at which the text was privatized, 1/distance.
        before: Share that the backbone explained as it was.
        after: Share that the backbone explains that expects noise.
    """

    eta: float
    before: float
    after: float
