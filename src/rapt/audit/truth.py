"""The tokens before privatization, for the judge alone.

The truth of a view: from the corpus that the privatized file was made from, once every count fits.

Some of the records of a file, as a view and a truth of their own: drawn, or lent to the attacker.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from rapt.audit.view import PART_NAMES, AdversaryView, PublicText
from rapt.errors import AuditError, name_record
from rapt.local.corpus import ONE_TEXT, read_corpus
from rapt.local.policy.policy import Policy
from rapt.local.records import Part, PartColumns
from rapt.local.vocabulary import Vocabulary
from rapt.wire.manifest import Manifest
from rapt.wire.privatized_file import list_privatized_parts


@dataclass(frozen=True, kw_only=True)
class GoneEntity:
    """A labelled entity of which nothing is left in what went through the mechanism.

    Attributes:
        record: Place of its record among those of the view.
        kind: Name of its kind.
        name: Number of its words, equal for equal words.
    """

    record: int
    kind: str
    name: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """The tokens before privatization, for the score alone. Its `repr` shows nothing of them.

    Attributes:
        token_ids: True tokens in the order of `AdversaryView.observed`, (n,).
        records: Place of each record in the corpus; None where it is all of them.
        entity: Number of the named entity that each token is part of, or -1, (n,); None where nobody looked.
        entity_kinds: Kind of each of these entities.
        gone: Labelled entities without a token, because a policy replaced them; no attack on tokens recovers them.
    """

    token_ids: NDArray[np.int64] = field(repr=False)
    records: NDArray[np.int64] | None = field(default=None, repr=False)
    entity: NDArray[np.int64] | None = field(default=None, repr=False)
    entity_kinds: tuple[str, ...] = field(default=(), repr=False)
    gone: tuple[GoneEntity, ...] = field(default=(), repr=False)


_OPTIONS: Final[Mapping[Literal["second", "target"], str]] = MappingProxyType(
    {"second": "`text_column_2`", "target": "`target_column`"}
)
NO_OTHERS: Final[Mapping[Part, Sequence[Any]]] = MappingProxyType({})


def match_truth(
    view: AdversaryView,
    contents: Sequence[Sequence[int]],
    *,
    others: Mapping[Part, Sequence[Sequence[int]]] = NO_OTHERS,
    truncate_to: int | None = None,
) -> Truth:
    """The truth of a view, once every count shows that the plain text belongs to the privatized file.

    Args:
        view: Made from the privatized file.
        contents: Token ids of each plain text, in the order of the file.
        others: The same of the other texts of a record that went through the mechanism.
        truncate_to: Tokens that each text was cut to, as given when the file was privatized; None if nothing was cut.

    Raises:
        AuditError: A text of the records is missing, or records or tokens differ in number, so nothing true could be
            said about recovery.
    """
    check_parts(view.manifest, others)
    columns = [contents, *(others[part] for part in view.parts if part != "first")]
    for column in columns:
        if len(column) != len(view.records):
            raise AuditError(
                f"the plain text must belong to the privatized file, got {len(column)} records for "
                f"{len(view.records)} in the file; give the corpus it was made from"
            )
    kept = [content[:truncate_to] for content in chain.from_iterable(zip(*columns, strict=True))]
    for place, (content, length) in enumerate(zip(kept, view.lengths, strict=True)):
        if len(content) != length:
            position, part = divmod(place, len(view.parts))
            where = "" if len(view.parts) == 1 else f"the {PART_NAMES[view.parts[part]]} of "
            raise AuditError(
                f"the plain text must belong to the privatized file, got {len(content)} tokens for {length} in {where}"
                f"{name_record(position)}; give the corpus it was made from, and truncate_to if it was cut"
            )
    flat = np.array([token for content in kept for token in content], dtype=np.int64)
    if ((flat < 0) | (flat >= len(view.bundle.embeddings))).any():
        raise AuditError(f"every true token must have a row in the table of model={view.manifest.model!r}")
    return Truth(token_ids=flat)


def check_parts(manifest: Manifest, others: Collection[Part]) -> None:
    """Refuse plain text that lacks a text of the records, or has one that did not go through the mechanism.

    Args:
        manifest: Manifest of the privatized file.
        others: The texts beside the first that are given.

    Raises:
        AuditError: They are not those of the file.
    """
    parts = list_privatized_parts(manifest)
    for part, option in _OPTIONS.items():
        if part in parts and part not in others:
            raise AuditError(
                f"an audit must cover every privatized text, and each record of this file has a {PART_NAMES[part]}; "
                f"name its column with {option}"
            )
        if part in others and part not in parts:
            public = part == "target" and manifest.targets == "public"
            reason = "are public: nothing in them is to be recovered" if public else "are not in this file"
            raise AuditError(
                f"an audit takes the texts that were privatized, and {PART_NAMES[part]}s {reason}; leave out {option}"
            )


def read_truth(
    view: AdversaryView,
    path: Path,
    *,
    text_column: str = "text",
    label_column: str | None = "label",
    other_texts: PartColumns = ONE_TEXT,
    truncate_to: int | None = None,
    policy: Policy | None = None,
) -> Truth:
    """The truth of a view, from the corpus that the privatized file was made from.

    Args:
        view: Made from the privatized file.
        path: The private corpus: CSV, TSV or JSONL.
        text_column: Text column, as given when the file was privatized.
        label_column: Label column, as given when the file was privatized; ignored when the manifest names no labels.
        other_texts: Other texts, as given when the file was privatized; without targets that are public.
        truncate_to: Tokens that each text was cut to, as given when the file was privatized.
        policy: Policy that the texts were rewritten by, as given when the file was privatized.

    Raises:
        AuditError: Texts, records, tokens or labels do not belong to the file.
        CorpusError: The corpus cannot be read.
    """
    check_parts(view.manifest, other_texts.by_part)
    names = view.manifest.labels
    column = None if names is None else label_column
    records = list(read_corpus(path, text_column=text_column, label_column=column, policy=policy))
    vocabulary = Vocabulary(view.bundle)
    truth = match_truth(
        view,
        vocabulary.encode([record.text for record in records]),
        others={
            part: vocabulary.encode(texts) for part, texts in read_others(path, other_texts, policy=policy).items()
        },
        truncate_to=truncate_to,
    )
    # Randomized labels differ from the true ones on purpose, and say nothing about whose file this is.
    if names is not None and label_column is not None and view.manifest.label_privacy is None:
        for position, (plain, private) in enumerate(zip(records, view.records, strict=True)):
            if private.label is None or plain.label != names[private.label]:
                raise AuditError(
                    f"the plain text must belong to the privatized file, "
                    f"but {name_record(position)} has another label; give the corpus it was made from"
                )
    return truth


def read_others(path: Path, columns: PartColumns, *, policy: Policy | None = None) -> dict[Part, list[str]]:
    """The other texts of the records of a corpus, as a policy leaves them. Raises `CorpusError`."""
    return {
        part: [record.text for record in read_corpus(path, text_column=column, label_column=None, policy=policy)]
        for part, column in columns.by_part.items()
    }


def sample_records(view: AdversaryView, truth: Truth, *, tokens: int, seed: int) -> tuple[AdversaryView, Truth]:
    """A random part of a large file, in whole records: the same attack on fewer tokens, with wider intervals.

    An attack with a public prior treats each token by itself, so its success does not depend on the size of the part.

    Args:
        view: View of the whole file.
        truth: Truth of the whole file.
        tokens: Records are added until there are at least so many; a smaller file comes back as it is.
        seed: Seed of the choice.
    """
    if tokens >= view.observed.size:
        return view, truth
    order = np.random.default_rng(seed).permutation(len(view.records))
    enough = int(np.searchsorted(np.cumsum(view.record_lengths[order]), tokens)) + 1
    return keep_records(view, truth, np.sort(order[:enough]))


def keep_records(view: AdversaryView, truth: Truth, places: NDArray[np.int64]) -> tuple[AdversaryView, Truth]:
    """The records at these places, in their order, as a view and a truth of their own."""
    chosen = np.repeat(np.isin(np.arange(len(view.records)), places), view.record_lengths)
    records = tuple(view.records[place] for place in places)
    moved = {place: number for number, place in enumerate(places.tolist())}
    kept = replace(
        truth,
        token_ids=truth.token_ids[chosen],
        records=places if truth.records is None else truth.records[places],
        entity=None if truth.entity is None else truth.entity[chosen],
        gone=tuple(replace(one, record=moved[one.record]) for one in truth.gone if one.record in moved),
    )
    return replace(view, records=records), kept


def lend_texts(view: AdversaryView, truth: Truth, *, share: float, seed: int) -> tuple[AdversaryView, Truth]:
    """A random part of the records given to the attacker in clear, as texts of the same kind, and the rest to attack.

    It answers what an attacker could do who holds as many texts from the same source, and no public text is at hand:
    the part that is attacked is not among them. Public text that the view has is replaced. A record is lent with all of
    its texts, each as a text of its own.

    Args:
        view: View of the whole file.
        truth: Truth of the whole file.
        share: Share of the records that are lent, between 0 and 1; at least one is lent and one attacked.
        seed: Seed of the choice.

    Raises:
        AuditError: The share is not between 0 and 1, or there is only one record with tokens.
    """
    held = np.flatnonzero(view.record_lengths)
    if not 0 < share < 1 or len(held) < 2:
        raise AuditError(
            f"lending must leave records on both sides, got share={share} of {len(held)} records with tokens; "
            "give a share between 0 and 1, or public text"
        )
    lent = np.random.default_rng(seed).permutation(held)[: min(max(1, round(share * len(held))), len(held) - 1)]
    texts = np.split(truth.token_ids, np.cumsum(view.lengths)[:-1])
    count = len(view.parts)
    places = [
        place * count + part for place in np.sort(lent) for part in range(count) if len(texts[place * count + part])
    ]
    # Labels stand beside the records in clear, also beside those that are lent.
    labels = [view.records[place // count].label for place in places]
    public = PublicText(
        contents=tuple(texts[place] for place in places),
        source=f"{len(lent):,} other {view.unit} of the same file, lent to the attacker",
        labels=None if view.manifest.labels is None else tuple(-1 if label is None else label for label in labels),
    )
    rest = np.setdiff1d(np.arange(len(view.records)), lent)
    attacked, its_truth = keep_records(view, truth, rest)
    return replace(attacked, public=public, prior=public.prior(view.bundle)), its_truth
