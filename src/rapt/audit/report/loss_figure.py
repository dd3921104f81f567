"""The privacy-loss curves of a setting as a figure: ε against the powers of ten of δ."""

from __future__ import annotations

from math import log10

from rapt.audit.formal import FormalSide
from rapt.audit.report.values import Figure, Line


def loss_figure(formal: FormalSide) -> Figure | None:
    """The curves that change with δ, or None: a pure bound is a number and not a curve."""
    lines = tuple(
        Line(name=curve.name, points=tuple((round(log10(delta), 6), epsilon) for delta, epsilon in curve.points))
        for curve in formal.curves
    )
    if not lines or formal.pure_only:
        return None
    return Figure(title="Loss curves", across="δ, the chance that is left out", up="ε in nats", lines=lines)


def named_delta(delta: float) -> str:
    """A power of ten as people write it: 10⁻⁵."""
    return "10" + f"{round(log10(delta)):d}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
