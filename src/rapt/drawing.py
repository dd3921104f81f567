"""Curves as values, as inline SVG for a page, as a picture that needs nothing else, and as CSV.

- In a page (`draw_curves`, `draw_bar`) lengths are percentages: a drawing stretches to its place and holds no text, so
  it is as readable on a phone as on a desk. Words and numbers stand beside it in HTML; colours come from the page's
  style sheet by class, and follow its dark mode.
- A picture (`draw_picture`) is one SVG file with its axes, ticks and words, which reads on light and on dark pages.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_BAR_HEIGHT: Final = 22
_STYLES: Final = ("line-1", "line-2", "line-3", "line-4")
# Of a picture, in its own units.
_WIDTH: Final = 720
_LEFT, _RIGHT = 64, 20
_TOP, _PANEL, _GAP, _BOTTOM = 66, 210, 66, 52
_PICTURE_STYLE: Final = """
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
.third { stroke: #7a3e9d; fill: #7a3e9d; } .fourth { stroke: #6e7781; fill: #6e7781; }
.line { fill: none !important; } .band { stroke: none !important; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .small { fill: #9198a1; }
  .first { stroke: #58a6ff; fill: #58a6ff; } .second { stroke: #f0883e; fill: #f0883e; }
  .third { stroke: #c79be0; fill: #c79be0; } .fourth { stroke: #9198a1; fill: #9198a1; }
  .line { fill: none !important; }
}
"""

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a figure.

    Attributes:
        name: Name of the line, for people.
        points: Points (x, y), x rising.
        ends: Both ends of the interval of each y; empty where there are none.
        style: Class in the style sheet; empty takes one by the place of the line.
    """

    name: str
    points: tuple[Point, ...]
    ends: tuple[Point, ...] = ()
    style: str = ""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Lines over one pair of axes.

    Attributes:
        title: Title of the figure.
        across: Name of the x axis, with its unit.
        up: Name of the y axis, with its unit.
        lines: Lines, the first in front.
        level: A y that is drawn across as a dashed line; None for none.
        step: The y axis ends at multiples of it; None ends it at the largest value, and begins it at 0 or below.
        top: End of the y axis whatever the values are; None leaves it to them.
        mark: An x at which a dashed line stands, in a picture; None for none.
    """

    title: str
    across: str
    up: str
    lines: tuple[Line, ...]
    level: float | None = None
    step: float | None = None
    top: float | None = None
    mark: float | None = None


def choose_line_style(figure: Figure, place: int) -> str:
    """Class of a figure's line in the style sheet."""
    return figure.lines[place].style or _STYLES[place % len(_STYLES)]


def find_extent(figure: Figure) -> tuple[Point, Point]:
    """Ranges of x and y over all lines, never empty."""
    across = [x for line in figure.lines for x, _ in line.points] or [0.0]
    up = [y for line in figure.lines for _, y in line.points] or [0.0]
    up += [end for line in figure.lines for both in line.ends for end in both]
    up += [] if figure.level is None else [figure.level]
    left = min(across)
    if figure.step is None:
        bottom, top = min(0.0, *up), max(up) if figure.top is None else figure.top
        top = max(top, bottom + 1e-9)
    else:
        bottom = figure.step * math.floor(min(up) / figure.step)
        top = max(figure.step * math.ceil(max(up) / figure.step), bottom + figure.step)
    return (left, max(max(across), left + 1e-9)), (bottom, top)


def draw_curves(figure: Figure) -> str:
    """The lines of a figure with their intervals as whiskers, in a box that stretches to its place."""
    (left, right), (bottom, top) = find_extent(figure)

    def spot(x: float, y: float) -> tuple[str, str]:
        return f"{100 * (x - left) / (right - left):.2f}", f"{100 - 100 * (y - bottom) / (top - bottom):.2f}"

    parts = [f'<line class="grid" x1="0" x2="100" y1="{height}" y2="{height}"/>' for height in (0, 50, 100)]
    if figure.level is not None:
        height = spot(left, figure.level)[1]
        parts.append(f'<line class="level" x1="0" x2="100" y1="{height}" y2="{height}"/>')
    for place, line in enumerate(figure.lines):
        style = escape(choose_line_style(figure, place))
        for (x, _), (low, high) in zip(line.points, line.ends, strict=False):
            (at, lower), (_, upper) = spot(x, low), spot(x, high)
            parts.append(f'<line class="{style} ends" x1="{at}" x2="{at}" y1="{lower}" y2="{upper}"/>')
        through = " ".join(",".join(spot(x, y)) for x, y in line.points)
        parts.append(f'<polyline class="{style}" points="{through}"/>')
    return (
        f'<svg class="plot" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{"".join(parts)}</svg>'
    )


def draw_bar(value: float, *, low: float | None, high: float | None, ceiling: float | None, kind: str) -> str:
    """A horizontal bar for a share, its interval as a whisker, and a mark where attackers without context end.

    Args:
        value: Between 0 and 1.
        low: Left end of the whisker; None for no whisker.
        high: Right end of it.
        ceiling: Position of the mark; None for none.
        kind: Class of the bar in the style sheet.
    """
    middle = _BAR_HEIGHT / 2
    parts = [
        f'<rect class="track" x="0" y="0" width="100%" height="{_BAR_HEIGHT}" rx="3"/>',
        f'<rect class="{escape(kind)}" x="0" y="0" width="{_format_percent(value)}" height="{_BAR_HEIGHT}" rx="3"/>',
    ]
    if low is not None and high is not None:
        left, right = _format_percent(low), _format_percent(high)
        parts.append(f'<line class="whisker" x1="{left}" x2="{right}" y1="{middle}" y2="{middle}"/>')
        parts += [
            f'<line class="whisker" x1="{end}" x2="{end}" y1="{middle - 5}" y2="{middle + 5}"/>'
            for end in (left, right)
        ]
    if ceiling is not None:
        at = _format_percent(ceiling)
        parts.append(f'<line class="ceiling" x1="{at}" x2="{at}" y1="0" y2="{_BAR_HEIGHT}"/>')
    return f'<svg class="bar" width="100%" height="{_BAR_HEIGHT}" aria-hidden="true">{"".join(parts)}</svg>'


def draw_picture(figures: Sequence[Figure], *, title: str, subtitle: str, description: str) -> str:
    """An SVG file of figures one above the other, over one logarithmic axis of x that is above 0.

    Args:
        figures: Figures; the last one's `across` names the axis. Lines have the x of the first.
        title: Headline of the picture.
        subtitle: Line below it.
        description: Description for a reader who cannot see it.
    """
    (low, high), _ = find_extent(figures[0])
    height = _TOP + len(figures) * _PANEL + (len(figures) - 1) * _GAP + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'role="img">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(description)}</desc>",
        f"<style>{_PICTURE_STYLE}</style>",
        _write_text(_LEFT, 20, title, style="title"),
        _write_text(_LEFT, 38, subtitle, style="small"),
    ]

    def scale(x: float) -> float:
        return _LEFT + (_WIDTH - _RIGHT - _LEFT) * (math.log(x) - math.log(low)) / (math.log(high) - math.log(low))

    for place, figure in enumerate(figures):
        parts += _draw_panel(figure, scale, _choose_logarithmic_ticks(low, high), y=_TOP + place * (_PANEL + _GAP))
    bottom = _TOP + (len(figures) - 1) * (_PANEL + _GAP)
    parts.append(_write_text((_LEFT + _WIDTH - _RIGHT) / 2, bottom + _PANEL + 42, figures[-1].across, anchor="middle"))
    return "\n".join([*parts, "</svg>", ""])


def write_values(figures: Iterable[Figure]) -> str:
    """The values of figures as CSV: figure, line, x, y, and the ends of its interval where there is one."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["figure", "line", "x", "y", "low", "high"])
    for figure in figures:
        for line in figure.lines:
            for place, (x, y) in enumerate(line.points):
                writer.writerow([figure.title, line.name, x, y, *(line.ends[place] if line.ends else ("", ""))])
    return stream.getvalue()


def _draw_panel(figure: Figure, scale: Callable[[float], float], ticks: Sequence[float], *, y: float) -> list[str]:
    right = _WIDTH - _RIGHT
    _, (bottom, top) = find_extent(figure)

    def height(value: float) -> float:
        return y + _PANEL * (top - value) / (top - bottom)

    parts = [
        f'<text class="small" transform="translate(18 {y + _PANEL / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(figure.up)}</text>"
    ]
    for tick in _choose_linear_ticks(bottom, top):
        at = height(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>')
        parts.append(_write_text(_LEFT - 8, at + 4, f"{tick:g}", style="small", anchor="end"))
    for tick in ticks:
        at = scale(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" y1="{y}" x2="{at:.1f}" y2="{y + _PANEL}"/>')
        parts.append(_write_text(at, y + _PANEL + 18, f"{tick:g}", style="small", anchor="middle"))
    parts.append(f'<path class="axis" d="M{_LEFT} {y} V{y + _PANEL} H{right}"/>')
    start, letters = float(_LEFT + 10), 6.4 * sum(len(line.name) for line in figure.lines)
    apart = min(54.0, (right + 22 - start - letters) / max(1, len(figure.lines)))  # so that all names have room
    for line in figure.lines:
        parts += _draw_line(line, scale, height)
        parts.append(f'<line class="line {line.style}" x1="{start}" y1="{y - 12}" x2="{start + 26}" y2="{y - 12}"/>')
        parts.append(_write_text(start + 32, y - 8, line.name, style="small"))
        start += apart + 6.4 * len(line.name)
    if figure.mark is not None:
        at = scale(figure.mark)
        parts.append(f'<line class="mark" x1="{at:.1f}" y1="{y}" x2="{at:.1f}" y2="{y + _PANEL}"/>')
        parts.append(_write_text(at - 6, y + 14, f"η = {figure.mark:g}", anchor="end"))
    if figure.level is not None:
        at = height(figure.level)
        parts.append(f'<line class="mark" x1="{_LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>')
    return parts


def _draw_line(line: Line, scale: Callable[[float], float], height: Callable[[float], float]) -> list[str]:
    parts = []
    if line.ends:
        there = [f"{scale(x):.1f},{height(high):.1f}" for (x, _), (_, high) in zip(line.points, line.ends, strict=True)]
        back = [f"{scale(x):.1f},{height(low):.1f}" for (x, _), (low, _) in zip(line.points, line.ends, strict=True)]
        parts.append(f'<polygon class="band {line.style}" points="{" ".join(there + back[::-1])}"/>')
    points = " ".join(f"{scale(x):.1f},{height(y):.1f}" for x, y in line.points)
    parts.append(f'<polyline class="line {line.style}" points="{points}"/>')
    return parts


def _write_text(x: float, y: float, content: str, *, style: str = "", anchor: str = "start") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def _choose_linear_ticks(bottom: float, top: float) -> list[float]:
    """Round numbers from `bottom` to `top`, at most six."""
    raw = (top - bottom) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * (1 - 1e-9))
    return [step * i for i in range(math.ceil(bottom / step - 1e-9), int(top / step * (1 + 1e-9)) + 1)]


def _choose_logarithmic_ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range, as they suit a logarithmic axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**decade for decade in decades for factor in (1, 1.5, 2, 3, 4, 5, 6, 8)]
    return [value for value in found if low <= value <= high]


def _format_percent(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"
