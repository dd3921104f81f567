"""One audit of tuned models: which attacks, on what, and everything that they found.

All tests of an audit taken together: what was shown, when many were tried?

An audit asks several attackers about the same models, in several ways, so the smallest p among them is small sooner
than any of them alone: of twenty tests that find nothing, one has p < 0.05. Each p is therefore corrected by Holm's
step-down method (Holm 1979, Scand. J. Statist. 6): the probability that any test without an effect is called a finding
stays below the stated level, whatever the tests have in common, and they have much in common: they ask the same models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np

from rapt.audit.artefact.given import GivenAdapter, OwnersTexts, attack_given
from rapt.audit.artefact.membership import MembershipResult, play_membership
from rapt.audit.artefact.memory import CanaryResult, WordRecovery, find_canaries, read_words
from rapt.audit.artefact.pooled import PooledRelease, ReleasesView, pool_guesses, score_releases
from rapt.audit.artefact.shared_work import SharedWork
from rapt.audit.artefact.workshop import TokenTexts, Workshop, tune_models
from rapt.audit.view import PublicText
from rapt.errors import AuditError
from rapt.service.adapter.adapter import Adapter

PARTS: Final = ("membership", "words", "canaries", "releases")
# Tokens of which several releases are laid on top of each other: with 30 releases 9,000 outputs.
POOLED_TOKENS: Final = 300


@dataclass(frozen=True, kw_only=True)
class ArtefactPlan:
    """The attacks on tuned models that are tried, and with which numbers.

    Attributes:
        parts: Parts that are tried, out of `PARTS`.
        models: Tuned on each kind of text; each is attacked with the others.
        queries: Fresh privatizations of a text that are asked about, averaged.
        canaries: Different sentences for each number of repetitions.
        repetitions: Number of times that each is put in; 0 is the control, a model that never had it.
        releases: Numbers of releases that are laid on top of each other.
        seed: Seed of everything that is drawn.
    """

    parts: tuple[str, ...] = PARTS
    models: int = 8
    queries: int = 4
    canaries: int = 8
    repetitions: tuple[int, ...] = (0, 1, 10, 100)
    releases: tuple[int, ...] = (1, 3, 10, 30)
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a plan that nothing can come of (`AuditError`)."""
        if unknown := [part for part in self.parts if part not in PARTS]:
            raise AuditError(f"unknown attack={unknown[0]!r}; choose among {', '.join(PARTS)}")
        least = min((*self.releases, self.canaries, self.queries))
        if self.models < 3 or least < 1 or min(self.repetitions) < 0:
            raise AuditError(
                f"an audit of models needs 3 of them, repetitions from 0 and all else from 1, got "
                f"models={self.models}, repetitions={min(self.repetitions)} and {least}"
            )


@dataclass(frozen=True, kw_only=True)
class ArtefactFindings:
    """Findings of the audit of a model; they hold no token and no text. Settings stand in clear first, then privatized.

    Attributes:
        model: Name of the backbone.
        method: Name of the tuning method.
        epochs: Passes over the texts.
        mechanism: Name of the mechanism.
        eta: Slope of the mechanism, 1/distance.
        texts: Number of texts in the game; each model had half of them.
        models: Tuned on each kind of text.
        membership, words, canaries, releases: Empty where the part was not asked for or says nothing.
        seed: Seed of the plan.
        given: Findings on an adapter that was handed back; None where the models were tuned for the audit.
    """

    model: str
    method: str
    epochs: int
    mechanism: str
    eta: float
    texts: int
    models: int
    membership: tuple[MembershipResult, ...]
    words: tuple[WordRecovery, ...]
    canaries: tuple[CanaryResult, ...]
    releases: tuple[PooledRelease, ...]
    seed: int
    given: GivenAdapter | None = None


