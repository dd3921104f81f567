"""Laying out a page of plain text for a terminal: no colours, no control characters, one fixed width.

Numbers that bound a loss of privacy are rounded up: a page never looks better than the value behind it.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Final

WIDTH: Final = 88


# Above 0 and below this a number is written as a power of ten, so that its sums are seen to grow.
_SMALL: Final = 1e-4
_MOST_DECIMALS: Final = 6


def ceil_nats(epsilon: float) -> str:
    """Nats with as many decimals as are worth reading, rounded up; two digits at least, however small they are."""
    if epsilon >= 1e6 or 0 < epsilon < _SMALL:
        return _ceil_scientific(epsilon)
    digits = _count_decimals(epsilon, 3) if epsilon < 1 else 2 if epsilon < 10 else 1 if epsilon < 1000 else 0
    return f"{_round_up(epsilon, digits):,.{digits}f}"


def ceil_odds(epsilon: float) -> str:
    """e^ε as a number, or as a power of ten where it is large, rounded up."""
    exponent = epsilon / math.log(10)
    if exponent >= 4:
        return f"10^{ceil_nats(exponent)}"
    # Two digits of what the odds are above even.
    digits = min(_count_decimals(math.expm1(epsilon), 1), _MOST_DECIMALS)
    return f"{1 + _round_up(math.expm1(epsilon), digits):,.{digits}f}"


def ceil_percent(share: float) -> str:
    """A share as percent with one decimal, or two digits, rounded up: 99.96 % shows as 100.0 %, never as less."""
    digits = min(_count_decimals(100 * share, 1), _MOST_DECIMALS)
    return f"{_round_up(100 * share, digits):.{digits}f} %"


def _round_up(value: float, digits: int) -> float:
    # The billionth keeps 0.5, which may be stored as a little more, from showing as 50.1 %.
    unit = 10.0**digits
    return math.ceil(value * unit - 1e-9) / unit


def _count_decimals(value: float, least: int) -> int:
    """Decimals that show two digits of a value below 1."""
    return max(least, 1 - math.floor(math.log10(value))) if 0 < value < 1 else least


def _ceil_scientific(value: float) -> str:
    """A number above 0 in two digits and a power of ten, rounded up."""
    exponent = math.floor(math.log10(value))
    mantissa = _round_up(value / 10.0**exponent, 1)
    if mantissa >= 10:
        mantissa, exponent = mantissa / 10, exponent + 1
    return f"{mantissa:.1f}e{exponent}"


def write_scientific(value: float) -> str:
    """A small number as people write it: 1e-5, not 1e-05."""
    return f"{value:g}".replace("e-0", "e-")


def wrap(text: str, *, first: str = "", rest: str = "") -> list[str]:
    """A paragraph as lines; what cannot be printed shows as a question mark."""
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return textwrap.wrap(printable, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def items(sentences: Iterable[str]) -> list[str]:
    """Sentences as a list with dashes."""
    return [line for sentence in sentences for line in wrap(sentence, first="  - ", rest="    ")]


def facts(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Names, and their values beside them."""
    return [line for name, value in pairs for line in wrap(value, first=f"  {name:<14}", rest=" " * 16)]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table whose first column is text, wrapped, and whose others are aligned right."""
    columns = [heads, *rows]
    widths = [max(len(row[i]) for row in columns) for i in range(1, len(heads))]
    room = WIDTH - 2 - sum(widths) - 2 * len(widths)
    lines: list[str] = []
    for row in columns:
        cells = "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths, strict=True))
        printable = "".join(character if character.isprintable() else "?" for character in row[0])
        *before, last = textwrap.wrap(printable, room) or [""]
        lines += [f"  {line}" for line in before] + [f"  {last:<{room}}{cells}"]
    return lines
