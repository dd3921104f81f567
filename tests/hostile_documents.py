"""Documents of somebody who means harm, and what a reader owes them: a value, or one line that repeats nothing."""

from __future__ import annotations

import copy
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


def places_in(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Every place of a JSON value that another value could stand in, outermost first; of a long list the first two."""
    found = [path]
    if isinstance(value, dict):
        inner = list(value.items())
    else:
        inner = list(enumerate(value))[:2] if isinstance(value, list) else []
    for key, item in inner:
        found += places_in(item, (*path, key))
    return found


def mutated(value: object, changes: object) -> object:
    """A copy of a JSON value with other values in some of its places, some fields gone and some added.

    Args:
        value: Value of a good document.
        changes: Pairs of a place and what happens there: `("set", new)`, `("drop",)` or `("add", name, new)`.
    """
    changed = copy.deepcopy(value)
    for path, given in changes:
        holder, change = changed, copy.deepcopy(given)
        try:
            for key in path[:-1]:
                holder = holder[key]
            if not path or change[0] == "add":
                target = holder[path[-1]] if path else changed
                target[change[1]] = change[-1]
            elif change[0] == "set":
                holder[path[-1]] = change[-1]
            else:
                del holder[path[-1]]
        except (KeyError, IndexError, TypeError):  # an earlier change took the place away
            continue
    return changed


def mutations_of(value: object) -> st.SearchStrategy[object]:
    """Documents near a good one: one to three changes anywhere in it."""
    change = st.one_of(
        st.tuples(st.just("set"), HOSTILE_VALUES),
        st.just(("drop",)),
        st.tuples(st.just("add"), st.sampled_from([MARKER, "\x00", "\ud800", "eta", ""]), HOSTILE_VALUES),
    )
    changes = st.lists(st.tuples(st.sampled_from(places_in(value)), change), min_size=1, max_size=3)
    return changes.map(lambda chosen: mutated(value, chosen))


def held(answer, statuses=(200, 400, 404, 413, 429, 503)):
    """An answer that is one of these, where a refusal is a short line that repeats nothing."""
    assert answer.status_code in statuses, answer.text[:500]
    if answer.status_code >= 400:
        message = answer.json()["error"]["message"]
        assert len(message) <= LONGEST_MESSAGE
        assert "\n" not in message
        assert MARKER not in answer.text
    return answer
