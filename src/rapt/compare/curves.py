"""Trade-off curves as values and as inline SVG: accuracy over η, over ε, and over what the strongest attack recovers.

The drawing stretches to its place and holds no text, so labels stay readable on a phone; they stand beside it in HTML.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from rapt.compare.plan import ARMS, CLEAN
from rapt.compare.summary import Summary
from rapt.local.distances import TableDistances

STYLES: Final = {name: f"arm-{place}" for place, name in enumerate(ARMS)}
_STEP: Final = 5.0  # points of accuracy; the axis ends at multiples of it


@dataclass(frozen=True, kw_only=True)
class Point:
    """Accuracy in percent with its interval, over x."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One arm."""

    arm: str
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Curves over one axis.

    Attributes:
        title: What is plotted.
        across: Name of the x axis, with its unit.
        curves: One an arm.
        level: Accuracy on clear text, drawn across; None where it was not run.
    """

    title: str
    across: str
    curves: tuple[Curve, ...]
    level: float | None

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top of the drawing."""
        points = [point for curve in self.curves for point in curve.points]
        heights = [end for point in points for end in (point.low, point.high)]
        heights += [] if self.level is None else [self.level]
        left, right = min(point.x for point in points), max(point.x for point in points)
        bottom, top = _STEP * math.floor(min(heights) / _STEP), _STEP * math.ceil(max(heights) / _STEP)
        return left, max(right, left + 1e-9), bottom, max(top, bottom + _STEP)


def plots(summary: Summary, distances: TableDistances) -> list[Plot]:
    """The plots for which there are at least two settings on the axis.

    Args:
        summary: Of the results.
        distances: Of the vocabulary's table, to turn η into ε = η·d at the median distance to the nearest token.
    """
    clear = summary.accuracy(CLEAN, None)
    level = None if clear is None else 100 * clear.accuracy.value
    near = distances.nearest_50
    axes: list[tuple[str, str, dict[float, float]]] = [
        ("Accuracy over η", "η, 1/distance: less noise to the right", {eta: eta for eta in summary.etas}),
        (
            "Accuracy over the pure bound",
            f"ε = η·d at d = {near:.3g}, the median distance of a token to its nearest",
            {eta: eta * near for eta in summary.etas},
        ),
        (
            "Accuracy over what the strongest attack recovers",
            "tokens recovered by the strongest attack, %",
            {attack.eta: 100 * attack.recovered for attack in summary.attacks},
        ),
    ]
    return [
        Plot(title=title, across=across, curves=_curves(summary, place), level=level)
        for title, across, place in axes
        if len(place) > 1
    ]


def _curves(summary: Summary, place: dict[float, float]) -> tuple[Curve, ...]:
    arms = dict.fromkeys(item.arm for item in summary.accuracies if item.eta is not None)
    return tuple(
        Curve(
            arm=arm,
            points=tuple(
                Point(
                    x=place[item.eta],
                    y=100 * item.accuracy.value,
                    low=100 * item.accuracy.low,
                    high=100 * item.accuracy.high,
                )
                for item in summary.accuracies
                if item.arm == arm and item.eta is not None and item.eta in place
            ),
        )
        for arm in arms
    )


def draw(plot: Plot) -> Markup:
    """The curves, each with its interval as whiskers, and the level of clear text as a dashed line."""
    left, right, bottom, top = plot.box

    def spot(x: float, y: float) -> tuple[str, str]:
        return f"{100 * (x - left) / (right - left):.2f}", f"{100 - 100 * (y - bottom) / (top - bottom):.2f}"

    parts = [Markup('<line class="grid" x1="0" x2="100" y1="{0}" y2="{0}"/>').format(height) for height in (0, 50, 100)]
    if plot.level is not None:
        parts.append(
            Markup('<line class="level" x1="0" x2="100" y1="{0}" y2="{0}"/>').format(spot(left, plot.level)[1])
        )
    for curve in plot.curves:
        style = STYLES[curve.arm]
        for point in curve.points:
            (x, low), (_, high) = spot(point.x, point.low), spot(point.x, point.high)
            parts.append(
                Markup('<line class="{} ends" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(style, x, x, low, high)
            )
        through = " ".join(",".join(spot(point.x, point.y)) for point in curve.points)
        parts.append(Markup('<polyline class="{}" points="{}"/>').format(style, through))
    return Markup(
        '<svg class="plot" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{}</svg>'
    ).format(Markup("").join(parts))
