"""The dispatcher of a coordinator: takes tasks from the queue, gives each to a node, and writes the answer back.

The steps of a task: take (a lease) → choose a node → call it → write tokens as they come, which renews the lease →
complete. If a replica is lost during the answer, the task goes back to the queue. The next dispatcher sends the tokens
so far along, and the answer continues from there.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import Counter, Histogram

from qubic_lab import tracing
from qubic_lab.cluster.admission import Admission, size_of
from qubic_lab.cluster.calls import (
    NOT_BEGUN,
    PROMPT,
    Channels,
    Failure,
    failure_of,
    is_bound,
    item_of,
    most_tokens,
    node_of,
    packed_scores,
    request_of,
    wait_at_most,
)
from qubic_lab.cluster.fleet import Fleet
from qubic_lab.cluster.health import Outcome
from qubic_lab.cluster.registry import REMOVED_S, NodeRecord, Registry
from qubic_lab.cluster.tasks import (
    BEAT_S,
    FINAL,
    TaskLease,
    TaskNotification,
    TaskOutcome,
    TaskProgress,
    TaskQueue,
)
from qubic_lab.errors import BusyError, FencedError, FullError, InputError, NotFoundError, QubicLabError, RefusedError
from qubic_lab.metrics import NAMESPACE, SECONDS
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import pipeline_pb2
from qubic_lab.wire.channel import error_of
from qubic_lab.wire.services import NODE_SERVICE, stub_of

SILENT_S = 5.0
"""A node without a keep-alive for this time is lost; keep-alives come each second."""
PROBE_S = 3.0
LOOK_S = 0.5
"""Interval at which due probes are sent, and at which free slots are looked for without a notification."""
WRITE_S = 0.02
"""Tokens of one answer that come within this time are written together."""
PAUSE_S = 0.1
"""Least time between two reads of the registry, because with many nodes there is always a new heartbeat."""
TAKE_S = 0.25
"""Time of one blocking read of a task; the dispatcher's end waits for it."""
MOST_AT_ONCE = 8
"""Tasks that are taken at once while many wait."""
FEWEST_TOKENS = 8
"""An answer of fewer tokens does not say how fast a node is."""
ALONE_S = 30.0
"""How long the last try of a task waits for a node without other tasks; after that it takes any node."""
WHOLE_S = 0.2
"""The same for an answer that nobody reads before its end; only another try would begin with them."""
WHOLE = "whole"
"""Key of what a task carries where nobody reads its answer before the end."""
SUBMITTED = "submitted_ns"
"""Key of what a task carries for the instant of its submission, in ns since 1970."""
HAND_BACK_S = 2.0
"""Time limit for giving unfinished tasks back at the end."""
_PROBE = pipeline_pb2.GenerateRequest(prompt="ping", sampling=pipeline_pb2.Sampling(max_new_tokens=1, top_p=1.0))

logger = logging.getLogger(__name__)
Call = Callable[..., Awaitable[Any]]


class _Failed(Exception):
    """A call ended without an answer; `failure` says why, and so does `code` where programs know the reason."""

    def __init__(self, failure: Failure, why: str, code: str = "") -> None:
        super().__init__(why)
        self.failure, self.code = failure, code


class _Progress:
    """Writes the tokens of one answer to the queue; tokens that come during a write go with the next one.

    The try begins after `known` tokens, and `all` are its own so far.
    """

    def __init__(self, call: Call, queue: TaskQueue, lease: TaskLease, known: int) -> None:
        self._call, self._queue, self._lease = call, queue, lease
        self.known = self._written = known
        self.all: list[dict[str, Any]] = []
        self._items: list[dict[str, Any]] = []
        self._news, self._closing = asyncio.Event(), asyncio.Event()
        self._writing = asyncio.ensure_future(self._write_on())

    def add(self, *items: dict[str, Any]) -> None:
        """Add tokens, or none to only renew the lease.

        Raises:
            FencedError: another dispatcher has the task, or it was cancelled.
        """
        if self._writing.done():
            self._writing.result()
        self._items += items
        self.all += items
        self._news.set()

    async def close(self) -> tuple[int, list[dict[str, Any]]]:
        """End the writing; return what is left for the end, as `TaskQueue.complete` takes it; errors as for `add`."""
        self._closing.set()
        self._news.set()
        await self._writing
        return self._written, self._items

    def drop(self) -> None:
        """Stop writing."""
        self._writing.add_done_callback(lambda writing: writing.cancelled() or writing.exception())
        self._writing.cancel()

    async def _write_on(self) -> None:
        is_whole = WHOLE in self._lease.carried
        while True:
            await self._news.wait()
            if is_whole:
                await wait_at_most(self._closing, WHOLE_S)
            if self._closing.is_set():
                return
            self._news.clear()
            items, self._items = self._items, []
            await _once_there_is_room(self._call, self._queue.progress, self._lease, self._written, items)
            self._written += len(items)
            if not is_whole:
                await wait_at_most(self._closing, WRITE_S)


