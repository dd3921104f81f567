"""SanText, TEM and soft-pos: channels against formulas written out, draws, and the guarantee in each one's metric."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from channel_checks import DRAWS, LINE, PLANE, SPECIAL, assert_drawn_as_stated, count_outputs, euclidean, largest_excess
from rapt.errors import MechanismError
from rapt.local.mechanisms import make_mechanism
from rapt.local.mechanisms.token_tags import BUILT_IN, TokenTags, read_tags, tag_by_rule, tag_token
from rapt.local.mechanisms.word_classes import make_soft_pos
from significance import assert_counts
from toy_vocabularies import toy_vocabulary, toy_word

SEEDS = range(5)
CLASSES = np.array([0, 1, 0, 1, 2, 2, 0, 3, 1])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAPT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(params=[LINE, PLANE], ids=["line", "plane"])
def vocabulary(request):
    return toy_vocabulary(request.param, special=SPECIAL)


def make(name, vocabulary, eta, **options):
    if name == "soft-pos":
        classes = CLASSES[: vocabulary.size]
        return make_soft_pos(vocabulary=vocabulary, eta=eta, tags=tags(classes), **options)
    return make_mechanism(name, vocabulary=vocabulary, eta=eta, options=options)


def tags(classes):
    return TokenTags(names=tuple(str(i) for i in range(4)), classes=np.asarray(classes), source="toy")


def distances_of(mechanism):
    """The metric of its guarantee, (V, V)."""
    metric = mechanism.scores.metric
    found = euclidean(metric.embeddings.astype(float))
    if mechanism.setting.name == "soft-pos":
        found = found + metric.penalty * (metric.tags[:, None] != metric.tags[None])
    return found


NAMES = ["santext", "tem", "soft-pos"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("eta", [0.2, 4.0])
def test_outputs_are_drawn_from_the_channel(name, eta, vocabulary, rng):
    assert_drawn_as_stated(make(name, vocabulary, eta), vocabulary, rng, draws=10_000)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_test_of_the_draws_can_fail(name, seed):
    vocabulary = toy_vocabulary(PLANE, special=SPECIAL)
    counts = count_outputs(make(name, vocabulary, 2.2), vocabulary, 0, np.random.default_rng(seed))
    with pytest.raises(AssertionError, match="chi-square rejects"):
        assert_counts(counts, np.exp(make(name, vocabulary, 2.0).log_probabilities(np.array([0]))[0]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("eta", [0.2, 4.0, 60.0])
def test_the_guarantee_holds_for_every_triple(name, eta, vocabulary):
    mechanism = make(name, vocabulary, eta)
    channel = mechanism.log_probabilities(np.arange(vocabulary.size))
    assert np.allclose(np.exp(channel).sum(axis=1), 1.0)
    assert largest_excess(channel, distances_of(mechanism), eta) <= 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_the_guarantee_test_sees_an_eta_five_percent_too_large(name):
    # A thousand tokens in one place and one apart: the normalizers differ by almost eta / 2 * d, and the bound is met.
    table = np.zeros((1001, 1))
    table[-1] = 1.0
    vocabulary, eta = toy_vocabulary(table), 4.0
    ends = np.array([0, 1000])
    excess = []
    for factor in (1.0, 1.05):
        if name == "soft-pos":
            mechanism = make_soft_pos(vocabulary=vocabulary, eta=factor * eta, tags=tags(np.zeros(1001, dtype=int)))
        else:
            mechanism = make_mechanism(name, vocabulary=vocabulary, eta=factor * eta)
        channel = mechanism.log_probabilities(ends)
        excess.append(largest_excess(channel, np.array([[0.0, 1.0], [1.0, 0.0]]), eta))
    assert -0.02 < excess[0] <= 1e-9
    assert excess[1] > 0.03 * eta


def test_santext_is_the_softmax_of_half_of_eta_times_the_distance(vocabulary):
    mechanism = make_mechanism("santext", vocabulary=vocabulary, eta=3.0)
    weights = np.exp(-1.5 * euclidean(vocabulary.embeddings.astype(float))[:, vocabulary.eligible])
    expected = weights / weights.sum(axis=1, keepdims=True)
    assert np.allclose(np.exp(mechanism.log_probabilities(np.arange(vocabulary.size))), expected, rtol=1e-9)


# TEM, drawn as it was published.


def tem_as_published(vocabulary, x, *, eta, outside, rng, draws):
    """Counts of outputs: Gumbel noise on every score, and a stand-in for all tokens beyond gamma."""
    eligible = vocabulary.eligible
    distances = np.linalg.norm(vocabulary.embeddings[eligible].astype(float) - vocabulary.embeddings[x], axis=1)
    gamma = 2 / eta * math.log((1 - outside) * (len(eligible) - 1) / outside)
    within = np.flatnonzero(distances <= gamma)
    beyond = np.flatnonzero(distances > gamma)
    scores = -distances[within]
    if len(beyond):
        scores = np.append(scores, -gamma + 2 / eta * math.log(len(beyond)))
    noisy = scores + rng.gumbel(scale=2 / eta, size=(draws, len(scores)))
    winner = noisy.argmax(axis=1)
    found = np.empty(draws, dtype=int)
    inside = winner < len(within)
    found[inside] = within[winner[inside]]
    found[~inside] = rng.choice(beyond, size=int((~inside).sum())) if len(beyond) else 0
    return np.bincount(found, minlength=len(eligible)), len(beyond)


@pytest.mark.parametrize(("eta", "outside"), [(2.0, 0.001), (6.0, 0.1), (6.0, 0.5), (20.0, 1e-6)])
def test_tem_is_what_gumbel_noise_and_the_stand_in_give(eta, outside, vocabulary, rng):
    mechanism = make_mechanism("tem", vocabulary=vocabulary, eta=eta, options={"outside": outside})
    channel = np.exp(mechanism.log_probabilities(np.arange(vocabulary.size)))
    beyond = 0
    for x in range(vocabulary.size):
        counts, others = tem_as_published(vocabulary, x, eta=eta, outside=outside, rng=rng, draws=DRAWS)
        assert_counts(counts, channel[x])
        beyond += others
    assert beyond > 0 or outside <= 0.001


def test_tem_stays_within_gamma_as_often_as_it_says(vocabulary):
    for eta, outside in itertools.product((2.0, 6.0, 20.0), (0.001, 0.1, 0.5)):
        mechanism = make_mechanism("tem", vocabulary=vocabulary, eta=eta, options={"outside": outside})
        eligible = vocabulary.eligible
        channel = np.exp(mechanism.log_probabilities(eligible))
        beyond = euclidean(vocabulary.embeddings.astype(float))[np.ix_(eligible, eligible)] > mechanism.scores.reach
        assert (channel * beyond).sum(axis=1).max() <= outside + 1e-12


def test_tem_draws_as_exponential_does_while_no_token_is_farther_than_gamma(vocabulary):
    tokens = np.arange(vocabulary.size)
    farthest = euclidean(vocabulary.embeddings.astype(float)).max()
    reach = 2 * math.log(0.999 * (len(vocabulary.eligible) - 1) / 0.001)  # gamma * eta
    for eta, alike in ((0.99 * reach / farthest, True), (1.5 * reach / farthest, False)):
        tem, usual = (make_mechanism(name, vocabulary=vocabulary, eta=eta) for name in ("tem", "exponential"))
        assert (tem.log_probabilities(tokens) == usual.log_probabilities(tokens)).all() == alike
        if alike:
            drawn = [kind.privatize(np.repeat(tokens, 50), rng=np.random.default_rng(1)) for kind in (tem, usual)]
            assert (drawn[0] == drawn[1]).all()


@pytest.mark.parametrize("outside", [0.0, 1e-7, 0.6, -1.0])
def test_a_share_outside_its_domain_is_refused(outside, vocabulary):
    with pytest.raises(MechanismError, match="outside must be between"):
        make_mechanism("tem", vocabulary=vocabulary, eta=1.0, options={"outside": outside})


# Soft parts of speech.


def test_without_a_penalty_classes_play_no_part(vocabulary):
    with_tags = make("soft-pos", vocabulary, 3.0, penalty=0.0).log_probabilities(np.arange(vocabulary.size))
    without = make_mechanism("santext", vocabulary=vocabulary, eta=3.0).log_probabilities(np.arange(vocabulary.size))
    assert np.allclose(with_tags, without, rtol=0, atol=1e-12)


def test_a_penalty_favours_outputs_of_the_same_class_and_forbids_none(vocabulary):
    mechanism = make("soft-pos", vocabulary, 3.0, penalty=2.0)
    classes = mechanism.scores.metric.tags
    plain = np.exp(make("soft-pos", vocabulary, 3.0, penalty=0.0).log_probabilities(vocabulary.eligible))
    favoured = np.exp(mechanism.log_probabilities(vocabulary.eligible))
    same = classes[vocabulary.eligible][:, None] == classes[vocabulary.eligible][None]
    assert (favoured * same).sum(axis=1).min() > 0.5
    assert ((favoured * same).sum(axis=1) > (plain * same).sum(axis=1)).all()
    assert np.isfinite(mechanism.log_probabilities(np.arange(vocabulary.size))).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_penalty_is_part_of_the_metric_and_without_it_the_guarantee_fails(seed):
    # What a reader would get who took eta for a slope in the Euclidean metric alone.
    table = np.random.default_rng(seed).uniform(-1, 1, (9, 2))
    vocabulary = toy_vocabulary(table, special=SPECIAL)
    mechanism = make("soft-pos", vocabulary, 3.0, penalty=2.0)
    channel = mechanism.log_probabilities(np.arange(9))
    assert largest_excess(channel, euclidean(table), 3.0) > 0.5
    assert largest_excess(channel, distances_of(mechanism), 3.0) <= 1e-6


def test_calibration_works_in_the_metric_with_classes():
    rng = np.random.default_rng(3)
    vocabulary = toy_vocabulary(rng.standard_normal((40, 3)), special=(0, 1, 2))
    made = make_soft_pos(
        vocabulary=vocabulary, eta=4.0, tags=tags(rng.integers(4, size=40)), penalty=0.7, calibrated=True
    )
    assert made.scores.beta > 2.2
    channel, distances = made.log_probabilities(np.arange(40)), distances_of(made)
    assert largest_excess(channel, distances, 4.0) <= 1e-9
    wrong = replace(made.scores, beta=1.02 * made.scores.beta).log_probabilities(np.arange(40))
    assert largest_excess(wrong, distances, 4.0) > 0


@pytest.mark.parametrize("penalty", [-0.1, 2e6])
def test_a_penalty_outside_its_domain_is_refused(penalty, vocabulary):
    with pytest.raises(MechanismError, match="penalty must be a distance"):
        make("soft-pos", vocabulary, 3.0, penalty=penalty)


# Tags.


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("the", "determiner"), ("herself", "pronoun"), ("between", "preposition"), ("because", "conjunction"),
        ("would", "auxiliary"), ("never", "adverb"), ("slowly", "adverb"), ("ply", "noun"), ("good", "adjective"),
        ("careful", "adjective"), ("readable", "adjective"), ("readability", "noun"), ("walking", "verb"),
        ("ring", "verb"), ("bed", "noun"), ("thought", "verb"), ("nation", "noun"), ("london", "noun"),
        ("##ing", "piece"), ("##", "punctuation"), ("1984", "number"), ("seven", "number"), ("49th", "number"),
        ("!", "punctuation"), ("♥", "punctuation"), ("x", "letter"), ("a", "determiner"), ("東", "foreign"),
        ("Walking", "verb"), ("", "punctuation"),
    ],
)  # fmt: skip
def test_the_built_in_rules(token, expected):
    assert tag_token(token) == expected


def test_where_words_are_marked_letters_without_a_mark_are_a_piece():
    assert tag_token("\u2581walking", word_starts=("\u2581",)) == "verb"
    assert tag_token("walking", word_starts=("\u2581",)) == "piece"
    assert tag_token("\u0120the", word_starts=("\u0120",)) == "determiner"
    assert tag_token("!", word_starts=("\u0120",)) == "punctuation"


def test_every_row_of_a_real_table_has_a_class(bert_tiny):
    found = tag_by_rule(bert_tiny)
    assert found.classes.shape == (bert_tiny.size,)
    assert set(found.names) >= {"noun", "verb", "adjective", "adverb", "piece", "number", "punctuation", "special"}
    special = found.names.index("special")
    assert (np.flatnonzero(found.classes == special) == np.setdiff1d(np.arange(30522), bert_tiny.eligible)).all()
    assert found.source == BUILT_IN


@pytest.mark.parametrize("as_list", [True, False])
def test_tags_are_read_from_a_file_and_named_by_their_hash(as_list, tmp_path):
    vocabulary = toy_vocabulary(LINE, special=SPECIAL)
    by_token = {toy_word(i): "ab"[i % 2] for i in range(7)}
    path = tmp_path / "tags.json"
    path.write_text(json.dumps([*by_token.values(), "a"] if as_list else by_token))
    found = read_tags(path, vocabulary)
    assert [found.names[i] for i in found.classes] == ["a", "b", "a", "b", "a", "b", "a", "special"]
    mechanism = make_mechanism("soft-pos", vocabulary=vocabulary, eta=1.0, options={"tags": str(path)})
    assert mechanism.setting.parameters["tags"] == found.source
    assert found.source.startswith("sha256:")


@pytest.mark.parametrize("content", ["[", '["a"]', "{", '{"other": "a"}', '{"waa": 3}', "3", "[1,2,3,4,5,6,7,8]"])
def test_a_file_that_holds_no_tags_is_refused(content, tmp_path):
    path = tmp_path / "tags.json"
    path.write_text(content)
    with pytest.raises(MechanismError, match="a file of tags must"):
        read_tags(path, toy_vocabulary(LINE, special=SPECIAL))
    with pytest.raises(MechanismError, match="must be readable"):
        read_tags(tmp_path / "missing", toy_vocabulary(LINE, special=SPECIAL))
