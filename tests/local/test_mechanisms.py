"""What every mechanism has in common, whichever it is, an eta outside of any use among it."""

import json
import pickle

import numpy as np
import pytest

from channel_checks import PLANE, SPECIAL, count_outputs
from rapt.errors import MechanismError, VocabularyError
from rapt.local.deniability import measure_unchanged
from rapt.local.guarantee import state_privacy
from rapt.local.mechanisms import MECHANISMS, check_useful_eta, make_mechanism, remake_mechanism
from rapt.local.randomness import insecure_stream
from rapt.wire.manifest import NO_PLAIN_TOKENS
from rapt.wire.mechanism_setting import dump_mechanism, parse_mechanism
from toy_vocabularies import toy_vocabulary

ETA = 3.0


@pytest.fixture
def vocabulary():
    return toy_vocabulary(PLANE, special=SPECIAL)


def make(name, vocabulary, **options):
    return make_mechanism(name, vocabulary=vocabulary, eta=ETA, options=options, allow_unproved=True)


@pytest.mark.parametrize("name", MECHANISMS)
def test_every_mechanism_states_its_setting_its_status_and_its_guarantee(name, vocabulary):
    mechanism, kind = make(name, vocabulary), MECHANISMS[name]
    assert mechanism.setting.name == kind.name == name
    assert mechanism.setting.eta == ETA
    assert mechanism.setting.parameters.keys() == kind.known.parameters
    assert kind.known.status in ("proved", "conditional", "broken-as-published")
    for part in ("Guarantee", "Proof", "Not covered", "Source", f"Status: {kind.known.status}"):
        assert part in kind.guarantee, part
    assert "log P(y|x) - log P(y|x')" in kind.guarantee


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_setting_survives_a_manifest_and_makes_the_same_mechanism(name, vocabulary):
    mechanism = make(name, vocabulary)
    read = parse_mechanism(json.loads(json.dumps(dump_mechanism(mechanism.setting))))
    assert read == mechanism.setting
    again = remake_mechanism(read, vocabulary=vocabulary, allow_unproved=True)
    ids = np.arange(vocabulary.size)
    first, second = (m.privatize(ids, rng=insecure_stream(1).generator) for m in (mechanism, again))
    assert (first == second).all()


@pytest.mark.parametrize("name", MECHANISMS)
def test_every_option_is_recorded_and_an_unknown_one_refused(name, vocabulary):
    kind = MECHANISMS[name]
    assert kind.options.keys() <= make(name, vocabulary).setting.parameters.keys()
    with pytest.raises(MechanismError, match=rf"mechanism='{name}' has no option 'colour'"):
        make(name, vocabulary, colour="red")
    for option, known in kind.options.items():
        wrong = 1 if isinstance(known.default, str) else "much"
        with pytest.raises(MechanismError, match=f"option '{option}' must be"):
            make(name, vocabulary, **{option: wrong})
        assert known.help


@pytest.mark.parametrize("name", MECHANISMS)
def test_what_is_not_proved_has_to_be_asked_for(name, vocabulary):
    kind = MECHANISMS[name]
    if kind.known.status == "proved":
        assert kind.known.caveat == ""
        make_mechanism(name, vocabulary=vocabulary, eta=ETA)
        return
    with pytest.raises(
        MechanismError, match=f"guarantee of mechanism='{name}' is {kind.known.status}: .*allow_unproved=True"
    ):
        make_mechanism(name, vocabulary=vocabulary, eta=ETA)


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("eta", [1e-4, 5.0, 1e5])
def test_outputs_are_eligible_and_inputs_are_not_changed(name, eta, vocabulary, rng):
    mechanism = make_mechanism(name, vocabulary=vocabulary, eta=eta, allow_unproved=True)
    ids = rng.integers(vocabulary.size, size=1000)
    before = ids.copy()
    out = mechanism.privatize(ids, rng=rng)
    assert out.dtype == np.int64
    assert out.shape == ids.shape
    assert np.isin(out, vocabulary.eligible).all()
    assert (ids == before).all()
    assert mechanism.privatize(np.array([], dtype=np.int64), rng=rng).shape == (0,)


@pytest.mark.parametrize("name", MECHANISMS)
def test_an_eta_outside_its_domain_is_refused(name, vocabulary):
    for eta in (0, -1.0, float("nan"), float("inf"), True, "75"):
        with pytest.raises(MechanismError, match="eta must be a finite number above 0"):
            make_mechanism(name, vocabulary=vocabulary, eta=eta, allow_unproved=True)


