"""Places where an error arose, for a log that must not have its message: the message may hold a user's text.

One line has classes and places in the code, and nothing else:

    KeyError at service/jobs/job_run.py:61 < service/jobs/worker.py:120, because of OSError at json/decoder.py:355

With the debug switch of `rapt serve` and `rapt worker` the whole traceback, messages and all, follows on stderr.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import PurePath
from types import TracebackType
from typing import Final

# Written only if the debug switch is on (`switch_tracebacks`).
TRACEBACKS: Final = "rapt.tracebacks"
DEBUG_WARNING: Final = "the debug switch is on: tracebacks with their messages follow, which may hold private text"
_MOST_PLACES: Final = 12
_MOST_ERRORS: Final = 6


def describe_trace(error: BaseException) -> str:
    """Classes and places of an error and of what led to it, without a message: one line."""
    told = [f"{type(one).__name__} at {_describe_places(one)}" for one in islice(list_causes(error), _MOST_ERRORS)]
    return ", because of ".join(told)


def log_unforeseen(log: logging.Logger, what: str, error: BaseException) -> None:
    """Log that `what` has failed, with the trace of its error; with the debug switch, its traceback too.

    Args:
        log: Logger of the module that met the error.
        what: Words of ours, such as the id of a request or a job.
        error: The error as it was caught, with its traceback.
    """
    log.error("%s failed: %s", what, describe_trace(error))
    tracebacks = logging.getLogger(TRACEBACKS)
    if tracebacks.level == logging.DEBUG:  # its own level: no setting of another logger may print messages
        tracebacks.debug("%s", what, exc_info=error)


def switch_tracebacks(log: logging.Logger, *, on: bool) -> None:
    """Let tracebacks be printed, and say in the log what that means; or let them not."""
    logging.getLogger(TRACEBACKS).setLevel(logging.DEBUG if on else logging.CRITICAL)
    if on:
        log.warning(DEBUG_WARNING)


def list_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it, the latest first, also what `from None` hides from a reader of messages."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
        before = one.__cause__ or one.__context__
        if before is not None:
            waiting.append(before)


def _describe_places(error: BaseException) -> str:
    """Files and lines from where it arose outwards."""
    places = list(_iterate_frames(error.__traceback__))[::-1]
    told = " < ".join(places[:_MOST_PLACES])
    return (told + " < ..." if len(places) > _MOST_PLACES else told) or "an unknown place"


def _iterate_frames(trace: TracebackType | None) -> Iterator[str]:
    while trace is not None:
        yield f"{_shorten_path(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
        trace = trace.tb_next


def _shorten_path(name: str) -> str:
    """The path of a source file inside its package: where it is installed is nobody's business."""
    parts = PurePath(name).parts
    if "rapt" in parts:
        return "/".join(parts[len(parts) - parts[::-1].index("rapt") :])
    return "/".join(parts[-2:])
