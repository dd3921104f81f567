"""How fast a long run goes and how long it still takes, in a few words."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """Measures from its first report on, so that what an earlier run had written does not count as speed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is measured yet; `clock` gives seconds."""
        self._clock = clock
        self._first: tuple[float, int, float] | None = None

    def __call__(self, tokens: int, *, share: float) -> str:
        """So many tokens were privatized and this share of the source was read: the same in words, with the rate."""
        now = self._clock()
        if self._first is None:
            self._first = (now, tokens, share)
        began, first_tokens, first_share = self._first
        said = [] if share <= 0 else [f"{int(100 * share)} %"]
        said.append(f"{tokens:,} tokens")
        if now > began and tokens > first_tokens:
            said.append(f"{(tokens - first_tokens) / (now - began):,.0f} a second")
        if now > began and share > first_share:
            said.append(f"{duration((now - began) * (1 - share) / (share - first_share))} left")
        return ", ".join(said)


def duration(seconds: float) -> str:
    """Seconds as people say them, rounded."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
