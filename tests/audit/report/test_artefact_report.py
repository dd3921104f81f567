"""The report on tuned models: complete in itself, says what was found, and survives a round trip."""

import json
from dataclasses import replace

import pytest

from artefact_material import findings, findings_on_an_adapter, membership
from rapt.audit.kept_results import from_json
from rapt.audit.report.artefact import (
    ArtefactReport,
    artefact_report_to_json,
    list_not_tried,
    render_artefact_report,
    state_artefact_verdict,
    write_artefact_report,
)
from rapt.severity import Severity


def read_back(report):
    value = json.loads(json.dumps(artefact_report_to_json(report), allow_nan=False))
    assert value.pop("schema") == "rapt.artefact-report/1"
    return from_json(ArtefactReport, value)


@pytest.fixture(scope="module")
def found():
    return findings()


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
    assert "No attack tried" in state_artefact_verdict(found).headline
    leaking = replace(found, membership=(membership("privatized", memory=3.0),))
    assert "shows whose texts" in state_artefact_verdict(leaking).headline
    assert state_artefact_verdict(leaking).severity is Severity.BAD
    calm = replace(found, releases=())
    assert state_artefact_verdict(calm).severity is Severity.PLAIN, "good only where every attack was made"
    assert any("97 of 100" in sentence for sentence in state_artefact_verdict(found).sentences)


def test_the_verdict_on_an_adapter_counts_only_attacks_that_pass_the_check():
    headlines = [
        state_artefact_verdict(findings_on_an_adapter(memory=memory, control_p=p)).headline
        for memory, p in ((1.0, 0.4), (0.0, 0.4), (1.0, 1e-4))
    ]
    assert "shows which texts" in headlines[0]
    assert headlines[1].startswith("No attack tried")
    assert "differ in kind" in headlines[2]


def test_the_page_on_an_adapter_survives_a_round_trip(report):
    value = replace(report, findings=findings_on_an_adapter(memory=1.0))
    assert read_back(value) == value
    assert "abababababab" in render_artefact_report(value)


def test_a_part_that_was_not_asked_for_is_said_to_be_untried(report, found):
    bare = replace(found, membership=(), words=(), canaries=(), releases=())
    assert len(list_not_tried(bare)) == len(list_not_tried(found)) + 4
    assert "not asked for" in render_artefact_report(replace(report, findings=bare))


def test_the_json_survives_a_round_trip(report):
    assert read_back(report) == report


def test_hostile_names_are_text(report):
    page = render_artefact_report(replace(report, title="<script>alert(1)</script>"))
    assert "<script>" not in page


def test_both_files_are_written(report, tmp_path):
    page, values = write_artefact_report(report, tmp_path / "new")
    assert page.read_text(encoding="utf-8") == render_artefact_report(report)
    assert json.loads(values.read_text(encoding="utf-8"))["schema"] == "rapt.artefact-report/1"
