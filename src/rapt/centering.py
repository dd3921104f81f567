"""Centring a code by what a first round of contributors released, for pools without public text of their kind.

Texts of a narrow kind lie in one corner of a map that was made of another kind: their codes have a mean far from
0, and noise hides what little tells them apart. So some contributors spend their ε on the centre, and the others
release codes from that centre.

*Guarantee*: the centre is computed from released codes alone, so a text of the first round is protected by its own ε,
whatever is done with the centre (post-processing). A text of the second round is released by the subset mechanism over
a map that was public before it was read. No text pays twice; a text, or a person, that gives to both rounds spends both
ε, and a ledger adds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapt.errors import UsageError
from rapt.wire.code_bundle import CodeBundle, FirstRound, add_second_center
from rapt.wire.mechanism_setting import MechanismSetting

_POINTS: Final = 512
_LONGEST: Final = 0.95  # of the centre of codes of length 1


@dataclass(frozen=True, kw_only=True, eq=False)
class SecondCenter:
    """Estimate of the mean code of a first round.

    Attributes:
        offset: Mean of the codes of length 1, (k,), one run after the other.
        length: Root mean square length of its runs, from 0 to 1.
        error: Root mean square length of the estimate's error, by the noise of the mechanism.
        first_round: Releases that it was computed from.
    """

    offset: NDArray[np.float64]
    length: float
    error: float
    first_round: FirstRound


def estimate_center(bundle: CodeBundle, setting: MechanismSetting, token_ids: NDArray[np.int64]) -> SecondCenter:
    """Estimate the mean code of the texts whose releases these are.

    A codeword y of a code u has E[y | u] = c u, and a share of the mean codeword that is taken off. So the mean
    released codeword, divided by c, has the mean code as its expectation, up to how evenly the codewords lie. Its error
    has the variance (1 - |mean|²) / (n c²); the estimate is drawn towards 0 by the share of that variance in its square
    (James and Stein 1961), and is 0 where noise explains all of it.

    Args:
        bundle: Code that they were released by.
        setting: Mechanism that released them, over that code.
        token_ids: Ids of codewords, (n, r).

    Raises:
        UsageError: There are fewer than two, or the code is of pairs.
    """
    counts = np.stack([np.bincount(ids, minlength=bundle.size) for ids in token_ids.T])
    return estimate_center_of_counts(bundle, setting, counts)


def estimate_center_of_counts(bundle: CodeBundle, setting: MechanismSetting, counts: NDArray[np.int64]) -> SecondCenter:
    """Estimate the mean code from how often each codeword was released, (r, N); else as `estimate_center`."""
    count, preferred = int(counts[0].sum()), int(setting.parameters["preferred"])
    if bundle.pairs:
        raise UsageError("a code of pairs has no centre: public pairs say where it lies; keep the code as it is")
    if count < 2:
        raise UsageError(f"a first round must have at least two texts, got {count}; collect more")
    width = bundle.codewords.shape[2]
    growth = float(np.exp(setting.epsilon / bundle.codes))
    total = growth * preferred + bundle.size - preferred
    even = bundle.size / total
    points = np.random.default_rng(0).standard_normal((_POINTS, width))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    books = bundle.codewords.astype(np.float64)
    # c: the mean inner product of a code and its codeword, which is a preferred one `growth` times as often as another.
    scores = np.sort(np.concatenate([points @ words.T for words in books]), axis=1)
    kept = float((scores.sum(axis=1) + (growth - 1) * scores[:, -preferred:].sum(axis=1)).mean() / total)
    runs, error = [], 0.0
    for words, often in zip(books, counts, strict=True):
        mean = often @ words / count
        found = (mean - even * words.mean(axis=0)) / kept
        noise = max(0.0, 1 - mean @ mean) / (count * kept**2)
        square = found @ found
        found *= max(0.0, 1 - noise / square) if square > 0 else 0.0
        runs.append(found * min(1.0, _LONGEST / max(float(np.linalg.norm(found)), _LONGEST)))
        error += noise / bundle.codes
    offset = np.concatenate(runs)
    return SecondCenter(
        offset=offset,
        length=float(np.linalg.norm(offset) / bundle.codes**0.5),
        error=float(error**0.5),
        first_round=FirstRound(code_hash=bundle.hash, epsilon=float(setting.epsilon), texts=count),
    )


def center_codes(bundle: CodeBundle, found: SecondCenter) -> CodeBundle:
    """Make the code that is centred by a first round. It has another hash, and no release of the other fits it.

    Raises:
        UsageError: The code is centred already, or what was found is shorter than its error: then it is good as it is.
        VocabularyError: The estimate is of another code.
    """
    if bundle.offset is not None:
        raise UsageError("a code must be centred once, got one that is; centre the code that it came from again")
    if found.length < found.error:
        raise UsageError(
            f"the centre of a first round must be more than its noise, got no more in {found.first_round.texts} texts "
            f"at epsilon={found.first_round.epsilon:g}; keep the code as it is, or collect more"
        )
    return add_second_center(bundle, found.offset.astype(np.float32), first_round=found.first_round)
