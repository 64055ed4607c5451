"""Measures a coordinator under open-loop load: what is answered in time, what is refused, and whether it recovers.

Requests come when they are due, whatever happened to earlier ones (`arrivals`), so that waiting counts. Goodput is the
number of right answers a second within the bound, which is also the deadline that requests of the cluster name.
An overload is played in three parts: rates grow until goodput no longer does, and the best of them is held for a while
(the peak), then `times` the peak comes, then half of the peak.
"""

import asyncio
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from qubic_lab.bench.arrivals import Arrival, due_times, send_when_due
from qubic_lab.bench.echo_node import MODEL, echo_text, echo_tokens
from qubic_lab.bench.lean_http import LeanConnection, LeanReply
from qubic_lab.bench.local_cluster import local_cluster, run_apart
from qubic_lab.bench.noise import NoiseWatch
from qubic_lab.bench.oracle import COINS, ROUTES, kept_requests
from qubic_lab.bench.oracle_data import make_market
from qubic_lab.bench.result import MeasuredResult, Table, quantile
from qubic_lab.core import Progress, no_progress
from qubic_lab.errors import InputError, check_choice, check_range

Surface = Literal["cluster", "openai", "oracle"]
SURFACES: tuple[Surface, ...] = get_args(Surface)
TOKENS = 4
"""Of an answer."""
GIVE_UP_S = 60.0
"""A client that got nothing for so long beyond the bound has failed."""
NODES = 3
PRICES, TEXTS = 100_000, 2_000
"""Of the generated market that the oracle is asked about."""
AMPLE, SMALL = (32, 0.2), (8, 1.0)
"""Slots of a node and seconds of an answer: so many that the coordinator is the limit, and those of a small model."""
STEP, STEP_S, NEARLY = 1.4, 6.0, 0.9
"""Rates grow by this factor, each for so long, until less than this share of one is answered in time."""
MOST_STEPS = 14
PEAK_S = 30.0
"""How long the best of these rates is held for the peak."""
CALM_S = 15.0
"""How long half of the peak comes after an overload."""
SHARES = (0.5, 0.9, 0.99, 0.999)
Outcome = Literal["right", "expired", "refused", "failed"]


@dataclass(frozen=True)
class LoadRequest:
    """A path, the body of a POST (None: a GET), the parts that its right answer contains, and a header's line."""

    path: str
    body: bytes | None
    expected: tuple[bytes, ...]
    header: str = ""


@dataclass(frozen=True)
class LoadAnswer:
    """What became of a request: refused with Retry-After, or expired at its deadline; `fault` says what has failed."""

    outcome: Outcome
    fault: str = ""


@dataclass(frozen=True)
class LoadLevel:
    """What came of one rate. Latencies are those of right answers, late ones too, from when a request was due.

    Attributes:
        rate: requests/s that were to come, on average or at the end of a ramp; `sent` in `seconds`.
        in_time: right answers within the bound; `late`: after it, or not by the deadline.
        refused: with a status that says so, and Retry-After; `refused_ms` is the 99th percentile of its time.
        failed: anything else: errors, broken connections, wrong answers, no answer.
        latency_ms: exact percentiles by their share, and "max"; empty: no right answer.
        goodput_per_s: answers in time that came between the bound and the end of sending, a second; in a shorter time
            all of them count.
        generator_late_ms: 99th percentile of how late requests were sent; if large, the generator was the limit.
    """

    surface: str
    profile: str
    rate: float
    seconds: float
    sent: int
    in_time: int
    late: int
    refused: int
    failed: int
    first_fault: str
    latency_ms: dict[str, float]
    refused_ms: float | None
    goodput_per_s: float
    generator_late_ms: float

    def cells(self) -> tuple[str, ...]:
        counts = (self.sent, self.in_time, self.late, self.refused, self.failed)
        times = [f"{self.latency_ms[name]:.0f}" if self.latency_ms else "-" for name in (*map(_name, SHARES), "max")]
        return (self.surface, f"{self.rate:.0f}", *map(str, counts), *times, f"{self.goodput_per_s:.1f}")


