"""What an attack may see, and what only the score may see, as two values that never meet inside an attack.

The service holds the privatized file, the public vocabulary and whatever is public about the language. That is
`AdversaryView`. The true tokens are a `Truth`: attacks do not take one, so no attack can read it by accident.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rapt.audit.priors import PublicText, TokenPrior
from rapt.errors import AuditError
from rapt.local.corpus import read_corpus
from rapt.local.vocabulary import Vocabulary
from rapt.wire.manifest import Manifest
from rapt.wire.privatized_file import PrivatizedFile
from rapt.wire.privatized_record import PrivatizedRecord
from rapt.wire.vocabulary_bundle import VocabularyBundle, short_hash


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

    @cached_property
    def observed(self) -> NDArray[np.int64]:
        """The privatized tokens of all records, one after another, (n,)."""
        return np.array([token for record in self.records for token in record.token_ids], dtype=np.int64)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each record, (records,)."""
        return np.array([len(record.token_ids) for record in self.records], dtype=np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """The tokens before privatization, for the score alone. Its `repr` shows nothing of them.

    Attributes:
        token_ids: In the order of `AdversaryView.observed`, (n,).
        records: Place of each record in the corpus; None where it is all of them.
        entity: For each token the number of the named entity that it is part of, or -1, (n,); None where nobody looked.
        entity_kinds: Kind of each of these entities.
    """

    token_ids: NDArray[np.int64] = field(repr=False)
    records: NDArray[np.int64] | None = field(default=None, repr=False)
    entity: NDArray[np.int64] | None = field(default=None, repr=False)
    entity_kinds: tuple[str, ...] = field(default=(), repr=False)


def adversary_view(
    file: PrivatizedFile,
    bundle: VocabularyBundle,
    *,
    prior: TokenPrior | None = None,
    public: PublicText | None = None,
) -> AdversaryView:
    """What the service sees of a privatized file.

    Args:
        file: What was sent.
        bundle: The public vocabulary.
        prior: Frequencies of tokens that are public; None takes them from `public`, if there is any.
        public: Texts that the attacker holds.

    Raises:
        AuditError: The vocabulary is not the file's, the file holds no token, one that no mechanism puts out, or the
            prior is for a table of another size.
    """
    manifest = file.manifest
    if manifest.vocabulary_hash != bundle.hash:
        raise AuditError(
            f"the vocabulary must be the one the file was made with, got {short_hash(bundle.hash)}, the manifest names "
            f"{short_hash(manifest.vocabulary_hash)}; give the vocabulary of model={manifest.model!r}"
        )
    if prior is None and public is not None:
        prior = public.prior(bundle)
    view = AdversaryView(manifest=manifest, records=file.records, bundle=bundle, prior=prior, public=public)
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


def match_truth(view: AdversaryView, contents: Sequence[Sequence[int]], *, truncate_to: int | None = None) -> Truth:
    """The truth of a view, once every count shows that the plain text belongs to the privatized file.

    Args:
        view: Made from the privatized file.
        contents: Token ids of each plain text, in the order of the file.
        truncate_to: As given when the file was privatized; None if nothing was cut.

    Raises:
        AuditError: Records or tokens differ in number, so nothing true could be said about recovery.
    """
    if len(contents) != len(view.records):
        raise AuditError(
            f"the plain text must belong to the privatized file, got {len(contents)} records for "
            f"{len(view.records)} in the file; give the corpus it was made from"
        )
    kept = [content[:truncate_to] for content in contents]
    for position, (content, length) in enumerate(zip(kept, view.lengths, strict=True)):
        if len(content) != length:
            raise AuditError(
                f"the plain text must belong to the privatized file, got {len(content)} tokens for {length} in record "
                f"{position}; give the corpus it was made from, and truncate_to if it was cut"
            )
    flat = np.array([token for content in kept for token in content], dtype=np.int64)
    if ((flat < 0) | (flat >= len(view.bundle.embeddings))).any():
        raise AuditError(f"every true token must have a row in the table of model={view.manifest.model!r}")
    return Truth(token_ids=flat)


def read_truth(
    view: AdversaryView,
    path: Path,
    *,
    text_column: str = "text",
    label_column: str | None = "label",
    truncate_to: int | None = None,
) -> Truth:
    """The truth of a view, from the corpus that the privatized file was made from.

    Args:
        view: Made from the privatized file.
        path: The private corpus: CSV, TSV or JSONL.
        text_column: As given when the file was privatized.
        label_column: As given when the file was privatized; ignored when the manifest names no labels.
        truncate_to: As given when the file was privatized.

    Raises:
        AuditError: Records, tokens or labels do not belong to the file.
        CorpusError: The corpus cannot be read.
    """
    names = view.manifest.labels
    records = list(read_corpus(path, text_column=text_column, label_column=None if names is None else label_column))
    contents = Vocabulary(view.bundle).encode([record.text for record in records])
    truth = match_truth(view, contents, truncate_to=truncate_to)
    # Randomized labels differ from the true ones on purpose, and say nothing about whose file this is.
    if names is not None and label_column is not None and view.manifest.label_privacy is None:
        for position, (plain, private) in enumerate(zip(records, view.records, strict=True)):
            if private.label is None or plain.label != names[private.label]:
                raise AuditError(
                    f"the plain text must belong to the privatized file, but record {position} has another label; "
                    "give the corpus it was made from"
                )
    return truth


def sample_records(view: AdversaryView, truth: Truth, *, tokens: int, seed: int) -> tuple[AdversaryView, Truth]:
    """A random part of a large file, in whole records: the same attack on fewer tokens, with wider intervals.

    An attack with a public prior treats each token by itself, so its success does not depend on the size of the part.

    Args:
        view: Of the whole file.
        truth: Of the whole file.
        tokens: Records are added until there are at least so many; a smaller file comes back as it is.
        seed: Of the choice.
    """
    if tokens >= view.observed.size:
        return view, truth
    order = np.random.default_rng(seed).permutation(len(view.records))
    enough = int(np.searchsorted(np.cumsum(view.lengths[order]), tokens)) + 1
    return keep_records(view, truth, np.sort(order[:enough]))


def keep_records(view: AdversaryView, truth: Truth, places: NDArray[np.int64]) -> tuple[AdversaryView, Truth]:
    """The records at these places, in their order, as a view and a truth of their own."""
    chosen = np.repeat(np.isin(np.arange(len(view.records)), places), view.lengths)
    records = tuple(view.records[place] for place in places)
    kept = replace(
        truth,
        token_ids=truth.token_ids[chosen],
        records=places if truth.records is None else truth.records[places],
        entity=None if truth.entity is None else truth.entity[chosen],
    )
    return replace(view, records=records), kept


def lend_texts(view: AdversaryView, truth: Truth, *, share: float, seed: int) -> tuple[AdversaryView, Truth]:
    """A random part of the records given to the attacker in clear, as texts of the same kind, and the rest to attack.

    It answers what an attacker could do who holds as many texts from the same source, and no public text is at hand:
    the part that is attacked is not among them. Public text that the view has is replaced.

    Args:
        view: Of the whole file.
        truth: Of the whole file.
        share: Of the records that are lent, between 0 and 1; at least one is lent and one attacked.
        seed: Of the choice.

    Raises:
        AuditError: The share is not between 0 and 1, or there is only one record with tokens.
    """
    held = np.flatnonzero(view.lengths)
    if not 0 < share < 1 or len(held) < 2:
        raise AuditError(
            f"lending must leave records on both sides, got share={share} of {len(held)} records with tokens; "
            "give a share between 0 and 1, or public text"
        )
    lent = np.random.default_rng(seed).permutation(held)[: min(max(1, round(share * len(held))), len(held) - 1)]
    starts = np.cumsum(view.lengths) - view.lengths
    contents = tuple(truth.token_ids[starts[place] : starts[place] + view.lengths[place]] for place in np.sort(lent))
    public = PublicText(contents=contents, source=f"{len(lent):,} other texts of the same file, lent to the attacker")
    rest = np.setdiff1d(np.arange(len(view.records)), lent)
    attacked, its_truth = keep_records(view, truth, rest)
    return replace(attacked, public=public, prior=public.prior(view.bundle)), its_truth
