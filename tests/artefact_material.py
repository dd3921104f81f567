"""What attacks on models found, made up: for pages and verdicts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rapt.audit.artefact.given import GivenAdapter, GivenAttack
from rapt.audit.artefact.membership import MembershipResult, NamedScore, attack_each, score_membership
from rapt.audit.artefact.membership_attacks import MEMBERSHIP_ATTACKS
from rapt.audit.artefact.memory import CanaryResult, WordRecovery
from rapt.audit.artefact.pooled import PooledRelease
from rapt.audit.artefact.run import ArtefactFindings
from rapt.audit.intervals import compute_independent_share


def membership(tuned_on, *, memory, seed=0):
    rng = np.random.default_rng(seed)
    members = rng.random((4, 60)) < 0.5
    answers = memory * members + rng.standard_normal((4, 60))
    attacks = attack_each(answers, members, seed=0)
    return MembershipResult(tuned_on=tuned_on, asked_with="clear", texts=60, shadows=3, attacks=attacks)


def findings() -> ArtefactFindings:
    """Models of clear text remember; those of privatized text do not."""
    rng = np.random.default_rng(0)
    canary = CanaryResult(
        tuned_on="clear",
        repetitions=10,
        canaries=2,
        candidates=1024,
        ranks=(1, 7),
        exposure=8.6,
        low=4.0,
        high=10.0,
        p=1e-5,
    )
    share = compute_independent_share(np.arange(100) < 61)
    reading = WordRecovery(
        reader="asked",
        tuned_on="clear",
        words=77,
        score=score_membership(rng.random((1, 50)), rng.random((1, 50)) < 0.5),
        first=share,
        chance=0.5,
    )
    return ArtefactFindings(
        model="bert-tiny",
        method="lora",
        epochs=3,
        mechanism="laplace",
        eta=60.0,
        texts=60,
        models=4,
        membership=(membership("clear", memory=3.0), membership("privatized", memory=0.0)),
        words=(reading, replace(reading, tuned_on="privatized")),
        canaries=(canary, replace(canary, tuned_on="privatized", p=0.4)),
        releases=(
            PooledRelease(releases=1, recovered=share, chance=0.05),
            PooledRelease(releases=30, recovered=compute_independent_share(np.arange(100) < 97), chance=0.05),
        ),
        seed=0,
    )


def findings_on_an_adapter(*, memory: float, control_p: float = 0.4) -> ArtefactFindings:
    """An adapter that remembers so many deviations of its 450 texts."""
    rng = np.random.default_rng(0)
    sent = (np.arange(900) < 450)[None]
    attacks = []
    for asked_with in ("clear", "privatized"):
        for name in MEMBERSHIP_ATTACKS:
            score = score_membership(rng.standard_normal((1, 900)) + memory * sent, sent)
            control = score_membership(rng.standard_normal((1, 900)), sent).auc
            named = NamedScore(attack=name, score=score)
            attacks.append(GivenAttack(asked_with=asked_with, named=named, control=control, control_p=control_p))
    given = GivenAdapter(weights_sha256="ab" * 32, members=450, others=450, shadows=8, attacks=tuple(attacks))
    return replace(findings(), membership=(), words=(), canaries=(), releases=(), given=given, models=8, texts=900)
