"""A calibration as a picture: shares of tokens above, what the statement says of ε below, over one axis of η."""

from __future__ import annotations

from collections.abc import Sequence

from rapt.drawing import Figure, Line, draw_picture
from rapt.local.calibration import Calibration, CurvePoint
from rapt.local.text_page import scientific


def calibration_svg(found: Calibration) -> str:
    """The picture, as the text of an SVG file; the chosen η is marked."""
    across = "η, 1/distance in the embedding table (logarithmic)"
    level = 100 * found.wanted if found.target in ("unchanged", "bayes-success") else None
    figures = [
        Figure(
            title="Shares",
            across=across,
            up="share of tokens, %",
            lines=_shares(found.curve),
            level=level,
            top=100.0,
            mark=found.eta,
        )
    ]
    if epsilons := _epsilons(found.curve):
        figures.append(Figure(title="ε", across=across, up="ε, nats", lines=epsilons, mark=found.eta))
    return draw_picture(
        figures,
        title=f"What η does on {found.model}, mechanism {found.mechanism}",
        subtitle=f"shares over {found.weighting}",
        description=_description(found),
    )


def _shares(curve: Sequence[CurvePoint]) -> tuple[Line, ...]:
    found = [
        Line(
            name="unchanged, with 95 % interval",
            style="first",
            points=tuple((point.eta, 100 * point.unchanged) for point in curve),
            ends=tuple((100 * point.low, 100 * point.high) for point in curve),
        )
    ]
    if all(point.success is not None for point in curve):
        found.append(
            Line(
                name="found by the Bayes attack",
                style="second",
                points=tuple((point.eta, 100 * (point.success or 0.0)) for point in curve),
                ends=tuple((100 * (point.success_low or 0.0), 100 * (point.success_high or 0.0)) for point in curve),
            )
        )
    return tuple(found)


def _epsilons(curve: Sequence[CurvePoint]) -> tuple[Line, ...]:
    delta = scientific(1e-5)
    columns = [
        ("nearest neighbour, pure", "first dashed", [point.epsilon_neighbour for point in curve]),
        (f"at δ = {delta}", "first", [point.delta_epsilon_neighbour for point in curve]),
        ("two tokens, pure", "second dashed", [point.epsilon_median for point in curve]),
        (f"at δ = {delta}", "second", [point.delta_epsilon_median for point in curve]),
    ]
    return tuple(
        Line(
            name=name,
            style=style,
            points=tuple((point.eta, value) for point, value in zip(curve, values, strict=True) if value is not None),
        )
        for name, style, values in columns
        if None not in values
    )


def _description(found: Calibration) -> str:
    first, last = found.curve[0], found.curve[-1]
    return (
        f"From η = {first.eta:.4g} to {last.eta:.4g} the share of unchanged tokens rises from "
        f"{100 * first.unchanged:.1f} to {100 * last.unchanged:.1f} percent. Chosen: η = {found.eta:g}."
    )
