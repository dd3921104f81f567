"""The verdict on tuned models, in plain words."""

from __future__ import annotations

from rapt.audit.artefact.game import MembershipResult
from rapt.audit.artefact.run import PARTS, ArtefactFindings
from rapt.audit.report.verdict import Verdict, of_100

# A success this unlikely by chance is called one.
_SURE = 1e-3
_NAMES = {
    "membership": ("Membership", "Whether a text was among those that a model was tuned on: not asked for."),
    "words": ("Words of the training", "Which words can be read off a model: not asked for, or too few rare words."),
    "canaries": ("Canaries", "What a model remembers of sentences that are repeated: not asked for."),
    "releases": ("Repeated releases", "What several releases of a text add up to: not asked for."),
}
_ALWAYS = (
    (
        "Your own adapter",
        "The models here were tuned for the audit, in the same way. A given adapter was not attacked.",
    ),
    (
        "Whole texts from a model",
        "Generating the texts that a model was tuned on. A classifier hardly allows it; a model that writes may.",
    ),
    ("Plain tokens", "The models were tuned without reconstruction, so without plain tokens."),
)


def artefact_verdict(found: ArtefactFindings) -> Verdict:
    """Who can learn what from a model, how likely, compared with what."""
    clear, private = (_strongest(found.membership, tuned_on) for tuned_on in ("clear", "privatized"))
    sentences = [_on_membership(result) for result in (clear, private) if result is not None]
    headline = "What models tuned on these texts give away"
    if private is not None:
        if private.strongest.score.p < _SURE:
            headline = "A model tuned on the privatized texts shows whose texts it was tuned on."
        else:
            headline = "No attack tried tells the texts of a model that was tuned on privatized ones from others."
    sentences += [
        f"A sentence that was put into the {result.tuned_on} texts {_times(result.repetitions)} is ranked "
        f"number {sorted(result.ranks)[len(result.ranks) // 2]:,} among {result.candidates:,} of its form, in the "
        f"middle of {result.canaries} tries."
        for result in found.canaries
        if result.repetitions == max(other.repetitions for other in found.canaries)
    ]
    if found.releases:
        first, last = found.releases[0], found.releases[-1]
        sentences.append(
            f"Whoever holds {_times(first.releases, 'release')} of a text names {of_100(first.recovered.value)} words; "
            f"with {_times(last.releases, 'release')} {of_100(last.recovered.value)}. A blind guess is right for "
            f"{of_100(last.chance)}."
        )
    return Verdict(headline=headline, sentences=tuple(sentences))


def not_tried(found: ArtefactFindings) -> tuple[tuple[str, str], ...]:
    """What was not attacked, as names and sentences."""
    return (*(_NAMES[part] for part in PARTS if not getattr(found, part)), *_ALWAYS)


def _strongest(results: tuple[MembershipResult, ...], tuned_on: str) -> MembershipResult | None:
    kind = [result for result in results if result.tuned_on == tuned_on]
    return max(kind, key=lambda result: result.strongest.score.auc.value) if kind else None


def _on_membership(result: MembershipResult) -> str:
    auc = result.strongest.score.auc
    form = "in clear" if result.tuned_on == "clear" else "privatized"
    chance = "no more than a coin" if auc.low <= 0.5 else f"a coin {of_100(0.5)}"
    return (
        f"Given a text that a model was tuned on, {form}, and one that it was not, the strongest attack picks the "
        f"right one for {of_100(auc.value)} pairs ({100 * auc.low:.0f} to {100 * auc.high:.0f}), {chance}."
    )


def _times(count: int, what: str = "time") -> str:
    return f"one {what}" if count == 1 else f"{count:,} {what}s"
