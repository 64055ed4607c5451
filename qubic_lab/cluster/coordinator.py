"""A coordinator: turns requests into tasks, dispatches the tasks to nodes, and reports their progress.

All state (tasks, partial answers, nodes) is in Redis. Several coordinators may share it; if one dies, the others
continue its tasks.
"""

import asyncio
import logging
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from typing import Any, TypeVar, cast

import grpc.aio
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as aio_health
from prometheus_client.registry import Collector

from qubic_lab import tracing
from qubic_lab.cluster.admission import Admission, size_of
from qubic_lab.cluster.balance import DEFAULT_BALANCER, make_balancer
from qubic_lab.cluster.calls import payload_of, wait_at_most
from qubic_lab.cluster.dispatcher import SUBMITTED, WHOLE, Dispatcher
from qubic_lab.cluster.fleet import Fleet, NodeView
from qubic_lab.cluster.redis_calls import ERRORS as REDIS_ERRORS
from qubic_lab.cluster.redis_calls import ScriptedMethod
from qubic_lab.cluster.redis_stream import stream_for
from qubic_lab.cluster.registry import Registry, RegistryService, socket_folder
from qubic_lab.cluster.tasks import (
    FINAL,
    DeadLetter,
    Priority,
    QueueLimits,
    TaskCounts,
    TaskNotification,
    TaskProgress,
    TaskQueue,
)
from qubic_lab.errors import FullError, QubicLabError
from qubic_lab.wire import pipeline_pb2
from qubic_lab.wire.channel import SERVER_OPTIONS
from qubic_lab.wire.members import MemberGuard, listen_as
from qubic_lab.wire.services import REGISTRY_SERVICE, add_service

