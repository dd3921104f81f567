"""Tong et al.'s contextual attack: the score without context, times what a classifier says of each candidate in place.

For each token the likeliest sources without context are candidates. A classifier reads two sentences, the privatized
one as it was seen and the same with a candidate in one place, and says how likely the candidate is the true word. Its
answer is multiplied with prior(x) P(y|x), and the largest product is named.

The product counts the channel twice where the classifier has learned it too, and the classifier sees privatized
neighbours only, so this attack does not reach the optimum of a Markov source; `context` does. It is here because it is
the strongest attack that was published, for comparison.

Source: Tong et al., NAACL 2025, the attack with context.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rapt.audit.attacks.beliefs import ranked, scaled
from rapt.audit.attacks.desk import Desk, Lattice, Progress
from rapt.audit.attacks.shadow import shadow
from rapt.audit.attacks.weighing import LEAST
from rapt.audit.guess import CANDIDATES, Guess


def classified_candidates(desk: Desk, *, on_progress: Progress | None = None) -> Guess:
    """For each observed token, the candidates of largest product.

    Args:
        desk: What the attacker has: public text among it.
        on_progress: Called with the share done.
    """
    from rapt.audit.attacks.pair_classifier import train_pair_classifier

    known = shadow(desk, on_progress=scaled(on_progress, 0.0, 0.3))
    classifier = train_pair_classifier(
        desk.view.bundle,
        seen=known.released,
        candidates=known.lattice.candidates[:, :-1][:, :CANDIDATES],
        truth=known.truth,
        lengths=known.lengths,
        longest=int(max(known.lengths.max(), desk.view.lengths.max())),
        seed=int(desk.rng("tong").integers(2**31)),
        on_progress=scaled(on_progress, 0.3, 0.6),
    )
    lattice = desk.lattice()
    believed = without_context(lattice)
    said = classifier.log_probability(
        desk.view.observed,
        lattice.candidates[:, :-1][:, :CANDIDATES],
        lengths=desk.view.lengths,
        on_progress=scaled(on_progress, 0.6, 1.0),
    )
    believed[:, : said.shape[1]] += said
    # What was not judged stays behind what was.
    believed[:, said.shape[1] :] += 2 * LEAST
    remark = f"{classifier.remark}, {desk.public.source}, privatized by the attacker"
    return Guess(token_ids=ranked(lattice, believed), remarks=(remark,))


def without_context(lattice: Lattice) -> NDArray[np.float64]:
    """Log prior(x) P(y|x) of each candidate, (n, K + 1)."""
    found: NDArray[np.float64] = np.maximum(lattice.evidence + lattice.prior, LEAST)
    return found
