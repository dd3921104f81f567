"""The verdict on tuned models, in plain words.

The headline rests on all tests on models of privatized text together (`rapt.audit.artefact.run`): none is picked
for its success, so models that remember nothing are accused in at most one of a thousand audits.

The report on tuned models: a page of the same make as the audit's, and its JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log10
from pathlib import Path
from typing import Any, Final

from rapt import drawing
from rapt.audit.artefact.given import GivenAdapter
from rapt.audit.artefact.membership import MembershipResult
from rapt.audit.artefact.run import PARTS, ArtefactFindings, weigh_evidence_on_adapter, weigh_evidence_on_models
from rapt.audit.kept_results import to_json
from rapt.audit.report import open_templates, write_pair
from rapt.audit.report.verdict import Verdict, write_of_100
from rapt.drawing import Figure, Line
from rapt.severity import Severity, find_worst, weigh_attack

# A success this unlikely by chance, when all tests are taken together, is called one.
SURE: Final = 1e-3
_SHOWN: Final = {
    "membership": "A model tuned on the privatized texts shows whose texts it was tuned on.",
    "canaries": "A model tuned on the privatized texts remembers a sentence that stands in them often enough.",
    "words": "Words of the texts can be read off a model that was tuned on privatized ones.",
}
_NAMES = {
    "membership": ("Membership", "Whether a text was among those that a model was tuned on: not asked for."),
    "words": ("Words of the training", "Which words can be read off a model: not asked for, or too few rare words."),
    "canaries": ("Canaries", "What a model remembers of sentences that are repeated: not asked for."),
    "releases": ("Repeated releases", "What several releases of a text add up to: not asked for."),
}
_WHOLE_TEXTS = (
    "Whole texts from a model",
    "Generating the texts that a model was tuned on, or searching for them by optimization: a classifier has a few "
    "numbers for an answer and hardly allows it; a model that writes may.",
)
_OWN_MODELS = (
    (
        "Your own adapter",
        "The models here were tuned for the audit, in the same way. For an adapter that you have: rapt audit-adapter.",
    ),
    _WHOLE_TEXTS,
    ("Plain tokens", "The models were tuned without reconstruction, so without plain tokens."),
)


def state_artefact_verdict(found: ArtefactFindings) -> Verdict:
    """Who can learn what from a model, how likely, compared with what."""
    if found.given is not None:
        return _judge_given(found.given)
    clear, private = (_pick_strongest(found.membership, tuned_on) for tuned_on in ("clear", "privatized"))
    sentences = [_describe_membership(result) for result in (clear, private) if result is not None]
    headline, severity = "What models tuned on these texts give away", Severity.PLAIN
    tests = weigh_evidence_on_models(found, tuned_on="privatized")
    if tests:
        headline = "No attack tried learns more from a model of the privatized texts than chance allows."
        # Nothing was found, which is good news of the attacks that ran: it takes all of them to call it good.
        severity = Severity.GOOD if all(getattr(found, part) for part in PARTS) else Severity.PLAIN
        if tests[0].corrected < SURE:
            headline, severity = _SHOWN[tests[0].part], Severity.BAD
        sentences.append(_word_chance(tests[0].corrected, len(tests)))
    sentences += [
        f"A sentence that was put into the {result.tuned_on} texts {_format_times(result.repetitions)} is ranked "
        f"number {sorted(result.ranks)[len(result.ranks) // 2]:,} among {result.candidates:,} of its form, in the "
        f"middle of {result.canaries} tries."
        for result in found.canaries
        if result.repetitions == max(other.repetitions for other in found.canaries)
    ]
    if found.releases:
        first, last = found.releases[0], found.releases[-1]
        sentences.append(
            f"Whoever holds {_format_times(first.releases, 'release')} of a text names "
            f"{write_of_100(first.recovered.value)} words; "
            f"with {_format_times(last.releases, 'release')} {write_of_100(last.recovered.value)}. A blind guess is "
            f"right for {write_of_100(last.chance)}."
        )
        severity = find_worst([severity, weigh_attack(last.recovered.value, blind=last.chance)])
    return Verdict(headline=headline, severity=severity, sentences=tuple(sentences))


def list_not_tried(found: ArtefactFindings) -> tuple[tuple[str, str], ...]:
    """List the attacks that were not tried, as names and sentences."""
    if found.given is not None:
        return (*(_NAMES[part] for part in PARTS if part != "membership"), _WHOLE_TEXTS)
    return (*(_NAMES[part] for part in PARTS if not getattr(found, part)), *_OWN_MODELS)


def _judge_given(given: GivenAdapter) -> Verdict:
    tests, best = weigh_evidence_on_adapter(given), max(given.attacks, key=lambda attack: attack.named.score.auc.value)
    auc = best.named.score.auc
    sentences = [
        f"Of {given.members:,} texts that it was tuned on and {given.others:,} that it was not, the strongest attack "
        f"picks the right one of a pair for "
        f"{write_of_100(auc.value)} pairs ({100 * auc.low:.0f} to {100 * auc.high:.0f}); a "
        f"coin for {write_of_100(0.5)}. The attacker tuned {given.shadows} models of his own to compare with."
    ]
    if left_out := len(given.attacks) - len(tests):
        sentences.append(
            f"{left_out} of {len(given.attacks)} attacks tell the two files apart on models that know nothing of them. "
            "They do not count here: the files differ in kind."
        )
    if not tests:
        return Verdict(
            headline="The two files of texts differ in kind, so nothing can be said of what the adapter remembers.",
            severity=Severity.PLAIN,
            sentences=tuple(sentences),
        )
    # Membership alone was tried, so nothing found is not yet good.
    headline, severity = "No attack tried tells the texts that this adapter was tuned on from others.", Severity.PLAIN
    if tests[0].corrected < SURE:
        headline, severity = "This adapter shows which texts it was tuned on.", Severity.BAD
    sentences.append(_word_chance(tests[0].corrected, len(given.attacks)))
    return Verdict(headline=headline, severity=severity, sentences=tuple(sentences))


def _pick_strongest(results: tuple[MembershipResult, ...], tuned_on: str) -> MembershipResult | None:
    kind = [result for result in results if result.tuned_on == tuned_on]
    return max(kind, key=lambda result: result.strongest.score.auc.value) if kind else None


def _describe_membership(result: MembershipResult) -> str:
    auc = result.strongest.score.auc
    form = "in clear" if result.tuned_on == "clear" else "privatized"
    chance = "no more than a coin" if auc.low <= 0.5 else f"a coin {write_of_100(0.5)}"
    return (
        f"Given a text that a model was tuned on, {form}, and one that it was not, the strongest attack picks the "
        f"right one for {write_of_100(auc.value)} pairs ({100 * auc.low:.0f} to {100 * auc.high:.0f}), {chance}."
    )


def _word_chance(corrected: float, tests: int) -> str:
    """How likely the clearest finding is by chance, in words."""
    what = "one test was made" if tests == 1 else f"{tests} tests were made, and this counts all of them"
    if corrected < SURE:
        odds = f"fewer than one of {min(1_000_000, int(1 / max(corrected, 1e-9))):,} audits"
        return f"Models that remember nothing would look like this in {odds}: {what}."
    return (
        f"A finding as clear as the clearest would come up in {write_of_100(corrected)} audits of models that remember "
        f"nothing: {what}. That shows no memory; it does not show that there is none."
    )


def _format_times(count: int, what: str = "time") -> str:
    return f"one {what}" if count == 1 else f"{count:,} {what}s"


SCHEMA: Final = "rapt.artefact-report/1"
TITLES: Final = {
    "hierarchical": "Hierarchical likelihood ratio, shadow models with and without the text",
    "lira_online": "LiRA, shadow models with and without the text",
    "lira_offline": "LiRA, shadow models without the text",
    "rmia": "RMIA, against other texts and shadow models",
    "threshold": "Confidence alone",
    "nearest": "Nearest rows of the table",
    "nearest_shadows": "Nearest rows, against shadow models",
    "asked": "Each word asked about, against shadow models",
}


@dataclass(frozen=True, kw_only=True)
class ArtefactReport:
    """Everything on one page.

    Attributes:
        title: Title for people.
        created: Date, as it is to be printed.
        created_by: Program and version.
        findings: Findings of the audit.
        commands: Lines that make the numbers again.
    """

    title: str
    created: str
    created_by: str
    findings: ArtefactFindings
    commands: tuple[str, ...] = ()


def render_artefact_report(report: ArtefactReport) -> str:
    """The page, complete in itself."""
    return (
        open_templates()
        .get_template("artefact.html.j2")
        .render(
            report=report,
            found=report.findings,
            verdict=state_artefact_verdict(report.findings),
            not_tried=list_not_tried(report.findings),
            figure=plot_releases(report.findings),
            titles=TITLES,
            drawing=drawing,
        )
    )


def plot_releases(found: ArtefactFindings) -> Figure | None:
    """Recovered words over the number of releases, or None where there is no curve."""
    if len(found.releases) < 2:
        return None
    return Figure(
        title="What repeated releases add up to",
        across="releases of each text, by their logarithm to base 10",
        up="Share of words named rightly",
        lines=(
            Line(
                name=f"{found.mechanism}, η = {found.eta:g}",
                points=tuple((log10(point.releases), point.recovered.value) for point in found.releases),
            ),
            Line(name="blind guess", points=tuple((log10(point.releases), point.chance) for point in found.releases)),
        ),
    )


def artefact_report_to_json(report: ArtefactReport) -> dict[str, Any]:
    """The report as plain JSON values."""
    return {"schema": SCHEMA, **to_json(report)}


def write_artefact_report(report: ArtefactReport, folder: Path) -> tuple[Path, Path]:
    """Write both forms; each appears whole or not at all. Returns their paths.

    Raises:
        AuditError: The folder cannot be written.
    """
    return write_pair(folder, page=render_artefact_report(report), values=artefact_report_to_json(report))
