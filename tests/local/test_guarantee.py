"""The privacy statement: its numbers against the formulas, its words, and what it refuses."""

import itertools
import json
import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from rapt.errors import MechanismError, UsageError
from rapt.local.deniability import measure_deniability, measure_every_token, measure_unchanged
from rapt.local.exposures import PROTECTS_NOTHING
from rapt.local.guarantee import DELTA, state_privacy
from rapt.local.mechanisms import MECHANISMS, make_mechanism
from rapt.local.mechanisms.laplace import sample_noise
from rapt.local.own_texts import FileShape, OwnTexts
from rapt.local.privacy_loss import compose, laplace_loss
from rapt.local.retention import KindShare, measure_words
from rapt.local.vocabulary import load_vocabulary
from rapt.wire.manifest import NO_PLAIN_TOKENS, LabelPrivacy, PlainTokens, Randomness
from rapt.wire.mechanism_setting import MechanismSetting
from toy_vocabularies import toy_vocabulary, toy_word

LAPLACE = MechanismSetting(name="laplace", parameters={"eta": 2.0})
SECURE = Randomness(source="a cipher")
INSECURE = Randomness(source="PCG64", insecure_seed=42)
QUOTED = [  # reference, ε pure, ε at δ = 1e-5
    ("nearest", 74.5, 22.1),
    ("median", 117.6, 40.8),
    ("largest", 211.9, 93.3),
    ("nearest_10", 744.9, 121),
    ("nearest_20", 1490, 214),
    ("median_10", 1176, 253),
    ("median_20", 2352, 462),
]


@pytest.fixture(scope="module")
def vocabulary():
    table = np.random.default_rng(0).standard_normal((40, 32)).astype(np.float32)
    return toy_vocabulary(table, special=(39,))


@pytest.fixture(scope="module")
def statement(vocabulary):
    return state(vocabulary, randomness=SECURE)


def state(vocabulary, setting=LAPLACE, **changes):
    arguments = {"plain_tokens": NO_PLAIN_TOKENS, "labels_sent": True} | changes
    return state_privacy(vocabulary, setting, **arguments)


def words(statement):
    """The page as one line, so that a sentence is found however it was wrapped."""
    return " ".join(statement.to_text().replace("!! ", "").split())


def test_the_pure_bound_is_eta_times_the_distance(statement):
    distances = statement.distances
    expected = [distances.nearest_50, distances.median, distances.largest_bound]
    assert [bound.name for bound in statement.pairs] == ["nearest", "median", "largest"]
    assert [bound.epsilon for bound in statement.pairs] == pytest.approx([2.0 * distance for distance in expected])
    for bound, length in zip(statement.texts, [10, 10, 10, 20, 20, 20], strict=True):
        assert bound.tokens == length
        assert bound.epsilon == pytest.approx(2.0 * bound.distance)
    assert [bound.name for bound in statement.texts][-1] == "largest_20"


def test_epsilon_at_delta_and_the_right_guess_are_those_of_the_privacy_loss(statement):
    nearest, text = statement.pairs[0], statement.texts[0]
    loss = laplace_loss(eta=2.0, distance=nearest.distance, dimension=32)
    assert nearest.epsilon_at_delta == loss.epsilon(DELTA)
    assert nearest.right_guess == (1 + loss.delta(0.0)) / 2
    assert text.epsilon_at_delta == compose([(loss, 10)]).epsilon(DELTA)
    for bound in (*statement.pairs, *statement.texts):
        assert 0 < bound.epsilon_at_delta <= bound.epsilon
        assert 0.5 < bound.right_guess <= 1


def test_nobody_guesses_right_more_often_than_stated():
    # On a line with two tokens the best guess from the noisy value is right with probability 1 - e^(-ηD/2)/2.
    statement = state(toy_vocabulary([[0.0], [1.5]]))
    exact = 1 - math.exp(-2.0 * 1.5 / 2) / 2
    assert exact <= statement.pairs[0].right_guess <= exact + 1e-3


