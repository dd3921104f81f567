"""The label beside a record is worth what Bayes' rule says where it tells something, and nothing where it does not."""

from dataclasses import replace

import numpy as np
import pytest

from audit_material import RECORD, markov_chain, markov_texts, privatized_view, public_of, scattered_vocabulary
from rapt.audit.attacks import ATTACKS
from rapt.audit.attacks.desk import Desk
from rapt.audit.attacks.direct import explain_missing_labels, read_with_labels
from rapt.audit.audit import audit_view
from rapt.audit.judge.scoring import score_guess
from rapt.audit.truth import lend_texts
from rapt.local.mechanisms import make_mechanism

SIZE, TEXTS, PUBLIC, ETA = 10, 150, 800, 3.0


@pytest.fixture(scope="module")
def vocabulary():
    return scattered_vocabulary(size=SIZE, dim=3)


def frequencies(label):
    """Words of two labels: each has its own frequent ones."""
    weight = 1 / np.arange(1, SIZE + 1) ** 1.5
    return (weight if label == 0 else weight[::-1]) / weight.sum()


def texts_of(labels, *, seed):
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(SIZE, RECORD, p=frequencies(label)) for label in labels])


def labelled(vocabulary, texts, labels, public, public_labels, *, eta=ETA):
    """A view whose records have labels, and an attacker whose texts have labels."""
    held = replace(public_of(public), labels=tuple(public_labels))
    view, truth = privatized_view(vocabulary, texts.ravel(), eta=eta, mechanism="exponential", public=held)
    records = tuple(replace(record, label=int(label)) for record, label in zip(view.records, labels, strict=True))
    return replace(view, records=records, manifest=replace(view.manifest, labels=("a", "b"))), truth


def case(vocabulary, *, seed=0, shuffled=False):
    rng = np.random.default_rng([seed, 1])
    labels, held = rng.integers(0, 2, TEXTS), rng.integers(0, 2, PUBLIC)
    texts, public = texts_of(labels, seed=[seed, 2]), texts_of(held, seed=[seed, 3])
    if shuffled:
        labels, held = rng.permutation(labels), rng.permutation(held)
    return labelled(vocabulary, texts, labels, public, held.tolist())


def recovered(attack, view, truth):
    return score_guess(attack(Desk(view, seed=0)), view=view, truth=truth).all_tokens.first


def best_possible(vocabulary, *, told):
    """Success of Bayes' rule for single words that are drawn by the frequencies of their label."""
    channel = np.exp(make_mechanism("exponential", vocabulary=vocabulary, eta=ETA).log_probabilities(np.arange(SIZE)))
    joints = [0.5 * frequencies(label)[:, None] * channel for label in (0, 1)]
    return sum(joint.max(axis=0).sum() for joint in joints) if told else sum(joints).max(axis=0).sum()


def test_an_attacker_who_reads_the_label_reaches_bayes_rule_given_the_label(vocabulary):
    view, truth = case(vocabulary)
    best, without = best_possible(vocabulary, told=True), best_possible(vocabulary, told=False)
    found = recovered(read_with_labels, view, truth)
    assert found.low <= best <= found.high + 0.01
    assert best > without + 0.05
    assert recovered(ATTACKS["bayes"].run, view, truth).high < best


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_labels_in_random_order_are_worth_nothing_and_get_no_weight(vocabulary, seed):
    view, truth = case(vocabulary, seed=seed, shuffled=True)
    found = read_with_labels(Desk(view, seed=0))
    assert max(map(float, found.remarks[0].split("weights ")[1].split(", "))) < 0.5
    plain, told = (recovered(attack, view, truth).value for attack in (ATTACKS["context"].run, read_with_labels))
    assert abs(told - plain) < 0.03
    sound, truth = case(vocabulary, seed=seed)
    assert recovered(read_with_labels, sound, truth).value > told + 0.05


def test_pairs_of_words_are_read_by_label_too(vocabulary):
    # The same words as often, another order: only what follows what tells the labels apart.
    first, steps = markov_chain(words=SIZE)
    rng = np.random.default_rng(8)
    labels, held = rng.integers(0, 2, TEXTS), rng.integers(0, 2, PUBLIC)
    forth, more = markov_texts(first, steps, texts=TEXTS, seed=1), markov_texts(first, steps, texts=PUBLIC, seed=2)
    texts, public = (
        np.where(which[:, None] == 0, some, some[:, ::-1]) for which, some in ((labels, forth), (held, more))
    )
    view, truth = labelled(vocabulary, texts, labels, public, held.tolist())
    plain, told = (recovered(attack, view, truth) for attack in (ATTACKS["context"].run, read_with_labels))
    assert told.value > plain.value + 0.03


def test_records_that_are_lent_bring_their_labels(vocabulary):
    view, truth = case(vocabulary)
    lent, _ = lend_texts(replace(view, public=None), truth, share=0.5, seed=0)
    assert lent.public.labels is not None
    assert len(lent.public.labels) == len(lent.public.contents)
    assert explain_missing_labels(lent) is None
    texts = [tuple(text) for text in np.split(truth.token_ids, TEXTS)]
    by_text = dict(zip(texts, (record.label for record in view.records), strict=True))
    assert [by_text[tuple(text)] for text in lent.public.contents] == list(lent.public.labels)


def test_where_there_is_no_label_it_is_said_why_the_attack_did_not_run(vocabulary):
    tokens = texts_of([0, 1] * 10, seed=1).ravel()
    view, truth = privatized_view(vocabulary, tokens, eta=ETA, public=public_of(texts_of([0, 1] * 20, seed=2)))
    report = audit_view(view, truth, attacks=["bayes", "labels"])
    assert {skipped.attack: skipped.reason for skipped in report.skipped}["labels"] == "no record has a label"
    records = tuple(replace(record, label=0) for record in view.records)
    bare = replace(view, records=records)
    assert explain_missing_labels(bare) == "the attacker's text has no labels"
