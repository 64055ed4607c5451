"""Refusal of new work while this process is behind: begun work ends in time, and who is refused knows it at once.

At five times what it can answer a process refuses four of five requests, and each refusal takes from the answers. So
most are refused by the connection (`Shedding`), before there is a request for the application.
"""

import asyncio
import math
import time
from collections.abc import Callable
from functools import cache

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from qubic_lab.api.openai.errors import PATH
from qubic_lab.api.problems import MEDIA_TYPE, Problem

WORK = ("/api/ai/", "/api/consensus/", "/api/oracle/", "/v1/")
"""Paths of what costs much; health, metrics and the state of the cluster are told always."""
_WORK = tuple(each.encode("ascii") for each in WORK)
BEHIND_S = 0.1
"""A turn of the event loop that takes longer is behind: a request needs some twenty turns."""
BURST_S = 0.75
"""It may be behind for this time, as after a burst of requests at once, before anything is refused."""
REMEMBERED_S = 10.0
"""For so long after a refusal no burst is assumed."""
FRESH_S = 0.5
"""A turn that ended longer ago says nothing of now, unless the next one lasts as long."""
REFUSED = {"Retry-After": "2"}


class Backlog:
    """Decides from the times of turns of the event loop whether new work is refused; it reads no clock."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._refused_s = -REMEMBERED_S
        self._noted_s, self._turn_s = -math.inf, 0.0

    def note(self, turn_s: float, now_s: float) -> None:
        """Note how long a turn took that has just ended."""
        self._noted_s, self._turn_s = now_s, turn_s
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

    def refuses_by_last(self, now_s: float) -> bool:
        """Return whether to refuse by the last turn alone, if it has just ended."""
        return now_s - self._noted_s <= max(FRESH_S, 2 * self._turn_s) and self.refuses(now_s)


class Shedding:
    """Refusals by the connections of a server, which know no more than a turn ago; `count` is called for each."""

    def __init__(self, count: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> None:
        self.backlog = Backlog()
        self._count, self._clock, self._is_watching = count, clock, False

    def refusal(self, url: bytes) -> tuple[bytes, bytes] | None:
        """Return the lines of headers and the body of the refusal of a request that has arrived; None: it may go on."""
        if not url.startswith(_WORK):
            return None
        if not self._is_watching:
            self._is_watching = True
            asyncio.get_running_loop().call_soon(self._turned, self._clock())
        if not self.backlog.refuses_by_last(self._clock()):
            return None
        self._count()
        return _refusal(url.startswith(PATH.encode("ascii")))

    def _turned(self, begun_s: float) -> None:
        self._is_watching, now_s = False, self._clock()
        self.backlog.note(now_s - begun_s, now_s)


class SheddingMiddleware:
    """Refuses requests for work, with Retry-After, while the event loop is behind."""

    def __init__(self, app: ASGIApp, backlog: Backlog, clock: Callable[[], float] = time.perf_counter) -> None:
        self._app, self._clock, self._backlog = app, clock, backlog

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
        return await _busy()(scope, receive, send)


def _busy() -> Problem:
    return Problem(503, "Too busy", "this server has more requests than it can answer: try again later", REFUSED)


@cache
def _refusal(is_openai: bool) -> tuple[bytes, bytes]:
    """Return the status, the headers and the body of a refusal, as the middleware would send them."""
    busy = _busy()
    body = bytes(JSONResponse(busy.openai).body if is_openai else busy.body)
    kind, after = "application/json" if is_openai else MEDIA_TYPE, REFUSED["Retry-After"]
    head = f"HTTP/1.1 503 Service Unavailable\r\nretry-after: {after}\r\ncontent-type: {kind}\r\n"
    return f"{head}content-length: {len(body)}\r\n".encode("ascii"), body
