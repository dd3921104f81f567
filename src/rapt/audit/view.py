"""What an attack may see, and what only the score may see, as two values that never meet inside an attack.

The service holds the privatized file, the public vocabulary and whatever is public about the language. That is
`AdversaryView`. The true tokens are a `Truth`: attacks do not take one, so no attack can read it by accident.

A record may have several texts that went through the mechanism: both sentences of a pair, a target. All are attacked,
each as a sequence of its own, so that no word is judged by one across a border that the writer did not write over. The
texts of a record stay together wherever records are drawn, lent or counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.audit.priors import PublicText, TokenPrior
from rapt.errors import AuditError
from rapt.wire.manifest import Manifest
from rapt.wire.privatized_file import PrivatizedFile
from rapt.wire.privatized_record import (
    PrivatizedPart,
    PrivatizedRecord,
    privatized_parts,
    privatized_texts,
    privatized_tokens,
)
from rapt.wire.vocabulary_bundle import VocabularyBundle, short_hash

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
        """Which texts each record has that went through the mechanism: T of them."""
        return privatized_parts(self.manifest)

    @property
    def unit(self) -> str:
        """What its records are called where they are counted: texts, if each is one."""
        return "texts" if len(self.parts) == 1 else "records"

    @cached_property
    def texts(self) -> tuple[tuple[int, ...], ...]:
        """Every text that went through the mechanism, those of a record one after another: T a record."""
        return tuple(text for record in self.records for text in privatized_texts(record, self.manifest))

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
        AuditError: The vocabulary is not the file's, the file holds no token, one that no mechanism puts out, or texts
            that its manifest does not name; or the prior is for a table of another size.
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
    sent = sum(privatized_tokens(record, manifest) for record in file.records)
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
