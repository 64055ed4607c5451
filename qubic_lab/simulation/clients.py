"""Clients of a simulated cluster: they ask, read on where a stream broke off, and check each token against the answer.

A client asks one coordinator after the other with the same key until the answer has come, or an error says that the
task itself is at fault.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc.aio

from qubic_lab.bench.echo_node import echo_text, echo_tokens
from qubic_lab.cluster.calls import with_pauses
from qubic_lab.simulation.loop import Process
from qubic_lab.simulation.network import Network
from qubic_lab.simulation.parts import ASK, POISON
from qubic_lab.simulation.transport import Channel

AGAIN_S = 0.5
SILENT_S = 30.0
"""A client that hears nothing for this time asks another coordinator."""
CONNECT_S = 5.0
_FINAL = ("InputError", "RankError", "RequestCancelled", "ContextError", "ConflictError")
Kind = Literal["normal", "poison", "vanishing", "twice"]


@dataclass
class Asked:
    """A request and what its client has seen.

    Attributes:
        number: unique in the run; tokens and key follow from it.
        kind: how the client behaves.
        tokens: how many it asks for.
        keyed: whether it has a key; without one it asks once.
        whole: whether it waits for the whole answer, not for each token.
        hangs_up: whether its task ends with its connection unless it asks again soon, as the project's client wants it.
        seen: the tokens that have come.
        tasks: the ids that coordinators gave it.
        end: `answered`, `gone` or the kind of the error; empty while it waits.
    """

    number: int
    kind: Kind
    tokens: int
    priority: str
    keyed: bool
    whole: bool
    hangs_up: bool
    begun_s: float
    seen: list[int] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    end: str = ""
    detail: str = ""
    ended_s: float = 0.0

    @property
    def expected(self) -> range:
        """The tokens of the undisturbed answer."""
        return echo_tokens(1_000 * self.number, self.tokens)

    @property
    def prompt(self) -> str:
        """Its text."""
        return f"request {self.number}{' ' + POISON if self.kind == 'poison' else ''}"


class Clients:
    """All clients, in one process; `violate` is called with what no client may see."""

    def __init__(
        self,
        network: Network,
        process: Process,
        fronts: tuple[str, ...],
        draw: random.Random,
        note: Callable[[Process, str], None],
        violate: Callable[[str], None],
    ) -> None:
        self.waiting: dict[int, Asked] = {}
        self.ended = Counter[str]()
        self.sent = 0
        self.asked_again = 0
        self.next: list[Kind] = []
        """Kinds of the next requests."""
        self.on_end: list[Callable[[Asked], None]] = []
        self._network, self._process, self._fronts, self._draw = network, process, fronts, draw
        self._note, self._violate = note, violate
        self._channels: dict[str, Channel] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def send(self, until_s: float, rate: float) -> None:
        """Send requests at random times until a virtual time."""
        while True:
            await asyncio.sleep(self._draw.expovariate(rate))
            if self._process.time() >= until_s:
                return
            self.ask(self.next.pop(0) if self.next else "normal")

    def ask(self, kind: Kind) -> None:
        """Send a request."""
        draw, self.sent = self._draw, self.sent + 1
        keyed = kind in ("poison", "twice") or (kind == "normal" and draw.random() < 0.9)
        priority = draw.choice(("high", "normal", "normal", "low"))
        tokens, whole = draw.choice((1, 2, 2, 3, 4, 8)), draw.random() < 0.5
        hangs_up = keyed and kind != "twice" and draw.random() < 0.5
        asked = Asked(self.sent, kind, tokens, priority, keyed, whole, hangs_up, self._process.time())
        self.waiting[asked.number] = asked
        self._note(self._process, f"asks {asked.number}: {kind}, {asked.tokens} tokens, {priority}, key {keyed}")
        start = draw.randrange(len(self._fronts))
        self._spawn(self._read(asked, start))
        if kind == "twice":  # a proxy that sends a request again
            again = Asked(asked.number, kind, asked.tokens, priority, True, not asked.whole, False, asked.begun_s)
            self._spawn(self._read(again, start + 1))

    def _spawn(self, coroutine: Any) -> None:
        task = self._process.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(self, asked: Asked, turn: int) -> None:
        vanishes_s = self._draw.random() if asked.kind == "vanishing" else None
        try:
            async with asyncio.timeout(vanishes_s):
                while not asked.end:
                    await self._read_from(asked, self._fronts[turn % len(self._fronts)])
                    if not asked.end and not asked.keyed:
                        asked.end = "unkeyed"
                    if not asked.end:
                        turn, self.asked_again = turn + 1, self.asked_again + 1
                        await asyncio.sleep(AGAIN_S)
        except TimeoutError:
            asked.end = "gone"
        asked.ended_s = self._process.time()
        self._check(asked)
        if self.waiting.get(asked.number) is asked:
            del self.waiting[asked.number]
            self.ended[asked.end] += 1
        self._note(self._process, f"ends {asked.number}: {asked.end}, {len(asked.seen)} tokens")
        for react in self.on_end:
            react(asked)

    async def _read_from(self, asked: Asked, front: str) -> None:
        """Read the answer from a coordinator until it ends or breaks off."""
        channel = self._channels.get(front)
        if channel is None:
            channel = self._channels[front] = Channel(self._network, self._process, front)
        body = {
            "prompt": asked.prompt,
            "tokens": asked.tokens,
            "seed": 1_000 * asked.number,
            "priority": asked.priority,
            "key": f"key-{asked.number}" if asked.keyed else None,
            "after": len(asked.seen),
            "whole": asked.whole,
            "hang_up": "cancel" if asked.hangs_up else None,
        }
        call = channel.unary_stream(ASK, bytes, bytes)(json.dumps(body).encode())
        try:
            async with aclosing(with_pauses(aiter(call), SILENT_S)) as events:
                async for together in events:
                    if not together:
                        return
                    for event in together:
                        self._take(asked, *json.loads(event))
        except grpc.aio.AioRpcError:
            pass  # it asks again
        finally:
            call.cancel()

    def _take(self, asked: Asked, name: str, number: int, data: dict[str, Any]) -> None:
        if name == "task":
            if data["id"] not in asked.tasks:
                asked.tasks.append(data["id"])
        elif name == "token":
            if number != len(asked.seen) + 1:
                self._violate(f"request {asked.number} got token {number} after {len(asked.seen)} tokens")
            asked.seen.append(data["id"])
        elif name == "end":
            asked.end = "answered"
            if asked.whole:
                asked.seen = list(data["token_ids"])
            if data["token_ids"] != list(asked.expected) or data["text"] != echo_text(asked.expected):
                self._violate(f"request {asked.number} was answered {data['token_ids']}, not {list(asked.expected)}")
        elif data["kind"] in _FINAL:
            asked.end, asked.detail = data["kind"], data["detail"]

    def _check(self, asked: Asked) -> None:
        expected = list(asked.expected)
        if asked.seen != expected[: len(asked.seen)] or (asked.end == "answered" and asked.seen != expected):
            self._violate(f"request {asked.number} saw {asked.seen} of {expected}, and ended {asked.end}")
        if asked.kind == "poison" and asked.end == "answered":
            self._violate(f"request {asked.number} ends every node, and was answered")
        if asked.end in _FINAL and asked.end != "RankError":
            self._violate(f"request {asked.number} failed: {asked.end}: {asked.detail}")
