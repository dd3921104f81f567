"""The report on tuned models: complete in itself, says what was found, and survives a round trip."""

import json
from dataclasses import replace

import numpy as np
import pytest

from rapt.audit.artefact.canaries import CanaryResult
from rapt.audit.artefact.game import MembershipResult, attack_each
from rapt.audit.artefact.pooled import PooledRelease
from rapt.audit.artefact.run import ArtefactFindings
from rapt.audit.artefact.scores import score_membership
from rapt.audit.artefact.words import WordReading
from rapt.audit.intervals import independent_share
from rapt.audit.report.artefact_page import (
    ArtefactReport,
    artefact_report_from_json,
    artefact_report_to_json,
    render_artefact_report,
    write_artefact_report,
)
from rapt.audit.report.artefact_verdict import artefact_verdict, not_tried
from rapt.errors import AuditError


def membership(tuned_on, *, memory, seed=0):
    rng = np.random.default_rng(seed)
    members = rng.random((4, 60)) < 0.5
    answers = memory * members + rng.standard_normal((4, 60))
    attacks = attack_each(answers, members, seed=0)
    return MembershipResult(tuned_on=tuned_on, asked_with="clear", texts=60, shadows=3, attacks=attacks)


@pytest.fixture(scope="module")
def found():
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
    share = independent_share(np.arange(100) < 61)
    reading = WordReading(
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
            PooledRelease(releases=30, recovered=independent_share(np.arange(100) < 97), chance=0.05),
        ),
        seed=0,
    )


@pytest.fixture(scope="module")
def report(found):
    return ArtefactReport(
        title="Models", created="2026-01-02", created_by="rapt test", findings=found, commands=("rapt audit-model F",)
    )


def test_the_page_says_what_was_found_and_loads_nothing(report):
    page = render_artefact_report(report)
    for part in ("LiRA", "1, 7", "8.60", "97.0", "77 words", "rapt audit-model F", "Your own adapter", "<polyline"):
        assert part in page
    assert "://" not in page
    assert "<script" not in page


def test_the_verdict_depends_on_what_was_found(found):
    assert "No attack tried" in artefact_verdict(found).headline
    leaking = replace(found, membership=(membership("privatized", memory=3.0),))
    assert "shows whose texts" in artefact_verdict(leaking).headline
    assert any("97 of 100" in sentence for sentence in artefact_verdict(found).sentences)


def test_a_part_that_was_not_asked_for_is_said_to_be_untried(report, found):
    bare = replace(found, membership=(), words=(), canaries=(), releases=())
    assert len(not_tried(bare)) == len(not_tried(found)) + 4
    assert "not asked for" in render_artefact_report(replace(report, findings=bare))


def test_the_json_survives_a_round_trip_and_another_is_refused(report):
    value = json.loads(json.dumps(artefact_report_to_json(report), allow_nan=False))
    assert artefact_report_from_json(value) == report
    with pytest.raises(AuditError, match="schema"):
        artefact_report_from_json(value | {"schema": "rapt.artefact-report/9"})


def test_hostile_names_are_text(report):
    page = render_artefact_report(replace(report, title="<script>alert(1)</script>"))
    assert "<script>" not in page


def test_both_files_are_written(report, tmp_path):
    page, values = write_artefact_report(report, tmp_path / "new")
    assert page.read_text(encoding="utf-8") == render_artefact_report(report)
    assert json.loads(values.read_text(encoding="utf-8"))["schema"] == "rapt.artefact-report/2"
