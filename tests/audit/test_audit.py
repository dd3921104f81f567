"""The whole audit of a file: what it reports, skips, warns of and refuses."""

from dataclasses import replace

import numpy as np
import pytest

from audit_material import (
    privatized_view,
    public_of,
    scattered_vocabulary,
    several_texts_view,
    view_of,
    zipf_prior,
)
from rapt.audit.attacks import ATTACKS, DEFAULT_ATTACKS
from rapt.audit.attacks.desk import Desk
from rapt.audit.audit import audit_view
from rapt.audit.judge.scoring import score_guess
from rapt.audit.questions import QUESTIONS
from rapt.audit.report.verdict import list_not_attacked
from rapt.audit.truth import Truth
from rapt.errors import AuditError
from rapt.wire.manifest import Randomness
from rapt.wire.mechanism_setting import MechanismSetting

ETA = 9.0
FAST = [name for name, attack in ATTACKS.items() if attack.fast]


@pytest.fixture(scope="module")
def vocabulary():
    return scattered_vocabulary()


@pytest.fixture(scope="module")
def audited(vocabulary):
    tokens = np.random.default_rng(0).choice(300, 600, p=zipf_prior(300).probabilities)
    public = public_of(np.random.default_rng(5).choice(300, (60, 10), p=zipf_prior(300).probabilities))
    view, truth = privatized_view(vocabulary, tokens, eta=ETA, prior=zipf_prior(300), public=public)
    return view, truth, audit_view(view, truth, attacks=FAST, seed=3)


def test_every_attack_is_run_on_the_view_and_scored_on_the_truth(audited):
    view, truth, report = audited
    assert [result.attack for result in report.results] == FAST
    for result in report.results:
        assert result.score == score_guess(ATTACKS[result.attack].run(Desk(view, seed=3)), view=view, truth=truth)


def test_another_truth_changes_the_score_and_not_the_guess(audited):
    view, truth, report = audited
    other = Truth(token_ids=np.roll(truth.token_ids, 10))
    again = audit_view(view, other, attacks=["embedding_inversion"], seed=3)
    guess = ATTACKS["embedding_inversion"].run(Desk(view, seed=3))
    assert again.results[0].score == score_guess(guess, view=view, truth=other)
    assert again.results[0].score != report.results[0].score


def test_the_strongest_attack_is_named(audited):
    assert audited[2].strongest.attack in {"bayes", "context"}


def test_no_attack_is_above_the_bound(audited):
    report = audited[2]
    for result in report.results:
        assert result.score.all_tokens.first.low <= report.bound.high


def test_a_sound_file_gets_no_warning(audited):
    assert audited[2].warnings == ()


def test_the_same_seed_gives_the_same_report(audited):
    view, truth, report = audited
    assert audit_view(view, truth, attacks=FAST, seed=3) == report


def test_progress_names_each_stage_and_ends_whole(audited):
    view, truth, _ = audited
    seen = {}
    audit_view(view, truth, attacks=FAST, on_progress=lambda stage, share: seen.setdefault(stage, []).append(share))
    assert list(seen) == [*FAST, "bound"]
    for shares in seen.values():
        assert shares[0] == 0
        assert shares[-1] == 1
        assert shares == sorted(shares)


@pytest.mark.parametrize("real_eta", [ETA / 2, 2 * ETA])
def test_a_file_that_was_made_with_another_eta_is_called_out(real_eta, vocabulary):
    tokens = np.random.default_rng(1).choice(300, 1000)
    made, _ = privatized_view(vocabulary, tokens, eta=real_eta)
    view, truth = view_of(vocabulary, tokens, made.observed, eta=ETA)
    report = audit_view(view, truth, attacks=["embedding_inversion"])
    assert any("not made as its manifest says" in warning for warning in report.warnings)


def test_noise_that_can_be_replayed_is_called_out(audited):
    view, truth, _ = audited
    manifest = replace(view.manifest, randomness=Randomness(source="a seed", insecure_seed=42))
    report = audit_view(replace(view, manifest=manifest), truth, attacks=["embedding_inversion"])
    assert report.insecure
    assert any("undo all of it" in warning for warning in report.warnings)


def test_an_attack_that_needs_an_unknown_channel_is_skipped_and_said_to_be(audited):
    view, truth, _ = audited
    manifest = replace(view.manifest, mechanism=MechanismSetting(name="novel", parameters={"eta": 2.0}))
    report = audit_view(replace(view, manifest=manifest), truth)
    assert [result.attack for result in report.results] == ["embedding_inversion"]
    reasons = {skipped.attack: skipped.reason for skipped in report.skipped}
    needing = {name for name, attack in ATTACKS.items() if "channel" in attack.needs}
    assert set(reasons) == needing | set(QUESTIONS)
    # The toy table knows no word of the list of telling words, which is said first.
    assert "a list must have a word" in reasons.pop("keywords")
    assert all(("novel" if name in DEFAULT_ATTACKS else "not asked for") in reasons[name] for name in reasons)
    assert report.bound is None


