"""Rank 0's loop: take requests, send micro-batches down the ring, take tokens back."""

import queue
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from qubic_lab.core import SamplingParams
from qubic_lab.errors import BusyError, QubicLabError, RankError
from qubic_lab.model.layout import PAGE
from qubic_lab.pipeline.member import (
    REPORT_ORDER,
    Ended,
    Member,
    StageSettings,
    check_order,
    check_replies,
)
from qubic_lab.pipeline.message import LOGPROB_COLUMNS, NO_LOGPROBS, NO_TOKEN, Kind, Message
from qubic_lab.pipeline.pages import affordable_pages
from qubic_lab.pipeline.schedule import Event, Limits, Scheduler, Sibling, with_logprobs

PREFILL_CHUNK = 128
"""Tokens of a prompt's chunk."""
GATHER_S, MOST_GATHER_S = 0.001, 0.01
"""After the first command that ends an idle time, others are awaited for so long each, and for so long in all: requests
that are sent together then share their first micro-batch."""
IDLE_BEAT_S = 2.0
"""Interval at which an idle ring sends a report round, because a receive that waits too long counts as a lost peer."""
COUNT_S = 5.0
"""Interval at which the ranks count what they have done while requests run; that travels among the micro-batches."""

_CPU = torch.device("cpu")
Replies = list[dict[str, Any]]
Sink = Callable[[Event], None]


@dataclass(frozen=True)
class _Submit:
    request: int
    prompt: tuple[int, ...]
    sampling: SamplingParams
    siblings: tuple[Sibling, ...]
    forced: tuple[int, ...]
    prompt_logprobs: int
    sink: Sink
    time_ns: int


@dataclass(frozen=True)
class _Cancel:
    request: int


@dataclass(frozen=True)
class _Order:
    content: dict[str, Any]
    limits: Limits | None
    replies: "Future[Replies]"


