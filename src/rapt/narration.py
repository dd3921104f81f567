"""Progress of long work, reported to a terminal, a log or nowhere as the caller decides; and the logs of servers."""

from __future__ import annotations

import logging.config
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, Protocol


class Meter(Protocol):
    """Receives the progress of one piece of work."""

    def __call__(self, done: int, /, *, total: int | None = None, note: str = "") -> None:
        """Show that `done` of `total` units are done; `note` is what else there is to say."""


class Narrator(Protocol):
    """Receives remarks and progress of a piece of work while it runs."""

    def say(self, line: str) -> None:
        """Receive one line for people."""

    def meter(self, what: str, *, total: int | None = None, unit: str = "") -> AbstractContextManager[Meter]:
        """Open a meter for one piece of work."""


class _Silence:
    def say(self, line: str) -> None:
        pass

    @contextmanager
    def meter(self, what: str, *, total: int | None = None, unit: str = "") -> Iterator[Meter]:
        yield lambda done, /, *, total=None, note="": None


SILENT: Final[Narrator] = _Silence()


def show_stages(meter: Meter, weights: Mapping[str, float]) -> Callable[[str, float], None]:
    """Return a receiver of stages that come one after another; it shows percent of all, and the time left.

    Args:
        meter: Meter of 100 units.
        weights: Time that each stage takes, in any unit, in the order in which they come.
    """
    begun = time.monotonic()
    before = {name: sum(list(weights.values())[:place]) for place, name in enumerate(weights)}

    def show_stage(stage: str, share: float) -> None:
        done = (before[stage] + share * weights[stage]) / sum(weights.values())
        seconds = time.monotonic() - begun
        left = f", about {write_duration(seconds * (1 - done) / done)} left" if done > 0.02 and seconds > 1 else ""
        meter(int(100 * done), note=stage.replace("_", " ") + left)

    return show_stage


def write_count(number: int, noun: str) -> str:
    """Return how many there are of something: `1 text`, `1,200 texts`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class Pace:
    """Measures from its first report on, so that what an earlier run had written does not count as speed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start without a measurement; `clock` gives seconds."""
        self._clock = clock
        self._first: tuple[float, int, float] | None = None

    def __call__(self, tokens: int, *, share: float) -> str:
        """Say in words how many tokens were privatized, what share of the source was read, and at what rate."""
        now = self._clock()
        if self._first is None:
            self._first = (now, tokens, share)
        began, first_tokens, first_share = self._first
        said = [] if share <= 0 else [f"{int(100 * share)} %"]
        said.append(f"{tokens:,} tokens")
        if now > began and tokens > first_tokens:
            said.append(f"{(tokens - first_tokens) / (now - began):,.0f} a second")
        if now > began and share > first_share:
            said.append(f"{write_duration((now - began) * (1 - share) / (share - first_share))} left")
        return ", ".join(said)


def write_duration(seconds: float) -> str:
    """Seconds as people say them, rounded."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# uvicorn's own access log has paths and queries in it, so it is off: no line has a path, a header or a body.
_LOGGING: Final[dict[str, Any]] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        "rapt": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
        # It tells of bytes in a form that it does not like, and those come from outside.
        "python_multipart": {"level": "CRITICAL", "propagate": False},
    },
}


def log_to_stderr() -> None:
    """Have a server's process log to stderr, one line an event."""
    logging.config.dictConfig(_LOGGING)
