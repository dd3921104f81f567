"""Telling words: as many are flagged as Bayes' rule allows, wrong flags are as rare as stated, and noise hides all."""

import numpy as np
import pytest

from audit_material import privatized_view, public_of, scattered_vocabulary, view_of, zipf_prior
from rapt.audit.attacks.desk import Desk
from rapt.audit.attacks.questions import flag_words
from rapt.audit.audit import audit_view
from rapt.audit.judge.questions import score_keywords
from rapt.audit.telling_words import SURE, TELLING_WORDS, WordList, make_word_list
from rapt.errors import AuditError
from rapt.local.mechanisms import make_mechanism
from rapt.local.vocabulary import load_vocabulary
from toy_vocabularies import toy_word

SIZE, TOKENS, ETA = 20, 4_000, 9.0  # the attacker weighs 24 words for each token: here all
WORDS = WordList(kinds=("one", "other"), words=((2,), (5,), (9,), (13,)), kind=(0, 0, 1, 1))


@pytest.fixture(scope="module")
def vocabulary():
    return scattered_vocabulary(size=SIZE, dim=3)


def drawn(*, seed=0):
    return np.random.default_rng(seed).choice(SIZE, TOKENS, p=zipf_prior(SIZE).probabilities)


def looked_for(view, truth, *, words=WORDS):
    places, numbers = flag_words(Desk(view, seed=0), words)
    return score_keywords(places, numbers, words=words, view=view, truth=truth)


def found_at(vocabulary, *, eta, mechanism="exponential", seed=0):
    return looked_for(
        *privatized_view(vocabulary, drawn(seed=seed), eta=eta, mechanism=mechanism, prior=zipf_prior(SIZE))
    )


def best_possible(vocabulary, *, eta, words=WORDS):
    """Share of the uses that are flagged, and false alarms a token, in the closed form of Bayes' rule."""
    channel = np.exp(make_mechanism("exponential", vocabulary=vocabulary, eta=eta).log_probabilities(np.arange(SIZE)))
    joint = zipf_prior(SIZE).probabilities[:, None] * channel
    posterior = joint / joint.sum(axis=0)
    listed = [word for (word,) in words.words]
    flagged = posterior[listed] >= SURE
    found = (joint[listed] * flagged).sum() / joint[listed].sum()
    return found, (joint.sum(axis=0) * flagged * (1 - posterior[listed])).sum()


def test_with_a_closed_channel_as_many_uses_are_found_as_bayes_rule_finds(vocabulary):
    found, false = best_possible(vocabulary, eta=ETA)
    assert 0.1 < found < 0.9
    assert 0 < false
    result = found_at(vocabulary, eta=ETA)
    assert result.everything.found.low <= found <= result.everything.found.high
    assert result.everything.false_alarms <= 2 * TOKENS * false + 10
    assert result.beats_blind


@pytest.mark.parametrize("seed", range(5))
def test_an_attacker_with_another_channel_flags_wrongly_more_often_than_stated(vocabulary, seed):
    # The file was made of the rows of other words than the table that the attacker goes by.
    shifted = (drawn(seed=seed) + 1) % SIZE
    made = make_mechanism("exponential", vocabulary=vocabulary, eta=ETA)
    released = made.privatize(shifted, rng=np.random.default_rng(seed))
    twin = looked_for(
        *view_of(vocabulary, drawn(seed=seed), released, eta=ETA, mechanism="exponential", prior=zipf_prior(SIZE))
    )
    sound = found_at(vocabulary, eta=ETA, seed=seed)
    flags = sound.everything.blind * TOKENS
    assert sound.everything.false_alarms <= 0.2 * flags
    assert twin.everything.false_alarms > 0.5 * flags
    assert not twin.beats_blind


@pytest.mark.parametrize("mechanism", ["laplace", "exponential", "mahalanobis"])
def test_with_hardly_any_noise_every_use_is_found_and_nothing_else_is_flagged(mechanism, vocabulary):
    found = found_at(vocabulary, eta=200.0, mechanism=mechanism)
    assert found.everything.found.value == 1
    assert found.everything.false_alarms == 0
    assert 0 < found.most_false_alarms < 60_000 * 5 / TOKENS
    assert (
        sum(kind.found.n for kind in found.kinds) == found.everything.found.n == np.isin(drawn(), [2, 5, 9, 13]).sum()
    )


def test_with_nothing_but_noise_nothing_is_flagged(vocabulary):
    found = found_at(vocabulary, eta=0.001)
    assert found.everything.found.value == 0 == found.everything.blind
    assert not found.beats_blind


def test_context_finds_more(vocabulary):
    # After a 7 comes a 9, always: what is seen of the word before it tells.
    tokens = drawn()
    tokens[:-1][tokens[1:] == 9] = 7
    public = drawn(seed=1)
    public[:-1][public[1:] == 9] = 7
    nine = WordList(kinds=("nine",), words=((9,),), kind=(0,))
    alone = privatized_view(vocabulary, tokens, eta=ETA, mechanism="exponential", prior=zipf_prior(SIZE))
    read = privatized_view(
        vocabulary, tokens, eta=ETA, mechanism="exponential", public=public_of(np.split(public, 400))
    )
    less, more = (looked_for(*one, words=nine).everything.found for one in (alone, read))
    assert more.value > less.value + 0.1


def test_the_guess_does_not_change_with_the_truth(vocabulary):
    view, _ = privatized_view(vocabulary, drawn(), eta=ETA, prior=zipf_prior(SIZE))
    first, second = (flag_words(Desk(view, seed=0), WORDS) for _ in range(2))
    assert first[0].tolist() == second[0].tolist()


def test_words_of_several_pieces_are_found_whole_and_parts_of_other_words_are_not():
    vocabulary = load_vocabulary("minilm")
    words = make_word_list(vocabulary, {"health": ["mastectomy", "god"]})
    assert [len(word) for word in words.words] == [3, 1]
    content = vocabulary.encode(["a mastectomy of a god or godling"])[0]
    view, truth = privatized_view(vocabulary, content, eta=400.0, prior=None)
    assert len(vocabulary.encode(["godling"])[0]) > 1  # it begins with the token of "god"
    assert looked_for(view, truth, words=words).everything.found.n == 2


def test_a_list_keeps_what_the_vocabulary_knows_and_shows_none_of_it():
    vocabulary = load_vocabulary("minilm")
    words = make_word_list(vocabulary, {"mine": ["God", "god", "\U0001f600", ""], "other": ["my secret"]})
    assert [len(word) for word in words.words] == [1, 2]
    assert words.kind == (0, 1)
    assert "secret" not in repr(words)
    assert all(len(kind) >= 15 for kind in TELLING_WORDS.values())
    with pytest.raises(AuditError, match="a word that the vocabulary knows"):
        make_word_list(vocabulary, {"mine": ["\U0001f600"]})
    with pytest.raises(AuditError, match="at most 10,000 words"):
        make_word_list(vocabulary, {"mine": ["god"] * 10_001})


def test_an_audit_takes_a_list_and_its_report_holds_counts(vocabulary):
    view, truth = privatized_view(vocabulary, drawn(), eta=ETA, prior=zipf_prior(SIZE))
    report = audit_view(view, truth, attacks=["bayes", "keywords"], words={"mine": [toy_word(2), toy_word(5)]})
    assert report.keywords.listed == 2
    assert report.keywords.everything.found.n == np.isin(drawn(), [2, 5]).sum()
    assert toy_word(5) not in repr(report)
