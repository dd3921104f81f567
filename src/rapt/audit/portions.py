"""Some of the records of a file, as a view and a truth of their own: drawn, or lent to the attacker."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rapt.audit.priors import PublicText
from rapt.audit.view import AdversaryView, Truth
from rapt.errors import AuditError


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
    enough = int(np.searchsorted(np.cumsum(view.record_lengths[order]), tokens)) + 1
    return keep_records(view, truth, np.sort(order[:enough]))


def keep_records(view: AdversaryView, truth: Truth, places: NDArray[np.int64]) -> tuple[AdversaryView, Truth]:
    """The records at these places, in their order, as a view and a truth of their own."""
    chosen = np.repeat(np.isin(np.arange(len(view.records)), places), view.record_lengths)
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
    the part that is attacked is not among them. Public text that the view has is replaced. A record is lent with all of
    its texts, each as a text of its own.

    Args:
        view: Of the whole file.
        truth: Of the whole file.
        share: Of the records that are lent, between 0 and 1; at least one is lent and one attacked.
        seed: Of the choice.

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
    contents = tuple(
        text for place in np.sort(lent) for text in texts[place * count : (place + 1) * count] if len(text)
    )
    public = PublicText(
        contents=contents, source=f"{len(lent):,} other {view.unit} of the same file, lent to the attacker"
    )
    rest = np.setdiff1d(np.arange(len(view.records)), lent)
    attacked, its_truth = keep_records(view, truth, rest)
    return replace(attacked, public=public, prior=public.prior(view.bundle)), its_truth
