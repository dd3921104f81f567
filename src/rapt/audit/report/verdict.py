"""The verdict in plain words, for a reader who decides about data and not about mechanisms.

Who can learn what, how likely, compared with what. Words here mean tokens: words, or pieces of rare words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rapt.audit.attributes import AttributeResult
from rapt.audit.audit import AuditReport
from rapt.audit.intervals import Share
from rapt.audit.judge.questions import OF_TOKENS, RECORDS, KeywordResult, LinkageResult, RepetitionResult
from rapt.severity import NEAR_CHANCE, Severity, find_worst, weigh_attack

_NOT_ATTACKED: Final = (
    (
        "Large language models",
        "An attacker with a large language model of the kind of these texts, or who knows whom they are about, "
        "recovers more than is stated here.",
    ),
    (
        "Inversion by optimization",
        "It needs vectors, hidden states or gradients of the text. The service gets tokens only, and all that follows "
        "from them; the attacks here weigh what each token may have been.",
    ),
    ("The tuned model", "Whether a text was among those it was tuned on, or what it would repeat of them."),
    (
        "Further releases",
        "Several releases of one text, or of nearly the same text, in this file and others: each gives away more.",
    ),
    (
        "What is sent in clear",
        "Number and order of records, their lengths, and labels unless they were randomized: no attack is needed.",
    ),
)


_ENTITIES: Final = ("Names and entities by kind", "Persons, places, dates: how many of each survive or can be read.")
_REPETITION: Final = (
    "Repetition",
    "Words that come back in many records: each release of a word gives away more.",
)
_KEYWORDS: Final = ("Lists of words", "Whether a word of a list, such as names of illnesses, stands in a text.")
_CONTEXT: Final = (
    "Context",
    "An attacker who also uses the words around a word recovers more than is stated here.",
)
_TOGETHER: Final = (
    "Texts of a record together",
    "Each text was attacked by itself. Whoever reads the texts of a record side by side, such as two sentences that "
    "say the same, may recover more than is stated here.",
)
_PUBLIC_TARGETS: Final = (
    "Public targets",
    "They were sent as they are: whoever holds the file reads them. What they tell about the private text of their "
    "record was not tried.",
)
_TRAITS: Final = (
    "Traits and identity of the author",
    "Gender, age, opinion or any other attribute, or who wrote a text: no column was named to try it on.",
)


def list_not_attacked(report: AuditReport, *, attributes: bool) -> tuple[tuple[str, str], ...]:
    """List the attacks that were not tried, as names and sentences."""
    missing = [] if uses_context(report) else [_CONTEXT]
    missing += [] if report.strongest.detail.entities else [_ENTITIES]
    missing += [] if report.repetition else [_REPETITION]
    missing += [] if report.keywords else [_KEYWORDS]
    missing += [_TOGETHER] if len(report.texts) > 1 else []
    missing += [_PUBLIC_TARGETS] if report.public_targets else []
    return (*missing, *(() if attributes else (_TRAITS,)), *_NOT_ATTACKED)


def uses_context(report: AuditReport) -> bool:
    """Whether an attack that looks at the words around a word ran."""
    return any(result.uses_context for result in report.results)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A headline, how bad it is, and what stands behind it, one sentence each."""

    headline: str
    severity: Severity
    sentences: tuple[str, ...]


def is_near_chance(report: AuditReport, *, attributes: tuple[AttributeResult, ...] = ()) -> bool:
    """Whether a report may say that the attacks are hardly better than blind guessing.

    Only where every attack that looks at more than single words ran, and none of all attacks is better than what is
    known without it: the length of a text, the most frequent word or value.
    """
    best = report.strongest.score.all_tokens
    return (
        not report.insecure
        and weigh_attack(best.first.value, blind=best.chance) is Severity.GOOD
        and report.linkage is not None
        and not report.linkage.beats_length
        and report.repetition is not None
        and not report.repetition.beats_blind
        and report.keywords is not None
        and not report.keywords.beats_blind
        and not any(attacker.first.low > column.chance for column in attributes for attacker in column.attackers)
    )


def weigh_findings(report: AuditReport, *, attributes: tuple[AttributeResult, ...] = ()) -> Severity:
    """Severity of all findings on a file: that of the worst, and good only where all attacks are near chance."""
    if report.insecure:
        return Severity.BAD
    if is_near_chance(report, attributes=attributes):
        return Severity.GOOD
    best = report.strongest.score.all_tokens
    weighed = [Severity.CAUTION, weigh_attack(best.first.value, blind=best.chance)]
    if (linked := report.linkage) is not None:
        weighed.append(weigh_attack(linked.first.value, blind=max(linked.chance, linked.blind)))
    if report.repetition is not None:
        weighed += [weigh_attack(row.named.value, blind=row.blind) for row in report.repetition.own]
    if report.keywords is not None and (uses := report.keywords.everything.found) is not None:
        weighed.append(weigh_attack(uses.value, blind=report.keywords.everything.blind))
    for column in attributes:
        weighed += [weigh_attack(attacker.first.value, blind=column.chance) for attacker in column.attackers]
    return find_worst(weighed)