def test_an_attack_that_nobody_asked_for_is_listed_as_not_run(audited):
    report = audited[2]
    assert {skipped.attack for skipped in report.skipped} == {*ATTACKS, *QUESTIONS} - set(FAST)
    assert all(skipped.reason == "it was not asked for" for skipped in report.skipped)


def test_entities_are_said_not_to_be_counted_where_nobody_counted_them(audited):
    view, truth, report = audited
    first = np.where(np.arange(len(truth.token_ids)) == 0, 0, -1)
    counted = audit_view(view, replace(truth, entity=first, entity_kinds=("PERSON",)), attacks=["embedding_inversion"])
    assert [group.name for group in counted.strongest.detail.entities] == ["PERSON"]
    for found, said in ((report, True), (counted, False)):
        assert ("Names and entities by kind" in dict(list_not_attacked(found, attributes=True))) is said


def test_a_slow_attack_is_given_a_part_of_a_large_file_and_says_so(audited, monkeypatch):
    view, truth, _ = audited
    few = replace(ATTACKS["context"], most_tokens=100)
    monkeypatch.setattr("rapt.audit.audit.ATTACKS", {**ATTACKS, "context": few})
    whole, part = audit_view(view, truth, attacks=["bayes", "context"], seed=3).results
    assert part.records < whole.records == len(view.records)
    assert part.score.all_tokens.first.n == 10 * part.records >= 100
    assert f"on a random part of {part.records} texts, because it is slow" in part.remarks


@pytest.fixture(scope="module")
def pairs_and_their_texts(vocabulary):
    """The same texts with the same noise: two a record, and one a record."""
    rng = np.random.default_rng(2)
    texts = [
        rng.choice(300, size, p=zipf_prior(300).probabilities).tolist() for size in rng.integers(3, 9, 60).tolist()
    ]
    public = public_of(rng.choice(300, (60, 8), p=zipf_prior(300).probabilities))
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    return (
        several_texts_view(vocabulary, pairs, parts=("first", "second"), eta=ETA, public=public),
        several_texts_view(vocabulary, [(text,) for text in texts], parts=("first",), eta=ETA, public=public),
    )


@pytest.mark.parametrize("name", FAST)
def test_each_text_of_a_pair_is_attacked_as_if_it_stood_alone(name, pairs_and_their_texts):
    (pairs, truth), (texts, same_truth) = pairs_and_their_texts
    assert np.array_equal(pairs.observed, texts.observed)
    assert np.array_equal(truth.token_ids, same_truth.token_ids)
    guesses = [ATTACKS[name].run(Desk(view, seed=3)) for view in (pairs, texts)]
    assert np.array_equal(guesses[0].token_ids, guesses[1].token_ids)


def test_a_pair_counts_as_one_record_and_every_token_of_both_texts(pairs_and_their_texts):
    (pairs, truth), (texts, _) = pairs_and_their_texts
    of_pairs, of_texts = (audit_view(view, truth, attacks=["embedding_inversion"]) for view in (pairs, texts))
    assert of_pairs.tokens == pairs.manifest.tokens == of_texts.tokens
    assert (of_pairs.records, of_texts.records) == (30, 60)
    first, other = (report.results[0].score.all_tokens.first for report in (of_pairs, of_texts))
    assert (first.value, first.n) == (other.value, other.n)
    assert (first.clusters, other.clusters) == (30, 60)
    assert of_pairs.texts == ("first text", "second text")
    assert (of_pairs.unit, of_texts.unit) == ("records", "texts")
    for report, said in ((of_pairs, True), (of_texts, False)):
        assert ("Texts of a record together" in dict(list_not_attacked(report, attributes=True))) is said


def test_targets_in_clear_are_said_not_to_be_attacked(vocabulary):
    records = [([i, i + 1], [i + 2]) for i in range(20)]
    for public in (True, False):
        view, truth = several_texts_view(vocabulary, records, parts=("first", "target"), eta=ETA, public_targets=public)
        report = audit_view(view, truth, attacks=["embedding_inversion"])
        assert report.public_targets is public
        assert report.tokens == (40 if public else 60)
        assert report.texts == (("first text",) if public else ("first text", "target"))
        assert ("Public targets" in dict(list_not_attacked(report, attributes=True))) is public


def test_an_audit_without_an_attack_that_can_run_is_refused(audited):
    view, truth, _ = audited
    manifest = replace(view.manifest, mechanism=MechanismSetting(name="novel", parameters={"eta": 2.0}))
    with pytest.raises(AuditError, match="1 skipped"):
        audit_view(replace(view, manifest=manifest), truth, attacks=["bayes"])


def test_an_unknown_attack_is_refused_before_any_work(audited):
    view, truth, _ = audited
    with pytest.raises(AuditError, match="unknown attack='magic'; choose among embedding_inversion, bayes"):
        audit_view(view, truth, attacks=["embedding_inversion", "magic"])