def assert_words_are_told_apart_no_better_than_stated(name, vocabulary, *, eta, stated):
    mechanism, promised = (make_mechanism(name, vocabulary=vocabulary, eta=value) for value in (eta, stated))
    channel = np.exp(mechanism.log_probabilities(vocabulary.eligible))
    places = list(itertools.permutations(range(len(channel)), 2))
    pairs = [(toy_word(x), toy_word(y)) for x, y in places]
    for (x, y), bound in zip(places, state(vocabulary, promised.setting, word_pairs=pairs).word_pairs, strict=True):
        assert np.log(channel[x] / channel[y]).max() <= bound.epsilon + 1e-9
        assert np.maximum(0, channel[x] - math.exp(bound.epsilon_at_delta) * channel[y]).sum() <= DELTA
        assert (1 + np.abs(channel[x] - channel[y]).sum() / 2) / 2 <= bound.right_guess


@pytest.mark.parametrize("name", ["exponential", "soft-pos", "santext", "tem"])
@pytest.mark.parametrize("eta", [0.5, 4.0])
def test_no_closed_channel_exceeds_what_is_stated_of_two_words(name, eta, rng):
    vocabulary = toy_vocabulary(rng.standard_normal((6, 2)))
    assert_words_are_told_apart_no_better_than_stated(name, vocabulary, eta=eta, stated=eta)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["exponential", "santext", "tem"])
def test_a_channel_of_more_than_twice_the_eta_is_caught(name, seed):
    # Its scores alone have the slope 1.25 * 4: every pair exceeds its bound.
    vocabulary = toy_vocabulary(np.random.default_rng(seed).standard_normal((6, 2)))
    with pytest.raises(AssertionError, match="np\\.log"):
        assert_words_are_told_apart_no_better_than_stated(name, vocabulary, eta=2.5 * 4.0, stated=4.0)


def test_stretched_noise_is_told_apart_no_better_than_stated(rng):
    # Two words that differ along the direction of least variance. Whoever sees the noisy vector guesses the nearer word
    # in the metric of the noise, and is right more often than the loss at the Euclidean slope would say.
    table = np.concatenate([rng.standard_normal((200, 2)) * [3.0, 0.01], [[0.0, 0.0], [0.0, 1.0]]])
    vocabulary = toy_vocabulary(table)
    mechanism = make_mechanism("mahalanobis", vocabulary=vocabulary, eta=2.0, options={"mixing": 0.9})
    pair = (toy_word(200), toy_word(201))
    (bound,) = state(vocabulary, mechanism.setting, word_pairs=[pair]).word_pairs
    ends = np.array([200]), np.array([201])
    assert 2.0 * mechanism.distances(*ends)[0] <= bound.epsilon
    root = np.linalg.cholesky(mechanism.shape_matrix)
    noise = sample_noise(rng, eta=2.0, dim=2, size=200_000)
    apart = np.linalg.solve(root, vocabulary.embeddings[201] - vocabulary.embeddings[200])
    right = (np.linalg.norm(noise, axis=1) <= np.linalg.norm(noise - apart, axis=1)).mean()
    error = math.sqrt(math.log(1 / 1e-6) / (2 * len(noise)))  # Hoeffding, ALPHA = 1e-6
    assert right - error <= bound.right_guess
    assert right - error > (1 + laplace_loss(eta=2.0, distance=1.0, dimension=2).delta(0.0)) / 2


def test_the_noise_has_the_size_that_is_drawn(statement, rng):
    noise = statement.noise
    drawn = sample_noise(rng, eta=2.0, dim=32, size=40_000)
    assert np.linalg.norm(drawn, axis=1).mean() == pytest.approx(noise.mean_length, rel=0.01)
    assert drawn[:, 0].std() == pytest.approx(noise.deviation_along_a_line, rel=0.01)


def test_word_pairs_are_bounded_by_the_sum_over_their_tokens(vocabulary):
    one, two, three = toy_word(1), toy_word(2), toy_word(3)
    statement = state(vocabulary, word_pairs=[(one, two), (f"{one} {two}", f"{three} {three}"), (one, one)])
    table = vocabulary.embeddings.astype(np.float64)
    single, double, same = statement.word_pairs
    assert single.epsilon == pytest.approx(2.0 * np.linalg.norm(table[1] - table[2]))
    assert double.epsilon == pytest.approx(2.0 * np.linalg.norm(table[[1, 2]] - table[[3, 3]], axis=1).sum())
    assert double.tokens == 2
    assert (same.epsilon, same.epsilon_at_delta, same.right_guess) == (0.0, 0.0, 0.5)
    assert f"{one} / {two}" in statement.to_text()


