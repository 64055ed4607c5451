"""The work of a coordinator: it takes tasks from the queue, gives each to a node, and writes down what comes back.

One task's way: take (a lease) → choose a node → call it → write tokens as they come, which renews the lease → complete.
When a replica is lost in mid-answer the task goes back to the queue; whoever takes it next sends the tokens so far
along, and the answer goes on where it was.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from qubic_lab.cluster.calls import Failure, failure_of, item_of, most_tokens, request_of, wait_at_most, with_pauses
from qubic_lab.cluster.fleet import Fleet
from qubic_lab.cluster.health import Outcome
from qubic_lab.cluster.registry import Registry
from qubic_lab.cluster.tasks import BEAT_S, FINAL, Lease, Ring, TaskQueue
from qubic_lab.errors import BusyError, FencedError, InputError, QubicLabError
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import cluster_pb2_grpc, pipeline_pb2
from qubic_lab.wire.channel import open_async_channel

SILENT_S = 5.0
"""A node that shows no sign of life for so long, where one is due each second, is lost."""
PROBE_S = 3.0
LOOK_S = 0.5
"""So often is looked for probes that are due; and, with nothing to wake for, for room."""
WRITE_S = 0.02
"""Tokens of one answer that come within so long of each other are written together."""
TAKE_S = 1.0
RENEW_S = 5.0
_PROBE = pipeline_pb2.GenerateRequest(prompt="ping", sampling=pipeline_pb2.Sampling(max_new_tokens=1, top_p=1.0))

logger = logging.getLogger(__name__)
Call = Callable[..., Awaitable[Any]]


class _Failed(Exception):
    """A call ended without an answer; `failure` is what that says."""

    def __init__(self, failure: Failure, why: str) -> None:
        super().__init__(why)
        self.failure = failure


class _Progress:
    """Writes the tokens of one answer to the queue; what comes while it writes goes with the next write."""

    def __init__(self, call: Call, queue: TaskQueue, lease: Lease, known: int) -> None:
        self._call, self._queue, self._lease, self._written = call, queue, lease, known
        self._items: list[dict[str, Any]] = []
        self._news, self._closing = asyncio.Event(), asyncio.Event()
        self._writing = asyncio.ensure_future(self._write_on())

    def add(self, *items: dict[str, Any]) -> None:
        """Note new tokens, or with none that the node works on it.

        Raises:
            FencedError: somebody else has the task, or it was cancelled.
        """
        if self._writing.done():
            self._writing.result()
        self._items += items
        self._news.set()

    async def close(self) -> None:
        """Write what is left, so that everything is known before the end is; errors as of `add`."""
        self._closing.set()
        self._news.set()
        await self._writing

    def drop(self) -> None:
        """Write no more."""
        self._writing.add_done_callback(lambda writing: writing.cancelled() or writing.exception())
        self._writing.cancel()

    async def _write_on(self) -> None:
        while self._items or not self._closing.is_set():
            await self._news.wait()
            self._news.clear()
            items, self._items = self._items, []
            await self._call(self._queue.progress, self._lease, self._written, items)
            self._written += len(items)
            await wait_at_most(self._closing, WRITE_S)


class Dispatcher:
    """Takes tasks and gives them to nodes until it is cancelled; `name` is its name as a consumer of the queue.

    `call` runs a blocking function in a thread.
    """

    def __init__(self, name: str, queue: TaskQueue, registry: Registry, fleet: Fleet, call: Call) -> None:
        self.name = name
        self._queue, self._registry, self._fleet, self._call = queue, registry, fleet, call
        self._room = asyncio.Event()  # something may have changed for those who wait for a node
        self._working: dict[str, asyncio.Task[None]] = {}
        self._unplaced = 0
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def run(self) -> None:
        """Beat, probe and dispatch until cancelled; then stop working on everything: others go on with it."""
        try:
            await asyncio.gather(self._beat(), self._probe_idle(), self._take())
        finally:
            for task in self._working.values():
                task.cancel()
            await asyncio.gather(*self._working.values(), return_exceptions=True)
            for channel in self._channels.values():
                await channel.close()

    @property
    def working(self) -> int:
        """How many tasks it holds."""
        return len(self._working)

    def hear(self, ring: Ring) -> None:
        """Stop working on a task that somebody else has ended."""
        if ring.what in FINAL and ring.what != "completed" and (task := self._working.get(ring.task_id)):
            task.cancel()

    async def look_at_nodes(self) -> None:
        """Take over what the registry says."""
        records = await self._call(self._registry.nodes)
        self._fleet.update(records, time.monotonic())
        self._room.set()

    async def _beat(self) -> None:
        while True:
            try:
                await self._call(self._queue.reclaim, self.name)
                await self.look_at_nodes()
            except QubicLabError as error:
                logger.warning("%s", error)
            await asyncio.sleep(BEAT_S)

    async def _probe_idle(self) -> None:
        probes = set()
        while True:
            for node, returning in self._fleet.probes(time.monotonic()):
                probe = asyncio.ensure_future(self._probe(node, returning))
                probes.add(probe)  # the loop itself keeps no task alive
                probe.add_done_callback(probes.discard)
            await asyncio.sleep(LOOK_S)

    async def _probe(self, node: str, returning: bool) -> None:
        """Ask a node how it is; one that is to come back has to answer a short request."""
        sent_s = time.monotonic()
        try:
            if returning:
                request = pb.TaskRequest(coordinator=self.name, request=_PROBE)
                async for _ in cluster_pb2_grpc.NodeStub(self._channel(node)).Run(request, timeout=PROBE_S):
                    pass
                ok = True
            else:
                health: Any = health_pb2_grpc.HealthStub(self._channel(node))
                reply = await health.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_S)
                ok = reply.status == health_pb2.HealthCheckResponse.SERVING
        except grpc.aio.AioRpcError as error:
            logger.info("probe of %s: %s", node, error.details())
            ok = False
        self._fleet.note(node, Outcome(ok, sent_s, time.monotonic()))
        self._room.set()

    async def _take(self) -> None:
        while True:
            while self._unplaced or not self._fleet.has_room(time.monotonic()):
                await self._wait_for_room()
            try:
                lease = await self._call(self._queue.take, self.name, TAKE_S)
            except QubicLabError as error:
                logger.warning("%s", error)
                continue
            if lease is not None:
                self._unplaced += 1
                self._working[lease.task_id] = task = asyncio.ensure_future(self._work(lease))
                task.add_done_callback(partial(self._forget, lease.task_id))

    def _forget(self, task_id: str, task: "asyncio.Task[None]") -> None:
        if self._working.get(task_id) is task:  # else it was lost meanwhile, and taken again
            del self._working[task_id]

    async def _wait_for_room(self) -> None:
        self._room.clear()
        await wait_at_most(self._room, LOOK_S)

    async def _work(self, lease: Lease) -> None:
        """See one try of a task through, and write its end."""
        try:
            items = await self._call(self._queue.known_items, lease.task_id) if lease.attempt > 1 else []
            result = await self._try(lease, request_of(lease.payload, items))
            await self._call(self._queue.complete, lease, result)
        except _Failed as failed:
            await self._end_try(lease, str(failed), retry=failed.failure is not Failure.TASK)
        except FencedError as error:
            logger.info("%s", error)
        except InputError as error:
            await self._end_try(lease, str(error), retry=False)
        except QubicLabError as error:  # of Redis: the lease runs out, and the task is tried again
            logger.warning("task %s: %s", lease.task_id, error)

    async def _end_try(self, lease: Lease, why: str, retry: bool) -> None:
        try:
            await self._call(self._queue.fail, lease, why, retry)
        except QubicLabError as error:
            logger.info("task %s: %s", lease.task_id, error)

    async def _try(self, lease: Lease, request: pipeline_pb2.GenerateRequest) -> dict[str, Any]:
        """Ask one node after the other until one has begun; return the result.

        Raises:
            FencedError: the task is no longer ours.
            _Failed: the try was lost, or the task itself is at fault.
        """
        avoid: set[str] = set()
        placed = False
        try:
            while True:
                node = await self._choose(lease, avoid)
                self._unplaced -= not placed  # nothing else runs before the call below has counted itself in
                placed = True
                try:
                    return await self._run(lease, node, request)
                except _Failed as failed:
                    if failed.failure not in (Failure.BUSY, Failure.NOT_BEGUN):
                        raise
                    logger.info("%s", failed)
                    avoid.add(node)
        finally:
            self._unplaced -= not placed

    async def _choose(self, lease: Lease, avoid: set[str]) -> str:
        """Return a node with room; wait for one, and keep the lease meanwhile."""
        renewed_s = time.monotonic()
        while True:
            with suppress(BusyError):
                return self._fleet.choose(time.monotonic(), avoid)
            await self._wait_for_room()
            if time.monotonic() - renewed_s > RENEW_S:
                await self._call(self._queue.renew, lease)
                renewed_s = time.monotonic()

    async def _run(self, lease: Lease, node: str, request: pipeline_pb2.GenerateRequest) -> dict[str, Any]:
        """Let a node answer, and note what that says of it; errors as of `_try`, or it did not begin."""
        tokens, sent_s = most_tokens(request), time.monotonic()
        self._fleet.begin(node, tokens)
        progress = _Progress(self._call, self._queue, lease, len(request.forced_token_ids))
        asked = pb.TaskRequest(task=lease.task_id, coordinator=self.name, request=request)
        call = cluster_pb2_grpc.NodeStub(self._channel(node)).Run(asked)
        try:
            result = await self._listen(node, call, progress)
            self._fleet.note(node, Outcome(True, sent_s, time.monotonic()))
            await progress.close()
        except _Failed as failed:
            if (ok := failed.failure is Failure.TASK) or failed.failure is not Failure.BUSY:
                lost = failed.failure in (Failure.LOST, Failure.NOT_BEGUN)
                self._fleet.note(node, Outcome(ok, sent_s, time.monotonic(), lost))
            raise
        finally:
            call.cancel()
            progress.drop()
            self._fleet.end(node, tokens)
            self._room.set()
        return result | {"node": node, "model": self._fleet.model(node)}

    async def _listen(self, node: str, call: Any, progress: _Progress) -> dict[str, Any]:
        """Pass on tokens as they come; return what the end says, with the node's own time.

        Raises:
            FencedError: the task is no longer ours.
            _Failed: no end came.
        """
        result: dict[str, Any] = {}
        begun = False
        try:
            async with aclosing(with_pauses(aiter(call), SILENT_S)) as responses:
                async for response in responses:
                    if response is None:
                        why = f"node {node} showed no sign of life for {SILENT_S:g} s"
                        raise _Failed(Failure.LOST if begun else Failure.NOT_BEGUN, why)
                    begun = True
                    match response.WhichOneof("event"):
                        case "alive":
                            progress.add()
                        case "done":
                            result["node_ms"] = response.done.node_ms
                        case _ if response.reply.HasField("token"):
                            progress.add(item_of(response.reply.token))
                        case _:
                            result |= _end(response.reply.end)
        except grpc.aio.AioRpcError as error:
            raise _Failed(failure_of(error.code(), begun), f"node {node}: {error.details()}") from None
        if "node_ms" not in result:
            raise _Failed(Failure.TRY, f"node {node} ended the answer in its middle")
        return result

    def _channel(self, node: str) -> grpc.aio.Channel:
        address = self._fleet.address(node)
        if address not in self._channels:
            self._channels[address] = open_async_channel(address)
        return self._channels[address]


def _end(end: pipeline_pb2.End) -> dict[str, Any]:
    names = ("text", "finish_reason", "prompt_tokens", "ttft_ms", "tokens_per_s")
    return {name: getattr(end, name) for name in names}
