"""Refusals in OpenAI's shape, bodies that are bounded before they are read, and fields that leave by name alone.

A table says of each field of a request what its value may be. Fields that no table has are refused, so a new option of
a client library leaves only after somebody here has thought about it. Numbers and flags are sent on, words are not.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from starlette.requests import Request
from starlette.responses import JSONResponse

from rapt.errors import BusyError, LimitError, RaptError, UsageError, WireError
from rapt.wire.openai_options import is_one_of
from rapt.wire.strict_json import parse_document

MOST_JSON: Final = 4 * 2**20
_BODY_SECONDS: Final = 60.0
# A name that a programmer gave to a field, and no text: it may be repeated to the program that sent it.
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")

# Returns what is sent on in place of a value, or refuses it; the second argument names the field.
Check = Callable[[Any, str], Any]


def refuse(rule: str, param: str | None) -> NoReturn:
    """Refuse a request because of one of its fields (`UsageError`)."""
    error = UsageError(rule)
    error.param = param
    raise error


def make_error(message: str, *, status: int, code: str | None, param: str | None = None) -> JSONResponse:
    """Make the answer to a request that is refused."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    headers = {"cache-control": "no-store"}
    if status in (409, 413):  # the official client would repeat them as they are
        headers["x-should-retry"] = "false"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return JSONResponse({"error": error}, status_code=status, headers=headers)


def answer_error(error: RaptError) -> JSONResponse:
    """Make the answer that an error of the tree stands for."""
    response = make_error(str(error), status=error.status, code=error.code, param=error.param)
    if isinstance(error, BusyError) and error.retry_after is not None:
        response.headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    return response


async def read_body(request: Request, *, most: int = MOST_JSON) -> bytes:
    """Read the body of a request, `most` bytes of it at most.

    Raises:
        LimitError: There are more.
        UsageError: It comes too slowly.
    """
    content = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > most:
                    raise LimitError(f"a request must have at most {most:,} bytes; send it in parts")
    except TimeoutError:
        raise UsageError(f"a request must come within {_BODY_SECONDS:.0f} seconds; send it again") from None
    return bytes(content)


async def read_json(request: Request) -> dict[str, Any]:
    """Read the body of a request as one JSON object. Raises as `read_body`, and `UsageError`."""
    content = await read_body(request)
    try:
        return parse_document(content, what="a request")
    except WireError as error:
        raise UsageError(str(error)) from None


def read_fields(
    value: Any,
    sent: Mapping[str, Check],
    *,
    at: str = "",
    own: frozenset[str] = frozenset(),
    kept: frozenset[str] = frozenset(),
    harmless: Mapping[str, tuple[object, ...]] | None = None,
) -> dict[str, Any]:
    """Return those fields of an object that may leave, and refuse what is not known.

    Args:
        value: Object as it came in.
        sent: Check of each field that is sent on. A null is left out.
        at: Place of the object in the request, with a full stop behind it.
        own: Fields that the caller reads itself.
        kept: Fields that are taken, not looked at and not sent.
        harmless: Options that the service does not offer, with the values beside null by which they ask for nothing.

    Raises:
        UsageError: A field is not known, or its value is refused; `param` names it.
    """
    if not isinstance(value, dict):
        refuse(f"{at.rstrip('.') or 'the request'} must be an object", at.rstrip(".") or None)
    found: dict[str, Any] = {}
    for name, item in value.items():
        if name in own or name in kept:
            continue
        param = f"{at}{name}" if _NAME.fullmatch(name) else at.rstrip(".") or None
        if name in sent:
            if item is not None:
                found[name] = sent[name](item, f"{at}{name}")
        elif not (harmless and name in harmless and (item is None or is_one_of(item, harmless[name]))):
            place = "a field with no usual name" if param is None else f"the field {param}"
            refuse(f"{place} must be left out: the gateway does not know it, and what it does not know stays", param)
    return found


def take_flag(value: Any, param: str) -> bool:
    """Take true or false."""
    if not isinstance(value, bool):
        refuse(f"{param} must be true or false", param)
    return value


def take_whole(least: int, most: int) -> Check:
    """Make the check of a whole number from `least` to `most`."""

    def take(value: Any, param: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            refuse(f"{param} must be a whole number from {least} to {most}", param)
        return value

    return take


def take_number(least: float, most: float) -> Check:
    """Make the check of a number from `least` to `most`."""

    def take(value: Any, param: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            refuse(f"{param} must be a number from {least:g} to {most:g}", param)
        return value

    return take


def take_one_of(*values: object) -> Check:
    """Make the check of a value that is one of a few."""

    def take(value: Any, param: str) -> Any:
        if not is_one_of(value, values):
            refuse(f"{param} must be one of {', '.join(map(str, values))}", param)
        return value

    return take


def take_either(*checks: Check) -> Check:
    """Make the check of a value that one of several checks takes; the last one words the refusal."""

    def take(value: Any, param: str) -> Any:
        for check in checks[:-1]:
            try:
                return check(value, param)
            except UsageError:
                continue
        return checks[-1](value, param)

    return take


def take_object(sent: Mapping[str, Check]) -> Check:
    """Make the check of an object with such fields."""

    def take(value: Any, param: str) -> dict[str, Any]:
        return read_fields(value, sent, at=f"{param}.")

    return take