@pytest.mark.parametrize("pair", [("one", "one two"), ("", "one"), ("", "")])
def test_words_with_different_numbers_of_tokens_have_no_bound(vocabulary, pair):
    with pytest.raises(UsageError, match="equally many tokens") as refused:
        state(vocabulary, word_pairs=[pair])
    assert "one" not in str(refused.value).replace("equally", "")


def test_what_is_proved_has_a_promise_and_nothing_else():
    assert all((kind.promise is not None) == (kind.known.status == "proved") for kind in MECHANISMS.values())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (MechanismSetting(name="unheard-of", parameters={"eta": 1.0}), "unheard-of"),
        (MechanismSetting(name="laplace", parameters={"eta": 1.0, "extra": 2}), "exactly the parameters eta"),
        (MechanismSetting(name="laplace", parameters={}), "exactly the parameters eta"),
        (MechanismSetting(name="laplace", parameters={"eta": 0.0}), "eta must be a finite number above 0"),
        (MechanismSetting(name="laplace", parameters={"eta": math.nan}), "eta must be a finite number above 0"),
        (MechanismSetting(name="laplace", parameters={"eta": "75"}), "eta must be a finite number above 0"),
        (MechanismSetting(name="laplace", parameters={"eta": True}), "eta must be a finite number above 0"),
        (MechanismSetting(name="laplace", parameters={"eta": 1e-310}), "finite length"),
        (MechanismSetting(name="laplace", parameters={"eta": 1e308}), "finite"),
    ],
)
def test_what_cannot_be_promised_is_refused(vocabulary, setting, message):
    with pytest.raises(MechanismError, match=message):
        state(vocabulary, setting)


@pytest.mark.parametrize("randomness", [None, SECURE])
def test_secret_randomness_protects(vocabulary, randomness):
    statement = state(vocabulary, randomness=randomness)
    assert statement.to_json()["protects"] is True
    assert statement.to_json()["warning"] is None
    assert "PROTECTS NOTHING" not in statement.to_text()


def test_an_insecure_seed_is_said_first_and_last(vocabulary):
    statement = state(vocabulary, randomness=INSECURE)
    page = statement.to_text()
    assert statement.to_json()["protects"] is False
    assert statement.to_json()["warning"] == PROTECTS_NOTHING
    assert page.index("THIS PROTECTS NOTHING") < page.index("Protected")
    assert page.rindex("THIS PROTECTS NOTHING") > page.index("What is NOT protected")


def test_what_is_open_is_named(vocabulary, statement):
    page = words(statement)
    for exposed in ("labels", "number and length", "order and place", "repeated releases", "context", "timing"):
        assert f"- {exposed}: " in page
    assert "labels sent in clear" in page
    silent = state(vocabulary, labels_sent=False)
    assert "labels" not in [exposure.what for exposure in silent.not_protected]
    assert "labels not sent" in words(silent)


def test_randomized_labels_are_not_said_to_be_clear(vocabulary):
    told = state(vocabulary, label_privacy=LabelPrivacy(epsilon=1.5))
    assert told.to_json()["label_privacy"] == {"mechanism": "randomized-response", "epsilon": 1.5}
    assert "labels sent after randomized-response, ε = 1.50 for each" in words(told)
    assert "the names of the labels are sent in clear" in words(told)
    assert "the label of each text" not in words(told)
    assert state(vocabulary, labels_sent=False, label_privacy=LabelPrivacy(epsilon=1.5)).label_privacy is None


@pytest.mark.parametrize(("fixed", "drawn"), [(None, "record"), ((1, 2), "file")])
def test_plain_tokens_are_said_to_be_public(vocabulary, statement, fixed, drawn):
    told = state(vocabulary, plain_tokens=PlainTokens(count=2, pool=(1, 2, 3), fixed=fixed))
    assert told.to_json()["plain_tokens"] == {"count": 2, "pool_size": 3, "drawn": drawn}
    assert "2 public words before each text, from a pool of 3" in words(told)
    assert "plain tokens" in [exposure.what for exposure in told.not_protected]
    assert statement.to_json()["plain_tokens"] == {"count": 0, "pool_size": 0, "drawn": None}


