"""Clusters for tests: coordinators, HTTP servers and nodes on one event loop, on unix sockets and one Redis server."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import redis
import uvicorn
from fastapi import FastAPI

from qubic_lab.api.access import ApiToken, make_limiter
from qubic_lab.api.http_server import server_options
from qubic_lab.api.serve import create_app
from qubic_lab.cluster.calls import wait_at_most
from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.cluster.fleet import NodeView
from qubic_lab.cluster.node import Node, NodeConfig
from qubic_lab.cluster.replica import Replica
from qubic_lab.cluster.tasks import QueueLimits, TaskOutcome
from qubic_lab.errors import QubicLabError, RankError
from qubic_lab.settings import cache_folder
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import pipeline_pb2

KILL = "[this ends the replica]"
WITHIN_S = 120.0
"""Timeout of a wait: far longer than it takes on a busy machine, and shorter than the timeout of a test."""


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses of nodes and coordinators: heartbeats, polls and retries."""
    for name in (
        "coordinator.LEFT_S",
        "registry.HEARTBEAT_S",
        "dispatcher.BEAT_S",
        "dispatcher.LOOK_S",
        "node._PAUSE_S",
        "replica.FIRST_PAUSE_S",
    ):
        monkeypatch.setattr(f"qubic_lab.cluster.{name}", 0.1)
    for name in ("dispatcher.PAUSE_S", "dispatcher.TAKE_S", "tasks._NOTIFICATION_S"):
        monkeypatch.setattr(f"qubic_lab.cluster.{name}", 0.05)
    monkeypatch.setattr("qubic_lab.cluster.dispatcher.HAND_BACK_S", WITHIN_S)


async def until(what: Callable[[], Any] | Callable[[], Awaitable[Any]], within_s: float = WITHIN_S) -> Any:
    """Wait until something is true, and return it."""
    async with asyncio.timeout(within_s):
        while True:
            found = what()
            if isinstance(found, Awaitable):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.01)


@dataclass
class Fragile:
    """A replica that counts up from the request's seed and can be told to fail.

    A whole answer takes `seconds`; while it is `held`, its last token does not come. `error` ends each request after
    `tokens` tokens. It does not enforce its `slots`.
    A prompt that contains KILL ends the replica and all requests that run on it.
    """

    seconds: float = 0.1
    slots: int = 4
    held: bool = False
    error: Exception | None = None
    tokens: int = 0
    asked: int = 0
    running: int = 0
    starts: int = 0
    _lost: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> pb.Capabilities:
        self.starts += 1
        self._lost = asyncio.Event()
        return pb.Capabilities(model="counting", layers=[1], slots=self.slots, tokens_per_s=1 / self.seconds)

    async def generate(self, request: pipeline_pb2.GenerateRequest) -> AsyncGenerator[pipeline_pb2.GenerateReply, None]:
        self.asked += 1
        self.running += 1
        lost = self._lost
        try:
            if KILL in request.prompt:
                await wait_at_most(lost, self.seconds / 4)  # others come beside it
                self.lose()
            numbers = counted(request.sampling.seed, request.sampling.max_new_tokens)
            for given, number in enumerate(numbers[len(request.forced_token_ids) :]):
                if self.error is not None and given == self.tokens:
                    raise self.error
                await wait_at_most(lost, self.seconds / len(numbers))
                while self.held and number == numbers[-1] and not lost.is_set():
                    await asyncio.sleep(0.01)
                if lost.is_set():
                    raise RankError("rank 1 is gone")
                token = pipeline_pb2.Token(id=number, text=f"{number} ")
                yield pipeline_pb2.GenerateReply(token=token)
            end = pipeline_pb2.End(text=text_of(numbers), finish_reason="length", prompt_tokens=1)
            yield pipeline_pb2.GenerateReply(end=end)
        finally:
            self.running -= 1

    def lose(self) -> None:
        """End the replica and all requests that run on it."""
        self._lost.set()

    async def stats(self) -> pipeline_pb2.StatsReply:
        return pipeline_pb2.StatsReply()

    async def lost(self) -> QubicLabError:
        await self._lost.wait()
        return RankError("rank 1 is gone")

    async def stop(self) -> None:
        pass


def counted(seed: int, tokens: int) -> list[int]:
    """Return the tokens of a fragile replica's answer."""
    return list(range(seed, seed + tokens))


def text_of(numbers: list[int]) -> str:
    return "".join(f"{number} " for number in numbers)


@dataclass
class Cluster:
    """A running cluster, whose nodes can be started and ended."""

    folder: Path
    coordinators: list[Coordinator]
    clients: list[httpx2.AsyncClient]
    nodes: dict[str, "asyncio.Task[None]"] = field(default_factory=dict)
    _ends: list[AsyncExitStack] = field(default_factory=list)
    _nodes: dict[str, Node] = field(default_factory=dict)
    _starts: int = 0

    @property
    def coordinator(self) -> Coordinator:
        return self.coordinators[0]

    @property
    def client(self) -> httpx2.AsyncClient:
        return self.clients[0]

    async def end_coordinator(self, number: int) -> None:
        """End a coordinator and its HTTP server, as SIGTERM does."""
        await self._ends[number].aclose()

    async def start_node(self, name: str, replica: Replica | None = None, *, ready: bool = True) -> None:
        """Start a node, on a socket of its own at each start, and wait until every coordinator may choose it."""
        self._starts += 1
        addresses = tuple(address_of(self.folder, n) for n in range(len(self.coordinators)))
        listen = f"unix:{self.folder}/node-{self._starts}.sock"
        node = Node(NodeConfig(name, addresses, listen, identity=f"{name} of a test"), replica or Fragile())
        self._nodes[name], self.nodes[name] = node, asyncio.ensure_future(node.run())
        if ready:
            await until(lambda: self.nodes[name].done() or self.gates(name) == {None})
            if self.nodes[name].done():
                await self.nodes[name]

    def end_node(self, name: str) -> "asyncio.Task[None]":
        """Tell a node to end, as SIGTERM does; return the task that is done when the node has ended."""
        self._nodes[name].end()
        return self.nodes[name]

    def gates(self, name: str) -> set[str | None]:
        """Return the gates of a node at all coordinators; "gone" at one that does not know it."""
        found = [self.view(name, coordinator) for coordinator in self.coordinators]
        return {"gone" if view is None else view.gate for view in found}

    def view(self, name: str, coordinator: Coordinator | None = None) -> NodeView | None:
        views = {view.record.id: view for view in (coordinator or self.coordinator).nodes()}
        return views.get(name)

    async def outcome(self, task_id: str) -> TaskOutcome:
        """Wait for a task's end."""
        found = await until(lambda: self.coordinator.call(self.coordinator.queue.result, task_id))
        assert isinstance(found, TaskOutcome)
        return found