@dataclass(frozen=True)
class Overload:
    """An overload: the peak goodput, that under `times` as many requests, and the calm after it.

    `capacity_per_s` is the most that the nodes can answer, None where they are not asked; if the peak is far below it,
    the coordinator or the machine is the limit. `recovery_s` is from the end of the overload until each further request
    is answered in time; None: not in the calm.
    """

    surface: str
    steps: tuple[LoadLevel, ...]
    capacity_per_s: float | None
    limit: Literal["nodes", "coordinator"]
    peak_per_s: float
    times: float
    over: LoadLevel
    share_of_peak: float
    calm: LoadLevel
    recovery_s: float | None

    def text(self) -> str:
        """Return what happened in a sentence."""
        over = self.over
        p99 = f"{over.latency_ms['p99']:.0f} ms" if over.latency_ms else "unknown"
        back = "not recovered in the calm" if self.recovery_s is None else f"recovered after {self.recovery_s:.1f} s"
        most = "" if self.capacity_per_s is None else f" of {self.capacity_per_s:g}/s that the nodes can give"
        return (
            f"{self.surface}, limited by the {self.limit}: peak {self.peak_per_s:.1f}/s{most}; "
            f"at {over.rate:.0f}/s for {over.seconds:.0f} s goodput is "
            f"{over.goodput_per_s:.1f}/s ({self.share_of_peak:.0%} of the peak), p99 of the admitted {p99}, "
            f"{over.refused / over.sent:.0%} refused, {over.failed} failed; {back}"
        )


HEADER = (
    *("surface", "rate", "sent", "in time", "late", "refused", "failed"),
    *("p50 ms", "p90", "p99", "p99.9", "max", "goodput/s"),
)


@dataclass(frozen=True)
class LoadResult(MeasuredResult):
    """All levels, or the overloads, of each surface; `bound_s` is when an answer is late."""

    levels: tuple[LoadLevel, ...]
    overloads: tuple[Overload, ...]
    bound_s: float
    nodes: int
    slots: int
    answer_s: float

    def report(self) -> Iterator[Table | str]:
        played = [each for over in self.overloads for each in (*over.steps, over.over, over.calm)]
        yield Table(HEADER, [each.cells() for each in (*self.levels, *played)])
        yield from (over.text() for over in self.overloads)
        for each in (*self.levels, *played):
            if each.first_fault:
                yield f"first failure of {each.surface} at {each.rate:.0f}/s: {each.first_fault}"
        late_ms = max(each.generator_late_ms for each in (*self.levels, *played))
        yield f"99 % of the requests were sent at most {late_ms:.0f} ms late; latencies count from when they were due"


def bench_load(
    rates: Sequence[float] = (20.0, 50.0, 100.0),
    profile: str = "steady",
    seconds: float = 20.0,
    surfaces: Sequence[str] = SURFACES,
    bound_s: float = 2.0,
    overload: float = 0.0,
    nodes: int = NODES,
    slots: int | None = None,
    answer_s: float | None = None,
    progress: Progress = no_progress,
) -> LoadResult:
    """Send requests at these rates to each surface of a coordinator with echo nodes, or overload it.

    Each node has `slots` and takes `answer_s` for an answer, so that nodes × slots ÷ answer_s answers a second is the
    most that they can give; with many slots the coordinator is the limit. By default they are `AMPLE`, and `SMALL` for
    an overload. With `overload` the peak is sought first, from the first rate on, and exceeded by this factor for
    `seconds`.

    Raises:
        InputError: a number or a name is out of range.
        QubicLabError: a process does not start.
    """
    usual = SMALL if overload else AMPLE
    slots, answer_s = usual[0] if slots is None else slots, usual[1] if answer_s is None else answer_s
    for surface in surfaces:
        check_choice("surface", surface, SURFACES)
    due_times(profile, min(rates), seconds)
    check_range("--nodes", nodes, 1, 12)
    check_range("--slots", slots, 1, 500)
    for option, value in (("--answer", answer_s), ("--bound", bound_s), ("--overload", overload or 1.0)):
        if not 0.0 < value < math.inf:
            raise InputError(f"{option} is {value:g}: give a number above 0")
    watch = NoiseWatch()
    settings, kept = dict[str, str](), list[LoadRequest]()
    if "oracle" in surfaces:
        market = make_market(PRICES, TEXTS, COINS, progress)
        settings = {"QUBIC_LAB_DATABASE_URL": market.url}
        kept = [LoadRequest(one.path, None, one.expected) for route in ROUTES for one in kept_requests(route, market)]
    levels, overloads = list[LoadLevel](), list[Overload]()
    with local_cluster(settings=settings) as cluster:
        names = [f"echo-{number}" for number in range(1, nodes + 1)]
        for name in names:
            cluster.start_echo(name, token_s=answer_s / TOKENS, slots=slots)
        cluster.wait_for_nodes(*names)
        [url] = cluster.urls.values()
        for surface in surfaces:
            make = _kept_in_turn(kept) if surface == "oracle" else partial(_MAKERS[surface], deadline_s=bound_s)
            player = _Player(url, surface, profile, make, bound_s, progress)
            if surface == "oracle":  # computed once, before the cached answers are measured
                run_apart(player.play_all([LoadRequest(each.path, None, ()) for each in kept]))
            player.play(20.0, 2.0)
            if overload:
                capacity_per_s = None if surface == "oracle" else nodes * slots / answer_s
                overloads.append(player.overload(rates[0], overload, seconds, capacity_per_s))
            else:
                levels += [player.play(rate, seconds)[0] for rate in rates]
    return LoadResult(
        levels=tuple(levels),
        overloads=tuple(overloads),
        bound_s=bound_s,
        nodes=nodes,
        slots=slots,
        answer_s=answer_s,
        noise=watch.noise(),
    )