def audit_artefact(
    workshop: Workshop,
    texts: TokenTexts,
    *,
    plan: ArtefactPlan,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    shared: SharedWork | None = None,
) -> ArtefactFindings:
    """Tune models in clear and through the mechanism, and attack them.

    Args:
        workshop: Workshop with a mechanism.
        texts: Texts of which each model gets a random half.
        plan: Plan of the attacks.
        on_progress: Called with the name of a part, what is done of it and its total.
        shared: Tasks of a cluster that tune the models, of the same workshop and texts; None tunes them here.

    Raises:
        AuditError: The texts are too few, or the mechanism's channel is not known for the pooled releases.
        TuningError: A model cannot be tuned.
    """
    if workshop.mechanism is None:
        raise AuditError("an audit of models must have a mechanism; the clear text is tuned on for comparison anyway")
    workshops = (replace(workshop, mechanism=None), workshop)
    membership: list[MembershipResult] = []
    words: list[WordRecovery] = []
    canaries: list[CanaryResult] = []
    tuned = 0
    for shop in workshops if {"membership", "words"} & set(plan.parts) else ():

        def one_more(done: int, before: int = tuned) -> None:
            on_progress("models", before + done, 2 * plan.models)

        tune_all = None if shared is None else partial(shared.tune, privatized=shop.mechanism is not None)
        models = tune_models(shop, texts, models=plan.models, seed=plan.seed, on_progress=one_more, tune_all=tune_all)
        tuned += plan.models
        if "membership" in plan.parts:
            for privatized in (False, True) if shop.mechanism is not None else (False,):
                membership.append(
                    play_membership(shop, models, texts, privatized=privatized, queries=plan.queries, seed=plan.seed)
                )
        if "words" in plan.parts:
            words += read_words(shop, models, texts, seed=plan.seed)
    if "canaries" in plan.parts:
        runs = [(shop, times) for shop in workshops for times in plan.repetitions]
        if shared is not None:
            canaries = shared.find_canaries(
                [(shop.mechanism is not None, times) for shop, times in runs],
                canaries=plan.canaries,
                seed=plan.seed,
                on_done=lambda done: on_progress("canaries", done, len(runs)),
            )
            runs = []
        for place, (shop, times) in enumerate(runs):
            canaries.append(find_canaries(shop, texts, repetitions=times, canaries=plan.canaries, seed=plan.seed))
            on_progress("canaries", place + 1, len(runs))
    releases: tuple[PooledRelease, ...] = ()
    if "releases" in plan.parts:
        releases = pool_releases(
            workshop,
            texts,
            counts=plan.releases,
            seed=plan.seed,
            on_progress=lambda share: on_progress("releases", int(100 * share), 100),
        )
    return ArtefactFindings(
        model=workshop.vocabulary.model,
        method=workshop.config.method,
        epochs=workshop.config.epochs,
        mechanism=workshop.mechanism.setting.name,
        eta=workshop.mechanism.setting.eta,
        texts=len(texts),
        models=plan.models,
        membership=tuple(membership),
        words=tuple(words),
        canaries=tuple(canaries),
        releases=releases,
        seed=plan.seed,
    )


