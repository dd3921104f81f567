"""Does a program do what it states? Bounds on what it spends, and whether its outputs follow the stated channel.

A lower bound on η (`spent_eta`) cannot fail at an η in use: it ends near log(runs) / d, so a program that sends the
text in clear passes it at η = 75. The second half of the audit can: outputs are compared with those of a second
implementation of the stated mechanism on the stated table.

- By token, and by the sum over all of them: a χ² test of homogeneity. Outputs that are frequent are cells of their own;
  the others are put together by their distance from the input.
- By token, and over all of them: Fisher's exact test of how many come back unchanged. Sums over tokens vary less than
  the law of the test allows, so it accuses less often than stated.

The cells are chosen by the outputs of both implementations together, without looking at whose they are, so the tests
are those of tables whose margins are given. All tests share alpha (Bonferroni).

*Guarantee.* A program whose outputs have the stated law is accused with probability alpha at most, half of it for the
bounds and half of it for the fit. The χ² law is an approximation; no cell expects fewer than 20 outputs of each
implementation. The share of false alarms is measured in `tests/audit/test_program_audit.py`.

*Not covered.* A difference that is too small for so many runs, on tokens that were not drawn, or that depends on other
tokens of a call. An audit is about the draws that it was given: a program that knows that it is audited can behave.

Source: Pearson 1900; Fisher 1935; for the bounds see `spent_eta`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rapt.audit.channels.reference import ReferenceDraw, make_reference
from rapt.audit.spent_eta import Draw, SpentEtaReport, audit_spent_eta, pair_tokens
from rapt.errors import AuditError
from rapt.local.mechanisms.interface import Mechanism
from rapt.local.vocabulary import Vocabulary

# Tokens whose outputs are compared, and draws of each: a quarter of a minute of a core on MiniLM's table.
FIT_TOKENS: Final = 16
FIT_RUNS: Final = 1_000
# Outputs of both implementations that a cell needs: 20 are expected of each.
_LEAST_IN_CELL: Final = 40


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How well outputs follow the stated channel.

    Attributes:
        tokens: Number of input tokens.
        runs: Draws of each input, from the program and from the second implementation.
        tests: Tests that share alpha.
        p: Smallest p of all tests times their number, at most 1.
        unchanged, expected: Share of the outputs that are the input, of the program and of the second implementation.
        alpha: Probability, at most, that a sound program is accused.
    """

    tokens: int
    runs: int
    tests: int
    p: float
    unchanged: float
    expected: float
    alpha: float

    @property
    def sound(self) -> bool:
        """Whether nothing speaks against the stated channel."""
        return self.p >= self.alpha


@dataclass(frozen=True, kw_only=True)
class ProgramAudit:
    """Evidence in the outputs of a program.

    Attributes:
        eta: Stated slope, 1/distance.
        spent: Lower bounds on the η spent.
        fit: Comparison with the stated channel; None where the mechanism has no second implementation.
        alpha: Probability, at most, that a sound program is accused by either.
    """

    eta: float
    spent: SpentEtaReport
    fit: Fit | None
    alpha: float

    @property
    def defects(self) -> tuple[str, ...]:
        """Evidence against the statement, as ends of a sentence about the program; none where it is sound."""
        found = []
        if self.spent.lower > self.eta:
            found.append(f"it spends more than the eta = {self.eta:g} that it states")
        if self.spent.told_apart:
            found.append(f"its outputs are further apart than eta = {self.eta:g} allows")
        if self.fit is not None and not self.fit.sound:
            found.append("its outputs do not follow the stated channel")
        return tuple(found)


def audit_program(
    draw: Draw,
    *,
    mechanism: Mechanism,
    vocabulary: Vocabulary,
    pairs: Sequence[tuple[int, int]],
    runs: int,
    rng: np.random.Generator,
    alpha: float = 1e-6,
    fit_tokens: int = FIT_TOKENS,
    fit_runs: int = FIT_RUNS,
) -> ProgramAudit:
    """Compare the outputs of a program with what a mechanism states.

    Args:
        draw: Function that asks the program for draws.
        mechanism: The mechanism that is stated, on the table that is stated.
        vocabulary: The stated table.
        pairs: Tokens that the bounds tell apart; the fit looks at them too.
        runs: Draws of each token of a pair, for the bounds.
        rng: Generator of the draws, and of the tokens that the fit looks at.
        alpha: Probability, at most, that a sound program is accused.
        fit_tokens: Tokens drawn for the fit beside those of the pairs.
        fit_runs: Draws of each token, for the fit.

    Raises:
        AuditError: The reasons of `audit_spent_eta`, or there is nothing to compare.
    """
    reference = make_reference(mechanism, vocabulary)
    level = alpha if reference is None else alpha / 2
    spent = audit_spent_eta(draw, pair_tokens(mechanism, pairs, vocabulary=vocabulary), runs=runs, rng=rng, alpha=level)
    fit = None
    if reference is not None:
        drawn = rng.choice(vocabulary.eligible, size=min(fit_tokens, len(vocabulary.eligible)), replace=False)
        tokens = np.union1d(drawn, np.array(pairs, dtype=np.int64).ravel())
        fit = check_fit(draw, reference, tokens, vocabulary=vocabulary, runs=fit_runs, rng=rng, alpha=level)
    return ProgramAudit(eta=mechanism.setting.eta, spent=spent, fit=fit, alpha=alpha)


