"""Errors as problem details (RFC 9457), or in OpenAI's shape: what is wrong and how to fix it, without internals."""

import difflib
import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from qubic_lab import errors
from qubic_lab.api.openai.errors import PATH, openai_error
from qubic_lab.api.request_id import HEADER
from qubic_lab.api.schemas import VISIBLE
from qubic_lab.errors import BusyError, QubicLabError
from qubic_lab.tracing import request_id

MEDIA_TYPE = "application/problem+json"
_TEXTS = {
    "type": "always about:blank: the status says it all",
    "title": "the kind of problem",
    "detail": "what is wrong, the value, and the remedy",
}
_SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "string", "description": text} for name, text in _TEXTS.items()}
    | {"status": {"type": "integer", "description": "the HTTP status"}},
}
_DESCRIPTION = {"description": "A problem (RFC 9457)", "content": {MEDIA_TYPE: {"schema": _SCHEMA}}}
RESPONSES: dict[int | str, dict[str, Any]] = {"4XX": _DESCRIPTION, "5XX": _DESCRIPTION}
"""The description of errors in OpenAPI."""
_STATUS: dict[type[QubicLabError], tuple[int, str]] = {
    errors.NotFoundError: (404, "Not found"),
    errors.ConflictError: (409, "Conflict"),
    errors.InputError: (400, "Bad request"),
    errors.RefusedError: (403, "Refused"),
    errors.FullError: (503, "Full"),
    errors.DatabaseGoneError: (503, "No database"),
    BusyError: (429, "Too busy"),
    errors.RankError: (502, "Lost"),
    errors.DeadlineError: (504, "Too late"),
    errors.RequestCancelled: (409, "Cancelled"),
}
_TITLES = {401: "No access", 404: "Not found", 405: "Method not allowed", 413: "Too large"}

logger = logging.getLogger(__name__)


class Problem(JSONResponse):
    """A problem as a response; a client of the OpenAI routes gets it in their shape."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        content = {"type": "about:blank", "title": title, "status": status, "detail": detail}
        super().__init__(content, status, dict(headers or {}), MEDIA_TYPE)
        self._given = dict(headers or {})
        self.openai = openai_error(status, detail, param, code)
        """The body for clients of the OpenAI routes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        if scope["path"].startswith(PATH):
            await JSONResponse(self.openai, self.status_code, self._given)(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def problem_of(error: QubicLabError) -> Problem:
    """Return the response to an error; an error that the client cannot fix is only logged in detail."""
    for kind, (status, title) in _STATUS.items():
        if isinstance(error, kind):
            headers = {}
            if isinstance(error, BusyError):
                headers["Retry-After"] = str(math.ceil(max(1.0, error.retry_after_s or 1.0)))
            param, code = getattr(error, "param", None), getattr(error, "code", None)
            return Problem(status, title, str(error), headers, param, code)
    logger.error("request %s: %s", request_id(), error)
    return Problem(503, "Out of order", "the server cannot do this now: see its log")


def install(app: FastAPI) -> None:
    """Make an application answer every error with a problem."""

    @app.exception_handler(QubicLabError)
    async def own(request: Request, error: QubicLabError) -> JSONResponse:
        return problem_of(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()
        return Problem(400, "Bad request", "; ".join(_sentence(each) for each in found), param=_param(found[0]))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        title = _TITLES.get(error.status_code, "Failed")
        return Problem(error.status_code, title, _told(request, error), error.headers)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        # This handler is outside of all middleware, which has named the request before.
        name = getattr(request.state, "request_id", "")
        logger.error("request %s: an unexpected error", name, exc_info=error)
        return Problem(500, "Fault", "an unexpected error occurred: see the server's log", {HEADER: name})


def _told(request: Request, error: HTTPException) -> str:
    """Return what is wrong with a request: its path, its method, or what the error says."""
    path = request.url.path[:100]
    if error.status_code == 400 and isinstance(error.__cause__, UnicodeDecodeError):
        return "the body is not UTF-8 text: send a JSON object, not compressed"
    if error.status_code == 405:
        return f"{request.method} is not for {path}: send {(error.headers or {}).get('Allow', 'another method')}"
    if (error.status_code, error.detail) != (404, HTTPStatus.NOT_FOUND.phrase):
        return str(error.detail)
    close = difflib.get_close_matches(path, request.app.openapi()["paths"], 1, 0.7)
    hint = f"did you mean {close[0]}?" if close else "/docs lists the routes"
    in_url = close and close[0].startswith(PATH) and path.endswith(close[0].removeprefix(PATH.rstrip("/")))
    return f"there is no {path}: {hint}" + (" The base URL of OpenAI's clients ends with one /v1" if in_url else "")


def _sentence(error: dict[str, Any]) -> str:
    """Return what is wrong with one field."""
    if error["type"] == "json_invalid":
        return f"the body is not JSON ({error['ctx']['error']} at character {error['loc'][1]}): send a JSON object"
    if error["type"] == "missing" and error["loc"] == ("body",):
        return "the body is empty: send a JSON object, with the header Content-Type: application/json"
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] == VISIBLE:
        return f"{'.'.join(map(str, error['loc'][1:]))} is empty: give at least one visible character"
    if error["type"] == "model_attributes_type":
        return "the body is not a JSON object: send one, with the header Content-Type: application/json"
    message = str(error["msg"]).removeprefix("Value error, ")
    field = ".".join(str(part) for part in error["loc"][1:])
    if not field:  # checks of the whole body name the field themselves
        return message
    given = error["input"]
    return f"{field}: {message}" if isinstance(given, dict | bytes) else f"{field} is {str(given)[:100]!r}: {message}"


def _param(error: dict[str, Any]) -> str | None:
    """Return the name of the field that is wrong."""
    if error["type"] == "json_invalid":  # its place is a character of the text
        return None
    return ".".join(map(str, error["loc"][1:])) or getattr(error.get("ctx", {}).get("error"), "param", None)