@pytest.mark.parametrize("name", MECHANISMS)
def test_an_id_without_a_row_is_refused_by_its_position_only(name, vocabulary, rng):
    mechanism = make(name, vocabulary)
    for outside in (-1, vocabulary.size):
        with pytest.raises(VocabularyError, match="got none for token 2 of 3"):
            mechanism.privatize(np.array([0, 1, outside]), rng=rng)


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_seed_repeats_the_draws_and_another_gives_others(name, vocabulary):
    mechanism = make(name, vocabulary)
    ids = np.tile(np.arange(vocabulary.size), 100)
    draws = [mechanism.privatize(ids, rng=insecure_stream(seed).generator) for seed in (5, 5, 6)]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).any()


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_mechanism_travels_to_another_process(name, vocabulary):
    mechanism = make(name, vocabulary)
    ids = np.arange(vocabulary.size)
    before = mechanism.privatize(ids, rng=insecure_stream(5).generator)
    copy = pickle.loads(pickle.dumps(mechanism))
    assert copy.setting == mechanism.setting
    assert (copy.privatize(ids, rng=insecure_stream(5).generator) == before).all()


@pytest.mark.parametrize("name", MECHANISMS)
def test_one_token_is_enough_of_a_vocabulary(name, rng):
    vocabulary = toy_vocabulary([[1.0, 2.0], [0.0, 1.0]], special=(1,))
    assert count_outputs(make(name, vocabulary), vocabulary, 1, rng, draws=50).tolist() == [50]


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_table_of_equal_rows_is_no_obstacle(name, rng):
    vocabulary = toy_vocabulary(np.ones((6, 3)))
    assert count_outputs(make(name, vocabulary), vocabulary, 2, rng, draws=200).sum() == 200


def test_an_unknown_mechanism_is_refused_and_the_known_ones_are_listed(vocabulary):
    with pytest.raises(MechanismError, match=r"unknown mechanism='gauss'; choose one of laplace, exponential"):
        make_mechanism("gauss", vocabulary=vocabulary, eta=1.0)


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("eta", [5e-324, 1e-320, 1e-200, 1e-12])
def test_noise_that_is_too_long_to_compute_with_is_refused_by_every_mechanism(bert_tiny, name, eta):
    with pytest.raises(MechanismError, match=f"eta must be at least .* on this vocabulary, .* got eta={eta!r}"):
        make_mechanism(name, vocabulary=bert_tiny, eta=eta, allow_unproved=True)


def test_the_least_eta_still_draws_and_forgets_the_token(bert_tiny):
    tokens = np.full(200, bert_tiny.eligible[500])
    made = make_mechanism("laplace", vocabulary=bert_tiny, eta=1e-10)
    drawn = made.privatize(tokens, rng=np.random.default_rng(1))
    assert (drawn == tokens).mean() < 0.05


@pytest.mark.parametrize("eta", [1e5, 1e300])
def test_an_eta_that_no_token_is_changed_by_is_of_no_use(bert_tiny, eta):
    with pytest.raises(MechanismError, match=r"eta must be at most 8\.\d+e\+04 on this vocabulary, .* got eta=1"):
        check_useful_eta(eta, vocabulary=bert_tiny)
    made = make_mechanism("laplace", vocabulary=bert_tiny, eta=8e4)
    assert measure_unchanged(made, bert_tiny, rng=np.random.default_rng(1)).share == 1.0


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_domain_goes_with_the_distances_of_the_table(scale):
    rows = np.random.default_rng(1).standard_normal((300, 8)) * scale
    vocabulary = toy_vocabulary(rows)
    check_useful_eta(10_000 / scale, vocabulary=vocabulary)
    check_useful_eta(1e-10 / scale, vocabulary=vocabulary)
    for eta in (1e-14 / scale, 100_000 / scale):
        with pytest.raises(MechanismError, match="eta must be at"):
            check_useful_eta(eta, vocabulary=vocabulary)


@pytest.mark.parametrize(("eta", "protects"), [(30.0, True), (5e3, False)])
def test_a_statement_says_that_a_file_reads_as_its_text_did(bert_tiny, eta, protects):
    made = make_mechanism("laplace", vocabulary=bert_tiny, eta=eta)
    unchanged = measure_unchanged(made, bert_tiny, rng=np.random.default_rng(1))
    stated = state_privacy(
        bert_tiny, made.setting, plain_tokens=NO_PLAIN_TOKENS, labels_sent=False, unchanged=unchanged
    )
    assert stated.to_json()["protects"] is protects
    assert ("PROTECTS NEXT TO NOTHING" in stated.to_text()) is not protects
    assert "INSECURE" not in stated.to_text()
