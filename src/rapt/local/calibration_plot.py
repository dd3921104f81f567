"""A calibration as a picture: one SVG file that needs nothing else and reads on light and on dark pages.

Above, the share of tokens that stay themselves against η, with its interval; below, what the statement says of ε. Both
have the same axis of η, on which the chosen value is marked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from rapt.local.calibration import Calibration, CurvePoint
from rapt.local.text_page import scientific

_WIDTH: Final = 720
_LEFT, _RIGHT = 64, 20
_TOP, _PANEL, _GAP, _BOTTOM = 66, 210, 66, 52

_STYLE: Final = """
text { font: 13px system-ui, sans-serif; fill: #24292f; }
.title { font-size: 15px; font-weight: 600; }
.small { font-size: 12px; fill: #57606a; }
.axis { stroke: #8c959f; stroke-width: 1; fill: none; }
.grid { stroke: #8c959f; stroke-opacity: .25; stroke-width: 1; }
.mark { stroke: #8c959f; stroke-width: 1.5; stroke-dasharray: 5 4; }
.line { fill: none; stroke-width: 2; }
.dashed { stroke-dasharray: 6 4; }
.band { fill-opacity: .2; stroke: none; }
.first { stroke: #0969da; fill: #0969da; } .second { stroke: #bc4c00; fill: #bc4c00; }
.line.first, .line.second { fill: none; } .band.first, .band.second { stroke: none; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .small { fill: #9198a1; }
  .first { stroke: #58a6ff; fill: #58a6ff; } .second { stroke: #f0883e; fill: #f0883e; }
  .line.first, .line.second { fill: none; } .band.first, .band.second { stroke: none; }
}
"""


@dataclass(frozen=True, kw_only=True)
class _Series:
    """One line of a panel, with its interval where it has one."""

    name: str
    style: str
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def calibration_svg(found: Calibration) -> str:
    """The picture, as the text of an SVG file."""
    etas = [point.eta for point in found.curve]
    panels = [("share of tokens, %", _shares(found.curve), 100.0)]
    if epsilons := _epsilons(found.curve):
        panels.append(("ε, nats", epsilons, max(max(series.values) for series in epsilons)))
    height = _TOP + len(panels) * _PANEL + (len(panels) - 1) * _GAP + _BOTTOM
    title = f"What η does on {found.model}, mechanism {found.mechanism}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'role="img">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(_description(found))}</desc>",
        f"<style>{_STYLE}</style>",
        _text(_LEFT, 20, title, style="title"),
        _text(_LEFT, 38, f"shares over {found.weighting}", style="small"),
    ]
    scale = _logarithmic(etas)
    for place, (label, series, top) in enumerate(panels):
        parts += _panel(scale, etas, label, series, top=top, y=_TOP + place * (_PANEL + _GAP), eta=found.eta)
    bottom = _TOP + (len(panels) - 1) * (_PANEL + _GAP)
    if found.target in ("unchanged", "bayes-success"):
        y = _TOP + _PANEL * (1 - found.wanted)
        parts.append(f'<line class="mark" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        _text(middle, bottom + _PANEL + 42, "η, 1/distance in the embedding table (logarithmic)", anchor="middle")
    )
    return "\n".join([*parts, "</svg>", ""])


def _shares(curve: Sequence[CurvePoint]) -> list[_Series]:
    found = [
        _Series(
            name="unchanged, with 95 % interval",
            style="first",
            values=[100 * point.unchanged for point in curve],
            low=[100 * point.low for point in curve],
            high=[100 * point.high for point in curve],
        )
    ]
    values = [point.success for point in curve if point.success is not None]
    if len(values) == len(curve):
        found.append(
            _Series(
                name="found by the Bayes attack",
                style="second",
                values=[100 * value for value in values],
                low=[100 * (point.success_low or 0.0) for point in curve],
                high=[100 * (point.success_high or 0.0) for point in curve],
            )
        )
    return found


def _epsilons(curve: Sequence[CurvePoint]) -> list[_Series]:
    delta = scientific(1e-5)
    columns = [
        ("nearest neighbour, pure", "first dashed", [point.epsilon_neighbour for point in curve]),
        (f"at δ = {delta}", "first", [point.delta_epsilon_neighbour for point in curve]),
        ("two tokens, pure", "second dashed", [point.epsilon_median for point in curve]),
        (f"at δ = {delta}", "second", [point.delta_epsilon_median for point in curve]),
    ]
    return [
        _Series(name=name, style=style, values=[value for value in values if value is not None])
        for name, style, values in columns
        if None not in values
    ]


def _panel(
    scale: Callable[[float], float],
    etas: Sequence[float],
    label: str,
    series: Sequence[_Series],
    *,
    top: float,
    y: float,
    eta: float,
) -> list[str]:
    right = _WIDTH - _RIGHT

    def height(value: float) -> float:
        return y + _PANEL * (1 - value / top)

    parts = [
        f'<text class="small" transform="translate(18 {y + _PANEL / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(label)}</text>"
    ]
    for tick in _linear_ticks(top):
        at = height(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>')
        parts.append(_text(_LEFT - 8, at + 4, f"{tick:g}", style="small", anchor="end"))
    for tick in _logarithmic_ticks(etas[0], etas[-1]):
        at = scale(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" y1="{y}" x2="{at:.1f}" y2="{y + _PANEL}"/>')
        parts.append(_text(at, y + _PANEL + 18, f"{tick:g}", style="small", anchor="middle"))
    parts.append(f'<path class="axis" d="M{_LEFT} {y} V{y + _PANEL} H{right}"/>')
    start = float(_LEFT + 10)
    for one in series:
        parts += _drawn(one, [scale(value) for value in etas], height)
        parts.append(f'<line class="line {one.style}" x1="{start}" y1="{y - 12}" x2="{start + 26}" y2="{y - 12}"/>')
        parts.append(_text(start + 32, y - 8, one.name, style="small"))
        start += 54 + 6.4 * len(one.name)
    at = scale(eta)
    parts.append(f'<line class="mark" x1="{at:.1f}" y1="{y}" x2="{at:.1f}" y2="{y + _PANEL}"/>')
    parts.append(_text(at - 6, y + 14, f"η = {eta:g}", anchor="end"))
    return parts


def _drawn(one: _Series, across: Sequence[float], height: Callable[[float], float]) -> list[str]:
    parts = []
    if one.low is not None and one.high is not None:
        there = [f"{x:.1f},{height(value):.1f}" for x, value in zip(across, one.high, strict=True)]
        back = [f"{x:.1f},{height(value):.1f}" for x, value in zip(across, one.low, strict=True)][::-1]
        parts.append(f'<polygon class="band {one.style}" points="{" ".join(there + back)}"/>')
    points = " ".join(f"{x:.1f},{height(value):.1f}" for x, value in zip(across, one.values, strict=True))
    parts.append(f'<polyline class="line {one.style}" points="{points}"/>')
    return parts


def _description(found: Calibration) -> str:
    first, last = found.curve[0], found.curve[-1]
    return (
        f"From η = {first.eta:.4g} to {last.eta:.4g} the share of unchanged tokens rises from "
        f"{100 * first.unchanged:.1f} to {100 * last.unchanged:.1f} percent. Chosen: η = {found.eta:g}."
    )


def _text(x: float, y: float, content: str, *, style: str = "", anchor: str = "start") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def _logarithmic(etas: Sequence[float]) -> Callable[[float], float]:
    low, high = math.log(etas[0]), math.log(etas[-1])
    return lambda eta: _LEFT + (_WIDTH - _RIGHT - _LEFT) * (math.log(eta) - low) / (high - low)


def _linear_ticks(top: float) -> list[float]:
    """Round numbers from 0 to `top`, at most six."""
    raw = top / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * (1 - 1e-9))
    return [step * i for i in range(int(top / step * (1 + 1e-9)) + 1)]


def _logarithmic_ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range, as they suit a logarithmic axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**decade for decade in decades for factor in (1, 1.5, 2, 3, 4, 5, 6, 8)]
    return [value for value in found if low <= value <= high]
