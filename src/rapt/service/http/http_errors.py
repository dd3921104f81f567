"""Every error as OpenAI's JSON: status and code from the one error tree, never a value that came in.

The framework's own messages are not passed on: some of them quote the request.
"""

from __future__ import annotations

import errno
import logging
import math
from itertools import groupby
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Match

from rapt.errors import BusyError, LimitError, NotFoundError, RaptError, UnavailableError, UsageError
from rapt.service.http import admin_schemas, completion_schemas, pool_schemas, schemas
from rapt.service.jobs import method_options
from rapt.service.traces import list_causes, log_unforeseen

log = logging.getLogger(__name__)

# When to come again after a 503, s: a database that is started again takes seconds.
_AWAY: Final = 5.0
# The process, or the system, has as many files and connections open as it may.
_NO_DESCRIPTOR: Final = frozenset({errno.EMFILE, errno.ENFILE})

# Kinds of pydantic error whose message states the rule only; of the others we say no more than that there is one.
_RULE_ONLY: Final = frozenset(
    "bool_type dict_type finite_number float_type greater_than greater_than_equal int_type json_invalid less_than "
    "less_than_equal list_type literal_error missing model_attributes_type model_type string_pattern_mismatch "
    "string_type text_is_not_private too_short".split()
)
# Below these a path that is no route has an id that nothing has, such as one with a slash.
_COLLECTIONS: Final = {
    "/v1/files/": "files",
    "/v1/uploads/": "uploads",
    "/v1/fine_tuning/jobs/": "jobs",
    "/v1/models/": "models",
    "/v1/pools/": "pools",
    "/v1/keys/": "keys",
}
_FRAMEWORK: Final[dict[int, tuple[str, str]]] = {
    400: ("the request body cannot be read; send JSON, or a form for files", UsageError.code),
    404: ("no such route; see /openapi.json", NotFoundError.code),
    408: ("the request body came too slowly; send it again, or in parts", "timeout"),
    405: ("the route does not have this method; see /openapi.json", "method_not_allowed"),
    413: ("the request must be smaller; send it in parts", LimitError.code),
    499: ("the client closed the connection before its answer", "client_left"),
}


def _list_field_names() -> frozenset[str]:
    shapes = (schemas, completion_schemas, admin_schemas, pool_schemas, method_options)
    found = [item for module in shapes for item in vars(module).values()]
    # OpenAI's own, which this service does not offer: to be refused by name.
    others = (
        "audio best_of echo frequency_penalty function_call functions logit_bias metadata modalities "
        "parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_retention reasoning_effort "
        "response_format safety_identifier service_tier store suffix tool_choice tools verbosity web_search_options "
        "integrations name tool_calls tool_call_id refusal annotations dpo reinforcement"
    )
    models = [item for item in found if isinstance(item, type) and issubclass(item, BaseModel)]
    return frozenset(field.alias or name for model in models for name, field in model.model_fields.items()) | {
        "after",
        "form",
        "limit",
        "order",
        "purpose",
        "tenant",
        *(name for names in method_options.SETTINGS.values() for name in names),
        *others.split(),
    }


# A key that a client made up may be anything, also a text: only these names are ever repeated.
_KNOWN_FIELDS: Final = _list_field_names()


