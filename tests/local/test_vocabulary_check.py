"""Tables that were tampered with: refused, where it can be seen, and honest ones taken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rapt.errors import VocabularyError
from rapt.local.mechanisms import make_mechanism
from rapt.local.privatizer import find_whole_words
from rapt.local.retention import measure_retention
from rapt.local.vocabulary import Vocabulary, load_vocabulary
from rapt.local.vocabulary_check import check_vocabulary, count_different_rows, count_outside
from rapt.public_models import PUBLIC_MODELS
from toy_vocabularies import toy_vocabulary

ROWS, DIMENSION = 2000, 16


def honest(seed):
    return np.random.default_rng(seed).standard_normal((ROWS, DIMENSION)).astype(np.float32)


def lengthen(table, rows, factor):
    tampered = table.copy()
    tampered[rows] *= factor
    return tampered


def test_the_pinned_hashes_are_those_of_the_installed_models():
    for name in ("minilm", "bert-tiny"):
        assert load_vocabulary(name).hash == PUBLIC_MODELS[name].vocabulary


@pytest.mark.slow
def test_the_pinned_hash_of_a_converted_model_is_its_own():
    assert load_vocabulary("smollm2").hash == PUBLIC_MODELS["smollm2"].vocabulary


def test_a_known_vocabulary_is_taken_by_its_hash(bert_tiny):
    check_vocabulary(bert_tiny)


def test_another_table_under_the_name_of_a_public_model_is_refused(bert_tiny):
    table = lengthen(bert_tiny.embeddings, [2002], 1.0001)
    tampered = Vocabulary(replace(bert_tiny.bundle, embeddings=table, hash="sha256:" + "0" * 64))
    with pytest.raises(VocabularyError, match=r"called bert-tiny must be the known one, c67b714aeb71, got 000"):
        check_vocabulary(tampered)
    renamed = Vocabulary(replace(tampered.bundle, model="another"))
    with pytest.raises(VocabularyError, match="called bert-tiny must be the known one"):
        check_vocabulary(renamed, asked="bert-tiny")
    check_vocabulary(tampered, trusted=True)


@pytest.mark.parametrize("seed", range(5))
def test_an_honest_table_is_taken(seed):
    check_vocabulary(toy_vocabulary(honest(seed)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("count", "factor"), [(1, 6.0), (20, 3.0), (400, 1.4)])
def test_rows_that_were_lengthened_are_refused(seed, count, factor):
    rows = np.random.default_rng(seed).choice(ROWS, count, replace=False)
    tampered = toy_vocabulary(lengthen(honest(seed), rows, factor))
    with pytest.raises(VocabularyError, match=r"one law, got [\d,]+ of 2,000 that are too long"):
        check_vocabulary(tampered)
    check_vocabulary(tampered, trusted=True)


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_were_moved_apart_at_their_length_are_refused(seed):
    """The first 300 rows get directions that no other row has; their lengths are those of the rest."""
    table = np.hstack([honest(seed), np.zeros((ROWS, 300), dtype=np.float32)])
    lengths = np.linalg.norm(table[:300], axis=1)
    table[:300] = 0
    table[np.arange(300), DIMENSION + np.arange(300)] = lengths
    tampered = toy_vocabulary(table)
    with pytest.raises(VocabularyError, match="too far from all others"):
        check_vocabulary(tampered)


def test_the_rows_that_are_refused_are_rows_that_stay(rng):
    """The law is worth something: what it refuses is kept, where it would not have been."""
    rows = np.arange(0, ROWS, 5)
    kept = []
    for table in (honest(0), lengthen(honest(0), rows, 1.4)):
        vocabulary = toy_vocabulary(table)
        mechanism = make_mechanism("laplace", vocabulary=vocabulary, eta=5.0)
        kept.append(measure_retention(mechanism, vocabulary, rows, rng=rng, draws=64).kept.mean())
    assert kept[1] > kept[0] + 0.15


def test_a_table_too_small_for_a_law_is_taken():
    assert count_outside(np.array([1.0] * 254 + [1e9])) == 0
    assert count_outside(np.array([1.0] * 255 + [1e9])) > 0


def test_equal_rows_are_an_honest_table():
    assert count_outside(np.ones(1000)) == 0


def test_rows_that_differ_from_a_copy_are_counted():
    ours, theirs = toy_vocabulary(honest(0)), toy_vocabulary(honest(0)[:-3])
    assert count_different_rows(ours.bundle, ours.bundle) == 0
    assert count_different_rows(ours.bundle, theirs.bundle) == 3
    other = toy_vocabulary(lengthen(honest(0), [1, 5, 7], 1.5))
    assert count_different_rows(ours.bundle, other.bundle) == 3
    assert count_different_rows(ours.bundle, toy_vocabulary(honest(0)[:, :4]).bundle) == ROWS


@pytest.mark.slow
def test_common_words_of_the_real_table_that_were_lengthened_are_refused():
    known = load_vocabulary("minilm")
    rows = list(find_whole_words(known, at_most=5738))
    bundle = replace(
        known.bundle, model="another", embeddings=lengthen(known.embeddings, rows, 1.3), hash="sha256:" + "1" * 64
    )
    with pytest.raises(VocabularyError, match="too long for the rest"):
        check_vocabulary(Vocabulary(bundle))
    check_vocabulary(Vocabulary(replace(known.bundle, model="another")))
