import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_material import codes_manifest
from rapt.errors import MechanismError
from rapt.local.codes.text_statement import bound_guess, find_epsilon, state_text_privacy
from rapt.local.text_page import ceil_nats, ceil_odds, ceil_percent
from rapt.wire.manifest import Arrangement, LabelPrivacy, Randomness

SECURE = Randomness(source="a cipher")


def test_a_guess_is_right_at_most_as_often_as_the_posterior_of_equal_priors():
    assert bound_guess(4.0, among=1000) == pytest.approx(math.exp(4) / (math.exp(4) + 999))
    assert bound_guess(1.0, among=2) == pytest.approx(math.e / (math.e + 1))
    assert bound_guess(4000.0, among=1000) == 1.0


@given(st.integers(2, 10**9), st.floats(0.001, 0.999))
def test_an_epsilon_for_a_guess_keeps_it_and_a_larger_one_of_four_digits_does_not(among, share):
    guess = 1 / among + (1 - 1 / among) * share
    exact = math.log(guess / (1 - guess)) + math.log(among - 1)
    if exact > 64 or exact < 1e-6:
        return
    epsilon = find_epsilon(guess, among=among)
    assert bound_guess(epsilon, among=among) <= guess
    assert bound_guess(epsilon * 1.0011, among=among) > guess


@pytest.mark.parametrize(
    ("guess", "among"), [(0.5, 2), (0.001, 1000), (1.0, 10), (0.0, 10), (math.nan, 10), (0.5, 1), (0.5, -3), (0.5, 0)]
)
def test_a_guess_that_needs_no_epsilon_or_allows_every_one_is_refused_in_one_line(guess, among):
    with pytest.raises(MechanismError, match="a guess must be right more often than a blind one") as refused:
        find_epsilon(guess, among=among)
    assert "\n" not in str(refused.value)


def test_the_statement_says_in_plain_words_what_holds():
    page = state_text_privacy(4.0, manifest=replace(codes_manifest(), randomness=SECURE)).to_text()
    words = " ".join(page.split())
    assert "can tell it from any other text, of any length, at better odds than e^4.00 : 1 = 54.6 : 1" in words
    assert (
        "a guess among 1,000 equally likely texts is right at most e^ε / (e^ε + 999) of the time, 5.2 % here" in words
    )
    assert "taking part: that somebody contributed, how often, and when" in words
    assert "labels: the label of each text, and the names of the labels, are sent in clear" in words
    assert "one of 12 codewords, the 3 that are nearest to it" in words
    assert max(map(len, page.splitlines())) <= 88
    assert "!!" not in page


def test_the_order_of_shuffled_records_is_not_among_what_is_open_and_replayed_texts_are():
    def says(**arrangement):
        manifest = codes_manifest(arrangement=Arrangement(**arrangement))
        return {one.what: one.why for one in state_text_privacy(4.0, manifest=manifest).not_protected}

    assert "number and order" in says(replayed=False, shuffled=False)
    assert "which were shuffled" in says(replayed=False, shuffled=True)["number"]
    assert "equal texts" not in says(replayed=False, shuffled=True)
    assert "whoever sees both" in says(replayed=True, shuffled=True)["equal texts"]


def test_the_sums_of_a_person_count_texts_pairs_and_labels():
    manifest = codes_manifest(pairs=True, label_privacy=LabelPrivacy(epsilon=0.5))
    found = state_text_privacy(2.0, manifest=manifest)
    assert found.record_epsilon == 4.5
    assert [(person.texts, person.epsilon) for person in found.persons][:3] == [(1, 4.5), (2, 9.0), (5, 22.5)]
    assert found.persons[0].right == bound_guess(4.5, among=1000)
    words = " ".join(found.to_text().split())
    assert "ε 2.00 for each of its two texts and 0.500 for its label: 4.50 in all" in words
    assert "which two belong together" in words
    assert "unless they are randomized" not in words


@pytest.mark.parametrize(
    ("epsilon", "randomness", "warning"),
    [
        (4.0, Randomness(source="a seed", insecure_seed=1), "THIS PROTECTS NOTHING"),
        (16.5, SECURE, "THIS PROTECTS NEXT TO NOTHING"),
        (16.0, SECURE, None),
    ],
)
def test_what_does_not_protect_is_said_first_and_last(epsilon, randomness, warning):
    found = state_text_privacy(epsilon, manifest=replace(codes_manifest(epsilon=epsilon), randomness=randomness))
    page = found.to_text()
    assert page.count("!! THIS") == (0 if warning is None else 2)
    assert (found.warning or "").startswith(warning or "")
    assert found.to_json()["protects"] == (warning is None)


def test_a_large_epsilon_is_said_to_let_a_text_be_named():
    assert "more often than not" in state_text_privacy(8.5).to_text()
    assert "more often than not" not in state_text_privacy(4.0).to_text()


def test_json_is_plain_and_names_nothing_but_the_setting():
    found = json.loads(json.dumps(state_text_privacy(1.0, manifest=codes_manifest()).to_json()))
    assert (found["schema"], found["unit"], found["status"]) == ("rapt.text-statement/1", "text", "proved")
    assert found["file"]["mechanism"]["name"] == "subset"
    assert state_text_privacy(1.0).to_json()["file"] is None
    assert repr(state_text_privacy(1.0)) == "TextStatement(epsilon=1, protects=True)"


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, 65.0])
def test_there_is_no_statement_of_an_epsilon_outside_its_domain(epsilon):
    with pytest.raises(MechanismError, match="the epsilon of a text"):
        state_text_privacy(epsilon)


def test_small_numbers_are_rounded_up_to_two_digits_and_never_look_alike():
    for exponent in range(-48, 8):
        for value in (10 ** (exponent / 4), 1.05 * 10 ** (exponent / 4)):
            shown = float(ceil_nats(value).replace(",", ""))
            assert value * (1 - 1e-8) <= shown <= 1.1 * value
            if value < 1:
                percent = float(ceil_percent(value).removesuffix(" %"))
                assert 100 * value * (1 - 1e-8) <= percent <= 110 * value + 1e-6
            if value < 9:
                odds = float(ceil_odds(value).replace(",", ""))
                assert math.exp(value) * (1 - 1e-8) <= odds <= 1 + 1.1 * math.expm1(value) + 1e-6
    assert (ceil_nats(0.0), ceil_percent(0.9996), ceil_odds(1e-9)) == ("0.000", "100.0 %", "1.000001")
    page = state_text_privacy(1e-5).to_text()
    assert all(f" {total}e-{power} " in page for total, power in ((1.0, "5"), (2.0, "5"), (5.0, "5")))
    assert " 0.0011 %" in page