def make_error_response(message: str, *, status: int, code: str, param: str | None = None) -> JSONResponse:
    """The answer to a request that is refused."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    # The official client would repeat a 409 and a 413 as they are; they would fail as they are.
    headers = {"x-should-retry": "false"} if status < 500 else {}
    error = {"message": message, "type": kind, "param": param, "code": code}
    return JSONResponse({"error": error}, status_code=status, headers=headers)


def answer_error(error: RaptError) -> JSONResponse:
    """The answer that an error of the tree stands for; one that time will cure says when to come again."""
    response = make_error_response(str(error), status=error.status, code=error.code, param=error.param)
    wait = error.retry_after if isinstance(error, BusyError) else None
    if isinstance(error, UnavailableError):
        wait = _AWAY
    if wait is not None:
        response.headers["retry-after"] = str(max(1, math.ceil(wait)))
        del response.headers["x-should-retry"]
    return response


def answer_exception(error: Exception, *, what: str, is_late: bool = False) -> JSONResponse:
    """The answer to whatever a request has raised; the log has what nobody foresaw, and what came too late to answer.

    Args:
        error: The error. Not even the message of one that is not of the tree is trusted.
        what: Words of ours for the log, such as the id of the request.
        is_late: Whether the answer had begun, so that this one is not sent.
    """
    if any(isinstance(one, OSError) and one.errno in _NO_DESCRIPTOR for one in list_causes(error)):
        log.error("%s found no free file descriptor; let the process open more files", what)
        return answer_error(UnavailableError("the service has too many files open; try again later"))
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, RaptError):
        error = error.__cause__  # the framework's word for an error of the tree in an answer that had begun
    if is_late or not isinstance(error, RaptError):
        log_unforeseen(log, what, error)
    if isinstance(error, RaptError):
        return answer_error(error)
    return make_error_response(
        f"internal error, {type(error).__name__}; tell the provider the x-request-id",
        status=500,
        code=RaptError.code,
    )


def add_error_handlers(app: FastAPI) -> None:
    """Map the tree, the framework's refusals and invalid requests; all else is the middleware's."""

    @app.exception_handler(RaptError)
    async def _of_the_tree(request: Request, error: RaptError) -> JSONResponse:
        return answer_exception(error, what=getattr(request.state, "request_id", "-"))

    @app.exception_handler(HTTPException)
    async def _of_the_framework(request: Request, error: HTTPException) -> JSONResponse:
        message, code = _FRAMEWORK.get(error.status_code, _FRAMEWORK[400])
        name = next((name for start, name in _COLLECTIONS.items() if request.url.path.startswith(start)), None)
        if error.status_code == 404 and name is not None:
            message = f"no such object among the {name}, and no such route; list them to see what there is"
        response = make_error_response(message, status=error.status_code, code=code)
        if error.status_code == 405:
            response.headers["allow"] = ", ".join(_list_methods(request))
        if error.status_code == 408:
            response.headers["connection"] = "close"
        return response

    @app.exception_handler(ClientDisconnect)
    async def _of_a_body_that_ends_too_early(_request: Request, _error: ClientDisconnect) -> JSONResponse:
        message, code = _FRAMEWORK[499]
        return make_error_response(message, status=499, code=code)

    @app.exception_handler(RequestValidationError)
    async def _of_a_schema(_request: Request, error: RequestValidationError) -> JSONResponse:
        message, param = _explain(error.errors()[0])
        return make_error_response(message, status=400, code=UsageError.code, param=param)


def _list_methods(request: Request) -> list[str]:
    """The methods that the path of a request has; whatever has GET has HEAD too."""
    found = []
    for method in ("GET", "POST", "DELETE"):
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            found += ["GET", "HEAD"] if method == "GET" else [method]
    return found


def _explain(first: Any) -> tuple[str, str | None]:
    names = [str(part) for part in first["loc"] if part in _KNOWN_FIELDS]
    # A part of a message stands in its place under the name of its type, which may be that of its field.
    names = [name for name, _ in groupby(names)]
    param = ".".join(names) or None
    place = f"the field {param}" if param else "the request body"
    if first["type"] == "extra_forbidden":
        if first["loc"][-1] in _KNOWN_FIELDS:
            return f"{place} must be left out; this service does not offer it", param
        return f"{place} must have no field that this service does not know; see /openapi.json", param
    if first["type"] not in _RULE_ONLY:
        return f"{place} must be as /openapi.json says", param
    rule = str(first["msg"])
    return f"{place} is refused: {rule[0].lower()}{rule[1:]}; see /openapi.json", param
