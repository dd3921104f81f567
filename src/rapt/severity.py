"""How bad a finding is: one scale with its thresholds, and its colours, for every page, report and terminal.

Green says "good", and nothing else on any page is green: links and curves have a blue of their own. A finding that an
attacker makes is weighed by what it adds to a guess without the file, as `weigh_attack` does; a share of a quota or a
budget by `weigh_use`; a state, such as a service that is not ready, names its severity itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

# Beyond a blind guess, as a share of all tries and of the guess itself: below both an attacker with the file is hardly
# better off than one without.
NEAR_CHANCE: Final = 0.05
NEAR_CHANCE_OF_CHANCE: Final = 0.25
# Beyond a blind guess, as a share of all tries: one word in five, or one text in five, is named because of the file.
MUCH_BEYOND_CHANCE: Final = 0.2
# Shares of a quota or a budget from which a person is warned, and from which next to nothing is left.
NEARLY_USED: Final = 0.75
USED_UP: Final = 0.95


class Severity(StrEnum):
    """How bad a finding is; the value is the class in the style sheet of every page."""

    PLAIN = "plain"
    GOOD = "good"
    CAUTION = "caution"
    BAD = "bad"


# Words beside the colour, for a reader who does not see it.
GIVEN_AWAY: Final = {
    Severity.PLAIN: "Nothing can be said",
    Severity.GOOD: "Next to nothing is given away",
    Severity.CAUTION: "Something is given away",
    Severity.BAD: "Much is given away",
}


def weigh_attack(named: float, *, blind: float) -> Severity:
    """Severity of an attack that is right for a share of its tries, beside a guess that looks at nothing private.

    Args:
        named: Share of tries, words or texts, that the attack names rightly, from 0 to 1.
        blind: Share that the best guess without the file names rightly, from 0 to 1.

    Returns:
        `BAD` from `MUCH_BEYOND_CHANCE` beyond the guess on, `GOOD` below both limits of `NEAR_CHANCE`, else `CAUTION`;
        `BAD` for what is no number.
    """
    beyond = named - blind
    if math.isnan(beyond) or beyond >= MUCH_BEYOND_CHANCE:
        return Severity.BAD
    return Severity.GOOD if beyond < min(NEAR_CHANCE, NEAR_CHANCE_OF_CHANCE * blind) else Severity.CAUTION


def weigh_use(share: float) -> Severity:
    """Severity of a quota or a budget of which a share is used, from 0 on: `PLAIN` below `NEARLY_USED`."""
    if math.isnan(share) or share >= USED_UP:
        return Severity.BAD
    return Severity.CAUTION if share >= NEARLY_USED else Severity.PLAIN


def find_worst(found: Iterable[Severity]) -> Severity:
    """Return the worst of several severities; `PLAIN` of none."""
    return max(found, key=list(Severity).index, default=Severity.PLAIN)


# Colours of every page, light and dark, and light on paper, as custom properties. `class="bad"` gives an element
# `--tone` and `--tone-faint`; text in a tone, and on its faint form, has a contrast of 4.5 or more (WCAG 2.2, 1.4.3).
PALETTE: Final = (
    f":root {{ --nearly-used: {NEARLY_USED}; --used-up: {USED_UP}; }}\n"  # `weighUse` of the pages reads them
    """\
:root {
  --ink: #1b1f24; --soft: #5a636e; --paper: #ffffff; --panel: #f5f6f7; --rule: #dfe2e6; --grey: #a4acb5;
  --accent: #0b5cad; --accent-faint: #e8f0fa; --second: #7a3e9d;
  --good: #1a7236; --good-faint: #e5f4e9; --caution: #855300; --caution-faint: #fcf1da;
  --bad: #a4262c; --bad-faint: #fceceb;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ink: #e7eaee; --soft: #9aa4af; --paper: #14171a; --panel: #1d2125; --rule: #323840; --grey: #5d6670;
    --accent: #7ab3f5; --accent-faint: #17283c; --second: #c79be0;
    --good: #62c47f; --good-faint: #15301e; --caution: #e3b655; --caution-faint: #352b14;
    --bad: #ff8f87; --bad-faint: #3b1f1f;
  }
}
.plain { --tone: var(--accent); --tone-faint: var(--accent-faint); }
.good { --tone: var(--good); --tone-faint: var(--good-faint); }
.caution { --tone: var(--caution); --tone-faint: var(--caution-faint); }
.bad { --tone: var(--bad); --tone-faint: var(--bad-faint); }
"""
)

# Escape sequences of the same scale on a terminal; what is plain is not coloured.
_ON_A_TERMINAL: Final = {Severity.GOOD: "\033[32m", Severity.CAUTION: "\033[33m", Severity.BAD: "\033[31m"}


def paint(text: str, severity: Severity) -> str:
    """Return a text in the colour of a severity, for a terminal."""
    start = _ON_A_TERMINAL.get(severity)
    return text if start is None else f"{start}{text}\033[0m"
