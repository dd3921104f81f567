"""The reports in a real browser: on a phone, in the dark and on paper."""

from dataclasses import replace

import numpy as np
import pytest

from artefact_material import findings, findings_on_an_adapter
from audit_material import privatized_view, scattered_vocabulary, zipf_prior
from chromium import chromium, needs_chromium
from rapt.audit.audit import audit_view
from rapt.audit.report import render_report
from rapt.audit.report.artefact import ArtefactReport, render_artefact_report
from rapt.audit.report.values import Report

# Slow, because a browser starts.
pytestmark = [needs_chromium, pytest.mark.slow]

COMMAND = "rapt audit " + "--an-option with-a-value " * 12
# Tables whose first figure is not seen without a push.
HIDDEN = """
[...document.querySelectorAll("table")]
  .filter((table) => table.querySelector("td.n").getBoundingClientRect().right > innerWidth).length
"""
# Luminance of a colour as CSS has it.
LIGHT = """
((name) => getComputedStyle(document.body)[name].match(/\\d+/g).slice(0, 3).reduce((sum, one) => sum + +one, 0))
"""
CUT = """
[...document.querySelectorAll(".scroll, pre")].filter((one) => one.scrollWidth > one.clientWidth + 1).length
"""


def pages():
    tokens = np.random.default_rng(0).choice(300, 500, p=zipf_prior(300).probabilities)
    view, truth = privatized_view(scattered_vocabulary(), tokens, eta=9.0, prior=zipf_prior(300))
    named = {"title": "A file", "created": "2026-01-02", "created_by": "rapt test", "commands": (COMMAND,)}
    models = ArtefactReport(findings=findings(), **named)
    ranks = tuple(np.random.default_rng(1).integers(1, 1025, 16).tolist())
    many = tuple(replace(canary, ranks=ranks) for canary in models.findings.canaries)
    return {
        "audit": render_report(Report(audit=audit_view(view, truth), statement="Protected: each token. " * 9, **named)),
        "models": render_artefact_report(replace(models, findings=replace(models.findings, canaries=many))),
        "adapter": render_artefact_report(ArtefactReport(findings=findings_on_an_adapter(memory=1.0), **named)),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("pages")
    for name, page in pages().items():
        (made / f"{name}.html").write_text(page, encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.mark.parametrize("name", ["audit", "models", "adapter"])
def test_a_report_can_be_read_on_a_phone_in_the_dark_and_on_paper(name, folder, browser):
    browser.open(f"file://{folder}/{name}.html")
    browser.size(390, 844, phone=True)
    assert browser.run("document.documentElement.scrollWidth") == 390
    assert browser.run(HIDDEN) == 0
    browser.prefer("light")
    assert browser.run(LIGHT + "('backgroundColor')") > 600 > 200 > browser.run(LIGHT + "('color')")
    browser.prefer("dark")
    assert browser.run(LIGHT + "('backgroundColor')") < 200 < 600 < browser.run(LIGHT + "('color')")
    browser.size(794, 1123)  # A4
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert browser.run(CUT) == 0, "what a page on paper cuts cannot be pushed"
    assert browser.run(LIGHT + "('backgroundColor')") > 600, "dark paper"
    browser.call("Emulation.setEmulatedMedia", media="", features=[])
    assert browser.complaints() == []
    assert [address for address in browser.requests() if not address.startswith("file:")] == []