@asynccontextmanager
async def cluster(
    client: redis.Redis,
    folder: Path,
    *,
    coordinators: int = 1,
    nodes: dict[str, Replica] | None = None,
    limits: QueueLimits | None = None,
    served: bool = False,
    accesses: list[ApiToken] | None = None,
) -> AsyncIterator[Cluster]:
    """Run coordinators and nodes on an empty Redis until the block ends; `served`: each with an HTTP server."""
    client.flushall()
    async with AsyncExitStack() as stack:
        running = Cluster(folder, [], [])
        for number in range(coordinators):
            coordinator = Coordinator(client, address_of(folder, number), limits=limits)
            running._ends.append(end := await stack.enter_async_context(AsyncExitStack()))
            running.coordinators.append(await end.enter_async_context(coordinator.running()))
            if served:
                running.clients.append(await end.enter_async_context(http(coordinator, client, accesses)))
        stack.push_async_callback(_end_nodes, running)
        for name, replica in (nodes or {}).items():
            await running.start_node(name, replica)
        yield running


StartCluster = Callable[..., AbstractAsyncContextManager[Cluster]]
"""What `start_cluster` is: `cluster` on the Redis server of the module, in the folder of the test."""


def address_of(folder: Path, coordinator: int) -> str:
    """Return where nodes register at a coordinator."""
    return f"unix:{folder}/coordinator-{coordinator}.sock"


@asynccontextmanager
async def http(
    coordinator: Coordinator, client: redis.Redis, accesses: list[ApiToken] | None = None
) -> AsyncIterator[httpx2.AsyncClient]:
    """Serve a coordinator's interface at a port of loopback, and yield a client of it."""
    tokens = None if accesses is None else lambda: accesses
    async with serving(create_app(coordinator, tokens, make_limiter(client) if accesses else None)) as connection:
        yield connection


@asynccontextmanager
async def serving(app: FastAPI, port: int = 0) -> AsyncIterator[httpx2.AsyncClient]:
    """Serve an application at a port of loopback, by default a free one, and yield a client of it."""
    # The protocol is named, since asyncio sends without delay only where it knows that.
    with socket.socket(proto=socket.IPPROTO_TCP) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        options = server_options(app)
        options.timeout_graceful_shutdown = 1
        server = uvicorn.Server(options)
        running = asyncio.ensure_future(server.serve([listening]))
        try:
            await until(lambda: server.started)
            async with httpx2.AsyncClient(
                base_url=url, timeout=None, trust_env=False, limits=httpx2.Limits(max_connections=None)
            ) as connection:
                yield connection
        finally:
            server.should_exit = True
            await running


async def _end_nodes(running: Cluster) -> None:
    for task in running.nodes.values():
        task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*running.nodes.values(), return_exceptions=True)


def cache_with_kernels(folder: Path) -> Path:
    """Make a cache of its own that needs no compiler: the kernels in it are those of this process's cache."""
    folder.mkdir(parents=True)
    (folder / "kernels").symlink_to(cache_folder("kernels"))
    return folder


class Process:
    """A process that a test may stop, kill and end: a module with its arguments, or a script given by its path."""

    def __init__(self, python: str, folder: Path, name: str, *command: str, **environment: str) -> None:
        self._log = folder / f"{name}.log"
        own = {key: value for key, value in os.environ.items() if not key.startswith("QUBIC_LAB_")}
        own["PATH"] = f"{Path(sys.executable).parent}:{own['PATH']}"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command if Path(command[0]).is_absolute() else [python, "-m", *command],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**own, "GRPC_VERBOSITY": "ERROR", **environment},
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def status(self) -> int:
        """Wait for its end and return its exit status."""
        return await asyncio.to_thread(self._process.wait, WITHIN_S)

    def end(self) -> None:
        """Kill it and its children; pytest shows its log if the test failed."""
        print(f"{self._log.name}:", self.log)
        with suppress(psutil.NoSuchProcess):
            for process in family(self.pid):
                process.kill()
        self._process.wait()


@contextmanager
def processes(python: str = sys.executable) -> Iterator[Callable[..., Process]]:
    """Yield a function that starts processes, by `forked_python.PYTHON` as forks; none is left at the end."""
    with ExitStack() as stack:

        def start(*arguments: Any, **environment: str) -> Process:
            process = Process(python, *arguments, **environment)
            stack.callback(process.end)
            return process

        yield start


def wait_until(holds: Callable[[], Any], within_s: float = WITHIN_S) -> None:
    """Wait in this thread until something is true."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all below it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def all_gone(processes: list[psutil.Process]) -> bool:
    """Return whether none of the processes runs any more."""
    return not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes)