@pytest.mark.parametrize(("name", "said"), [("laplace", "drawn in float64"), ("santext", "draws are exact")])
def test_the_limits_of_floating_point_are_among_what_is_not_protected(name, said, vocabulary):
    stated = state(vocabulary, make_mechanism(name, vocabulary=vocabulary, eta=2.0).setting)
    (exposure,) = (found for found in stated.not_protected if found.what == "floating point")
    assert said in exposure.why


def test_a_vacuous_bound_is_called_vacuous(vocabulary):
    assert "formally vacuous" in words(state(vocabulary, MechanismSetting(name="laplace", parameters={"eta": 50.0})))
    assert "vacuous" not in words(state(vocabulary, MechanismSetting(name="laplace", parameters={"eta": 0.1})))


def test_the_page_is_plain_text_of_one_width(vocabulary, rng):
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=2.0)
    measured = measure_unchanged(mechanism, vocabulary, rng=rng, draws=4)
    pairs = [(toy_word(1), toy_word(2)), ("\x1b[31mred", "x" * 300)]
    for randomness in (SECURE, INSECURE):
        page = state(vocabulary, word_pairs=pairs, unchanged=measured, randomness=randomness).to_text()
        assert max(len(line) for line in page.splitlines()) <= 88
        assert page.replace("\n", "").isprintable()
    assert f"{100 * measured.share:.1f} % stay (4 draws" in " ".join(page.split())


@pytest.mark.parametrize("eta", [1e-9, 1.0, 1e4, 1e9])
def test_any_eta_gives_a_page_and_json(vocabulary, eta):
    statement = state(vocabulary, MechanismSetting(name="laplace", parameters={"eta": eta}))
    json.dumps(statement.to_json(), allow_nan=False)
    assert max(len(line) for line in statement.to_text().splitlines()) <= 88


def test_numbers_on_the_page_are_rounded_towards_less_privacy(statement):
    for bound in (*statement.pairs, *statement.texts):
        row = next(line for line in statement.to_text().splitlines() if bound.meaning in line)
        pure, at_delta, guess, _ = row.replace(bound.meaning, "").split()[1:]
        assert float(pure.replace(",", "")) >= bound.epsilon - 1e-9
        assert float(at_delta.replace(",", "")) >= bound.epsilon_at_delta - 1e-9
        assert float(guess) / 100 >= bound.right_guess - 1e-9


