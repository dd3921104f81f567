"""Many tests taken together: what is a finding among them, and how often nothing is called one."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from rapt.audit.artefact.membership import MembershipResult, NamedScore, score_membership
from rapt.audit.artefact.membership_attacks import MEMBERSHIP_ATTACKS, make_views
from rapt.audit.artefact.memory import CanaryResult
from rapt.audit.artefact.run import ArtefactFindings, correct_by_holm, weigh_evidence_on_models
from rapt.audit.report.artefact import state_artefact_verdict
from significance import ALPHA

LEVEL, AUDITS = 0.05, 200
NOTHING = ArtefactFindings(
    model="bert-tiny",
    method="lora",
    epochs=1,
    mechanism="laplace",
    eta=60.0,
    texts=60,
    models=4,
    membership=(),
    words=(),
    canaries=(),
    releases=(),
    seed=0,
)


def membership(*, memory, rng):
    members = rng.random((4, 60)) < 0.5
    answers = memory * members + rng.standard_normal((4, 60))
    views = list(make_views(answers, members))
    attacks = tuple(
        NamedScore(
            attack=name, score=score_membership(np.stack([attack(v) for v in views]), members, replicates=2, seed=0)
        )
        for name, attack in MEMBERSHIP_ATTACKS.items()
    )
    return MembershipResult(tuned_on="privatized", asked_with="clear", texts=60, shadows=3, attacks=attacks)


def canary(*, rng, p=None, repetitions=10):
    ranks = tuple(rng.integers(1, 1025, size=8).tolist())
    chance = float(stats.chi2.sf(-2 * np.log(np.array(ranks) / 1024).sum(), 16))
    return CanaryResult(
        tuned_on="privatized",
        repetitions=repetitions,
        canaries=8,
        candidates=1024,
        ranks=ranks,
        exposure=1.4,
        low=0.0,
        high=3.0,
        p=chance if p is None else p,
    )


def audit_of_nothing(seed):
    """Every attack on membership and six canaries, on models that remember nothing."""
    rng = np.random.default_rng([seed, 77])
    asked = (membership(memory=0.0, rng=rng),)
    return replace(NOTHING, membership=asked, canaries=tuple(canary(rng=rng, repetitions=r) for r in range(1, 7)))


def test_holm_corrects_as_by_hand():
    # 0.01 * 4, 0.02 * 3, 0.04 * 2; the last is not below the one before it.
    assert correct_by_holm([0.04, 0.01, 0.9, 0.02]) == pytest.approx((0.08, 0.04, 0.9, 0.06))
    assert correct_by_holm([0.5, 0.4]) == pytest.approx((0.8, 0.8))
    assert correct_by_holm([]) == ()


def test_audits_of_nothing_are_accused_as_rarely_as_stated_and_the_smallest_p_would_accuse_them():
    tests = [weigh_evidence_on_models(audit_of_nothing(seed), tuned_on="privatized") for seed in range(AUDITS)]
    assert all(len(made) == len(MEMBERSHIP_ATTACKS) + 6 for made in tests)
    accused = sum(made[0].corrected < LEVEL for made in tests)
    assert accused <= stats.binom.isf(ALPHA, AUDITS, LEVEL)
    # The twin: the smallest p by itself, as if no other test had been made.
    uncorrected = sum(min(entry.p for entry in made) < LEVEL for made in tests)
    assert uncorrected > stats.binom.isf(ALPHA, AUDITS, LEVEL)


@pytest.mark.parametrize("seed", range(5))
def test_a_model_that_remembers_is_named_in_the_headline_and_one_that_does_not_is_not(seed):
    rng = np.random.default_rng(seed)
    nothing = audit_of_nothing(seed)
    assert state_artefact_verdict(nothing).headline.startswith("No attack tried")
    leaking = replace(nothing, membership=(membership(memory=3.0, rng=rng),))
    assert weigh_evidence_on_models(leaking, tuned_on="privatized")[0].corrected < ALPHA
    assert "shows whose texts" in state_artefact_verdict(leaking).headline
    repeated = replace(nothing, canaries=(canary(rng=rng, p=1e-9),))
    assert "remembers a sentence" in state_artefact_verdict(repeated).headline


def test_a_p_that_is_a_finding_by_itself_is_none_among_many():
    rng = np.random.default_rng(0)
    alone = replace(NOTHING, canaries=(canary(rng=rng, p=5e-4),))
    many = replace(NOTHING, canaries=tuple(canary(rng=rng, p=p) for p in (5e-4, 0.3, 0.6)))
    assert not state_artefact_verdict(alone).headline.startswith("No attack tried")
    assert state_artefact_verdict(many).headline.startswith("No attack tried")
    assert any("counts all of them" in sentence for sentence in state_artefact_verdict(many).sentences)


def test_a_control_and_models_of_clear_text_are_no_tests_of_the_privatized_ones():
    rng = np.random.default_rng(0)
    found = replace(
        NOTHING, canaries=(canary(rng=rng, repetitions=0), replace(canary(rng=rng), tuned_on="clear"), canary(rng=rng))
    )
    assert len(weigh_evidence_on_models(found, tuned_on="privatized")) == 1
