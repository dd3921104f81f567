"""What a reader may conclude, in sentences; never more than the intervals allow."""

from __future__ import annotations

from collections.abc import Iterator

from rapt.compare.arms import CLEAN, DENOISED, DENOISED_PROBING, PROMPT, RAPT
from rapt.compare.paper_table import signed, signed_interval
from rapt.compare.plan import SEEDS_FOR_AN_INTERVAL
from rapt.compare.summary import Difference, Summary


def verdict(summary: Summary) -> Iterator[str]:
    """The conclusions, the most important first."""
    for item in summary.differences:
        if (item.arm, item.other) == (RAPT, PROMPT):
            yield f"At η = {item.eta:g}, reconstruction {_says(item)}."
    for item in summary.differences:
        if item.arm in (DENOISED, DENOISED_PROBING) and item.other in (PROMPT, RAPT):
            head = " and a head alone" if item.arm == DENOISED_PROBING else ""
            yield f"At η = {item.eta:g}, a backbone that expects noise{head}, against {item.other}: {_says(item)}."
    for item in summary.differences:
        if item.arm == RAPT and item.other not in (PROMPT, CLEAN):
            yield f"At η = {item.eta:g}, RAPT against its control “{item.other}”: {_says(item)}."
    for item in summary.differences:
        if (item.arm, item.other) == (PROMPT, CLEAN):
            yield f"At η = {item.eta:g}, privacy cost {-item.points.value:.1f} points without reconstruction."
    if blind := [item for item in summary.accuracies if item.over_most_frequent and item.over_most_frequent.low <= 0]:
        arms = "; ".join(item.arm if item.eta is None else f"{item.arm} at η = {item.eta:g}" for item in blind)
        yield f"No better than always naming the most frequent label, as far as can be told: {arms}."
    fewest = min((len(item.seeds) for item in summary.accuracies), default=0)
    if fewest < SEEDS_FOR_AN_INTERVAL:
        yield (
            f"Some arm has {_seeds(fewest)}: below {SEEDS_FOR_AN_INTERVAL}, an interval "
            "understates how much another seed would change."
        )


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def _says(item: Difference) -> str:
    points = item.points
    amount = f"{signed(points.value)} points ({signed_interval(points)}, {_seeds(len(item.seeds))})"
    if points.low > 0:
        return f"helped: {amount}"
    if points.high < 0:
        return f"hurt: {amount}"
    return f"made no difference that can be told from chance: {amount}"
