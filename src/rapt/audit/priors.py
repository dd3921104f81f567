"""What an attacker knows about a language before it sees a text: how frequent each token is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rapt.errors import AuditError
from rapt.local.corpus import read_corpus
from rapt.local.vocabulary import Vocabulary
from rapt.wire.vocabulary_bundle import VocabularyBundle


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenPrior:
    """A distribution over the rows of the table, and where it came from.

    Attributes:
        probabilities: (V,), float64, sum 1.
        source: In words, for the report.
    """

    probabilities: NDArray[np.float64] = field(repr=False)
    source: str

    def __post_init__(self) -> None:
        """Refuse what is not a distribution (`AuditError`)."""
        values = self.probabilities
        if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any() or abs(values.sum() - 1) > 1e-6:
            raise AuditError("a prior must be one probability for each row of the table, adding up to 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicText:
    """Texts that the attacker holds in clear: of the same language, and none of them among those he attacks.

    Attributes:
        contents: Token ids of each text, rows of the table.
        source: In words, for the report.
    """

    contents: tuple[NDArray[np.int64], ...] = field(repr=False)
    source: str

    @property
    def tokens(self) -> int:
        """Number of tokens of all texts."""
        return sum(map(len, self.contents))

    def prior(self, bundle: VocabularyBundle) -> TokenPrior:
        """The frequencies of its tokens; see `prior_from_counts`."""
        flat = np.concatenate([np.empty(0, dtype=np.int64), *self.contents])
        return prior_from_counts(
            np.bincount(flat, minlength=len(bundle.embeddings)), bundle, source=f"word frequencies of {self.source}"
        )


def public_text(texts: Iterable[str], bundle: VocabularyBundle, *, source: str) -> PublicText:
    """Public texts, tokenized with the vocabulary; those without a token are left out."""
    contents = (np.array(content, dtype=np.int64) for content in Vocabulary(bundle).encode(list(texts)))
    return PublicText(contents=tuple(content for content in contents if len(content)), source=source)


def read_public_text(path: Path, bundle: VocabularyBundle, *, text_column: str = "text") -> PublicText:
    """A public corpus: CSV, TSV or JSONL with a column of texts. Raises `CorpusError` when it cannot be read."""
    texts = (record.text for record in read_corpus(path, text_column=text_column, label_column=None))
    return public_text(texts, bundle, source=f"the public text {path.name}")


def uniform_prior(bundle: VocabularyBundle) -> TokenPrior:
    """Every eligible token equally likely: an attacker who knows nothing about the language."""
    values = np.zeros(len(bundle.embeddings))
    values[bundle.eligible] = 1 / len(bundle.eligible)
    return TokenPrior(probabilities=values, source="every token equally likely")


def prior_from_counts(counts: NDArray[np.int64], bundle: VocabularyBundle, *, source: str) -> TokenPrior:
    """Relative frequencies of a public corpus, smoothed for the tokens that it lacks.

    A token that was not counted is not impossible. Its share is Witten and Bell's: T distinct tokens among N make the
    next one new with probability T / (N + T), spread evenly over the eligible tokens (IEEE Trans. Inf. Theory 37, 1991,
    method C).

    Args:
        counts: Occurrences of each row of the table, (V,).
        bundle: Whose table it is.
        source: In words, for the report.

    Raises:
        AuditError: The counts are of another table, negative, or all 0.
    """
    if counts.shape != (len(bundle.embeddings),) or (counts < 0).any() or counts.sum() == 0:
        raise AuditError(
            f"a prior must be counted from at least one token, one count for each of the {len(bundle.embeddings)} "
            "rows of the table; give a text with words"
        )
    total, types = int(counts.sum()), int((counts > 0).sum())
    values = counts / (total + types)
    values[bundle.eligible] += types / (total + types) / len(bundle.eligible)
    return TokenPrior(probabilities=values / values.sum(), source=source)
