"""Refusal of new work while this process is behind: begun work ends in time, and who is refused knows it at once."""

import asyncio
import json
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from qubic_lab.api.openai.errors import PATH
from qubic_lab.api.problems import MEDIA_TYPE, Problem

WORK = ("/api/ai/", "/api/consensus/", "/api/oracle/", "/v1/")
"""Paths of what costs much; health, metrics and the state of the cluster are told always."""
BEHIND_S = 0.1
"""A turn of the event loop that takes longer is behind: a request needs some twenty turns."""
BURST_S = 0.75
"""It may be behind for this time, as after a burst of requests at once, before anything is refused."""
REMEMBERED_S = 10.0
"""For so long after a refusal no burst is assumed."""
RETRY_S = 2
_BUSY = Problem(
    *(503, "Too busy", "this server has more requests than it can answer: try again later"),
    {"Retry-After": f"{RETRY_S}", "Connection": "close"},
)


class Backlog:
    """Decides from the times of turns of the event loop whether new work is refused; it reads no clock."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._refused_s = -REMEMBERED_S

    def note(self, turn_s: float, now_s: float) -> None:
        """Note how long a turn took that has just ended."""
        if turn_s <= BEHIND_S:
            self._since_s = None
        elif self._since_s is None:
            self._since_s = now_s

    def refuses(self, now_s: float) -> bool:
        """Return whether new work is to be refused now."""
        if self._since_s is None:
            return False
        if now_s < self._since_s + BURST_S and now_s >= self._refused_s + REMEMBERED_S:
            return False
        self._refused_s = now_s
        return True


class SheddingMiddleware:
    """Refuses requests for work, with Retry-After, while the event loop is behind."""

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.perf_counter) -> None:
        self._app, self._clock, self._backlog = app, clock, Backlog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or not scope["path"].startswith(WORK):
            return await self._app(scope, receive, send)
        begun_s = self._clock()
        await asyncio.sleep(0)  # one turn
        now_s = self._clock()
        self._backlog.note(now_s - begun_s, now_s)
        if not self._backlog.refuses(now_s):
            return await self._app(scope, receive, send)
        return await _BUSY(scope, receive, send)


def is_work(request: bytes) -> bool:
    """Return whether the first bytes of a request show that it is for work."""
    return request.partition(b" ")[2].decode("latin-1").startswith(WORK)


def refusal_of(request: bytes) -> bytes:
    """Return the whole answer that refuses a request, by its first bytes."""
    return _REFUSALS[request.partition(b" ")[2].startswith(PATH.encode())]


def _refusal(body: bytes, media_type: str) -> bytes:
    head = f"HTTP/1.1 503 Service Unavailable\r\ncontent-type: {media_type}\r\ncontent-length: {len(body)}\r\n"
    return f"{head}retry-after: {RETRY_S}\r\nconnection: close\r\n\r\n".encode() + body


_REFUSALS = (_refusal(bytes(_BUSY.body), MEDIA_TYPE), _refusal(json.dumps(_BUSY.openai).encode(), "application/json"))
"""Of the cluster's interface and of OpenAI's, without the server's other headers."""
