"""The view and the answer of an attack, as values.

What an attack answers.

What an attacker knows about a language before it sees a text: how frequent each token is.

What an attack may see, and what only the score may see, as two values that never meet inside an attack.

The service holds the privatized file, the public vocabulary and whatever is public about the language. That is
`AdversaryView`. The true tokens are a `Truth`: attacks do not take one, so no attack can read it by accident.

A record may have several texts that went through the mechanism: both sentences of a pair, a target. All are attacked,
each as a sequence of its own, so that no word is judged by one across a border that the writer did not write over. The
texts of a record stay together wherever records are drawn, lent or counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import AuditError
from rapt.local.corpus import read_corpus
from rapt.local.vocabulary import Vocabulary
from rapt.wire.manifest import Manifest
from rapt.wire.privatized_file import (
    PrivatizedFile,
    PrivatizedPart,
    PrivatizedRecord,
    count_privatized_tokens,
    list_privatized_parts,
    list_privatized_texts,
)
from rapt.wire.vocabulary_bundle import VocabularyBundle, shorten_hash

# Guesses a token that are scored, so that figures of different attacks compare.
SCORED: Final = 10
# One more is asked for: the observed token is struck out where an attacker is told that it was changed.
CANDIDATES: Final = SCORED + 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Guess:
    """The likeliest true tokens of each privatized token, the best first.

    Attributes:
        token_ids: (n, up to `CANDIDATES`), in the order of `AdversaryView.observed`.
        remarks: Remarks for a reader of the result, such as the prior that was used.
    """

    token_ids: NDArray[np.int64] = field(repr=False)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenPrior:
    """A distribution over the rows of the table, and where it came from.

    Attributes:
        probabilities: (V,), float64, sum 1.
        source: Origin in words, for the report.
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
        source: Words for the report that say where the texts are from.
        labels: Label of each text, by its place among the labels of the attacked file, -1 for another; None where the
            texts have none.
    """

    contents: tuple[NDArray[np.int64], ...] = field(repr=False)
    source: str
    labels: tuple[int, ...] | None = field(default=None, repr=False)

    @property
    def tokens(self) -> int:
        """Number of tokens of all texts."""
        return sum(map(len, self.contents))

    def prior(self, bundle: VocabularyBundle) -> TokenPrior:
        """The frequencies of its tokens; see `make_prior_from_counts`."""
        flat = np.concatenate([np.empty(0, dtype=np.int64), *self.contents])
        return make_prior_from_counts(
            np.bincount(flat, minlength=len(bundle.embeddings)), bundle, source=f"word frequencies of {self.source}"
        )


def public_text(texts: Iterable[str], bundle: VocabularyBundle, *, source: str) -> PublicText:
    """Public texts, tokenized with the vocabulary; those without a token are left out."""
    contents = (np.array(content, dtype=np.int64) for content in Vocabulary(bundle).encode(list(texts)))
    return PublicText(contents=tuple(content for content in contents if len(content)), source=source)


def read_public_text(
    path: Path,
    bundle: VocabularyBundle,
    *,
    text_column: str = "text",
    label_column: str | None = None,
    labels: tuple[str, ...] | None = None,
) -> PublicText:
    """A public corpus: CSV, TSV or JSONL with a column of texts.

    Args:
        path: File of the public corpus.
        bundle: Vocabulary of the attacked file.
        text_column: Column of the texts.
        label_column: Column of the labels; None where they have none.
        labels: Names of the labels of the attacked file, in its order.

    Raises:
        CorpusError: It cannot be read.
    """
    records = list(read_corpus(path, text_column=text_column, label_column=label_column))
    found = public_text((record.text for record in records), bundle, source=f"the public text {path.name}")
    if label_column is None or labels is None:
        return found
    number = {name: place for place, name in enumerate(labels)}
    encoded = Vocabulary(bundle).encode([record.text for record in records])
    kept = (number.get(record.label or "", -1) for record, content in zip(records, encoded, strict=True) if content)
    return replace(found, labels=tuple(kept))


def make_uniform_prior(bundle: VocabularyBundle) -> TokenPrior:
    """Every eligible token equally likely: an attacker who knows nothing about the language."""
    values = np.zeros(len(bundle.embeddings))
    values[bundle.eligible] = 1 / len(bundle.eligible)
    return TokenPrior(probabilities=values, source="every token equally likely")


def make_prior_from_counts(counts: NDArray[np.int64], bundle: VocabularyBundle, *, source: str) -> TokenPrior:
    """Relative frequencies of a public corpus, smoothed for the tokens that it lacks.

    A token that was not counted is not impossible. Its share is Witten and Bell's: T distinct tokens among N make the
    next one new with probability T / (N + T), spread evenly over the eligible tokens (IEEE Trans. Inf. Theory 37, 1991,
    method C).

    Args:
        counts: Occurrences of each row of the table, (V,).
        bundle: Vocabulary of the table.
        source: Origin in words, for the report.

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Lineup:
    """Different texts in clear that an attacker holds, in random order; each attacked text is one of them.

    Attributes:
        contents: Token ids of each text, rows of the table.
    """

    contents: tuple[NDArray[np.int64], ...] = field(repr=False)


