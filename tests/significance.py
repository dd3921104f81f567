"""Statistical checks with a stated rate of false alarms.

Each check rejects a correct implementation with probability ALPHA at most: with a hundred checks a run, once in ten
thousand runs with fresh seeds, and never again with the seed that passed. A check that cannot fail proves nothing, so
whoever uses one also shows a broken twin that it rejects.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

ALPHA: Final = 1e-6


def assert_distributed(sample: ArrayLike, law: Any, *, alpha: float = ALPHA) -> None:
    """The sample comes from a continuous law (frozen scipy distribution), by Kolmogorov and Smirnov."""
    values = np.asarray(sample, dtype=float)
    result = stats.kstest(values, law.cdf)
    assert result.pvalue >= alpha, (
        f"KS rejects: n={values.size} statistic={result.statistic:.5f} p={result.pvalue:.2e} alpha={alpha:.0e}"
    )


def assert_counts(counts: ArrayLike, probabilities: ArrayLike, *, alpha: float = ALPHA) -> None:
    """Counts of categories follow the given probabilities, by chi-square; rare categories are taken together."""
    observed, expected = np.asarray(counts, dtype=float), np.asarray(probabilities, dtype=float)
    assert np.isclose(expected.sum(), 1.0, atol=1e-9), f"probabilities must add up to 1, got {expected.sum()}"
    n = observed.sum()
    expected = expected * n
    # The chi-square law is an approximation, poor where fewer than 10 are expected.
    rare = expected < 10
    if rare.any():
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
        if expected[-1] < 10:  # together still too few: their number alone, by the exact binomial law
            assert_probability(int(observed[-1]), int(n), min(1.0, expected[-1] / n), alpha=alpha / 2)
            observed, expected, alpha = observed[:-1], expected[:-1], alpha / 2
            expected = expected * observed.sum() / expected.sum()
    if len(observed) < 2:
        return
    result = stats.chisquare(observed, expected)
    assert result.pvalue >= alpha, (
        f"chi-square rejects: n={n:.0f} cells={len(observed)} statistic={result.statistic:.2f} "
        f"p={result.pvalue:.2e} alpha={alpha:.0e}"
    )


def assert_probability(successes: int, n: int, probability: float, *, alpha: float = ALPHA) -> None:
    """An event of this probability happened so often in n independent trials, by the exact binomial law."""
    p = stats.binomtest(successes, n, probability).pvalue
    assert p >= alpha, (
        f"binomial rejects: n={n} successes={successes} expected={n * probability:.1f} p={p:.2e} alpha={alpha:.0e}"
    )
