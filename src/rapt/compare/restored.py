"""Privatized files read before anything is tuned on them: words of the contextual posterior in place of what arrived.

All of it is post-processing of the identical privatized files. Each text is read by itself, the second one of a pair
too, as the head was trained to; labels and plain tokens stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from rapt.errors import UsageError
from rapt.service.model.backbone import Backbone
from rapt.service.model.posterior import Posterior, read_posterior
from rapt.service.model.word_head import WordHead
from rapt.wire.privatized_file import PrivatizedFile
from rapt.wire.privatized_record import privatized_tokens

Texts = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Reading:
    """What a model is given to read.

    Attributes:
        backbone: That reads it.
        files: Versions of one file, of as many records each; in training one after the other, in judging all for each
            answer.
    """

    backbone: Backbone
    files: tuple[PrivatizedFile, ...]

    @property
    def joined(self) -> PrivatizedFile:
        """All versions as one file."""
        return one_file(self.files)


# From a reading of one file, its posterior, how many draws are wanted, and where they come from.
Restore = Callable[[Reading, Posterior, int, np.random.Generator], Reading]


@dataclass(frozen=True, eq=False)
class WordReader:
    """A backbone that expects noise, and the head that reads words off it.

    Attributes:
        backbone: The one that the head was trained on.
        head: Its head.
        keeps: How many files' posteriors are kept: those of one seed at one η, which the next arm asks for again.
    """

    backbone: Backbone
    head: WordHead
    keeps: int

    def posterior(self, file: PrivatizedFile) -> Posterior:
        """Of every text of a file, in the order of `texts_of`."""
        return self._kept(texts_of(file))

    @cached_property
    def _kept(self) -> Callable[[Texts], Posterior]:
        return lru_cache(maxsize=self.keeps)(lambda texts: read_posterior(self.backbone, self.head, texts))


def most_likely_words(reading: Reading, posterior: Posterior, draws: int, rng: np.random.Generator) -> Reading:
    """Every word replaced by the most likely one."""
    (file,) = reading.files
    return replace(reading, files=(with_texts(file, posterior.most_likely()),))


def posterior_draws(reading: Reading, posterior: Posterior, draws: int, rng: np.random.Generator) -> Reading:
    """So many versions, with a word drawn at every position."""
    (file,) = reading.files
    return replace(reading, files=tuple(with_texts(file, posterior.draw(rng)) for _ in range(draws)))


def posterior_means(reading: Reading, posterior: Posterior, draws: int, rng: np.random.Generator) -> Reading:
    """The mean vector at every position."""
    return with_vectors(reading, posterior.mean_vectors(reading.backbone.word_embeddings), lengths=posterior.lengths)


def soft_masks(reading: Reading, posterior: Posterior, draws: int, rng: np.random.Generator) -> Reading:
    """Every word the further towards [MASK] the less likely it is the true one. Raises as `require_mask`."""
    (file,) = reading.files
    arrived = torch.tensor([word for text in texts_of(file) for word in text])
    mask = require_mask(reading.backbone)
    vectors = posterior.soft_masks(reading.backbone.word_embeddings, arrived, mask=mask)
    return with_vectors(reading, vectors, lengths=posterior.lengths)


def require_mask(backbone: Backbone) -> int:
    """Id of the backbone's [MASK].

    Raises:
        UsageError: It has none.
    """
    if backbone.frame.mask_id is None:
        raise UsageError(
            f"soft masks need a backbone with a [MASK] token, got model={backbone.model!r} without; "
            "choose a BERT, or leave their arms out"
        )
    return backbone.frame.mask_id


def with_vectors(reading: Reading, vectors: Tensor, *, lengths: Sequence[int]) -> Reading:
    """The reading with a vector of its own at every position: each is a word, in rows behind those of the vocabulary.

    The rows take 4·h bytes a token: 0.1 GB for 4,000 sentences and a width of 384.

    Args:
        reading: Of one file.
        vectors: (N, h), float32, text by text in the order of `texts_of`.
        lengths: Of the texts; they sum to N.
    """
    (file,) = reading.files
    table = reading.backbone.word_embeddings
    ends = np.cumsum([len(table), *lengths]).tolist()
    own = [tuple(range(start, end)) for start, end in pairwise(ends)]
    longer = replace(reading.backbone, word_embeddings=torch.cat([table, vectors]))
    return Reading(backbone=longer, files=(with_texts(file, own),))


def two_at_a_time(
    reading: Reading, *, sequences: int, rng: np.random.Generator
) -> tuple[PrivatizedFile, PrivatizedFile]:
    """The first, third, ... versions as one file, and the second, fourth, ... beside them as its twin.

    Each record is in so many sequences of both: where that is odd, only a half of the records, drawn at random, is
    taken of the last two versions. Of the only two it is not halved, for then a half would not be read at all.

    Args:
        reading: Of an even number of versions.
        sequences: Of each record, one less than the versions or as many.
        rng: Draws the half.
    """
    files = list(reading.files)
    if sequences % 2 and len(files) > 2:
        count = len(files[0].records)
        half = sorted(rng.permutation(count)[: count // 2].tolist())
        files[-2:] = [part_of(file, half) for file in files[-2:]]
    return one_file(files[::2]), one_file(files[1::2])


def one_file(files: Sequence[PrivatizedFile]) -> PrivatizedFile:
    """The records of files that were made alike, one file after the other."""
    manifest = replace(
        files[0].manifest,
        records=sum(file.manifest.records for file in files),
        tokens=sum(file.manifest.tokens for file in files),
    )
    return PrivatizedFile(manifest=manifest, records=tuple(record for file in files for record in file.records))


def part_of(file: PrivatizedFile, positions: Sequence[int]) -> PrivatizedFile:
    """The file with the records at these positions alone."""
    records = tuple(file.records[position] for position in positions)
    tokens = sum(privatized_tokens(record, file.manifest) for record in records)
    return PrivatizedFile(manifest=replace(file.manifest, records=len(records), tokens=tokens), records=records)


def texts_of(file: PrivatizedFile) -> Texts:
    """The texts of all records, then the second texts of all that have one."""
    seconds = tuple(record.second_token_ids for record in file.records if record.second_token_ids is not None)
    return tuple(record.token_ids for record in file.records) + seconds


def with_texts(file: PrivatizedFile, texts: Sequence[tuple[int, ...]]) -> PrivatizedFile:
    """The file with other texts of the same lengths, in the order of `texts_of`."""
    seconds = iter(texts[len(file.records) :])
    records = tuple(
        replace(record, token_ids=first, second_token_ids=None if record.second_token_ids is None else next(seconds))
        for record, first in zip(file.records, texts, strict=False)
    )
    return replace(file, records=records)
