"""The fake as a web application: limits, keys and faults around each source's replies, all recorded in the ledger."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from fake_source import coingecko, feeds, hacker_news, newsapi
from fake_source.faults import FaultPlan
from fake_source.ledger import Entry, Gate, Ledger, Violation
from fake_source.reply import Ask, Desk, Reply, json_reply
from fake_source.world import World
from qubic_lab.oracle.model.timestamps import REAL, SECOND_US, Clock

PREFIXES = {"coingecko": "coingecko/api/v3", "newsapi": "newsapi/v2", "hacker-news": "hacker-news/api/v1"}
KEY_PARAMETERS = ("x_cg_demo_api_key", "x_cg_pro_api_key", "apikey", "api_key")
RETRY_AFTER_S = 2
_MODULES: dict[str, Any] = {"coingecko": coingecko, "newsapi": newsapi, "hacker-news": hacker_news, "feeds": feeds}
_HTML = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head><body>Checking your browser</body></html>"


@dataclass(frozen=True)
class FakeConfig:
    """What the fake does: `fault_rate` is the share of requests that meet one of `faults`, `per_s` the limit.

    Slow and hanging replies take real time; prices, texts and Retry-After go by `clock`.
    """

    seed: int = 0
    faults: tuple[str, ...] = ()
    fault_rate: float = 0.2
    per_s: int = 50
    slow_s: float = 0.2
    hang_s: float = 60.0
    clock: Clock = REAL


class FakeApp:
    """An ASGI application; `reset` closes a client's connection at once, as the server that runs this can."""

    def __init__(self, config: FakeConfig, ledger: Ledger, reset: Callable[[Scope, bool], None]) -> None:
        self.config = config
        self.ledger = ledger
        self._reset = reset
        self._faults = FaultPlan(config.faults, config.fault_rate, config.seed)
        world = World(config.seed, "null-caps" in config.faults, "corrections" in config.faults)
        self._desk = Desk(world, self._faults.spoil)
        self._gates: dict[str, Gate] = {}
        self._number = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: within the limits of its source, then with the fault that it meets."""
        arrived_s = time.time()
        request, sending = Request(scope, receive), _Sending(scope, receive, send)
        kind, source, path = _route(request.url.path.strip("/"))
        self._number += 1
        query, headers = dict(request.query_params), dict(request.headers)
        ask = Ask(path, query, headers, self._number, self.config.clock.now_us() // SECOND_US)
        module, fault = _MODULES[kind], ""
        gate = self._gates.setdefault(source, Gate(self.config.per_s))
        broken = gate.arrive(arrived_s)
        if any(name.lower() in KEY_PARAMETERS for name in query):
            self.ledger.add(Violation(source, "key", f"a key in the URL of {request.url.path}", arrived_s))
        if broken:
            self.ledger.add(Violation(source, *broken, arrived_s))
        else:
            fault = self._faults.draw(ask.number)
        limited = broken or fault == "rate-limit"
        reply = module.reply(ask, self._desk)
        if limited:
            reply = json_reply(429, module.RATE_LIMITED, headers={"retry-after": str(RETRY_AFTER_S)})
            gate.wait_until_s = time.time() + 0.9 * self.config.clock.real_s(RETRY_AFTER_S)
        status, complete = await self._deliver(fault, reply, sending)
        given = reply.given if complete and status == 200 else ()
        shown = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        now_us = ask.now_s * SECOND_US
        self.ledger.add(Entry(ask.number, source, shown, arrived_s, now_us, status, fault, complete, given))

    async def _deliver(self, fault: str, reply: Reply, sending: "_Sending") -> tuple[int, bool]:
        """Send a reply with its fault; return its status (0: none) and whether all of it was sent."""
        match fault:
            case "html":
                return 200, await sending.whole(Reply(200, _HTML, "text/html; charset=utf-8")) and False
            case "error-500" | "error-502":
                status = int(fault.removeprefix("error-"))
                return status, await sending.whole(Reply(status, b"<html>upstream error</html>", "text/html"))
            case "hang":
                await sending.gone(self.config.hang_s)
                self._reset(sending.scope, False)
                return 0, False
            case "reset":
                self._reset(sending.scope, True)
                return 0, False
            case "cut" if len(reply.body) > 1:
                await sending.part(reply, len(reply.body) // 2)
                self._reset(sending.scope, False)
                await sending.gone(1.0)
                return reply.status, False
            case "slow" if await sending.gone(self.config.slow_s):
                return 0, False
        return reply.status, await sending.whole(reply)


def _route(path: str) -> tuple[str, str, str]:
    """Return a path's kind of source, its name in the ledger and the rest of the path; all others are feeds."""
    for source, prefix in PREFIXES.items():
        if path.startswith(f"{prefix}/"):
            return source, source, path.removeprefix(f"{prefix}/")
    rest = path.removeprefix("feeds/")
    return "feeds", rest.rpartition(".")[0], rest


@dataclass
class _Sending:
    """One response on its way to a client that may leave."""

    scope: Scope
    receive: Receive
    send: Send

    async def whole(self, reply: Reply) -> bool:
        """Send a reply; return whether the client was still there."""
        if await self.gone(0.0):
            return False
        await self._start(reply)
        await self.send({"type": "http.response.body", "body": b"" if reply.status == 304 else reply.body})
        return True

    async def part(self, reply: Reply, size: int) -> None:
        """Send the beginning of a reply that declares a longer body."""
        await self._start(reply)
        await self.send({"type": "http.response.body", "body": reply.body[:size], "more_body": True})

    async def gone(self, within_s: float) -> bool:
        """Wait for the client to leave; return whether it did within a time."""

        async def left() -> None:
            while (await self.receive())["type"] != "http.disconnect":
                pass

        with suppress(TimeoutError):
            await asyncio.wait_for(left(), within_s or 1e-4)
            return True
        return False

    async def _start(self, reply: Reply) -> None:
        headers: dict[str, Any] = {"content-type": reply.media, **reply.headers}
        if reply.status != 304:
            headers["content-length"] = str(len(reply.body))
        raw = [(name.encode(), str(value).encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": reply.status, "headers": raw})
