"""The parts of a simulated cluster: coordinators with their front for clients, and nodes whose replicas only wait.

The coordinator, the node and all below them are the project's own code. Only the replica and the front are made here:
the replica gives tokens that the request determines, and the front does what the HTTP routes do.
"""

import asyncio
import json
import random
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc

from qubic_lab.api.responses import leave_task, read_answer, read_events
from qubic_lab.bench.echo_node import echo_text, echo_tokens
from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.cluster.node import Node, NodeConfig
from qubic_lab.cluster.tasks import QueueLimits
from qubic_lab.errors import BusyError, QubicLabError, RankError
from qubic_lab.simulation.loop import Process
from qubic_lab.simulation.network import Network
from qubic_lab.simulation.transport import Server
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import pipeline_pb2

MODEL, POISON = "echo", "[this ends the node]"
FRONT, ASK = "front", "/front/Ask"
DEADLINE_S = 3_600.0
"""Of an answer that comes as a whole."""
LOAD_S = 2.0
"""Time until a replica has loaded its model."""
Note = Callable[[Process, str], None]
"""Adds an event of a process to the log."""


class WaitingReplica:
    """A replica that gives a token each `token_s`; a prompt with POISON ends its process."""

    def __init__(
        self, process: Process, token_s: float, slots: int, note: Note, happened: Callable[[str], None]
    ) -> None:
        self._process, self._token_s, self._slots, self._note = process, token_s, slots, note
        self._happened = happened
        self._loss = process.create_future()
        self.running = 0

    async def start(self) -> pb.Capabilities:
        """Load for a while."""
        if self._loss.done():
            self._happened("replica started again")
        await asyncio.sleep(LOAD_S * self._process.slow)
        self._loss = self._process.create_future()
        return pb.Capabilities(
            model=MODEL, layers=[1], dtype="none", devices=["none"], slots=self._slots, tokens_per_s=1 / self._token_s
        )

    def lose(self) -> None:
        """Lose a rank."""
        if not self._loss.done():
            self._note(self._process, "lost a rank")
            self._loss.set_result(RankError("a rank was lost"))

    async def generate(self, request: pipeline_pb2.GenerateRequest) -> AsyncGenerator[pipeline_pb2.GenerateReply, None]:
        """Yield the tokens of the answer that are not known yet."""
        known, sampling = len(request.forced_token_ids), request.sampling
        self._note(self._process, f"begins {request.prompt} after {known}")
        if known:
            self._happened("answer continued elsewhere")
        if POISON in request.prompt:
            self._process.crash()
            await asyncio.Future()
        self.running += 1
        try:
            tokens = echo_tokens(sampling.seed, sampling.max_new_tokens)
            for number in tokens[known:]:
                await asyncio.sleep(self._token_s * self._process.slow)
                if self._loss.done():
                    raise self._loss.result()
                text = echo_text([number])
                yield pipeline_pb2.GenerateReply(token=pipeline_pb2.Token(id=number, text=text, raw=text.encode()))
            end = pipeline_pb2.End(text=echo_text(tokens), finish_reason="length", prompt_tokens=1)
            yield pipeline_pb2.GenerateReply(end=end)
        finally:
            self.running -= 1

    async def stats(self) -> pipeline_pb2.StatsReply:
        """Return nothing."""
        return pipeline_pb2.StatsReply()

    async def lost(self) -> QubicLabError:
        """Wait until a rank is lost."""
        error: QubicLabError = await asyncio.shield(self._loss)
        return error

    async def stop(self) -> None:
        """Do nothing."""


async def run_node(config: NodeConfig, replica: WaitingReplica, on_error: Callable[[str], None]) -> None:
    """Run a node until SIGTERM; a refused one says why."""
    try:
        await Node(config, replica).run()
    except QubicLabError as error:
        on_error(str(error))


async def run_coordinator(
    client: Any,
    network: Network,
    process: Process,
    listen: str,
    front: str,
    balancer: str,
    limits: QueueLimits,
    draw: random.Random,
    keep: Callable[[Coordinator], None],
) -> None:
    """Run a coordinator and its front until SIGTERM."""
    ended = asyncio.Event()
    process.add_signal_handler(signal.SIGTERM, ended.set)
    coordinator = Coordinator(client, listen, balancer, limits)
    coordinator.fleet.draw = draw
    keep(coordinator)
    async with coordinator.running():
        server = Server(network, process)
        handler = grpc.unary_stream_rpc_method_handler(Front(coordinator).ask, bytes, bytes)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(FRONT, {"Ask": handler})])
        server.add_insecure_port(front)
        await server.start()
        await ended.wait()
        await server.stop(None)


class Front:
    """Answers clients as the HTTP routes do: `submit`, then `read_answer` or `read_events`.

    A client that leaves ends its task if it has no key, or says so.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def ask(self, asked: bytes, context: Any) -> None:
        """Send the events of an answer, the last of them its end or an error by its kind."""
        body = json.loads(asked)
        try:
            await self._answer(body, context)
        except QubicLabError as error:
            await context.write(_event("error", 0, {"kind": type(error).__name__, "detail": str(error)}))

    async def _answer(self, body: dict[str, Any], context: Any) -> None:
        coordinator = self._coordinator
        if not len(coordinator.fleet):
            raise BusyError("no node is registered")
        sampling = pipeline_pb2.Sampling(max_new_tokens=body["tokens"], top_p=1.0, seed=body["seed"])
        message = pipeline_pb2.GenerateRequest(prompt=body["prompt"], sampling=sampling)
        key, asker = body["key"], coordinator.new_asker()
        task_id = await coordinator.submit(message, body["priority"], key, asker=asker, whole=body["whole"])
        await context.write(_event("task", 0, {"id": task_id}))
        started_s = asyncio.get_running_loop().time()
        leave = partial(leave_task, coordinator, task_id, asker, key is not None, body["hang_up"])
        if body["whole"]:
            answer = await read_answer(coordinator, task_id, started_s, DEADLINE_S, leave=leave)
            await context.write(_event("end", len(answer.token_ids), answer.model_dump(exclude_none=True)))
            return
        try:
            async with aclosing(read_events(coordinator, task_id, started_s, body["after"])) as events:
                async for name, number, data in events:
                    await context.write(_event(name, number, data))
        finally:
            await asyncio.shield(leave())


def _event(name: str, number: int, data: dict[str, Any]) -> bytes:
    return json.dumps([name, number, data]).encode()
