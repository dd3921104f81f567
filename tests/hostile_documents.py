"""Documents of somebody who means harm, and what a reader owes them: a value, or one line that repeats nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hypothesis import strategies as st

from rapt.errors import RaptError

T = TypeVar("T")

# Stands in every document where a value may stand: no message may ever hold it.
MARKER = "sesame-4711"
LONGEST_MESSAGE = 400

HOSTILE_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [-1, 0, 1, 2, 2**31, 2**63 - 1, 2**63, 10**401, 0.0, -0.0, 1e-320, 1e300, float("inf"), float("nan"), MARKER]
    ),
    st.sampled_from(["", "\x00", "\ud800", f"{MARKER}\n{MARKER}", "\x1b[2J", MARKER * 100_000, "\u202e", "a" * 300]),
    st.sampled_from([[], {}, [MARKER], {MARKER: MARKER}, [[]], [1, 2, -1], [True], [0.5], [None], {"eta": MARKER}]),
    st.sampled_from([{f"name_{n}": n for n in range(2000)}, [MARKER] * 2000, list(range(2000))]),
)


def value_or_refusal(read: Callable[[], T]) -> T | None:
    """What a reader makes of a document; None if it refused it as it must."""
    try:
        return read()
    except RaptError as error:
        message = str(error)
    assert message, "a refusal must say why"
    assert "\n" not in message, "a refusal must be one line"
    assert len(message) <= LONGEST_MESSAGE, "a refusal must be short"
    assert MARKER not in message, "a refusal must not repeat what came in"
    return None