def audit_adapter(
    workshop: Workshop,
    adapter: Adapter,
    owned: OwnersTexts,
    *,
    shadows: int,
    queries: int,
    seed: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> ArtefactFindings:
    """Attack one adapter, and nothing else; see `rapt.audit.artefact.given.attack_given`."""
    if workshop.mechanism is None:
        raise AuditError("an adapter that is attacked must have been tuned through a mechanism, got none")
    given = attack_given(workshop, adapter, owned, shadows=shadows, queries=queries, seed=seed, on_progress=on_progress)
    return ArtefactFindings(
        model=workshop.vocabulary.model,
        method=workshop.config.method,
        epochs=workshop.config.epochs,
        mechanism=workshop.mechanism.setting.name,
        eta=workshop.mechanism.setting.eta,
        texts=len(owned.texts),
        models=shadows,
        membership=(),
        words=(),
        canaries=(),
        releases=(),
        seed=seed,
        given=given,
    )


def pool_releases(
    workshop: Workshop,
    texts: TokenTexts,
    *,
    counts: tuple[int, ...],
    seed: int,
    tokens: int = POOLED_TOKENS,
    on_progress: Callable[[float], None] = lambda share: None,
) -> tuple[PooledRelease, ...]:
    """Release some of the texts several times and lay the releases on top of each other; the rest is public.

    Args:
        workshop: Workshop with a mechanism.
        texts: Texts, two at least; about half of them, or fewer, are attacked.
        counts: Numbers of releases.
        seed: Seed of the choice and the noise.
        tokens: Texts are attacked until there are so many.
        on_progress: Called with the share done.

    Raises:
        AuditError: There is one text only, or the mechanism's channel is not known.
    """
    if workshop.mechanism is None or len(texts) < 2:
        raise AuditError(f"pooled releases need a mechanism and two texts, got texts={len(texts)}; give more")
    rng = np.random.default_rng([seed, 19])
    order = rng.permutation(len(texts))
    enough = 1 + int(np.searchsorted(np.cumsum(texts.lengths[order]), tokens))
    enough = min(enough, len(texts) // 2)
    attacked, public = texts.at(order[:enough]), texts.at(order[enough:])
    true = np.concatenate([np.array(content, dtype=np.int64) for content in attacked.contents])
    view = ReleasesView(
        releases=np.stack([workshop.mechanism.privatize(true, rng=rng) for _ in range(max(counts))]),
        setting=workshop.mechanism.setting,
        vocabulary=workshop.vocabulary,
        prior=PublicText(
            contents=tuple(np.array(content, dtype=np.int64) for content in public.contents),
            source=f"{len(public):,} other texts",
        ).prior(workshop.vocabulary.bundle),
    )
    guesses = pool_guesses(view, counts=counts, seed=seed, on_progress=on_progress)
    return score_releases(guesses, true=true, lengths=attacked.lengths)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One test among all that were made on models tuned on one kind of text.

    Attributes:
        part: Part, as in `rapt.audit.artefact.run.PARTS`.
        test: Name of the attack and the way it asked.
        p: P-value of the test by itself.
        corrected: Corrected for all tests on that kind of text.
    """

    part: str
    test: str
    p: float
    corrected: float


def correct_by_holm(values: Sequence[float]) -> tuple[float, ...]:
    """The corrected p of each test, in their order (Holm 1979)."""
    p = np.asarray(values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return tuple(corrected.tolist())


def weigh_evidence_on_models(found: ArtefactFindings, *, tuned_on: str) -> tuple[Evidence, ...]:
    """Every test on models that were tuned on this kind of text, the clearest first.

    Args:
        found: Findings of one audit.
        tuned_on: `clear` or `privatized`.
    """
    tests = [
        ("membership", f"{named.attack}, asked in {result.asked_with}", named.score.p)
        for result in found.membership
        if result.tuned_on == tuned_on
        for named in result.attacks
    ]
    tests += [("words", reading.reader, reading.score.p) for reading in found.words if reading.tuned_on == tuned_on]
    tests += [
        ("canaries", f"put in {result.repetitions} times", result.p)
        for result in found.canaries
        if result.tuned_on == tuned_on and result.repetitions > 0
    ]
    return _join_evidence(tests)


def weigh_evidence_on_adapter(given: GivenAdapter) -> tuple[Evidence, ...]:
    """Every attack on an adapter that can show memory, the clearest first; corrected for all that were made."""
    tests = [
        ("membership", f"{attack.named.attack}, asked in {attack.asked_with}", attack.named.score.p)
        for attack in given.attacks
    ]
    counting = {test for attack, (_, test, _) in zip(given.attacks, tests, strict=True) if attack.counts}
    return tuple(entry for entry in _join_evidence(tests) if entry.test in counting)


def _join_evidence(tests: Sequence[tuple[str, str, float]]) -> tuple[Evidence, ...]:
    corrected = correct_by_holm([p for _, _, p in tests])
    listed = [
        Evidence(part=part, test=test, p=p, corrected=better)
        for (part, test, p), better in zip(tests, corrected, strict=True)
    ]
    return tuple(sorted(listed, key=lambda entry: entry.corrected))
