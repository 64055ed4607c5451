"""The stand-in as a web application: limits, keys and faults around each source's answers, all kept in the ledger."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from qubic_lab.errors import check_at_least
from qubic_lab.oracle.model.clock import REAL, Clock
from qubic_lab.oracle.model.timestamps import SECOND_US
from qubic_lab.oracle.standin import coingecko, feeds, hacker_news, newsapi
from qubic_lab.oracle.standin.answer import Answer, Ask, Desk
from qubic_lab.oracle.standin.data import World
from qubic_lab.oracle.standin.faults import FaultPlan
from qubic_lab.oracle.standin.ledger import Entry, Gate, Ledger, Violation

KEYS = {"coingecko": "standin-coingecko-key", "newsapi": "standin-newsapi-key"}
PREFIXES = {"coingecko": "coingecko/api/v3", "newsapi": "newsapi/v2", "hacker-news": "hacker-news/api/v1"}
KEY_PARAMETERS = ("x_cg_demo_api_key", "x_cg_pro_api_key", "apikey", "api_key")
RETRY_AFTER_S = 2
_ANSWERS: dict[str, tuple[Callable[[Ask, Desk], Answer], Callable[[Ask, int], Answer]]] = {
    "coingecko": (coingecko.answer, coingecko.rate_limited),
    "newsapi": (newsapi.answer, newsapi.rate_limited),
    "hacker-news": (hacker_news.answer, hacker_news.rate_limited),
    "feeds": (feeds.answer, feeds.rate_limited),
}
_HTML = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head><body>Checking your browser</body></html>"


@dataclass(frozen=True)
class StandinConfig:
    """What the stand-in does.

    Attributes:
        faults: names as `faults.ALL` has them.
        fault_rate: the share of requests that meet one.
        per_s: requests that a source allows in any second of real time.
        slow_s: how long a slow answer takes, in real time; a hanging one never comes.
        hang_s: after so long a hanging connection is closed.
        clock: what prices and texts go by; waits that answers ask for go by it, too.
        keys: by source; others need none.
    """

    seed: int = 0
    faults: tuple[str, ...] = ()
    fault_rate: float = 0.2
    per_s: int = 50
    slow_s: float = 0.2
    hang_s: float = 60.0
    clock: Clock = REAL
    keys: Mapping[str, str] = field(default_factory=lambda: dict(KEYS))

    def __post_init__(self) -> None:
        check_at_least("requests per second", self.per_s, 1)


class Standin:
    """An ASGI application; `reset` closes a client's connection at once, as the server that runs this can."""

    def __init__(self, config: StandinConfig, ledger: Ledger, reset: Callable[[Scope, bool], None]) -> None:
        self.config = config
        self.ledger = ledger
        self._reset = reset
        self._faults = FaultPlan(config.faults, config.fault_rate, config.seed)
        world = World(config.seed, "null-caps" in config.faults, "corrections" in config.faults)
        self._desk = Desk(world, self._faults.spoil, config.keys)
        self._gates: dict[str, Gate] = {}
        self._number = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http"
        request = Request(scope, receive)
        path = request.url.path.strip("/")
        if path.partition("/")[0] in ("", "ledger", "summary"):
            await self._tell(path, request, _Sending(scope, receive, send))
            return
        found = _route(path)
        if found is None:
            await _Sending(scope, receive, send).whole(Answer(404, b"no such source", "text/plain"))
            return
        await self._answer(*found, request, _Sending(scope, receive, send))

    async def _answer(self, kind: str, source: str, path: str, request: Request, sending: "_Sending") -> None:
        """Answer a request to a source: within its limits, then as the fault that it meets says."""
        arrived_s = time.time()
        self._number += 1
        number = self._number
        query, headers = dict(request.query_params), dict(request.headers)
        ask = Ask(path, query, headers, number, self.config.clock.now_us() // SECOND_US)
        answer_one, rate_limited = _ANSWERS[kind]
        gate = self._gates.setdefault(source, Gate(self.config.per_s))
        broken = gate.arrive(arrived_s)
        if any(name.lower() in KEY_PARAMETERS for name in query):
            self.ledger.violate(Violation(source, "key", f"a key in the URL of {request.url.path}", arrived_s))
        fault = ""
        if broken:
            self.ledger.violate(Violation(source, *broken, arrived_s))
            answer = rate_limited(ask, RETRY_AFTER_S)
        else:
            fault = self._faults.draw(number) or ""
            answer = rate_limited(ask, RETRY_AFTER_S) if fault == "rate-limit" else answer_one(ask, self._desk)
        if answer.status == 429:
            gate.wait_until_s = time.time() + 0.9 * self.config.clock.real_s(RETRY_AFTER_S)
        status, complete = await self._deliver(fault, answer, sending)
        given = answer.given if complete and status == 200 else ()
        shown = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        self.ledger.add(
            Entry(
                number, source, shown, arrived_s, ask.now_s * SECOND_US, status, fault, complete, answer.partial, given
            )
        )

    async def _deliver(self, fault: str, answer: Answer, sending: "_Sending") -> tuple[int, bool]:
        """Send an answer as a fault has it; return its status (0: none) and whether all of it was sent."""
        match fault:
            case "html":
                answer = Answer(200, _HTML, "text/html; charset=utf-8")
                return 200, await sending.whole(answer) and False
            case "error-500" | "error-502":
                status = int(fault.removeprefix("error-"))
                return status, await sending.whole(Answer(status, b"<html>upstream error</html>", "text/html"))
            case "hang":
                await sending.gone(self.config.hang_s)
                self._reset(sending.scope, False)
                return 0, False
            case "reset":
                self._reset(sending.scope, True)
                return 0, False
            case "cut" if len(answer.body) > 1:
                await sending.part(answer, len(answer.body) // 2)
                self._reset(sending.scope, False)
                await sending.gone(1.0)
                return answer.status, False
            case "slow" if await sending.gone(self.config.slow_s):
                return 0, False
        return answer.status, await sending.whole(answer)

    async def _tell(self, path: str, request: Request, sending: "_Sending") -> None:
        """Tell of the stand-in itself: `/ledger?from=N` as JSON lines, else a summary."""
        if path == "ledger":
            first = request.query_params.get("from", "0")
            lines = "".join(self.ledger.lines(int(first) if first.isdecimal() else 0))
            await sending.whole(Answer(200, lines.encode(), "application/x-ndjson"))
            return
        content = self.ledger.summary() | {"faults": list(self.config.faults), "per_s": self.config.per_s}
        await sending.whole(Answer(200, json.dumps(content).encode()))


def _route(path: str) -> tuple[str, str, str] | None:
    """Return a path's kind of source, its name in the ledger and what is left of the path."""
    for source, prefix in PREFIXES.items():
        if path.startswith(f"{prefix}/"):
            return source, source, path.removeprefix(f"{prefix}/")
    if path.startswith("feeds/"):
        rest = path.removeprefix("feeds/")
        return "feeds", rest.rpartition(".")[0], rest
    return None


@dataclass
class _Sending:
    """One response on its way to a client that may leave."""

    scope: Scope
    receive: Receive
    send: Send

    async def whole(self, answer: Answer) -> bool:
        """Send an answer; return whether the client was still there."""
        if await self.gone(0.0):
            return False
        await self._start(answer)
        body = b"" if answer.status == 304 else answer.body
        await self.send({"type": "http.response.body", "body": body})
        return True

    async def part(self, answer: Answer, size: int) -> None:
        """Send the beginning of an answer that says that it is longer."""
        await self._start(answer)
        await self.send({"type": "http.response.body", "body": answer.body[:size], "more_body": True})

    async def gone(self, within_s: float) -> bool:
        """Wait for the client to leave; return whether it did within a time."""

        async def left() -> None:
            message: Message = {"type": ""}
            while message["type"] != "http.disconnect":
                message = await self.receive()

        with suppress(TimeoutError):
            await asyncio.wait_for(left(), within_s or 1e-4)
            return True
        return False

    async def _start(self, answer: Answer) -> None:
        headers: dict[str, Any] = {"content-type": answer.media, **answer.headers}
        if answer.status != 304:
            headers["content-length"] = str(len(answer.body))
        raw = [(name.encode(), str(value).encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": answer.status, "headers": raw})
