"""Names each request: the X-Request-Id that a client sends comes back, or a new one is made; logs name it."""

import logging
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qubic_lab.tracing import PARENT, REQUEST_ID, Value, following, span

HEADER = "X-Request-Id"
WATCHED = frozenset({"/health", "/ready", "/metrics"})
"""Paths that monitors ask again and again: they get no spans, and lines at `debug` only."""
_ALLOWED = re.compile(r"[\x21-\x7e]{1,200}")

logger = logging.getLogger(__name__)


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

        carried = {REQUEST_ID: name, PARENT: Headers(scope=scope).get(PARENT, "")}
        tracked = span(scope["method"]) if scope["path"] not in WATCHED else _untracked()
        with following(carried), tracked as attributes:
            try:
                await self._app(scope, receive, named)
            finally:
                route = getattr(scope.get("route"), "path", "none")
                attributes |= {"http.route": route, "http.response.status_code": status}
                took_ms = 1e3 * (time.perf_counter() - started_s)
                level = logging.DEBUG if scope["path"] in WATCHED else logging.INFO
                logger.log(level, "%s: %s %r: %d after %.0f ms", name, scope["method"], scope["path"], status, took_ms)


@contextmanager
def _untracked() -> Iterator[dict[str, Value]]:
    yield {}
