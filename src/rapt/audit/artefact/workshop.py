"""Labelled texts as token ids, and the files in memory that models of an attacker or of the judge are tuned on.

The models of the game: each tuned on a random half of the texts, drawn for it alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from rapt.errors import AuditError
from rapt.local.corpus import read_corpus
from rapt.local.mechanisms.interface import Mechanism
from rapt.local.privatizer import draw_plain_tokens
from rapt.local.vocabulary import Vocabulary
from rapt.service.adapter.adapter import Adapter
from rapt.service.backbone.backbone import Backbone
from rapt.service.tuning.tuner import TuningConfig, tune
from rapt.wire.manifest import NO_PLAIN_TOKENS, Manifest, PlainTokens, Randomness
from rapt.wire.mechanism_setting import MechanismSetting
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord

# What models that are tuned on clear text state in place of a mechanism; no file may.
CLEAR: Final = MechanismSetting(name="none", parameters={"eta": math.inf})


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenTexts:
    """Texts in clear with their labels. A `repr` shows neither.

    Attributes:
        contents: Token ids of each text.
        labels: Places in `names`, one for each text.
        names: Names of the classes.
    """

    contents: tuple[tuple[int, ...], ...] = field(repr=False)
    labels: tuple[int, ...] = field(repr=False)
    names: tuple[str, ...]

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.contents)

    def at(self, places: Sequence[int] | NDArray[np.int64]) -> TokenTexts:
        """The texts at these places, in their order."""
        return replace(
            self,
            contents=tuple(self.contents[place] for place in places),
            labels=tuple(self.labels[place] for place in places),
        )

    def and_also(self, others: TokenTexts) -> TokenTexts:
        """These texts, and behind them others with the same classes."""
        return replace(self, contents=self.contents + others.contents, labels=self.labels + others.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text, (n,)."""
        return np.array([len(content) for content in self.contents], dtype=np.int64)


def read_texts(
    path: Path,
    vocabulary: Vocabulary,
    *,
    text_column: str,
    label_column: str,
    longest: int,
    names: tuple[str, ...] | None = None,
) -> TokenTexts:
    """A labelled corpus; texts without a token are left out, longer ones are cut to `longest` tokens.

    Args:
        path: CSV, TSV, JSONL or Parquet.
        vocabulary: Vocabulary of the backbone.
        text_column: Name of the column.
        label_column: Name of the column.
        longest: Content tokens that the backbone takes.
        names: Classes that the labels must be among; None takes those that occur.

    Raises:
        CorpusError: The corpus cannot be read, or a text has no label.
        AuditError: A label is not among the classes.
    """
    records = list(read_corpus(path, text_column=text_column, label_column=label_column))
    contents = vocabulary.encode([record.text for record in records])
    kept = [
        (content[:longest], str(record.label)) for content, record in zip(contents, records, strict=True) if content
    ]
    known = tuple(sorted({label for _, label in kept})) if names is None else names
    if unknown := {label for _, label in kept} - set(known):
        raise AuditError(
            f"labels must be among the {len(known)} of the model, got {len(unknown)} others; leave them out"
        )
    return TokenTexts(
        contents=tuple(tuple(content) for content, _ in kept),
        labels=tuple(known.index(label) for _, label in kept),
        names=known,
    )


def make_tuning_file(
    texts: TokenTexts,
    *,
    vocabulary: Vocabulary,
    mechanism: Mechanism | None,
    rng: np.random.Generator,
    plain_tokens: PlainTokens = NO_PLAIN_TOKENS,
) -> PrivatizedFile:
    """The texts as a model is tuned on them: through the mechanism, or in clear for comparison.

    It stays in memory. The clear one states an infinite η, which no wire format can write.

    Args:
        texts: Texts in clear.
        vocabulary: Vocabulary of the backbone.
        mechanism: None for the clear text.
        rng: Generator of the noise.
        plain_tokens: Plain tokens that stand before each text, for tuning with reconstruction.
    """
    setting = CLEAR if mechanism is None else mechanism.setting
    contents = texts.contents if mechanism is None else privatize(texts.contents, mechanism=mechanism, rng=rng)
    manifest = Manifest(
        model=vocabulary.model,
        vocabulary_hash=vocabulary.hash,
        mechanism=setting,
        randomness=Randomness(source="drawn for an audit, in memory only"),
        plain_tokens=plain_tokens,
        labels=texts.names,
        records=len(contents),
        tokens=sum(map(len, contents)),
        records_sha256="",
        created_by="rapt audit-model",
    )
    plain = release_plain_tokens(plain_tokens, len(contents), mechanism=mechanism, rng=rng)
    records = tuple(
        PrivatizedRecord(
            token_ids=content,
            label=label,
            privatized_plain_tokens=released,
            plain_tokens=clear if plain_tokens.count and plain_tokens.fixed is None else None,
        )
        for content, label, (clear, released) in zip(contents, texts.labels, plain, strict=True)
    )
    return PrivatizedFile(manifest=manifest, records=records)


