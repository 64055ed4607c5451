"""Errors in OpenAI's shape: our one line, with the field at fault and a code where OpenAI has one."""

from typing import Any

from qubic_lab.errors import InputError, NotFoundError

PATH = "/v1/"
"""What is under it answers errors in this shape."""
_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
_ERROR = {
    "type": "object",
    "description": "the error",
    "properties": {
        "message": {"type": "string", "description": "what is wrong, the value, and the remedy"},
        "type": {"type": "string", "description": "whose error it is, such as invalid_request_error"},
        "param": {"type": ["string", "null"], "description": "the field at fault; null: none, or not one alone"},
        "code": {"type": ["string", "null"], "description": "OpenAI's name of this error; null: there is none"},
    },
    "required": ["message", "type", "param", "code"],
}
_SCHEMA = {"type": "object", "properties": {"error": _ERROR}, "required": ["error"]}
_DESCRIPTION = {"description": "An error in OpenAI's shape", "content": {"application/json": {"schema": _SCHEMA}}}
RESPONSES: dict[int | str, dict[str, Any]] = {"4XX": _DESCRIPTION, "5XX": _DESCRIPTION}
"""The description of errors in OpenAPI."""


class FieldError(InputError):
    """A field of a request cannot be used; `param` names it."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class UnknownModelError(NotFoundError):
    """There is no model of this name."""

    param, code = "model", "model_not_found"


def openai_error(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return the body of an error response."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code or _CODES.get(status)}}
