import numpy as np
import pytest
from scipy import stats

from significance import ALPHA, assert_counts, assert_distributed, assert_probability


def test_the_right_law_is_accepted(rng):
    assert_distributed(rng.gamma(3.0, size=20_000), stats.gamma(a=3.0))
    assert_counts(rng.multinomial(20_000, [0.5, 0.3, 0.1999, 0.0001]), [0.5, 0.3, 0.1999, 0.0001])
    assert_probability(int(rng.binomial(1000, 0.3)), 1000, 0.3)


@pytest.mark.parametrize("seed", range(5))
def test_a_wrong_law_is_rejected(seed):
    wrong = np.random.default_rng(seed)
    with pytest.raises(AssertionError, match=r"KS rejects: n=20000 statistic=.* alpha=1e-06"):
        assert_distributed(wrong.gamma(3.2, size=20_000), stats.gamma(a=3.0))
    with pytest.raises(AssertionError, match="chi-square rejects"):
        assert_counts(wrong.multinomial(20_000, [0.45, 0.35, 0.2]), [0.5, 0.3, 0.2])
    with pytest.raises(AssertionError, match="binomial rejects"):
        assert_probability(int(wrong.binomial(1000, 0.5)), 1000, 0.3)
    with pytest.raises(AssertionError, match="binomial rejects"):
        assert_counts([10_000, 9_950, 50], [0.5, 0.49999, 0.00001])


def test_one_correct_run_in_a_million_is_rejected():
    assert ALPHA == 1e-6
    edge = int(stats.binom(1000, 0.5).isf(ALPHA / 2))  # two-sided: half of the alarms on each side
    assert_probability(edge, 1000, 0.5)
    with pytest.raises(AssertionError, match="binomial rejects"):
        assert_probability(edge + 2, 1000, 0.5)
