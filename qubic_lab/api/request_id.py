"""Names each request: the X-Request-Id that a client sends comes back, or a new one is made; logs name it."""

import logging
import re
import time
import uuid
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-Id"
_ALLOWED = re.compile(r"[\x21-\x7e]{1,200}")
_current: ContextVar[str] = ContextVar("request_id", default="")

logger = logging.getLogger(__name__)


def request_id() -> str:
    """Return the id of the request that is being answered; empty outside of one."""
    return _current.get()


class RequestIdMiddleware:
    """Gives each request an id, its answer the header, and the log a line."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        name = given if _ALLOWED.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = name
        started_s, status = time.perf_counter(), 500

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        token = _current.set(name)
        try:
            await self._app(scope, receive, named)
        finally:
            _current.reset(token)
            took_ms = 1e3 * (time.perf_counter() - started_s)
            logger.info("%s: %s %r: %d after %.0f ms", name, scope["method"], scope["path"], status, took_ms)