# Of the texts of a record, for people.
PART_NAMES: Final[Mapping[PrivatizedPart, str]] = MappingProxyType(
    {"first": "first text", "second": "second text", "target": "target"}
)


@dataclass(frozen=True, kw_only=True, eq=False)
class AdversaryView:
    """Everything that an honest but curious service sees, and nothing more.

    Attributes:
        manifest: The mechanism and eta in it are public: the attacker knows the channel.
        records: The privatized records, labels included.
        bundle: Tokenizer, embedding table and eligible ids.
        prior: Token frequencies from a public source, or None when the attacker has no such source.
        public: Texts of the same kind that the attacker holds in clear, or None when he has none.
    """

    manifest: Manifest
    records: tuple[PrivatizedRecord, ...]
    bundle: VocabularyBundle
    prior: TokenPrior | None = None
    public: PublicText | None = None

    @property
    def parts(self) -> tuple[PrivatizedPart, ...]:
        """Texts of each record that went through the mechanism: T of them."""
        return list_privatized_parts(self.manifest)

    @property
    def unit(self) -> str:
        """Name of its records where they are counted: texts, if each is one."""
        return "texts" if len(self.parts) == 1 else "records"

    @cached_property
    def texts(self) -> tuple[tuple[int, ...], ...]:
        """Every text that went through the mechanism, those of a record one after another: T a record."""
        return tuple(text for record in self.records for text in list_privatized_texts(record, self.manifest))

    @cached_property
    def observed(self) -> NDArray[np.int64]:
        """The privatized tokens of all texts, one after another, (n,)."""
        return np.array([token for text in self.texts for token in text], dtype=np.int64)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each text, (records * T,): an attack reads each text by itself."""
        return np.array([len(text) for text in self.texts], dtype=np.int64)

    @cached_property
    def record_lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each record, (records,): what is drawn, lent and counted together."""
        lengths: NDArray[np.int64] = self.lengths.reshape(len(self.records), len(self.parts)).sum(axis=1)
        return lengths


def adversary_view(
    file: PrivatizedFile,
    bundle: VocabularyBundle,
    *,
    prior: TokenPrior | None = None,
    public: PublicText | None = None,
) -> AdversaryView:
    """Return the service's view of a privatized file.

    Args:
        file: Privatized file that was sent.
        bundle: The public vocabulary.
        prior: Frequencies of tokens that are public; None takes them from `public`, if there is any.
        public: Texts that the attacker holds.

    Raises:
        AuditError: The vocabulary is not the file's, the file holds no token, one that no mechanism puts out, or texts
            that its manifest does not name; or the prior is for a table of another size.
    """
    manifest = file.manifest
    if manifest.vocabulary_hash != bundle.hash:
        raise AuditError(
            f"the vocabulary must be the one the file was made with, got {shorten_hash(bundle.hash)}, "
            f"the manifest names {shorten_hash(manifest.vocabulary_hash)}; "
            f"give the vocabulary of model={manifest.model!r}"
        )
    if prior is None and public is not None:
        prior = public.prior(bundle)
    view = AdversaryView(manifest=manifest, records=file.records, bundle=bundle, prior=prior, public=public)
    sent = sum(count_privatized_tokens(record, manifest) for record in file.records)
    if view.observed.size != sent:
        raise AuditError(
            f"an audit must cover every token that went through the mechanism, got {view.observed.size} of {sent}; "
            "privatize the file again, so that its manifest names all texts of a record"
        )
    if view.observed.size == 0:
        raise AuditError("an audit must have at least one token, got tokens=0; give a file with records")
    if not np.isin(view.observed, bundle.eligible).all():
        raise AuditError(
            f"every privatized token must be one that a mechanism can put out, got token "
            f"{int(np.isin(view.observed, bundle.eligible).argmin())} of {view.observed.size}; privatize the file again"
        )
    if prior is not None and len(prior.probabilities) != len(bundle.embeddings):
        raise AuditError(
            f"a prior must have one probability for each of the {len(bundle.embeddings)} rows of the table, "
            f"got {len(prior.probabilities)}; count with the vocabulary of model={manifest.model!r}"
        )
    return view
