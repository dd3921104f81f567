"""JSON bodies: bounded before they are parsed, read away from the event loop, refused at their first fault.

A body of a few mebibytes can make a parser or a validator work for minutes and take gigabytes: by nesting, by endless
numbers, or by a list whose every item is wrong. So what a text can become is counted in its bytes first, and the
schemas stop at the first wrong item. Nothing that came in is ever repeated.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Coroutine
from typing import Any, Final

import anyio.to_thread
from fastapi.exceptions import RequestValidationError
from fastapi.params import Form
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from rapt.errors import UsageError

# Bytes that the event loop reads by itself: a millisecond or two, about what the change to a thread costs.
_FEW: Final = 16 * 1024
# A list or an object takes some 60 to 200 bytes where its text takes two, a string 50 where its takes three.
_MOST_CONTAINERS: Final = 65_536
_MOST_QUOTES: Final = 262_144
_DEEPEST: Final = 32
_MOST_FIELDS: Final = 1024  # of one object: each that a schema does not know is a fault of its own
_LONGEST_NUMBER: Final = 64
# One that is cut off reaches to the end, so that a search never looks at a byte twice.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_LONG_NUMBER: Final = re.compile(rb"[0-9+.eE-]{%d}" % (_LONGEST_NUMBER + 1))
_ALL_BUT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_ESCAPED_SURROGATE_OR_NUL: Final = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
# Bodies that are read at once: each may take some tens of megabytes while it is.
THREADS: Final = 2


class BodyRoute(APIRoute):
    """A route whose JSON body is read by `parse_json` and checked by its schema, for a large one in a thread."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler that the framework calls."""
        handle = super().get_route_handler()
        if self.body_field is None or isinstance(self.body_field.field_info, Form):
            return handle
        schema: TypeAdapter[Any] = TypeAdapter(self.body_field.field_info.annotation or object)

        async def handle_checked(request: Request) -> Response:
            body = await request.body()
            if not body:
                return await handle(request)
            if not _is_json(request.headers.get("content-type", "")):
                raise UsageError("the request body must be JSON; send content-type: application/json with it")
            if len(body) <= _FEW:
                value = _check(body, schema)
            else:
                value = await anyio.to_thread.run_sync(_check, body, schema, limiter=request.app.state.body_threads)
            return await handle(_CheckedRequest(request, value))

        return handle_checked


class _CheckedRequest(Request):
    """A request whose body is a value of its schema already; the framework takes such a value as it is."""

    def __init__(self, request: Request, value: object) -> None:
        super().__init__(request.scope, request.receive)
        self._value = value

    async def body(self) -> bytes:
        return b"{}"  # looked at only for whether there is one

    async def json(self) -> Any:
        return self._value


def parse_json(body: bytes) -> Any:
    """The value of a JSON text, bounded in depth, numbers, fields and in what it takes in memory.

    Raises:
        UsageError: It is no JSON, or beyond a bound; or it has duplicate keys, NUL, a lone surrogate, or a number that
            is not finite, all of which one of its readers would take for something else.
    """
    if body.count(b"[") + body.count(b"{") > _MOST_CONTAINERS or body.count(b'"') + body.count(b"\\") > _MOST_QUOTES:
        raise UsageError(
            f"the request body must have at most {_MOST_CONTAINERS} lists and objects and {_MOST_QUOTES // 2} strings; "
            "send several requests"
        )
    bare = _STRING.sub(b'"', body)
    if _LONG_NUMBER.search(bare):
        _refuse_number("")
    deepest = depth = 0
    for bracket in bare.translate(None, _ALL_BUT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    if deepest > _DEEPEST:
        raise UsageError(f"the request body must be nested at most {_DEEPEST} deep; see /openapi.json")
    try:
        text = body.decode()
        value = json.loads(
            text,
            object_pairs_hook=_fields,
            parse_float=_finite_number,
            parse_constant=_refuse_number,
        )
    except (ValueError, RecursionError):  # the decoder's own message has a place, and its error holds the whole text
        raise UsageError("the request body must be one JSON value in UTF-8; it is cut off or of another kind") from None
    if _ESCAPED_SURROGATE_OR_NUL.search(text):
        shown = json.dumps(value, ensure_ascii=False)
        if r"\u0000" in shown.replace(r"\\", "") or not _is_unicode(shown):
            raise UsageError("the strings of a request body must have neither NUL nor half a surrogate pair")
    return value


def _check(body: bytes, schema: TypeAdapter[Any]) -> object:
    value = parse_json(body)
    try:
        return schema.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    raise RequestValidationError([first])


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind.startswith("application/") and (kind == "application/json" or kind.endswith("+json"))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > _MOST_FIELDS:
        raise UsageError(f"an object of the request body must have at most {_MOST_FIELDS} fields; see /openapi.json")
    found = dict(pairs)
    if len(found) != len(pairs):
        raise UsageError("the request body must name each field of an object once; leave the others out")
    return found


def _finite_number(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse_number(digits)


def _refuse_number(_digits: str) -> Any:
    raise UsageError(
        f"the numbers of a request body must be finite and of at most {_LONGEST_NUMBER} characters; round them"
    )
