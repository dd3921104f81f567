"""All tests of an audit taken together: what was shown, when many were tried?

An audit asks several attackers about the same models, in several ways, so the smallest p among them is small sooner
than any of them alone: of twenty tests that find nothing, one has p < 0.05. Each p is therefore corrected by Holm's
step-down method (Holm 1979, Scand. J. Statist. 6): the probability that any test without an effect is called a finding
stays below the stated level, whatever the tests have in common, and they have much in common: they ask the same models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rapt.audit.artefact.given import GivenAdapter
from rapt.audit.artefact.run import ArtefactFindings


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One test among all that were made on models tuned on one kind of text.

    Attributes:
        part: As in `rapt.audit.artefact.run.PARTS`.
        test: Its attack and the way it asked.
        p: By itself.
        corrected: Corrected for all tests on that kind of text.
    """

    part: str
    test: str
    p: float
    corrected: float


def holm(values: Sequence[float]) -> tuple[float, ...]:
    """The corrected p of each test, in their order (Holm 1979)."""
    p = np.asarray(values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return tuple(corrected.tolist())


def evidence(found: ArtefactFindings, *, tuned_on: str) -> tuple[Evidence, ...]:
    """Every test on models that were tuned on this kind of text, the clearest first.

    Args:
        found: By one audit.
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
    return _together(tests)


def evidence_on(given: GivenAdapter) -> tuple[Evidence, ...]:
    """Every attack on an adapter that can show memory, the clearest first; corrected for all that were made."""
    tests = [
        ("membership", f"{attack.named.attack}, asked in {attack.asked_with}", attack.named.score.p)
        for attack in given.attacks
    ]
    counting = {test for attack, (_, test, _) in zip(given.attacks, tests, strict=True) if attack.counts}
    return tuple(entry for entry in _together(tests) if entry.test in counting)


def _together(tests: Sequence[tuple[str, str, float]]) -> tuple[Evidence, ...]:
    corrected = holm([p for _, _, p in tests])
    listed = [
        Evidence(part=part, test=test, p=p, corrected=better)
        for (part, test, p), better in zip(tests, corrected, strict=True)
    ]
    return tuple(sorted(listed, key=lambda entry: entry.corrected))