class Dispatcher:
    """Takes tasks and gives them to nodes until it is cancelled.

    The last try of a task gets a node without other tasks. A task that has ended two nodes then harms no other task if
    it ends a third one, and a task that only ran beside such a task is safe.

    `name` is that of the queue's consumer, `most_tries` the queue's limit; `call` runs a blocking function in a thread,
    and `hand_over` gets the task of each try that has ended, and the answer of a first one once it is written;
    `admission` learns how long tasks are held.
    """

    def __init__(
        self,
        name: str,
        queue: TaskQueue,
        most_tries: int,
        registry: Registry,
        fleet: Fleet,
        call: Call,
        hand_over: Callable[[str, TaskProgress | None], None],
        admission: Admission,
    ) -> None:
        self.name, self._hand_over, self._admission = name, hand_over, admission
        self._most_tries = most_tries
        self._queue, self._registry, self._fleet, self._call = queue, registry, fleet, call
        self._channels = Channels()
        self._news = asyncio.Event()  # nodes have changed: read the registry
        self._room = asyncio.Event()  # a node may have become available
        self._whole_s, self._read_ms = -math.inf, 0  # when all of the registry was read; its instant of the latest read
        self._working: dict[int, tuple[TaskLease, asyncio.Task[TaskProgress | None]]] = {}  # by fencing token
        self._unplaced: set[int] = set()
        self._taking: list[asyncio.Future[TaskLease | None]] = []
        self._at_once = 1
        self._probes: set[asyncio.Task[None]] = set()  # the loop itself keeps no task alive
        self.calls = Counter(
            "node_calls", "Calls of nodes with a task, by their end.", ["end"], NAMESPACE, registry=None
        )
        text = "Time from taking a task until a node is chosen."
        self.choices = Histogram("dispatch_seconds", text, [], NAMESPACE, registry=None, buckets=SECONDS)

    async def run(self) -> None:
        """Send heartbeats, probe and dispatch until cancelled; then give unfinished tasks back for others."""
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
                    taken = await asyncio.gather(*self._taking, return_exceptions=True)
                    leases += [each for each in taken if isinstance(each, TaskLease)]
                    await asyncio.gather(*(self._end_try(lease, "the coordinator ended", True) for lease in leases))
            await self._channels.close()

    @property
    def working(self) -> int:
        """Number of tasks that it works on."""
        return len(self._working)

    def works_on(self, task_id: str) -> bool:
        """Return whether it works on a task."""
        return any(lease.task_id == task_id for lease, _ in self._working.values())

    def on_notification(self, notification: TaskNotification) -> None:
        """Stop working on a task that has ended elsewhere."""
        if notification.what in FINAL and notification.what != "completed":
            for lease, work in self._working.values():
                if lease.task_id == notification.task_id:
                    work.cancel()

    def on_node_change(self) -> None:
        """Read the registry soon, because a node is new, has changed, or has left."""
        self._news.set()

    async def look_at_nodes(self) -> None:
        """Update the fleet by what has changed in the registry, now and then by all of it.

        A coordinator of an earlier version, beside this one during an upgrade, does not say who has gone.
        """
        is_due = time.monotonic() >= self._whole_s + REMOVED_S
        changes = await self._call(self._registry.changes, 0 if is_due else self._read_ms)
        now_s, self._read_ms = time.monotonic(), changes.at_ms
        self._fleet.update(changes.records, now_s, None if changes.whole else changes.gone)
        if changes.whole:
            self._whole_s = now_s
        if changes.whole or changes.gone:
            self._channels.keep(self._fleet.addresses())
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
        """Probe a node by a health check, or by a short request if the answer decides on its return."""
        sent_s = time.monotonic()
        try:
            channel = await self._channels.ready(node.registration.address)
            if returning:
                request = pb.TaskRequest(coordinator=self.name, request=_PROBE)
                async for _ in stub_of(channel, NODE_SERVICE).Run(request, timeout=PROBE_S):
                    pass
                ok = True
            else:
                health: Any = health_pb2_grpc.HealthStub(channel)
                reply = await health.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_S)
                ok = reply.status == health_pb2.HealthCheckResponse.SERVING
        except (grpc.aio.AioRpcError, QubicLabError) as error:
            logger.info("probe of %s: %s", node.id, error)
            ok = False
        self._fleet.note(node.id, Outcome(ok, sent_s, time.monotonic(), probe=True))
        self._room.set()

    async def _take(self) -> None:
        """Take a task, or several at once while tasks wait: each take lasts as long as Redis takes to write it down."""
        while self._unplaced or not self._fleet.has_room(time.monotonic()):
            await self._wait_for_room()
        most = self._fleet.room(time.monotonic(), self._at_once)
        wait_s = TAKE_S if most == 1 else 0.0  # one that waits would hold up the others
        take = partial(self._call, self._queue.take, self.name, wait_s)
        self._taking = [asyncio.ensure_future(take()) for _ in range(most)]
        # A thread cannot be cancelled, so `run` waits for them.
        taken = await asyncio.shield(asyncio.gather(*self._taking, return_exceptions=True))
        self._taking = []
        leases = [each for each in taken if isinstance(each, TaskLease)]
        self._at_once = min(2 * most, MOST_AT_ONCE) if len(leases) == most else 1
        for lease in leases:
            work = asyncio.ensure_future(self._work(lease))
            if not (self._is_last(lease) or is_bound(lease.payload)):  # such tasks may wait long; others need not
                self._unplaced.add(lease.token)
            self._working[lease.token] = lease, work
            work.add_done_callback(partial(self._forget, lease.token, time.monotonic()))
        for each in taken:
            if isinstance(each, BaseException):
                raise each

    def _forget(self, token: int, taken_s: float, work: "asyncio.Task[TaskProgress | None]") -> None:
        lease, _ = self._working.pop(token)
        self._admission.note(size_of(lease.payload), time.monotonic() - taken_s, work.cancelled())
        self._hand_over(lease.task_id, None if work.cancelled() else work.result())
        self._unplaced.discard(token)
        self._room.set()

    async def _wait_for_room(self) -> None:
        self._room.clear()
        await wait_at_most(self._room, LOOK_S)

    async def _work(self, lease: TaskLease) -> TaskProgress | None:
        """Run one try of a task as a part of its request, and write its outcome; return the answer of a first try."""
        with tracing.following(lease.carried):
            now_ns = time.time_ns()
            tracing.past_span("queue", int(lease.carried.get(SUBMITTED, now_ns)), now_ns)
            with tracing.span("dispatch", task=lease.task_id, attempt=lease.attempt):
                return await self._answer(lease)

    async def _answer(self, lease: TaskLease) -> TaskProgress | None:
        try:
            items = (await self._call(self._queue.look, lease.task_id)).items if lease.attempt > 1 else []
            progress = _Progress(self._call, self._queue, lease, len(items))
            try:
                result = await self._try(lease, request_of(lease.payload, items), progress)
                rest = await progress.close()
            finally:
                progress.drop()
            await _once_there_is_room(self._call, self._queue.complete, lease, result, *rest)
            logger.info("task %s: answered by %s in %.0f ms", lease.task_id, result["node"], result["node_ms"])
            if lease.attempt == 1:
                return TaskProgress(progress.all, 0, TaskOutcome(lease.task_id, "completed", result, "", 1, ()))
        except _Failed as failed:
            await self._end_try(lease, str(failed), failed.failure is not Failure.TASK, failed.code)
        except FencedError as error:
            logger.info("%s", error)
        except InputError as error:
            await self._end_try(lease, str(error), retry=False)
        except QubicLabError as error:  # from Redis: the lease expires, and the task is tried again
            logger.warning("task %s: %s", lease.task_id, error)
        except Exception:
            logger.exception("unexpected error with task %s", lease.task_id)
            await self._end_try(lease, "the coordinator failed: its log says how", retry=True)
        return None

    async def _end_try(self, lease: TaskLease, why: str, retry: bool, code: str = "") -> None:
        try:
            await self._call(self._queue.fail, lease, why, retry, code)
        except QubicLabError as error:
            logger.info("task %s: %s", lease.task_id, error)

    async def _try(
        self, lease: TaskLease, request: pipeline_pb2.GenerateRequest, progress: _Progress
    ) -> dict[str, Any]:
        """Ask one node after the other until one has started; return the result.

        Raises:
            FencedError: the task is no longer ours.
            _Failed: the try was lost, or the task itself is at fault.
        """
        only = node_of(lease.payload)
        refused = self._fleet.failing() if lease.attempt > 1 else set[str]()
        taken_s = time.monotonic()
        alone_until_s = taken_s + ALONE_S if self._is_last(lease) else 0.0
        while True:
            node, alone = await self._choose(progress, refused, alone_until_s, only, request.model)
            self.choices.observe(time.monotonic() - taken_s)
            self._unplaced.discard(lease.token)
            self._room.set()  # for the next task; `_run` counts this one before anything else runs
            try:
                return await self._run(node, alone, lease.task_id, request, progress)
            except _Failed as failed:
                if failed.failure not in NOT_BEGUN:
                    if (rest := await progress.close())[1]:
                        await _once_there_is_room(self._call, self._queue.progress, lease, *rest)
                    raise
                logger.info("%s", failed)
            if not (alone or is_bound(lease.payload)):
                self._unplaced.add(lease.token)
            progress.add()
            if node.id in refused:  # for the second time, as no other node has room
                await asyncio.sleep(LOOK_S)
            refused.add(node.id)

    def _is_last(self, lease: TaskLease) -> bool:
        return 1 < lease.attempt >= self._most_tries

    async def _choose(
        self, progress: _Progress, refused: set[str], alone_until_s: float, only: str, model: str
    ) -> tuple[NodeRecord, bool]:
        """Wait for a node with room, and return it and whether it gets no other task; the lease is kept meanwhile.

        Raises:
            _Failed: the only node that may answer takes no tasks.
        """
        while True:
            now_s = time.monotonic()
            alone = now_s < alone_until_s and not only
            try:
                if only:
                    return self._fleet.choose_only(only, now_s), False
                return self._fleet.choose(now_s, refused, alone, model), alone
            except BusyError:
                pass
            except (NotFoundError, RefusedError) as error:
                raise _Failed(Failure.TASK, str(error)) from None
            progress.add()
            await self._wait_for_room()

    async def _run(
        self, node: NodeRecord, alone: bool, task_id: str, request: pipeline_pb2.GenerateRequest, progress: _Progress
    ) -> dict[str, Any]:
        """Let a node answer, and record the outcome for its health; errors as for `_try`, or nothing was started."""
        tokens, sent_s = most_tokens(request), time.monotonic()
        self._fleet.begin(node.id, tokens, alone)
        try:
            result, speed = await self._listen(node, task_id, request, progress)
            self._fleet.note(node.id, Outcome(True, sent_s, time.monotonic(), tokens_per_s=speed))
            self.calls.labels("answered").inc()
            return result
        except _Failed as failed:
            self.calls.labels(failed.failure.name.lower()).inc()
            if failed.failure not in (Failure.BUSY, Failure.TASK):  # these say nothing of the node
                lost = failed.failure in (Failure.LOST, Failure.UNREACHABLE)
                self._fleet.note(node.id, Outcome(False, sent_s, time.monotonic(), lost))
            raise
        finally:
            self._fleet.end(node.id, tokens)
            self._room.set()

    async def _listen(
        self, node: NodeRecord, task_id: str, request: pipeline_pb2.GenerateRequest, progress: _Progress
    ) -> tuple[dict[str, Any], float]:
        """Write tokens as they come; return the end of the answer with the node's name, model and own time.

        With it comes its tokens/s, 0 if it was too short to say. Of several samples each becomes one item when it is
        complete.

        Raises:
            FencedError: the task is no longer ours.
            _Failed: no end came.
        """
        try:
            channel = await self._channels.ready(node.registration.address)
        except QubicLabError as error:
            raise _Failed(Failure.UNREACHABLE, f"node {node.id}: {error}") from None
        result: dict[str, Any] = {"node": node.id, "model": node.registration.capabilities.model}
        if request.samples > 1:
            result["samples"] = 0
        given, loop = 0, asyncio.get_running_loop()
        asked = pb.TaskRequest(task=task_id, coordinator=self.name, request=request, together=True)
        call = stub_of(channel, NODE_SERVICE).Run(asked, metadata=tracing.metadata())
        try:
            async with asyncio.timeout(SILENT_S) as silence, aclosing(aiter(call)) as messages:
                async for message in messages:
                    silence.reschedule(loop.time() + SILENT_S)
                    for response in (message, *message.more):
                        match response.WhichOneof("event"):
                            case "alive":
                                progress.add()
                            case "done":
                                result["node_ms"] = response.done.node_ms
                            case _ if request.samples > 1:
                                given += 1
                                progress.add(_sample(response.reply))
                                result["samples"] += 1
                            case _ if response.reply.HasField("token"):
                                given += 1
                                progress.add(item_of(response.reply.token))
                            case _:
                                result |= _end(response.reply.end)
        except TimeoutError:
            raise _Failed(Failure.LOST, f"node {node.id} sent nothing for {SILENT_S:g} s") from None
        except grpc.aio.AioRpcError as error:
            raise _failed(node, error, given) from None
        finally:
            call.cancel()
        if "node_ms" not in result:
            raise _Failed(Failure.TRY, f"node {node.id} ended the answer early")
        return result, result.get("tokens_per_s", 0.0) if given >= FEWEST_TOKENS else 0.0


