"""Counts of one's own words: exact on a law that they can know, believed as far as they help, and silent in a repr."""

import numpy as np
import pytest

from rapt.errors import UsageError
from rapt.local.own_model import LEAST_TEXTS, count_words, fit_fusion

GOOD, BAD = "lovely warm bright".split(), "dull cold grey".split()


def texts_of(number, rng, *, telling=1.0):
    labels = rng.integers(2, size=number)
    words = [(GOOD if label else BAD)[rng.integers(3)] if rng.random() < telling else "plain" for label in labels]
    return [f"it was {word} there" for word in words], labels


def test_words_that_tell_are_learned_and_a_text_without_any_has_the_prior():
    texts, labels = texts_of(200, np.random.default_rng(0))
    model = count_words(texts, labels, classes=2)
    found = np.exp(model.answer(["it was lovely", "so cold there", "nothing known"]))
    assert found[0, 1] > 0.95
    assert found[1, 0] > 0.95
    np.testing.assert_allclose(found[2], (np.bincount(labels) + 1) / (len(labels) + 2))
    np.testing.assert_allclose(found.sum(axis=1), 1)


@pytest.mark.parametrize(("telling", "knows"), [(1.0, "own"), (0.0, "other")])
def test_who_knows_is_believed(telling, knows):
    rng = np.random.default_rng(1)
    texts, labels = texts_of(300, rng, telling=telling)
    truth = np.eye(2)[labels]
    odds = np.full((300, 2), 0.5) if knows == "own" else 0.1 + 0.8 * truth
    fusion = fit_fusion(texts, labels, odds)
    fresh, wanted = texts_of(300, rng, telling=telling)
    asked = np.full((300, 2), 0.5) if knows == "own" else 0.1 + 0.8 * np.eye(2)[wanted]
    assert (fusion.fuse(asked, fresh).argmax(axis=1) == wanted).mean() > 0.97
    assert (fusion.trust_own > 0.2) == (knows == "own")


def test_counts_are_judged_on_texts_that_they_were_left_out_of():
    rng = np.random.default_rng(2)
    texts = [f"word{number} only here" for number in range(100)]  # each tells its label, and no other does
    labels = rng.integers(2, size=100)
    fusion = fit_fusion(texts, labels, 0.2 + 0.6 * np.eye(2)[labels])
    assert fusion.trust_own <= 0.1


def test_too_few_texts_and_one_label_are_refused_and_no_word_shows():
    texts, labels = texts_of(LEAST_TEXTS, np.random.default_rng(3))
    odds = np.full((LEAST_TEXTS, 2), 0.5)
    with pytest.raises(UsageError, match="at least 20"):
        fit_fusion(texts[1:], labels[1:], odds[1:])
    with pytest.raises(UsageError, match="two labels"):
        fit_fusion(texts, np.zeros(LEAST_TEXTS, dtype=np.int64), odds)
    assert not any(word in repr(fit_fusion(texts, labels, odds)) for word in (*GOOD, *BAD, "there"))
