"""Requests for what a client may have already: `if-none-match` against the tag of what there is (RFC 9110, 13.1.2)."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import Header

IfNoneMatch = Annotated[str | None, Header(alias="if-none-match")]
# For the description of a route that may answer so.
NOT_MODIFIED: Final[dict[int | str, dict[str, Any]]] = {304: {"description": "the client has it already"}}


def is_current(tag: str, if_none_match: str | None) -> bool:
    """Whether a client has what carries this tag, by weak comparison."""
    if if_none_match is None:
        return False
    had = {item.strip().removeprefix("W/") for item in if_none_match.split(",")}
    return bool({tag, "*"} & had)