async def _once_there_is_room(call: Call, *arguments: Any) -> None:
    """Make a call again while Redis is full, as the work that it writes is done; a lost lease ends that."""
    while True:
        try:
            await call(*arguments)
        except FullError as error:
            logger.warning("%s", error)
            await asyncio.sleep(LOOK_S)
        else:
            return


async def _again_and_again(step: Callable[[], Awaitable[None]]) -> None:
    """Repeat a step forever; errors are logged and do not end the loop."""
    while True:
        try:
            await step()
        except QubicLabError as error:
            logger.warning("%s", error)
        except Exception:
            logger.exception("unexpected error in the dispatcher")
        else:
            continue
        await asyncio.sleep(LOOK_S)


def _failed(node: NodeRecord, error: grpc.aio.AioRpcError, given: int) -> _Failed:
    """Return the failure of a call; its text is for the client if the task is at fault, otherwise for the story.

    `given` is the number of tokens that had come.
    """
    failure = failure_of(error.code())
    if given and failure in NOT_BEGUN:
        failure = Failure.TRY
    if failure is Failure.TASK:
        return _Failed(failure, error.details() or "the node refuses it", getattr(error_of(error), "code", ""))
    if error.code() is grpc.StatusCode.UNKNOWN:  # an error inside the node; its details are not for clients
        return _Failed(failure, f"node {node.id} failed: its log says how")
    return _Failed(failure, f"node {node.id}: {error.details()}")


def _sample(reply: pipeline_pb2.GenerateReply) -> dict[str, Any]:
    """Return a complete sample, with its number of tokens and their summed log-probabilities."""
    counts = {"tokens": len(reply.end.token_ids), "logprob": sum(reply.end.logprobs)}
    return {"sample": reply.sample, **_end(reply.end), **counts}


def _end(end: pipeline_pb2.End) -> dict[str, Any]:
    names = ("text", "finish_reason", "prompt_tokens", "ttft_ms", "queue_ms", "tokens_per_s")
    scores = {PROMPT: packed_scores(end)} if end.prompt else {}
    cached = {"cached_tokens": end.cached_tokens} if end.cached_tokens else {}
    return {name: getattr(end, name) for name in names} | cached | scores