def check_fit(
    draw: Draw,
    reference: ReferenceDraw,
    tokens: NDArray[np.int64],
    *,
    vocabulary: Vocabulary,
    runs: int,
    rng: np.random.Generator,
    alpha: float,
) -> Fit:
    """Compare outputs of a program with those of a second implementation; see the module.

    Args:
        draw: Function that asks the program for draws.
        reference: Second implementation of the mechanism that is stated.
        tokens: Inputs, (n,). Choose them before looking at outputs.
        vocabulary: Table in which outputs are put together by distance.
        runs: Draws of each token.
        rng: Generator of the draws.
        alpha: Probability, at most, that a sound program is accused.

    Raises:
        AuditError: No token, or too few runs.
    """
    if not len(tokens) or runs < _LEAST_IN_CELL or not 0 < alpha < 1:
        raise AuditError(
            f"a fit needs a token, {_LEAST_IN_CELL} runs and 0 < alpha < 1, got tokens={len(tokens)} runs={runs}"
        )
    inputs = np.repeat(tokens, runs)
    program = draw(inputs[:, None], rng).reshape(len(tokens), runs)
    stated = reference(inputs, rng).reshape(len(tokens), runs)
    values, statistics, freedoms = [], 0.0, 0
    kept = [int((outputs == tokens[:, None]).sum()) for outputs in (program, stated)]
    for token, ours, theirs in zip(tokens.tolist(), program, stated, strict=True):
        statistic, freedom = _compare_cells(ours, theirs, _compute_distances_from(token, ours, theirs, vocabulary))
        values.append(float(stats.chi2.sf(statistic, freedom)) if freedom else 1.0)
        statistics, freedoms = statistics + statistic, freedoms + freedom
        values.append(_compare_kept(int((ours == token).sum()), int((theirs == token).sum()), runs))
    values.append(float(stats.chi2.sf(statistics, freedoms)) if freedoms else 1.0)
    values.append(_compare_kept(kept[0], kept[1], len(inputs)))
    return Fit(
        tokens=len(tokens),
        runs=runs,
        tests=len(values),
        p=min(1.0, min(values) * len(values)),
        unchanged=kept[0] / len(inputs),
        expected=kept[1] / len(inputs),
        alpha=alpha,
    )


def _compute_distances_from(
    token: int, ours: NDArray[np.int64], theirs: NDArray[np.int64], vocabulary: Vocabulary
) -> dict[int, float]:
    names = np.union1d(ours, theirs)
    rows = vocabulary.embeddings[names].astype(np.float64) - vocabulary.embeddings[token]
    return dict(zip(names.tolist(), np.linalg.norm(rows, axis=1).tolist(), strict=True))


def _compare_cells(
    ours: NDArray[np.int64], theirs: NDArray[np.int64], distances: dict[int, float]
) -> tuple[float, int]:
    """The χ² statistic of homogeneity and its degrees of freedom; 0 where all outputs are in one cell."""
    names = np.array(sorted(distances, key=lambda name: (distances[name], name)), dtype=np.int64)
    order = np.argsort(names)
    counts = np.stack(
        [
            np.bincount(order[np.searchsorted(names, outputs, sorter=order)], minlength=len(names))
            for outputs in (ours, theirs)
        ]
    )
    cells, gathered = [], np.zeros(2, dtype=np.int64)
    for column in counts.T:
        if column.sum() >= _LEAST_IN_CELL:
            cells.append(column)
            continue
        gathered = gathered + column
        if gathered.sum() >= _LEAST_IN_CELL:
            cells.append(gathered)
            gathered = np.zeros(2, dtype=np.int64)
    if gathered.any():
        # What is left over joins the smallest cell, so that no cell is too small.
        smallest = min(range(len(cells)), key=lambda place: int(cells[place].sum()), default=None)
        if smallest is None:
            return 0.0, 0
        cells[smallest] = cells[smallest] + gathered
    if len(cells) < 2:
        return 0.0, 0
    return float(stats.chi2_contingency(np.stack(cells, axis=1), correction=False).statistic), len(cells) - 1


def _compare_kept(ours: int, theirs: int, runs: int) -> float:
    """The p of Fisher's exact test, two-sided."""
    return float(stats.fisher_exact(np.array([[ours, runs - ours], [theirs, runs - theirs]])).pvalue)
