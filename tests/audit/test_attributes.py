"""Attribute inference: certain where nothing is hidden, at chance where all is, and refuses what cannot be inferred."""

import numpy as np
import pytest

from audit_material import RECORD, privatized_view, scattered_vocabulary, several_texts_view
from rapt.audit.attributes import infer_attribute
from rapt.errors import AuditError

TEXTS, SIZE = 200, 60


@pytest.fixture(scope="module")
def vocabulary():
    return scattered_vocabulary(size=SIZE)


def speakers(*, count, seed=0):
    """Texts of speakers who each prefer a part of the vocabulary, and who spoke."""
    rng = np.random.default_rng(seed)
    who = rng.integers(0, count, TEXTS)
    preferred = rng.integers(0, SIZE // count, (TEXTS, RECORD)) + (who * (SIZE // count))[:, None]
    anything = rng.integers(0, SIZE, (TEXTS, RECORD))
    return np.where(rng.random((TEXTS, RECORD)) < 0.7, preferred, anything).ravel(), [f"speaker {w}" for w in who]


@pytest.mark.parametrize("count", [2, 8])
def test_with_hardly_any_noise_both_attackers_are_as_good_as_on_clear_texts(count, vocabulary):
    tokens, who = speakers(count=count)
    view, truth = privatized_view(vocabulary, tokens, eta=500.0)
    found = infer_attribute(view, truth, who, column="speaker", seed=0)
    for attacker in found.attackers:
        assert attacker.first.value == pytest.approx(found.unprotected.first.value, abs=0.02)
        assert attacker.first.value > 0.9
    assert (found.attackers[0].of_several is None) == (count == 2)
    assert found.advantage > 0.3


def test_what_only_the_second_text_tells_is_inferred_when_it_is_there(vocabulary):
    tokens, who = speakers(count=2)
    seconds = tokens.reshape(TEXTS, RECORD).tolist()
    firsts = np.random.default_rng(9).integers(0, SIZE, (TEXTS, 5)).tolist()
    pairs, truth = several_texts_view(
        vocabulary, list(zip(firsts, seconds, strict=True)), parts=("first", "second"), eta=500.0
    )
    alone, its_truth = several_texts_view(vocabulary, [(text,) for text in firsts], parts=("first",), eta=500.0)
    assert infer_attribute(pairs, truth, who, column="speaker", seed=0).attackers[0].first.low > 0.8
    assert infer_attribute(alone, its_truth, who, column="speaker", seed=0).attackers[0].first.high < 0.8


def test_with_nothing_but_noise_the_attackers_are_at_chance(vocabulary):
    tokens, who = speakers(count=2)
    view, truth = privatized_view(vocabulary, tokens, eta=0.01)
    found = infer_attribute(view, truth, who, column="speaker", seed=0)
    for attacker in found.attackers:
        assert attacker.first.low <= found.chance
    assert found.unprotected.first.value > 0.9


def test_in_between_the_attacker_who_privatizes_his_own_texts_is_no_worse(vocabulary):
    tokens, who = speakers(count=4)
    view, truth = privatized_view(vocabulary, tokens, eta=6.0)
    found = {a.name: a.first for a in infer_attribute(view, truth, who, column="speaker", seed=0).attackers}
    assert found["adaptive"].high > found["static"].value


@pytest.mark.parametrize(
    ("who", "message"),
    [
        (["a"] * TEXTS, "'speaker' must have at least two different values, got 1"),
        (["a", "b"], "one value for each record, got 2 for 200"),
    ],
)
def test_a_column_that_cannot_be_inferred_is_refused(who, message, vocabulary):
    view, truth = privatized_view(vocabulary, speakers(count=2)[0], eta=6.0)
    with pytest.raises(AuditError, match=message):
        infer_attribute(view, truth, who, column="speaker", seed=0)


def test_fewer_texts_than_the_folds_need_is_refused(vocabulary):
    view, truth = privatized_view(vocabulary, np.arange(40), eta=6.0)
    with pytest.raises(AuditError, match="at least 10 texts for 5 folds, got 4"):
        infer_attribute(view, truth, ["a", "b", "a", "b"], column="speaker", seed=0)