def cluster_request(number: int, deadline_s: float) -> LoadRequest:
    """Return a request to an echo node through the cluster's own interface."""
    body = {"prompt": f"request {number}", "max_new_tokens": TOKENS, "seed": number * TOKENS, "deadline_s": deadline_s}
    text = json.dumps(echo_text(echo_tokens(number * TOKENS, TOKENS))).encode()
    return LoadRequest("/api/ai/single_query", json.dumps(body).encode(), (b'"text":' + text,))


def openai_request(number: int, deadline_s: float) -> LoadRequest:
    """Return a request as OpenAI's library for Python sends it, which says how long it waits."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"request {number}"}]}
    sampling = {"max_tokens": TOKENS, "seed": number * TOKENS}
    text = json.dumps(echo_text(echo_tokens(number * TOKENS, TOKENS))).encode()
    header = f"X-Stainless-Read-Timeout: {deadline_s:g}"
    return LoadRequest("/v1/chat/completions", json.dumps(body | sampling).encode(), (text,), header)


_MAKERS: dict[str, Callable[..., LoadRequest]] = {"cluster": cluster_request, "openai": openai_request}


def _kept_in_turn(kept: Sequence[LoadRequest]) -> Callable[[int], LoadRequest]:
    order = random.Random(0).sample(kept, len(kept))
    return lambda number: order[number % len(order)]


def judge_reply(request: LoadRequest, reply: LeanReply) -> LoadAnswer:
    """Return what became of a request."""
    if reply.status == 200 and all(part in reply.body for part in request.expected):
        return LoadAnswer("right")
    if reply.status in (429, 503) and reply.retry_after:
        return LoadAnswer("refused")
    if reply.status == 504:
        return LoadAnswer("expired")
    why = f"status {reply.status}: {reply.body[:200]!r}" if reply.status else "the connection ended, or no answer came"
    return LoadAnswer("failed", why)


def sum_up(
    surface: str, profile: str, rate: float, seconds: float, bound_s: float, seen: Sequence[Arrival[LoadAnswer]]
) -> LoadLevel:
    """Summarize the requests of one rate; there is at least one."""
    counts = Counter(each.answer.outcome for each in seen)
    right_ms = [1e3 * each.latency_s for each in seen if each.answer.outcome == "right"]
    refused_ms = [1e3 * each.latency_s for each in seen if each.answer.outcome == "refused"]
    in_time_s = [
        each.due_s + each.latency_s for each in seen if each.answer.outcome == "right" and each.latency_s <= bound_s
    ]
    begin_s = bound_s if seconds > 2 * bound_s else 0.0  # by then as many end as begin
    until_s = seconds if begin_s else math.inf
    good = sum(begin_s <= at_s < until_s for at_s in in_time_s)
    times = {_name(share): quantile(right_ms, share) for share in SHARES} if right_ms else {}
    return LoadLevel(
        surface=surface,
        profile=profile,
        rate=rate,
        seconds=seconds,
        sent=len(seen),
        in_time=len(in_time_s),
        late=len(right_ms) - len(in_time_s) + counts["expired"],
        refused=counts["refused"],
        failed=counts["failed"],
        first_fault=next((each.answer.fault for each in seen if each.answer.fault), ""),
        latency_ms=times | ({"max": max(right_ms)} if right_ms else {}),
        refused_ms=quantile(refused_ms, 0.99) if refused_ms else None,
        goodput_per_s=good / (seconds - begin_s),
        generator_late_ms=1e3 * quantile([each.late_s for each in seen], 0.99),
    )


def recovery_s(seen: Sequence[Arrival[LoadAnswer]], bound_s: float) -> float | None:
    """Return from when on each request was answered right and within the bound; None: the last one was not."""
    bad = [each.due_s for each in seen if each.answer.outcome != "right" or each.latency_s > bound_s]
    good = [each.due_s for each in seen if not bad or each.due_s > max(bad)]
    return (0.0 if not bad else min(good)) if good else None


def _name(share: float) -> str:
    return f"p{100 * share:g}"


class _Player:
    """Sends the requests of one surface over as many connections as are needed at once."""

    def __init__(
        self,
        url: str,
        surface: str,
        profile: str,
        make: Callable[[int], LoadRequest],
        bound_s: float,
        progress: Progress,
    ) -> None:
        self._url, self._surface, self._profile, self._make = url, surface, profile, make
        self._bound_s, self._progress = bound_s, progress
        self._number = 0  # no two requests are the same
        self._idle: list[LeanConnection] = []

    def overload(self, rate: float, times: float, seconds: float, capacity_per_s: float | None) -> Overload:
        """Find the peak from a rate on, exceed it, and see how soon half of it is answered again."""
        steps = [self.play(rate, STEP_S, "steady")[0]]
        while steps[-1].in_time >= NEARLY * steps[-1].sent and len(steps) < MOST_STEPS:
            steps.append(self.play(steps[-1].rate * STEP, STEP_S, "steady")[0])
        best = max(steps, key=lambda each: each.in_time)
        steps.append(self.play(best.rate, PEAK_S, "steady")[0])
        peak = steps[-1].goodput_per_s
        self.play(peak / 2, 2 * self._bound_s, "steady")  # what is left of the last step goes
        over, _ = self.play(times * peak, seconds)
        calm, seen = self.play(peak / 2, CALM_S, "steady")
        return Overload(
            surface=self._surface,
            steps=tuple(steps),
            capacity_per_s=capacity_per_s,
            limit="nodes" if capacity_per_s is not None and peak >= NEARLY * capacity_per_s else "coordinator",
            peak_per_s=peak,
            times=times,
            over=over,
            share_of_peak=over.goodput_per_s / peak,
            calm=calm,
            recovery_s=recovery_s(seen, self._bound_s),
        )

    def play(self, rate: float, seconds: float, profile: str = "") -> tuple[LoadLevel, list[Arrival[LoadAnswer]]]:
        """Send requests at a rate; return what came of them."""
        profile = profile or self._profile
        due_s = due_times(profile, rate, seconds, seed=self._number) or [0.0]
        requests = [self._make(self._number + place) for place in range(len(due_s))]
        self._number += len(due_s)

        def note(sent: int) -> None:
            self._progress(f"{self._surface}, {rate:.0f}/s", sent, len(due_s))

        async def send() -> list[Arrival[LoadAnswer]]:
            found = await send_when_due(due_s, lambda number: self._ask(requests[number]), note)
            self._close()
            return found

        seen = run_apart(send())
        return sum_up(self._surface, profile, rate, seconds, self._bound_s, seen), seen

    async def play_all(self, requests: Sequence[LoadRequest]) -> None:
        """Send requests one after the other."""
        for request in requests:
            await self._ask(request)
        self._close()

    async def _ask(self, request: LoadRequest) -> LoadAnswer:
        reply = LeanReply(0, b"")
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._bound_s + GIVE_UP_S):
                connection = self._take() or await LeanConnection.open(self._url)
                try:
                    asked = connection.get(request.path) if request.body is None else None
                    reply = await (asked or connection.post(request.path, request.body or b"", request.header))
                except asyncio.CancelledError:
                    connection.close()
                    raise
                self._idle.append(connection)
        return judge_reply(request, reply)

    def _take(self) -> LeanConnection | None:
        while self._idle:
            if (connection := self._idle.pop()).is_open:
                return connection
        return None

    def _close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()
