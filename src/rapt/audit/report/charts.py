"""Small charts as inline SVG: no script, no font, no scaling of text.

Lengths are percentages of the page's width, so a bar is as readable on a phone as on a desk; every word and number
stands beside it in HTML. Colours come from the page's style sheet by class, and follow its dark mode.
"""

from __future__ import annotations

from typing import Final

from markupsafe import Markup

from rapt.audit.report.values import Figure

_BAR_HEIGHT: Final = 22
_STYLES: Final = ("line-1", "line-2", "line-3", "line-4")


def bar(value: float, *, low: float | None, high: float | None, ceiling: float | None, kind: str) -> Markup:
    """A horizontal bar for a share, its interval as a whisker, and a mark where attackers without context end.

    Args:
        value: Between 0 and 1.
        low: Left end of the whisker; None for no whisker.
        high: Right end of it.
        ceiling: Where the mark stands; None for none.
        kind: Class of the bar in the style sheet.
    """
    middle = _BAR_HEIGHT / 2
    parts = [
        Markup('<rect class="track" x="0" y="0" width="100%" height="{}" rx="3"/>').format(_BAR_HEIGHT),
        Markup('<rect class="{}" x="0" y="0" width="{}" height="{}" rx="3"/>').format(
            kind, _percent(value), _BAR_HEIGHT
        ),
    ]
    if low is not None and high is not None:
        parts.append(
            Markup('<line class="whisker" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                _percent(low), _percent(high), middle, middle
            )
        )
        parts += [
            Markup('<line class="whisker" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
                _percent(end), middle - 5, middle + 5
            )
            for end in (low, high)
        ]
    if ceiling is not None:
        parts.append(
            Markup('<line class="ceiling" x1="{0}" x2="{0}" y1="0" y2="{1}"/>').format(_percent(ceiling), _BAR_HEIGHT)
        )
    return Markup('<svg class="bar" width="100%" height="{}" aria-hidden="true">{}</svg>').format(
        _BAR_HEIGHT, Markup("").join(parts)
    )


def lines(figure: Figure) -> Markup:
    """The lines of a figure in a box that stretches to its place; strokes keep their width."""
    (left, right), (bottom, top) = extent(figure)
    parts = []
    for place, line in enumerate(figure.lines):
        points = " ".join(
            f"{100 * (x - left) / (right - left):.2f},{100 - 100 * (y - bottom) / (top - bottom):.2f}"
            for x, y in line.points
        )
        parts.append(Markup('<polyline class="{}" points="{}"/>').format(line_style(place), points))
    grid = Markup("").join(
        Markup('<line class="grid" x1="0" x2="100" y1="{0}" y2="{0}"/>').format(height) for height in (0, 50, 100)
    )
    return Markup(
        '<svg class="plot" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{}{}</svg>'
    ).format(grid, Markup("").join(parts))


def extent(figure: Figure) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ranges of x and y over all lines, never empty; y begins at 0 where all of it is above."""
    across = [x for line in figure.lines for x, _ in line.points] or [0.0]
    up = [y for line in figure.lines for _, y in line.points] or [0.0]
    bottom, top = min(0.0, *up), max(up)
    return (min(across), max(max(across), min(across) + 1e-9)), (bottom, max(top, bottom + 1e-9))


def line_style(place: int) -> str:
    """Class of a figure's line in the style sheet."""
    return _STYLES[place % len(_STYLES)]


def _percent(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"