class Engine:
    """The owner of scheduler and ring; other threads send it commands."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._commands: queue.SimpleQueue[_Submit | _Cancel | _Order] = queue.SimpleQueue()
        self._scheduler: Scheduler | None = None
        self._sinks: dict[int, Sink] = {}
        self._begun_s: dict[int, float] = {}  # when the prompts of requests without an event were begun
        self._in_flight: deque[tuple[Message, float]] = deque()  # each with when it was begun
        self._taken_s = 0.0  # when the last one came back
        self._undelivered: list[tuple[Sink, Event]] = []
        self._told: queue.SimpleQueue[tuple[int, Mapping[str, str]]] = queue.SimpleQueue()
        self._counted_at, self._counting = 0.0, False  # when the ranks began to count, and whether they do now
        self.counts: Replies = []  # what each rank said last (`RankCounts`); other threads may read it
        self.progressed_at = time.monotonic()  # when the last micro-batch came back; other threads may read it

    def configure(self, settings: StageSettings, limits: Limits) -> Replies:
        """Load a model, or another shape of the running one, into all ranks, and wait for it.

        Raises:
            BusyError: requests are running.
            ModelError: a rank could not load its part.
        """
        return self._order({"op": "configure", "settings": asdict(settings)}, limits)

    def report(self) -> Replies:
        """Ask every rank for its memory."""
        return self._order(REPORT_ORDER, None)

    def submit(
        self,
        request: int,
        prompt: tuple[int, ...],
        sampling: SamplingParams,
        sink: Sink,
        siblings: Sequence[Sibling] = (),
        forced: tuple[int, ...] = (),
        prompt_logprobs: int | None = None,
    ) -> None:
        """Queue a request and siblings that share its prompt; `sink` gets all their events in the engine's thread.

        `forced` as for Scheduler.submit, `prompt_logprobs` as of Request.
        """
        scored = NO_LOGPROBS if prompt_logprobs is None else prompt_logprobs
        self._commands.put(
            _Submit(request, prompt, sampling, tuple(siblings), forced, scored, sink, time.perf_counter_ns())
        )

    def tell(self, request: int, carried: Mapping[str, str]) -> None:
        """Let all ranks know with the next count that a request has ended, and what names it (`tracing.headers`)."""
        self._told.put((request, carried))

    def cancel(self, request: int) -> None:
        """Cancel a request; its slot is free at the next step."""
        self._commands.put(_Cancel(request))

    def run(self) -> None:
        """Serve until the process ends.

        Raises:
            RankError: the last rank answered another micro-batch than the expected one.
        """
        while True:
            for command in self._take_commands():
                self._execute(command)
            self._step()

    def _step(self) -> None:
        """Fill the ring with one micro-batch for each rank, then take the oldest one back.

        Events wake clients' threads, which need the GIL. So those of a micro-batch are delivered when all is ready to
        compute the next one, which does without it; if there is none, at once.
        """
        if self._scheduler is None:
            return
        while len(self._in_flight) < self._member.ranks and (message := self._scheduler.next_micro_batch()):
            self._send(self._scheduler, message)
        self._deliver()
        if self._in_flight or self._counting:
            self._take_back(self._scheduler)

    def _send(self, scheduler: Scheduler, message: Message) -> None:
        member, stage = self._member, self._member.stage
        assert stage is not None
        hidden = stage.embed(message, scheduler.input_tokens(message))
        next_tokens = torch.tensor(scheduler.next_tokens(message)) if message.scored else None
        adjustments = None
        if added := scheduler.adjustments(message):
            message = replace(message, adjustments=len(added))
            adjustments = torch.tensor(added, dtype=torch.float64).view(torch.int64)
        placements = None
        if placed := scheduler.placements():
            message = replace(message, placements=len(placed))
            placements = torch.tensor(placed)
        self._deliver()
        begun_s = time.perf_counter()
        self._begun_s |= dict.fromkeys(scheduler.begun(message), begun_s)
        returned, payloads = member.run(message, hidden, next_tokens, adjustments, placements)
        member.transport.send(returned, *payloads)
        self._in_flight.append((message, begun_s))

    def _take_back(self, scheduler: Scheduler) -> None:
        message = self._member.receive()
        if message.kind is Kind.CONTROL and self._counting:
            self._counting, self.counts = False, self._member.receive_control(message)["counts"]
            return
        sent, begun_s = self._in_flight.popleft()
        check_order(self._member.ranks - 1, message, sent.sequence)
        begun_s, self._taken_s = max(self._taken_s, begun_s), time.perf_counter()
        scheduler.observe(message, self._taken_s - begun_s)
        self.progressed_at = time.monotonic()
        logprobs = self._receive_logprobs(message)
        scores = self._receive_scores(message)
        for event in scheduler.complete(message):
            if row := logprobs.get((event.request, event.index)):
                event = with_logprobs(event, row)
            if event.request in scores:
                event = replace(event, scores=scores[event.request])
            if event.request in self._begun_s:
                event = replace(event, begun_s=self._begun_s.pop(event.request))
            sink = self._sinks[event.request]
            if event.finish or event.fault_rank is not None:
                del self._sinks[event.request]
            self._undelivered.append((sink, event))

    def _deliver(self) -> None:
        events, self._undelivered = self._undelivered, []
        for sink, event in events:
            sink(event)

    def _receive_scores(self, message: Message) -> dict[int, tuple[list[float], ...]]:
        """Return the rows of each request with a scored chunk."""
        if not (scored := message.scored):
            return {}
        scores = self._member.transport.receive_payload(message.score_shape, torch.int64, _CPU)
        chunks = scores.view(torch.float64).split([work.rows for work in scored])
        return {
            work.request: tuple(rows[:, : 1 + 2 * work.prompt_logprobs].tolist())
            for work, rows in zip(scored, chunks, strict=True)
        }

    def _receive_logprobs(self, message: Message) -> dict[tuple[int, int | None], list[float]]:
        """Return the rows of log-probabilities, if the message carries any, by request and index of the token."""
        if not message.has_logprobs:
            return {}
        shape = (len(message.sampled), LOGPROB_COLUMNS)
        rows = self._member.transport.receive_payload(shape, torch.float64, _CPU).tolist()
        return {
            (work.request, work.sample): row[: 1 + 2 * work.logprobs]
            for work, row in zip(message.sampled, rows, strict=True)
            if work.logprobs != NO_LOGPROBS and work.token != NO_TOKEN
        }

    def _take_commands(self) -> "list[_Submit | _Cancel | _Order]":
        """Return the commands of other threads; wait for one if there is nothing else to do."""
        commands = []
        idle = not (self._in_flight or self._counting) and (self._scheduler is None or self._scheduler.idle)
        if idle:
            self._deliver()
            self._member.tracer.flush()
            try:
                commands.append(self._commands.get(timeout=IDLE_BEAT_S))
            except queue.Empty:
                return [_Order({**REPORT_ORDER, "ended": self._ended()}, None, Future())]
            until = time.monotonic() + MOST_GATHER_S
            with suppress(queue.Empty):
                while time.monotonic() < until:
                    commands.append(self._commands.get(timeout=GATHER_S))
        while not self._commands.empty():
            commands.append(self._commands.get())
        if not (idle or self._counting) and time.monotonic() - self._counted_at > COUNT_S:
            self._count()
        return commands

    def _count(self) -> None:
        """Let the ranks count; their counts come back behind the micro-batches that are on their way."""
        ended = self._ended()
        self._counting = True
        self._member.send_control({"op": "count", "ended": ended, "counts": [self._member.count(ended)]})

    def _ended(self) -> Ended:
        """Return the requests that all ranks are told of with the next count."""
        self._counted_at = time.monotonic()
        ended = {}
        while not self._told.empty():
            number, carried = self._told.get()
            ended[str(number)] = carried
        return ended

    def _execute(self, command: "_Submit | _Cancel | _Order") -> None:
        match command:
            case _Submit():
                assert self._scheduler is not None
                for request in (command.request, *(sibling.request for sibling in command.siblings)):
                    self._sinks[request] = command.sink
                    self._member.tracer.submitted(request, command.time_ns)
                self._scheduler.submit(
                    command.request,
                    command.prompt,
                    command.sampling,
                    command.siblings,
                    command.forced,
                    command.prompt_logprobs,
                )
            case _Cancel():
                if self._scheduler is not None and command.request in self._sinks:
                    del self._sinks[command.request]
                    self._begun_s.pop(command.request, None)
                    self._scheduler.cancel(command.request)
            case _Order():
                self._carry_out(command)

    def _order(self, content: dict[str, Any], limits: Limits | None) -> Replies:
        order = _Order(content, limits, Future())
        self._commands.put(order)
        return check_replies(order.replies.result())

    def _carry_out(self, order: _Order) -> None:
        while (self._in_flight or self._counting) and self._scheduler is not None:
            self._take_back(self._scheduler)
        self._deliver()
        if order.limits is not None and self._scheduler is not None and not self._scheduler.idle:
            order.replies.set_exception(
                BusyError("the pipeline is answering requests: configure it when they are done")
            )
            return
        member = self._member
        member.send_control(order.content)
        reply = member.obey(order.content)
        member.receive_control(self._next_control())
        member.send_control({"op": "collect", "replies": [reply], "clocks_ns": [time.perf_counter_ns()]})
        collected = member.receive_control(self._next_control())
        member.tracer.clocks(collected["clocks_ns"])
        replies: Replies = collected["replies"]
        self.counts = [reply["counts"] for reply in replies if "counts" in reply]
        if order.limits is not None:
            self._scheduler = None
            if member.stage is not None and not any("error" in reply for reply in replies):
                try:
                    self._scheduler = Scheduler(_fitted(order.limits, replies, member.stage.decoder.fixed_rows))
                except QubicLabError as error:
                    order.replies.set_exception(error)
                    return
        order.replies.set_result(replies)

    @property
    def limits(self) -> Limits:
        """The limits of the configuration that runs."""
        assert self._scheduler is not None
        return self._scheduler.limits

    def _next_control(self) -> Message:
        message = self._member.receive()
        if message.kind is not Kind.CONTROL:
            last = self._member.ranks - 1
            raise RankError(f"rank {last} diverged: it answered micro-batch {message.sequence} instead of an order")
        return message


def _fitted(limits: Limits, replies: Replies, fixed_lanes: bool) -> Limits:
    """Return the limits with what kernels and memory allow; until then `pages` are those that were asked for, or 0."""
    if fixed_lanes:
        return replace(limits, fixed_lanes=True, most_drafted=0, pages=0, prefix_caching=False)
    needed = limits.lanes * limits.slots_per_lane * limits.max_positions
    pages, kept = affordable_pages(replies, limits.pages * PAGE, needed)
    return replace(limits, pages=pages, most_kept=kept, max_positions=min(limits.max_positions, pages * PAGE))