def release_plain_tokens(
    plain_tokens: PlainTokens, texts: int, *, mechanism: Mechanism | None, rng: np.random.Generator
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The plain tokens that stand before each of so many texts, in clear and as they are released."""
    clear = [draw_plain_tokens(plain_tokens, rng) for _ in range(texts)]
    if mechanism is None or not plain_tokens.count:
        return [(k, k) for k in clear]
    return list(zip(clear, privatize(clear, mechanism=mechanism, rng=rng), strict=True))


def privatize(
    contents: Sequence[tuple[int, ...]], *, mechanism: Mechanism, rng: np.random.Generator
) -> tuple[tuple[int, ...], ...]:
    """A fresh release of every text."""
    flat = np.array([token for content in contents for token in content], dtype=np.int64)
    released = mechanism.privatize(flat, rng=rng)
    return tuple(
        tuple(part.tolist()) for part in np.split(released, np.cumsum([len(content) for content in contents])[:-1])
    )


_TRIES = 100


class TuneAll(Protocol):
    """Tunes a model on each part of the texts, the places of its texts and the seed of its run."""

    def __call__(
        self, parts: Sequence[tuple[NDArray[np.int64], int]], *, on_done: Callable[[int], None]
    ) -> Sequence[Adapter]:
        """The models, in order."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Workshop:
    """A place to tune models: everything that the attacker knows about how the attacked one was tuned.

    Attributes:
        backbone: Frozen backbone.
        vocabulary: Vocabulary of the backbone.
        mechanism: Through which the texts went; None for models tuned on the clear text.
        config: Settings of each run but for its seed, which nobody knows of another's run.
        plain_tokens: Plain tokens of its files; none for runs without reconstruction.
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

    def longest_text(self, *, plain_tokens: int) -> int:
        """Content tokens that a text may have beside the prompt and so many plain tokens."""
        bundle = self.vocabulary.bundle
        return bundle.max_tokens - bundle.special_tokens - self.config.prompt_positions - plain_tokens

    def tune(self, texts: TokenTexts, *, seed: int) -> Adapter:
        """A model tuned on a fresh release of these texts."""
        file = make_tuning_file(
            texts,
            vocabulary=self.vocabulary,
            mechanism=self.mechanism,
            rng=np.random.default_rng([seed, 3]),
            plain_tokens=self.plain_tokens,
        )
        return tune(self.backbone, file, config=replace(self.config, seed=seed), on_warning=lambda warning: None)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedModels:
    """Models and what each was tuned on.

    Attributes:
        adapters: N of them.
        members: True for each of the n texts that a model had, (N, n).
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
    tune_all: TuneAll | None = None,
) -> TrainedModels:
    """Models tuned on a random part of the texts each.

    Args:
        workshop: Workshop that tunes them.
        texts: Texts to draw from.
        models: Number N of models.
        seed: Seed of parts, noise and runs.
        share: Share of the texts that each model gets.
        on_progress: Called with the number of models tuned.
        tune_all: Tunes all models elsewhere; None tunes them here.

    Raises:
        AuditError: There are too few texts to draw parts with every class.
        TuningError: A model cannot be tuned.
    """
    rng = np.random.default_rng([seed, 5])
    members = np.stack([_part(texts, share=share, rng=rng) for _ in range(models)])
    parts = [(np.flatnonzero(members[model]), seed * 10_007 + model) for model in range(models)]
    if tune_all is not None:
        return TrainedModels(adapters=tuple(tune_all(parts, on_done=on_progress)), members=members)
    adapters = []
    for places, own_seed in parts:
        adapters.append(workshop.tune(texts.at(places), seed=own_seed))
        on_progress(len(adapters))
    return TrainedModels(adapters=tuple(adapters), members=members)


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
