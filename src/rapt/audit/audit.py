"""Run the attacks on a file, score them, and put everything a reader needs beside the numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import Any

from rapt.audit.attacks import ATTACKS, CAUSAL, DEFAULT_ATTACKS, KEYWORDS, LINKAGE, REPETITION, Attack
from rapt.audit.attacks.desk import Desk
from rapt.audit.channels import explain_unknown_channel
from rapt.audit.intervals import Share
from rapt.audit.judge.detail import Detail, score_in_detail
from rapt.audit.judge.questions import KeywordResult, LinkageResult, RepetitionResult
from rapt.audit.judge.scoring import (
    ContextFreeBound,
    TokenScore,
    compute_context_free_bound,
    compute_unchanged_share,
    score_guess,
)
from rapt.audit.kept_results import KeptResults
from rapt.audit.language.decoders import WORTH_ASKING, ChosenDecoder
from rapt.audit.questions import QUESTIONS, Words
from rapt.audit.telling_words import TELLING_WORDS
from rapt.audit.truth import Truth, sample_records
from rapt.audit.view import PART_NAMES, AdversaryView
from rapt.errors import AuditError

# Distance, in standard errors, at which a file is said not to be what its manifest states: once in 10^9 by chance.
_MISMATCH = 6.0


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """One attack on one file.

    Attributes:
        attack: Name of the attack in `ATTACKS`.
        title, uses, source: Description of the attack, from `Attack`.
        score: Recovery of the tokens.
        remarks: Remarks for a reader, as in `Guess`.
        uses_context: Whether it uses context, as in `Attack`.
        records: Number of records that it was given, with all of their texts; `score` counts their tokens.
        detail: Recovery by kind of word.
        seconds: Duration, the channel included where it was the first to need it, s.
        cpu_seconds: Time of processors in it, over all threads.
    """

    attack: str
    title: str
    uses: str
    source: str
    score: TokenScore
    remarks: tuple[str, ...]
    uses_context: bool
    records: int
    detail: Detail
    seconds: float = field(compare=False)
    cpu_seconds: float = field(compare=False)


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """An attack that was asked for and did not run."""

    attack: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """Findings of an audit; they hold no token and no text.

    Attributes:
        model: Name of the vocabulary's model.
        vocabulary_hash: Hash of the table that eta belongs to.
        mechanism: Name of the mechanism.
        eta: Slope of the mechanism, 1/distance.
        insecure: Whether the noise came from a seed that anyone can replay.
        records, tokens: Attacked.
        learned_from: The attacker's own texts, in words; None when he had none.
        of_records: Records in the whole file.
        texts: The texts of a record that were attacked, by their `PART_NAMES`: all that went through the mechanism.
        public_targets: Whether the file has targets in clear beside them.
        unchanged: Share of tokens that left as they were.
        results: One for each attack that ran, in the order asked for.
        linkage: Recognition of texts among texts in clear; None where that was not tried.
        skipped: The others, and why.
        bound: Bound for every attacker without context; None when the mechanism's channel is not known.
        warnings: Warnings, one sentence each.
        seed: Seed of everything that was drawn here.
    """

    model: str
    vocabulary_hash: str
    mechanism: str
    eta: float
    insecure: bool
    records: int
    tokens: int
    of_records: int
    texts: tuple[str, ...]
    public_targets: bool
    learned_from: str | None
    unchanged: Share
    results: tuple[AttackResult, ...]
    linkage: LinkageResult | None
    repetition: RepetitionResult | None
    keywords: KeywordResult | None
    skipped: tuple[Skipped, ...]
    bound: ContextFreeBound | None
    warnings: tuple[str, ...]
    seed: int

    @property
    def unit(self) -> str:
        """Name of its records where they are counted: texts, if each is one."""
        return "texts" if len(self.texts) == 1 else "records"

    @property
    def strongest(self) -> AttackResult:
        """The attack that recovered the largest share of all tokens."""
        return max(self.results, key=lambda result: result.score.all_tokens.first.value)


def audit_view(
    view: AdversaryView,
    truth: Truth,
    *,
    attacks: Sequence[str] = DEFAULT_ATTACKS,
    words: Words = TELLING_WORDS,
    language_model: str | ChosenDecoder | None = None,
    seed: int = 0,
    kept: KeptResults | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> AuditReport:
    """Run the attacks on a view and score them against the truth.

    Args:
        view: All that an attack is given.
        truth: Read only after an attack has answered.
        attacks: Names in `ATTACKS` and `QUESTIONS`; those that are not among them are listed as not run.
        words: Telling words by kind, which the attacker looks for.
        language_model: Decoder of the attack `causal`, as `choose_decoder` takes it; None for the largest at hand.
        seed: Seed of every draw; the same seed gives the same report.
        kept: Store of results as they come, so that a run that was interrupted goes on; None keeps none.
        on_progress: Called with the name of a stage and the share of it that is done.

    Raises:
        AuditError: An attack is unknown, none can run, or the truth is of another file.
    """
    everything = (*ATTACKS, *QUESTIONS)
    if unknown := [name for name in attacks if name not in everything]:
        raise AuditError(f"unknown attack={unknown[0]!r}; choose among {', '.join(everything)}")

    def stage(name: str) -> Callable[[float], None]:
        return (lambda share: None) if on_progress is None else (lambda share: on_progress(name, share))

    results, skipped = [], []
    known = None if kept is None else kept.read_channel()
    desk = Desk(view, seed=seed, channel=known, language_model=language_model)
    for name in dict.fromkeys(name for name in attacks if name in ATTACKS):
        attack = ATTACKS[name]
        if (reason := attack.reason_to_skip(desk)) is not None:
            skipped.append(Skipped(attack=name, reason=reason))
            continue
        stage(name)(0.0)
        # Which decoder is asked is no part of what results are kept by.
        place = name if "decoder" not in attack.needs else f"{name}-{desk.decoder().digest}"
        result = None if kept is None else kept.read(place, AttackResult)
        if result is None:
            result = _attack(name, attack, desk, truth, on_progress=stage(name))
            if kept is not None:
                if "channel" in attack.needs:
                    kept.write_channel(desk.channel())
                kept.write(place, result)
        results.append(result)
        stage(name)(1.0)
    if not results:
        raise AuditError(f"an audit must have an attack that can run, got {len(skipped)} skipped; add another")
    manifest = view.manifest
    bound = None
    if explain_unknown_channel(manifest.mechanism, view.bundle) is None:
        stage("bound")(0.0)
        bound = None if kept is None else kept.read("bound", ContextFreeBound)
        if bound is None:
            bound = compute_context_free_bound(view, truth, seed=seed, on_progress=stage("bound"))
            if kept is not None:
                kept.write("bound", bound)
        stage("bound")(1.0)
    answers: dict[str, Any] = {}
    for name, question in QUESTIONS.items():
        if name not in attacks:
            continue
        if (reason := question.reason_to_skip(desk, words)) is not None:
            skipped.append(Skipped(attack=name, reason=reason))
            continue
        stage(name)(0.0)
        # The list of words is no part of what results are kept by.
        keeps = None if name == KEYWORDS else kept
        answers[name] = None if keeps is None else keeps.read(name, question.answer)
        if answers[name] is None:
            answers[name] = question.ask(desk, truth, words)
            if keeps is not None:
                keeps.write(name, answers[name])
        stage(name)(1.0)
    for name in everything:
        if name not in attacks:
            reason = "it was not asked for"
            if name == CAUSAL and isinstance(language_model, ChosenDecoder):
                reason += (
                    f": by itself it runs with {WORTH_ASKING / 1e6:,.0f} million parameters or more, and there is "
                )
                reason += language_model.described
            skipped.append(Skipped(attack=name, reason=reason))
    unchanged = compute_unchanged_share(view=view, truth=truth)
    insecure = manifest.randomness.insecure_seed is not None
    return AuditReport(
        model=manifest.model,
        vocabulary_hash=manifest.vocabulary_hash,
        mechanism=manifest.mechanism.name,
        eta=manifest.mechanism.eta,
        insecure=insecure,
        records=len(view.records),
        tokens=len(view.observed),
        of_records=manifest.records,
        texts=tuple(PART_NAMES[part] for part in view.parts),
        public_targets=manifest.targets == "public",
        learned_from=None if view.public is None else view.public.source,
        unchanged=unchanged,
        results=tuple(results),
        linkage=answers.get(LINKAGE),
        repetition=answers.get(REPETITION),
        keywords=answers.get(KEYWORDS),
        skipped=tuple(skipped),
        bound=bound,
        warnings=_list_warnings(unchanged, bound, insecure=insecure),
        seed=seed,
    )


def _attack(
    name: str, attack: Attack, desk: Desk, truth: Truth, *, on_progress: Callable[[float], None]
) -> AttackResult:
    started, cpu = time.monotonic(), time.process_time()
    remarks: tuple[str, ...] = ()
    if attack.most_tokens is not None and attack.most_tokens < len(desk.view.observed):
        view, truth = sample_records(desk.view, truth, tokens=attack.most_tokens, seed=desk.seed)
        remarks = (f"on a random part of {len(view.records):,} {view.unit}, because it is slow",)
        desk = desk.at(view)
    guess = attack.run(desk, on_progress=on_progress)
    return AttackResult(
        attack=name,
        title=attack.title,
        uses=attack.uses,
        source=attack.source,
        score=score_guess(guess, view=desk.view, truth=truth),
        remarks=(*remarks, *guess.remarks),
        uses_context=attack.uses_context,
        records=len(desk.view.records),
        detail=score_in_detail(guess, view=desk.view, truth=truth),
        seconds=round(time.monotonic() - started, 1),
        cpu_seconds=round(time.process_time() - cpu, 1),
    )


def _list_warnings(unchanged: Share, bound: ContextFreeBound | None, *, insecure: bool) -> tuple[str, ...]:
    found = []
    if insecure:
        found.append("The noise of this file came from a seed chosen by hand: whoever learns it can undo all of it.")
    if bound is not None:
        expected = bound.unchanged.value
        error = sqrt(_compute_variance(unchanged) + _compute_variance(bound.unchanged))
        distance = (unchanged.value - expected) / error if error > 0 else 0.0
        if isfinite(distance) and abs(distance) > _MISMATCH:
            found.append(
                f"The file left {unchanged.value:.1%} of its tokens unchanged where the stated mechanism leaves "
                f"{expected:.1%}: it was not made as its manifest says, or this is not the text it was made from."
            )
    return tuple(found)


def _compute_variance(share: Share) -> float:
    # Half the width of an interval is about two standard errors, also where the share is 0 or 1.
    return ((share.high - share.low) / 4) ** 2