def test_the_json_has_these_keys_and_no_others(vocabulary, rng):
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=2.0)
    measured = measure_unchanged(mechanism, vocabulary, rng=rng, draws=4)
    pairs = [(toy_word(1), toy_word(2))]
    denied = measure_deniability(mechanism, vocabulary, rng=rng, draws=4)
    value = state(
        vocabulary,
        word_pairs=pairs,
        unchanged=measured,
        every_token=measure_every_token(mechanism, vocabulary, rng=rng),
        kinds=[KindShare(kind="numbers", tokens=9, share=0.5, low=0.4, high=0.6)],
        words=measure_words(mechanism, vocabulary, pairs[0], rng=rng, draws=4),
        file=FileShape(texts=3, shortest=1, median=4, longest=20, alike=0),
        own=OwnTexts(texts=3, counts=Counter({1: 3}), first=((1,),), often=0, most=3, alike=1),
        own_unchanged=measured,
        deniability=denied,
        randomness=SECURE,
    ).to_json()
    bound = ["name", "meaning", "tokens", "distance", "epsilon", "epsilon_at_delta", "right_guess"]
    # A change here is a change of the schema: it needs a new version and a line in the changelog.
    assert value["schema"] == "rapt.statement/2"
    assert list(value) == [
        "schema",
        "protects",
        "warning",
        "unit",
        "metric_space",
        "mechanism",
        "noise",
        "delta",
        "pairs",
        "texts",
        "word_pairs",
        "file",
        "own_texts",
        "words",
        "unchanged",
        "unchanged_every_token",
        "unchanged_by_kind",
        "plausible_deniability",
        "plain_tokens",
        "labels_sent",
        "label_privacy",
        "randomness",
        "policy",
        "reading",
        "not_protected",
    ]
    assert list(value["metric_space"]) == [
        "model",
        "vocabulary_hash",
        "dimension",
        "size",
        "distance",
        "normalization",
        "distances",
    ]
    assert list(value["metric_space"]["distances"]) == [
        "rows",
        "tokens",
        "pairs",
        "nearest_5",
        "nearest_50",
        "nearest_95",
        "median",
        "largest_seen",
        "largest_bound",
    ]
    assert value["mechanism"] == {"name": "laplace", "status": "proved", "parameters": {"eta": 2.0}}
    assert list(value["noise"]) == ["mean_length", "deviation_along_a_line"]
    assert all(list(item) == bound for key in ("pairs", "texts", "word_pairs") for item in value[key])
    assert list(value["unchanged"]) == [
        "basis",
        "types",
        "draws",
        "share",
        "low",
        "high",
    ]
    assert list(value["file"]) == ["texts", "shortest", "median", "longest", "alike"]
    assert list(value["own_texts"]) == ["texts", "often", "most", "alike", "unchanged"]
    assert [bound["tokens"] for bound in value["texts"]] == [4, 4, 4, 20, 20, 20]
    assert list(value["unchanged_every_token"]) == list(value["unchanged"])
    assert [list(word) for word in value["words"]] == [["word", "tokens", "kept", "low", "high", "draws"]] * 2
    assert [list(kind) for kind in value["unchanged_by_kind"]] == [["kind", "tokens", "share", "low", "high"]]
    assert list(value["plausible_deniability"]) == [
        "types",
        "draws",
        "outside",
        "unchanged",
        "set_size",
        "confidence",
    ]
    spread = ["smallest", "quantile_5", "median", "quantile_95", "largest"]
    assert all(list(value["plausible_deniability"][key]) == spread for key in ("unchanged", "set_size"))
    assert value["randomness"] == {"source": "a cipher", "insecure_seed": None}
    assert all(list(item) == ["what", "why"] for item in value["not_protected"])
    assert value == json.loads(json.dumps(value, allow_nan=False))


def test_the_statement_of_the_default_model_says_what_the_documentation_quotes():
    # The numbers in docs/guarantee.md; made with `rapt statement --eta 75`.
    statement = state(load_vocabulary("minilm"), MechanismSetting(name="laplace", parameters={"eta": 75.0}))
    rows = {bound.name: bound for bound in (*statement.pairs, *statement.texts)}
    assert statement.noise.mean_length == pytest.approx(5.12)
    for name, epsilon, at_delta in QUOTED:
        assert rows[name].epsilon == pytest.approx(epsilon, rel=0.005)
        assert rows[name].epsilon_at_delta == pytest.approx(at_delta, rel=0.01)


@pytest.mark.parametrize(("name", "words"), [("laplace", "at least"), ("santext", "exact for each")])
def test_the_page_says_how_many_outputs_a_token_hides_among(name, words, rng, vocabulary):
    mechanism = make_mechanism(name, vocabulary=vocabulary, eta=2.0)
    denied = measure_deniability(mechanism, vocabulary, rng=rng, draws=50)
    page = state_privacy(
        vocabulary, mechanism.setting, plain_tokens=NO_PLAIN_TOKENS, labels_sent=False, deniability=denied
    ).to_text()
    line = " ".join(page.split("output sets")[1].split())
    assert words in line
    assert "95 % of the time" in line


@pytest.mark.parametrize("name", [name for name, kind in MECHANISMS.items() if kind.known.status != "proved"])
def test_a_mechanism_that_is_not_proved_gets_no_statement_but_the_reason_and_another_one(name, vocabulary):
    setting = make_mechanism(name, vocabulary=vocabulary, eta=2.0, allow_unproved=True).setting
    with pytest.raises(MechanismError, match=rf"{MECHANISMS[name].known.status}: .*; use "):
        state(vocabulary, setting)


def test_a_statement_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['scipy'] = None\n"
        "import rapt.local.guarantee, rapt.local.deniability, rapt.local.deniability\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