SERVICE = "qubic_lab.cluster.v1.Registry"
MOST_THREADS = 16
"""Concurrent calls to Redis."""
LOOK_S = 5.0
"""Interval at which a follower reads progress without a notification, in case one was lost."""
RETRY_S = 1.0
MOST_FREE = 100
"""Free slots that are counted, at most, when a task comes: that takes time, and so many let anybody in."""
LEFT_S = 5.0
"""A task that its client has left is cancelled after this time, unless the client has come back."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class RedisTimes:
    """Round-trip times to Redis, in ms.

    Attributes:
        ping_ms: of a PING.
        set_ms: of a SET.
        get_ms: of a GET.
    """

    ping_ms: float
    set_ms: float
    get_ms: float


@dataclass(eq=False)
class _Follower:
    """Who waits for news of a task, only for its end if for the `whole`; `answer` is one that came without a read."""

    whole: bool
    news: asyncio.Event
    answer: TaskProgress | None = None


class Coordinator:
    """One of the coordinators of a cluster; it works while the block of `running` runs.

    `client` is a connection from `redis_server.connect`; nodes register at `listen`, HOST:PORT or unix:PATH.

    Raises:
        InputError: the balancer is unknown; or, from `running`, the address cannot be used.
    """

    def __init__(
        self,
        client: "redis.Redis",
        listen: str,
        balancer: str = DEFAULT_BALANCER,
        limits: QueueLimits | None = None,
    ) -> None:
        self.answers = defaultdict[str, float](float)  # sums by mode, since the start
        self.name = f"coordinator-{uuid.uuid4().hex[:8]}"
        limits = limits or QueueLimits()
        self.queue = TaskQueue(client, limits=limits)
        self.registry = Registry(client)
        self.fleet = Fleet(self.name, make_balancer(balancer))
        self._redis = client
        self._listen = listen
        self._threads = ThreadPoolExecutor(MOST_THREADS, "redis")
        self._stream = stream_for(client, self._in_thread)
        self.admission = Admission()
        self._dispatcher = Dispatcher(
            self.name,
            self.queue,
            limits.most_tries,
            self.registry,
            self.fleet,
            self.call,
            self._hand_over,
            self.admission,
        )
        self._followed: dict[str, list[_Follower]] = {}  # by task
        self._new: dict[str, bool] = {}  # tasks of the last seconds that nobody follows yet: whether there is news
        self._cancelling = set[asyncio.Future[bool]]()
        self._askers = count()
        self._ending = threading.Event()
        self.port = 0
        """Port at which nodes register, while it runs."""

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Make a call to Redis: in the event loop if it is a `scripted` one, otherwise in a thread, as it blocks."""
        if self._stream is not None and isinstance(function, ScriptedMethod):
            return cast(T, await self._stream.make(function.steps(*arguments)))
        return await self._in_thread(partial(function, *arguments))

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def submit(
        self,
        request: pipeline_pb2.GenerateRequest,
        priority: Priority = "normal",
        idempotency_key: str | None = None,
        node: str = "",
        body: str = "",
        asker: str = "",
        whole: bool = False,
        deadline_s: float | None = None,
    ) -> str:
        """Submit a request as a task and return its id; errors as for `TaskQueue.submit`.

        The `asker` is one from `new_asker`, which `leave` needs.

        With `node` only that node may answer: the task fails if the node is not registered, or is lost. A key that was
        used with another request is refused, also if it was only made of another `body`, given by its digest. The
        tokens of an answer that is read as a `whole` are written less often. A request that would probably begin too
        late for its deadline is refused at once (see `Admission`): what others wait for is not done for nothing.
        """
        carried = tracing.headers() | {SUBMITTED: str(time.time_ns())} | ({WHOLE: "1"} if whole else {})
        payload, new_id = payload_of(request, node, body), uuid.uuid4().hex
        asker = asker or self.new_asker()
        self._new[new_id] = False
        asyncio.get_running_loop().call_later(LOOK_S, self._new.pop, new_id, None)
        patience_s = None if deadline_s is None else self.admission.patience_s(size_of(payload), deadline_s)
        held_s = None if deadline_s is None else self.admission.held_s
        free = 0 if held_s is None else self.fleet.room(time.monotonic(), MOST_FREE)
        return await self.call(
            self.queue.submit, payload, priority, idempotency_key, carried, asker, new_id, patience_s, held_s, free
        )

    def new_asker(self) -> str:
        """Return a name for one call of a client: a client that asks again here is another asker."""
        return f"{self.name}:{next(self._askers)}"

    async def follow(self, task_id: str, whole: bool = False) -> AsyncGenerator[TaskProgress, None]:
        """Yield a task's progress from its first token on as it comes; the last one has the outcome.

        With `whole` everything comes at the end, because each read of new tokens costs as much as writing them.

        Raises:
            NotFoundError: there is no such task, or its outcome is no longer kept.
        """
        follower = _Follower(whole, news := asyncio.Event())
        self._followed.setdefault(task_id, []).append(follower)
        after = 0
        try:
            if not self._new.pop(task_id, True):  # there is nothing to read yet
                await wait_at_most(news, LOOK_S)
            while True:
                news.clear()
                if follower.answer is not None:
                    yield follower.answer
                    return
                try:
                    progress = await self.call(self.queue.look, task_id, after)
                except FullError:  # the task is kept, and its client says how long it waits
                    await asyncio.sleep(RETRY_S)
                    continue
                if progress.outcome or (progress.items and not whole):
                    after = progress.after
                    yield progress
                if progress.outcome:
                    return
                await wait_at_most(news, LOOK_S)
        finally:
            self._followed[task_id].remove(follower)
            if not self._followed[task_id]:
                del self._followed[task_id]

    async def cancel(self, task_id: str) -> bool:
        """Cancel a task that has not ended; errors as for `TaskQueue.cancel`."""
        return await self.call(self.queue.cancel, task_id)

    def leave(self, task_id: str, asker: str) -> None:
        """Cancel a task in a while if nobody follows it here then, and nobody has asked for it since this asker.

        The client may have lost only its connection, and ask again here or at another coordinator.
        """
        asyncio.get_running_loop().call_later(LEFT_S, self._cancel_left, task_id, asker)

    def _cancel_left(self, task_id: str, asker: str) -> None:
        if task_id not in self._followed and not self._ending.is_set():
            cancelling = asyncio.ensure_future(self.call(self.queue.cancel, task_id, asker))
            self._cancelling.add(cancelling)
            cancelling.add_done_callback(self._on_cancelled)

    def _on_cancelled(self, cancelling: "asyncio.Future[bool]") -> None:
        self._cancelling.discard(cancelling)
        if not cancelling.cancelled() and (error := cancelling.exception()) is not None:
            logger.info("a task that was left is not cancelled: %s", error)

    async def counts(self) -> TaskCounts:
        """Return the numbers of tasks by state."""
        return await self.call(self.queue.counts)

    async def dead_letters(self) -> list[DeadLetter]:
        """Return the dead letters, oldest first."""
        return await self.call(lambda: list(self.queue.dead_letters()))

    async def drain(self, node: str, draining: bool) -> None:
        """Stop giving a node new tasks, or start again; a NotFoundError if there is no such node."""
        await self.call(self.registry.drain, node, draining)
        await self._dispatcher.look_at_nodes()

    def nodes(self) -> list[NodeView]:
        """Return all nodes as of the latest read of the registry."""
        return self.fleet.views(time.monotonic())

    async def redis_times(self) -> RedisTimes:
        """Measure Redis's round-trip times.

        Raises:
            QubicLabError: Redis does not answer.
        """

        def measure() -> RedisTimes:
            key = f"{{check}}:{self.name}"
            try:
                return RedisTimes(
                    _ms_of(self._redis.ping),
                    _ms_of(lambda: self._redis.set(key, "1", ex=10)),
                    _ms_of(lambda: self._redis.get(key)),
                )
            except redis.RedisError as error:
                raise QubicLabError(f"Redis does not answer: {error}") from error

        return await self.call(measure)

    @property
    def working(self) -> int:
        """Number of tasks that this coordinator works on."""
        return self._dispatcher.working

    @property
    def metrics(self) -> tuple[Collector, ...]:
        """What it counts as it comes; the counters of Redis are those of the whole process."""
        return self._dispatcher.calls, self._dispatcher.choices, REDIS_ERRORS

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Coordinator"]:
        """Register nodes and dispatch tasks while the block runs; then other coordinators take over its tasks."""
        server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=[MemberGuard()])
        health = aio_health.HealthServicer()
        sockets = socket_folder(self._listen)
        service = RegistryService(self.registry, self.call, self._dispatcher.on_node_change, sockets)
        add_service(server, REGISTRY_SERVICE, service)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        self.port = listen_as("coordinator", server, self._listen)
        await health.set("", health_pb2.HealthCheckResponse.SERVING)
        await health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        await server.start()
        with suppress(QubicLabError):  # without Redis it looks again
            await self._dispatcher.look_at_nodes()  # who asks at once is not told that there is no node
        loop = asyncio.get_running_loop()
        listener = threading.Thread(target=self._receive, args=(loop,), name="notifications", daemon=True)
        listener.start()
        dispatching = asyncio.ensure_future(self._dispatcher.run())
        try:
            yield self
        finally:
            self._ending.set()
            await server.stop(grace=None)
            dispatching.cancel()
            await asyncio.gather(dispatching, return_exceptions=True)
            await asyncio.to_thread(listener.join)
            if self._stream is not None:
                await self._stream.close()
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _receive(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._ending.is_set():
            try:
                for notification in self.queue.notifications(self._ending.is_set):
                    if notification is not None and self._concerns(notification):
                        loop.call_soon_threadsafe(self._on_notification, notification)
            except QubicLabError as error:
                logger.warning("%s", error)
                self._ending.wait(RETRY_S)

    def _concerns(self, notification: TaskNotification) -> bool:
        """Return whether news of a task matters here: each token of all other coordinators' tasks is told here, too.

        Whoever follows a task says so before reading it, and so misses nothing that is left out here.
        """
        is_news = notification.what in ("progress", "completed")
        task_id = notification.task_id
        return not is_news or not task_id or task_id in self._followed or task_id in self._new

    def _on_notification(self, notification: TaskNotification) -> None:
        self._dispatcher.on_notification(notification)
        task_id = notification.task_id
        if not task_id:
            self._new = dict.fromkeys(self._new, True)
        elif task_id in self._new:
            self._new[task_id] = True
        if notification.what == "completed" and self._dispatcher.works_on(task_id):
            return  # `_hand_over` comes at once
        ended = notification.what in FINAL or not task_id
        followed = [self._followed.get(task_id, [])] if task_id else list(self._followed.values())
        for follower in chain.from_iterable(followed):
            if ended or not follower.whole:
                follower.news.set()

    def _hand_over(self, task_id: str, answer: TaskProgress | None) -> None:
        """Give an answer of the dispatcher here to those who wait for the whole; without one they read it."""
        if task_id in self._new:
            self._new[task_id] = True
        for follower in self._followed.get(task_id, ()):
            follower.answer = answer if follower.whole else None
            follower.news.set()


def _ms_of(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1_000
