"""`rapt mechanisms --audit NAME`: does the code spend more η than it says? From its outputs alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rapt.cli.output import show, show_json, table
from rapt.cli.statement import split_pair
from rapt.errors import UsageError

if TYPE_CHECKING:
    from rapt.audit.spent_eta import SpentEtaReport
    from rapt.local.mechanisms import Mechanism
    from rapt.local.vocabulary import Vocabulary

# Of each token of a pair, where no number is given: a few seconds a pair.
RUNS = 10_000
_ALPHA = 1e-6


def audit_mechanism(
    mechanism: Mechanism, vocabulary: Vocabulary, *, pairs: Sequence[str], runs: int, as_json: bool
) -> None:
    """Print the lower bounds on the η spent between pairs of words; near words where none are named.

    Raises:
        UsageError: A pair is not two words of one token each.
        AuditError: The guarantee says nothing about a pair.
    """
    from rapt.audit.spent_eta import audit_spent_eta, choose_near_pairs, draw_independently, pair_tokens
    from rapt.local.randomness import secure_stream

    chosen = [word_tokens(vocabulary, pair) for pair in pairs] or choose_near_pairs(mechanism, vocabulary)
    report = audit_spent_eta(
        draw_independently(mechanism),
        pair_tokens(mechanism, chosen),
        runs=runs,
        rng=secure_stream().generator,
        alpha=_ALPHA,
    )
    eta = mechanism.setting.eta
    if as_json:
        show_json(to_json(report, mechanism=mechanism.setting.name, eta=eta))
        return
    rows = [
        [
            " / ".join(vocabulary.tokens([*spent.pair.left, *spent.pair.right])),
            f"{spent.pair.distance:.3f}",
            f"{max(spent.lower, 0.0):.3g}",
            f"{spent.hits:,} and {spent.other_hits:,} of {spent.runs:,}",
        ]
        for spent in report.found
    ]
    show(table(["pair", "distance", "η spent, at least", "outputs in the set"], rows))
    show("")
    if report.lower > eta:
        show(f"{mechanism.setting.name} spends more than the eta = {eta:g} that it states: this is a defect")
    else:
        show(
            f"nothing speaks against eta = {eta:g}; a sound mechanism is accused once in {1 / report.alpha:,.0f} runs, "
            "and a bound below eta proves nothing"
        )


def word_tokens(vocabulary: Vocabulary, pair: str) -> tuple[int, int]:
    """The ids of the two words in `word,word` (`UsageError`)."""
    left, right = vocabulary.encode(split_pair(pair))
    if len(left) != 1 or len(right) != 1 or left == right:
        raise UsageError(
            f"--pair must be two different words of one token each here, got {len(left)} and {len(right)} tokens; "
            "choose other words"
        )
    return left[0], right[0]


def to_json(report: SpentEtaReport, *, mechanism: str, eta: float) -> dict[str, Any]:
    """The report as plain JSON values; a bound that shows nothing is null."""
    pairs = [asdict(spent) | {"lower": spent.lower if spent.lower > 0 else None} for spent in report.found]
    return {
        "mechanism": mechanism,
        "eta": eta,
        "eta_spent_at_least": report.lower if report.lower > 0 else None,
        "sound": report.lower <= eta,
        "alpha": report.alpha,
        "pairs": pairs,
    }
