"""The work of a coordinator: it takes tasks from the queue, gives each to a node, and writes down what comes back.

One task's way: take (a lease) → choose a node → call it → write tokens as they come, which renews the lease → complete.
When a replica is lost in mid-answer the task goes back to the queue; whoever takes it next sends the tokens so far
along, and the answer goes on where it was.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from qubic_lab.cluster.calls import (
    NOT_BEGUN,
    Failure,
    failure_of,
    item_of,
    most_tokens,
    node_of,
    request_of,
    wait_at_most,
    with_pauses,
)
from qubic_lab.cluster.channels import Channels
from qubic_lab.cluster.fleet import Fleet
from qubic_lab.cluster.health import Outcome
from qubic_lab.cluster.registry import NodeRecord, Registry
from qubic_lab.cluster.tasks import BEAT_S, FINAL, Lease, Ring, TaskQueue
from qubic_lab.errors import BusyError, FencedError, InputError, NotFoundError, QubicLabError, RefusedError
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import cluster_pb2_grpc, pipeline_pb2

SILENT_S = 5.0
"""A node that shows no sign of life for so long, where one is due each second, is lost."""
PROBE_S = 3.0
LOOK_S = 0.5
"""So often is looked for probes that are due; and, with nothing to wake for, for room."""
WRITE_S = 0.02
"""Tokens of one answer that come within so long of each other are written together."""
PAUSE_S = 0.1
"""Between two looks at the registry at least: of many nodes one has always just beaten, and a look reads all."""
TAKE_S = 0.25
"""One wait for a task; when the dispatcher ends it is waited out."""
ALONE_S = 30.0
"""So long does a task's last try wait for a node of its own; then it goes where there is room."""
HAND_BACK_S = 2.0
"""So long may it take to give back at the end what was under way."""
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
        """Note new tokens, or with none that the task is still worked on: that renews its lease.

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
        while True:
            await self._news.wait()
            self._news.clear()
            if self._closing.is_set() and not self._items:
                return
            items, self._items = self._items, []
            await self._call(self._queue.progress, self._lease, self._written, items)
            self._written += len(items)
            await wait_at_most(self._closing, WRITE_S)
            if self._closing.is_set():
                self._news.set()


class _Samples:
    """Several answers to one prompt: each becomes one item, when it is whole."""

    def __init__(self) -> None:
        self.ended = 0
        self._tokens: dict[int, int] = defaultdict(int)
        self._logprobs: dict[int, float] = defaultdict(float)

    def items_of(self, reply: pipeline_pb2.GenerateReply) -> list[dict[str, Any]]:
        """Return an answer that ends with a reply, with its number of tokens and the sum of their log-probabilities."""
        number = reply.sample
        if reply.HasField("token"):
            self._tokens[number] += 1
            self._logprobs[number] += reply.token.logprob
            return []
        self.ended += 1
        counts = {"tokens": self._tokens[number], "logprob": self._logprobs[number]}
        return [{"sample": number, **_end(reply.end), **counts}]


class Dispatcher:
    """Takes tasks and gives them to nodes until it is cancelled.

    The last try of a task has a node of its own: what has ended its node twice harms no other task by ending a third
    one, and what was only beside it is out of danger.

    Args:
        name: its name as a consumer of the queue.
        queue: where tasks come from, and their ends go.
        most_tries: as of the queue's limits.
        registry: of nodes.
        fleet: what is known of them.
        call: runs a blocking function in a thread.
    """

    def __init__(
        self, name: str, queue: TaskQueue, most_tries: int, registry: Registry, fleet: Fleet, call: Call
    ) -> None:
        self.name = name
        self._most_tries = most_tries
        self._queue, self._registry, self._fleet, self._call = queue, registry, fleet, call
        self._channels = Channels()
        self._news = asyncio.Event()  # of nodes: it is time to look at the registry
        self._room = asyncio.Event()  # something may have changed for those who wait for a node
        self._working: dict[int, tuple[Lease, asyncio.Task[None]]] = {}  # by the leases' tokens
        self._unplaced: set[int] = set()
        self._taking: asyncio.Future[Lease | None] | None = None
        self._probes: set[asyncio.Task[None]] = set()  # the loop itself keeps no task alive

    async def run(self) -> None:
        """Beat, probe and dispatch until cancelled; then give back what is under way: others go on with it."""
        try:
            await asyncio.gather(*map(_again_and_again, (self._reclaim, self._look, self._probe_some, self._take)))
        finally:
            leases = [lease for lease, _ in self._working.values()]
            tasks = [*(work for _, work in self._working.values()), *self._probes]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with suppress(TimeoutError, QubicLabError):
                async with asyncio.timeout(HAND_BACK_S):
                    if self._taking is not None and (lease := await self._taking) is not None:
                        leases.append(lease)
                    await asyncio.gather(*(self._end_try(lease, "the coordinator ended", True) for lease in leases))
            await self._channels.close()

    @property
    def working(self) -> int:
        """How many tasks it holds."""
        return len(self._working)

    def hear(self, ring: Ring) -> None:
        """Stop working on a task that somebody else has ended."""
        if ring.what in FINAL and ring.what != "completed":
            for lease, work in self._working.values():
                if lease.task_id == ring.task_id:
                    work.cancel()

    def hear_of_node(self) -> None:
        """Look soon at the registry: a node is new, has changed, or is gone."""
        self._news.set()

    async def look_at_nodes(self) -> None:
        """Take over what the registry says."""
        records = await self._call(self._registry.nodes)
        self._fleet.update(records, time.monotonic())
        self._channels.keep({record.registration.address for record in records})
        self._room.set()

    async def _reclaim(self) -> None:
        await self._call(self._queue.reclaim, self.name)
        await asyncio.sleep(BEAT_S)

    async def _look(self) -> None:
        self._news.clear()
        await self.look_at_nodes()
        await asyncio.sleep(PAUSE_S)
        await wait_at_most(self._news, BEAT_S)

    async def _probe_some(self) -> None:
        for node, returning in self._fleet.probes(time.monotonic()):
            probe = asyncio.ensure_future(self._probe(node, returning))
            self._probes.add(probe)
            probe.add_done_callback(self._probes.discard)
        await asyncio.sleep(LOOK_S)

    async def _probe(self, node: NodeRecord, returning: bool) -> None:
        """Ask a node how it is; one that is to come back has to answer a short request."""
        sent_s = time.monotonic()
        try:
            channel = await self._channels.ready(node.registration.address)
            if returning:
                request = pb.TaskRequest(coordinator=self.name, request=_PROBE)
                async for _ in cluster_pb2_grpc.NodeStub(channel).Run(request, timeout=PROBE_S):
                    pass
                ok = True
            else:
                health: Any = health_pb2_grpc.HealthStub(channel)
                reply = await health.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_S)
                ok = reply.status == health_pb2.HealthCheckResponse.SERVING
        except (grpc.aio.AioRpcError, QubicLabError) as error:
            logger.info("probe of %s: %s", node.id, error)
            ok = False
        self._fleet.note(node.id, Outcome(ok, sent_s, time.monotonic()))
        self._room.set()

    async def _take(self) -> None:
        while self._unplaced or not self._fleet.has_room(time.monotonic()):
            await self._wait_for_room()
        self._taking = asyncio.ensure_future(self._call(self._queue.take, self.name, TAKE_S))
        lease = await asyncio.shield(self._taking)  # a thread cannot be cancelled: `run` waits for it
        self._taking = None
        if lease is not None:
            work = asyncio.ensure_future(self._work(lease))
            if not (self._is_last(lease) or node_of(lease.payload)):  # which may wait for long, and others need not
                self._unplaced.add(lease.token)
            self._working[lease.token] = lease, work
            work.add_done_callback(partial(self._forget, lease.token))

    def _forget(self, token: int, work: "asyncio.Task[None]") -> None:
        del self._working[token]
        self._unplaced.discard(token)
        self._room.set()

    async def _wait_for_room(self) -> None:
        self._room.clear()
        await wait_at_most(self._room, LOOK_S)

    async def _work(self, lease: Lease) -> None:
        """See one try of a task through, and write its end."""
        try:
            items = await self._call(self._queue.known_items, lease.task_id) if lease.attempt > 1 else []
            result = await self._try(lease, request_of(lease.payload, items), len(items))
            await self._call(self._queue.complete, lease, result)
        except _Failed as failed:
            await self._end_try(lease, str(failed), retry=failed.failure is not Failure.TASK)
        except FencedError as error:
            logger.info("%s", error)
        except InputError as error:
            await self._end_try(lease, str(error), retry=False)
        except QubicLabError as error:  # of Redis: the lease runs out, and the task is tried again
            logger.warning("task %s: %s", lease.task_id, error)
        except Exception:
            logger.exception("a fault with task %s", lease.task_id)
            await self._end_try(lease, "the coordinator failed: its log says how", retry=True)

    async def _end_try(self, lease: Lease, why: str, retry: bool) -> None:
        try:
            await self._call(self._queue.fail, lease, why, retry)
        except QubicLabError as error:
            logger.info("task %s: %s", lease.task_id, error)

    async def _try(self, lease: Lease, request: pipeline_pb2.GenerateRequest, known: int) -> dict[str, Any]:
        """Ask one node after the other until one has begun; return the result. `known`: items of earlier tries.

        Raises:
            FencedError: the task is no longer ours.
            _Failed: the try was lost, or the task itself is at fault.
        """
        progress = _Progress(self._call, self._queue, lease, known)
        only = node_of(lease.payload)
        refused: set[str] = set()
        alone_until_s = time.monotonic() + ALONE_S if self._is_last(lease) else 0.0
        try:
            while True:
                node, alone = await self._choose(progress, refused, alone_until_s, only)
                self._unplaced.discard(lease.token)
                self._room.set()  # for the next task; the call below has counted itself in before anybody wakes
                try:
                    result = await self._run(node, alone, lease.task_id, request, progress)
                except _Failed as failed:
                    if failed.failure not in NOT_BEGUN:
                        raise
                    logger.info("%s", failed)
                else:
                    await progress.close()
                    return result
                if not (alone or only):
                    self._unplaced.add(lease.token)
                progress.add()
                if node.id in refused:  # for the second time, since no other has room
                    await asyncio.sleep(LOOK_S)
                refused.add(node.id)
        finally:
            progress.drop()

    def _is_last(self, lease: Lease) -> bool:
        return 1 < lease.attempt >= self._most_tries

    async def _choose(
        self, progress: _Progress, refused: set[str], alone_until_s: float, only: str
    ) -> tuple[NodeRecord, bool]:
        """Return a node with room, and whether it is to have no other task; wait for one, and keep the lease.

        Raises:
            _Failed: the only node that may answer takes nothing.
        """
        while True:
            now_s = time.monotonic()
            alone = now_s < alone_until_s and not only
            try:
                if only:
                    return self._fleet.choose_only(only, now_s), False
                return self._fleet.choose(now_s, refused, alone), alone
            except BusyError:
                pass
            except (NotFoundError, RefusedError) as error:
                raise _Failed(Failure.TASK, str(error)) from None
            progress.add()
            await self._wait_for_room()

    async def _run(
        self, node: NodeRecord, alone: bool, task_id: str, request: pipeline_pb2.GenerateRequest, progress: _Progress
    ) -> dict[str, Any]:
        """Let a node answer, and note what that says of it; errors as of `_try`, or nothing was begun."""
        tokens, sent_s = most_tokens(request), time.monotonic()
        self._fleet.begin(node.id, tokens, alone)
        try:
            result = await self._listen(node, task_id, request, progress)
            self._fleet.note(node.id, Outcome(True, sent_s, time.monotonic()))
            return result
        except _Failed as failed:
            if failed.failure is not Failure.BUSY:
                ok, lost = failed.failure is Failure.TASK, failed.failure in (Failure.LOST, Failure.UNREACHABLE)
                self._fleet.note(node.id, Outcome(ok, sent_s, time.monotonic(), lost))
            raise
        finally:
            self._fleet.end(node.id, tokens)
            self._room.set()

    async def _listen(
        self, node: NodeRecord, task_id: str, request: pipeline_pb2.GenerateRequest, progress: _Progress
    ) -> dict[str, Any]:
        """Pass on tokens as they come; return what the end says, with who gave it and the node's own time.

        Raises:
            FencedError: the task is no longer ours.
            _Failed: no end came.
        """
        try:
            channel = await self._channels.ready(node.registration.address)
        except QubicLabError as error:
            raise _Failed(Failure.UNREACHABLE, f"node {node.id}: {error}") from None
        result: dict[str, Any] = {"node": node.id, "model": node.registration.capabilities.model}
        samples = _Samples() if request.samples > 1 else None
        begun = given = False
        asked = pb.TaskRequest(task=task_id, coordinator=self.name, request=request)
        call = cluster_pb2_grpc.NodeStub(channel).Run(asked)
        try:
            async with aclosing(with_pauses(aiter(call), SILENT_S)) as responses:
                async for response in responses:
                    if response is None:
                        raise _Failed(Failure.LOST, f"node {node.id} showed no sign of life for {SILENT_S:g} s")
                    match response.WhichOneof("event"):
                        case "alive" if not begun:  # which comes at once; the lease was renewed a moment ago
                            begun = True
                        case "alive":
                            progress.add()
                        case "done":
                            result["node_ms"] = response.done.node_ms
                        case _ if samples is not None:
                            given = True
                            progress.add(*samples.items_of(response.reply))
                            result["samples"] = samples.ended
                        case _ if response.reply.HasField("token"):
                            given = True
                            progress.add(item_of(response.reply.token))
                        case _:
                            result |= _end(response.reply.end)
        except grpc.aio.AioRpcError as error:
            raise _failed(node, error, given) from None
        finally:
            call.cancel()
        if "node_ms" not in result:
            raise _Failed(Failure.TRY, f"node {node.id} ended the answer in its middle")
        return result


async def _again_and_again(step: Callable[[], Awaitable[None]]) -> None:
    """Await a step for ever; what goes wrong in one is logged and ends no other."""
    while True:
        try:
            await step()
        except QubicLabError as error:
            logger.warning("%s", error)
        except Exception:
            logger.exception("a fault in the dispatcher")
        else:
            continue
        await asyncio.sleep(LOOK_S)


def _failed(node: NodeRecord, error: grpc.aio.AioRpcError, given: bool) -> _Failed:
    """Return what a call's end says; its text is for the client where the task is at fault, else for the story.

    `given`: whether tokens had come.
    """
    failure = failure_of(error.code())
    if given and failure in NOT_BEGUN:
        failure = Failure.TRY
    if failure is Failure.TASK:
        return _Failed(failure, error.details() or "the node refuses it")
    if error.code() is grpc.StatusCode.UNKNOWN:  # a fault there: the details are the inside of it
        return _Failed(failure, f"node {node.id} failed: its log says how")
    return _Failed(failure, f"node {node.id}: {error.details()}")


def _end(end: pipeline_pb2.End) -> dict[str, Any]:
    names = ("text", "finish_reason", "prompt_tokens", "ttft_ms", "tokens_per_s")
    return {name: getattr(end, name) for name in names}
