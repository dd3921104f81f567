"""What an attacker is taken to know."""

import numpy as np
import pytest

from rapt.audit.priors import TokenPrior, prior_from_counts, public_text, read_public_text, uniform_prior
from rapt.errors import AuditError, CorpusError
from toy_vocabularies import toy_vocabulary, toy_word


@pytest.fixture(scope="module")
def bundle():
    return toy_vocabulary(np.arange(5.0)[:, None], special=(4,)).bundle


def test_a_uniform_prior_covers_the_eligible_tokens(bundle):
    assert uniform_prior(bundle).probabilities.tolist() == [0.25, 0.25, 0.25, 0.25, 0]


def test_counts_are_smoothed_by_the_share_of_new_types(bundle):
    prior = prior_from_counts(np.array([6, 2, 0, 0, 0]), bundle, source="x")
    # 2 types among 8 tokens: 2 / 10 is spread over 4 tokens, 8 / 10 follows the counts.
    assert prior.probabilities == pytest.approx([0.6 + 0.05, 0.2 + 0.05, 0.05, 0.05, 0])


def test_texts_are_counted_with_the_vocabulary(bundle):
    text = f"{toy_word(0)} {toy_word(1)} {toy_word(0)}"
    counted = public_text([text], bundle, source="x").prior(bundle).probabilities
    assert counted == pytest.approx(prior_from_counts(np.array([2, 1, 0, 0, 0]), bundle, source="x").probabilities)


def test_a_public_corpus_is_read_and_named(bundle, tmp_path):
    path = tmp_path / "public.csv"
    path.write_text(f"text\n{toy_word(3)}\n", encoding="utf-8")
    prior = read_public_text(path, bundle).prior(bundle)
    assert prior.probabilities.argmax() == 3
    assert "public.csv" in prior.source


@pytest.mark.parametrize("counts", [np.zeros(5, dtype=int), np.ones(4, dtype=int), np.array([1, -1, 0, 0, 0])])
def test_counts_of_nothing_or_of_another_table_are_refused(counts, bundle):
    with pytest.raises(AuditError, match="5 rows"):
        prior_from_counts(counts, bundle, source="x")


def test_a_missing_public_corpus_is_refused(bundle, tmp_path):
    with pytest.raises(CorpusError):
        read_public_text(tmp_path / "none.csv", bundle)


@pytest.mark.parametrize("values", [[0.5, 0.6], [1.5, -0.5], [np.nan, 1.0], [[1.0]]])
def test_what_is_not_a_distribution_is_refused(values):
    with pytest.raises(AuditError, match="adding up to 1"):
        TokenPrior(probabilities=np.array(values), source="x")