def state_verdict(report: AuditReport, *, attributes: tuple[AttributeResult, ...] = ()) -> Verdict:
    """The verdict on a file, and on what it tells about the authors of its texts."""
    best = report.strongest.score.all_tokens
    if report.insecure:
        headline = "This file protects nothing: its noise can be drawn again and taken off."
    elif best.advantage >= NEAR_CHANCE:
        headline = f"An attacker can rightly name about {write_of_100(best.first.value)} words of these texts."
    elif is_near_chance(report, attributes=attributes):
        named = write_of_100(best.first.value)
        headline = f"The attacks tried name {named} words rightly, hardly more than blind guessing does."
    else:
        headline = f"The attacks tried name {write_of_100(best.first.value)} words rightly."
    if report.linkage is not None and report.linkage.beats_length and not report.insecure:
        headline += (
            f" An attacker who holds {report.linkage.candidates:,} texts, the right one among them, picks it for "
            f"{write_of_100(report.linkage.first.value)} of these texts."
        )
    sentences = [
        f"Whoever holds the file, the service first of all, can do so with “{report.strongest.title}”, the strongest "
        f"attack tried. The true figure lies between {between(best.first)} of 100, with 95 % confidence.",
        f"Without the file, a blind guess is right for "
        f"{write_of_100(best.chance)} words: it always names the most frequent "
        "one.",
        _describe_changed_words(report),
    ]
    sentences += [
        _describe_linkage(report.linkage),
        *_describe_repetition(report.repetition),
        *_describe_keywords(report.keywords),
    ]
    if len(report.texts) > 1:
        sentences.append(f"All texts of a record that were privatized were attacked: {', '.join(report.texts)}.")
    if report.public_targets:
        sentences.append(
            "The targets of this file are public: they can be read as they are, and no figure counts them."
        )
    if report.learned_from is not None:
        sentences.append(f"The attackers held {report.learned_from}.")
    if report.bound is not None:
        sentences.append(
            "Whatever method is used, an attacker who looks at each word by itself cannot expect more than about "
            f"{write_of_100(report.bound.high)}, even one who knows exactly how often every word occurs in these texts."
        )
    if uses_context(report):
        sentences.append("That limit does not hold for attackers who use the words around a word, as some here do.")
    else:
        sentences.append("Attackers who also use the words around a word were not tried. Expect them to do better.")
    sentences += [_describe_attribute(result) for result in attributes]
    if not is_near_chance(report, attributes=attributes) and not report.insecure:
        sentences.append("These texts must not be treated as anonymous.")
    severity = weigh_findings(report, attributes=attributes)
    return Verdict(headline=headline, severity=severity, sentences=tuple(sentences))


def _describe_linkage(linkage: LinkageResult | None) -> str:
    if linkage is None:
        return "Whether a text can be recognized among texts in clear was not tried."
    return (
        f"Of {linkage.first.n:,} texts, an attacker who holds {linkage.candidates:,} in clear, the right one among "
        f"them, picks the right one for between {between(linkage.first)} of 100, with 95 % confidence; by length "
        f"alone he is right for {write_of_100(linkage.chance)}, and without the file for {write_of_100(linkage.blind)}."
    )


def _describe_repetition(found: RepetitionResult | None) -> list[str]:
    if found is None:
        return ["What words that come back in many records give away was not tried."]
    several = " and ".join(
        f"{write_of_100(row.named.value)} (between {between(row.named)}) from {row.releases}"
        for row in found.fresh
        if row.releases in RECORDS
    )
    sentences = [
        f"Every further release of a word gives away more: of {found.fresh[0].named.n} words of these texts, released "
        f"again and again, an attacker who lays the releases on top of each other names {several} releases; from one "
        f"{write_of_100(found.fresh[0].named.value)}, and without the file {write_of_100(found.fresh[0].blind)}."
    ]
    for row in found.own:
        sentences.append(
            f"{row.named.n:,} words of this file come back in {row.records} records or more; an attacker who has to "
            f"find them himself names {write_of_100(row.named.value)} (between {between(row.named)}), from each place "
            f"by itself {write_of_100(row.alone)}, and without the file {write_of_100(row.blind)}."
        )
    if not found.own:
        sentences.append(f"No word was found to come back in {min(RECORDS)} records of this file or more.")
    return sentences


def _describe_keywords(found: KeywordResult | None) -> list[str]:
    if found is None:
        return ["Whether telling words stand in the texts was not tried."]
    uses = found.everything.found
    if uses is None:
        return [f"None of {found.listed:,} telling words that an attacker looks for stands in these texts."]
    return [
        f"Of {uses.n:,} uses of {found.listed:,} telling words, an attacker who looks for them finds "
        f"{write_of_100(uses.value)} (between {between(uses)}), with {found.false_alarms:.1f} false alarms in "
        f"{OF_TOKENS:,} words (at most {found.most_false_alarms:.1f}, with 95 % confidence); as many guesses without "
        f"the file would find {write_of_100(found.everything.blind)}."
    ]


def _describe_attribute(result: AttributeResult) -> str:
    first = result.attackers[0].first
    return (
        f"The column “{result.column}”, one of {result.values} values, is named rightly for "
        f"{write_of_100(first.value)} "
        f"texts; a blind guess is right for "
        f"{write_of_100(result.chance)}, and the same method on the unprotected texts for "
        f"{write_of_100(result.unprotected.first.value)}."
    )


def write_of_100(share: float) -> str:
    """A share as `58 of 100`; never 0 or 100 for what is neither."""
    if 0 < share < 0.005:
        return "fewer than 1 of 100"
    if 0.995 <= share < 1:
        return "more than 99 of 100"
    return f"{100 * share:.0f} of 100"


def between(share: Share) -> str:
    """An interval as `57 and 59`, rounded outwards."""
    low, high = int(100 * share.low), -int(-100 * share.high // 1)
    return f"{low} and {high}"


def _describe_changed_words(report: AuditReport) -> str:
    kept = f"{write_of_100(report.unchanged.value)} words left as they were, by chance; nothing marks which."
    told = report.strongest.score.told_changed
    if told is None:
        return kept
    return (
        f"{kept} Of the words that did change, an attacker who is told which they are names "
        f"{write_of_100(told.first.value)}, where a blind guess names {write_of_100(told.chance)}."
    )
