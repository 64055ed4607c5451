"""Health of replicas: a score from measurements, and gates that exclude a replica whatever its score.

A replica is a whole pipeline and has one health, whatever its number of ranks. All values are immutable. Times are
seconds of one clock, which the caller reads.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean, median

CPU_WEIGHT = 30
MEMORY_WEIGHT = 30
RESPONSE_WEIGHT = 25
ERROR_WEIGHT = 15
SLOW_RESPONSE_S = 10.0
"""A mean response time of this many seconds or more scores nothing; it is the project's limit for 95 % of answers."""
FEWEST_SPEEDS = 3
"""Answers from which a replica's speed is known; one alone may have been slowed down by what ran beside it."""


@dataclass(frozen=True)
class Vitals:
    """Measurements of a replica: shares from 0 to 1, and the mean response time in seconds, None if it is unknown.

    CPU and memory are those of the busiest rank, because a pipeline is as fast as its slowest stage.
    """

    cpu_share: float
    memory_share: float
    response_s: float | None
    error_share: float


def health_score(vitals: Vitals) -> float:
    """Return a score from 0 (worst) to 100 (best): CPU 30 %, memory 30 %, response time 25 %, errors 15 %, each linear.

    An unknown response time scores in full, so that new and idle replicas are tried. The weights are the project's own
    choice, not a fit to measurements.
    """
    return (
        CPU_WEIGHT * (1 - vitals.cpu_share)
        + MEMORY_WEIGHT * (1 - vitals.memory_share)
        + RESPONSE_WEIGHT * (1 - min(1.0, (vitals.response_s or 0.0) / SLOW_RESPONSE_S))
        + ERROR_WEIGHT * (1 - vitals.error_share)
    )


class Gate(StrEnum):
    """Reasons why a replica gets no requests, whatever its score."""

    DRAINING = "draining"
    STARTING = "starting"
    SILENT = "no heartbeat"
    LOST = "lost in mid-answer"
    FAILURES = "failures in a row"
    ERROR_RATE = "error rate"


class CircuitState(StrEnum):
    """Closed: requests pass. Open: none passes. Half open: one probe passes."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


@dataclass(frozen=True)
class HealthLimits:
    """When a replica is excluded and when it is tried again; times in seconds.

    Attributes:
        failures_to_open: failed requests in a row, or failed probes in a row, that open the circuit.
        error_share_to_open: share of failures among the recent requests that opens it.
        fewest_outcomes: number of requests that the share needs.
        recent_outcomes: number of latest requests that are kept.
        kept_s: time after which a request no longer says how quick a replica is, and how often it fails.
        open_s: how long an open circuit waits before a probe.
        idle_probe_s: time without an outcome after which an idle replica is probed.
        probe_timeout_s: time without an outcome after which a probe is lost and another one may be sent.
        silent_after_s: time without a heartbeat after which a replica is excluded; one and a half intervals of 5 s.
    """

    failures_to_open: int = 3
    error_share_to_open: float = 0.5
    fewest_outcomes: int = 10
    recent_outcomes: int = 20
    kept_s: float = 300.0
    open_s: float = 5.0
    idle_probe_s: float = 2.0
    probe_timeout_s: float = 3.0
    silent_after_s: float = 7.5


DEFAULT_LIMITS = HealthLimits()


@dataclass(frozen=True)
class Outcome:
    """Outcome of a request or a probe; `sent_s` and `ended_s` are times in seconds.

    `lost` says that the replica is gone or no longer answers; one such outcome opens the circuit. `tokens_per_s` is the
    speed of an answer, 0 if it is unknown.
    """

    ok: bool
    sent_s: float
    ended_s: float
    lost: bool = False
    probe: bool = False
    tokens_per_s: float = 0.0


@dataclass(frozen=True)
class ReplicaCircuit:
    """A circuit breaker: it opens on failures, waits, lets one probe through, and closes when that is answered.

    A probe is a short request of the coordinator itself. It risks no client's request, and the replica's return does
    not depend on a balancer that would choose a failing replica last. While the circuit is closed, an idle replica is
    probed now and then, so that a failure of a rarely chosen replica is found in time.

    What a replica is worth is learnt from requests alone: an answered probe says no more than that it may be tried
    again. If the next request fails too, it goes on with the failures in a row, and the circuit opens at once.

    Outcomes of requests that were sent before the latest change are ignored, so a request from before an outage cannot
    end the replica's return.

    Source: M. T. Nygard, "Release It!", 2nd edition (2018), chapter 5.

    Attributes:
        cause: why it is not closed, or None.
        since_s: when it last opened or closed.
        probe_s: when the pending probe was sent, or None.
        recent: outcomes of requests since it last closed, latest last; while open, those before it opened.
        failures: requests in a row that failed, whatever probes said in between.
        failed_probes: probes in a row that failed while it was closed.
        heard_s: when the latest request or probe ended.
        speeds: tokens/s of the recent answers, where known.
        tokens_per_s: their median, 0 if there are too few.
    """

    limits: HealthLimits = DEFAULT_LIMITS
    cause: Gate | None = None
    since_s: float = -math.inf
    probe_s: float | None = None
    recent: tuple[Outcome, ...] = ()
    failures: int = 0
    failed_probes: int = 0
    heard_s: float = -math.inf
    speeds: tuple[float, ...] = ()
    tokens_per_s: float = 0.0

    def error_share(self, now_s: float) -> float:
        """Return the share of recent requests that failed; 0 if there are none."""
        return error_share(self._lately(now_s))

    def response_s(self, now_s: float) -> float | None:
        """Return the mean response time of recent answers in seconds; None if there are none."""
        times = [each.ended_s - each.sent_s for each in self._lately(now_s) if each.ok]
        return fmean(times) if times else None

    def speed(self, now_s: float) -> tuple[float, tuple[float, ...]]:
        """Return the median of recent answers' tokens/s, 0 if there are too few, and all of them."""
        return (self.tokens_per_s, self.speeds) if self._lately(now_s) else (0.0, ())

    def _lately(self, now_s: float) -> tuple[Outcome, ...]:
        """Return the recent outcomes, or none once the latest is old."""
        return self.recent if self.recent and now_s < self.recent[-1].ended_s + self.limits.kept_s else ()

    def state(self, now_s: float) -> CircuitState:
        """Return the state at a time."""
        if self.cause is None:
            return CircuitState.CLOSED
        return CircuitState.OPEN if now_s < self.since_s + self.limits.open_s else CircuitState.HALF_OPEN

    def wants_probe(self, now_s: float, idle: bool = False) -> bool:
        """Return whether a probe should be sent; never while another one is pending.

        A half-open circuit needs a probe, and a closed one if the replica is idle and has had no outcome for a while.
        """
        if self.probe_s is not None and now_s < self.probe_s + self.limits.probe_timeout_s:
            return False
        if self.cause is None:
            return idle and now_s >= max(self.heard_s, self.since_s) + self.limits.idle_probe_s
        return self.state(now_s) is CircuitState.HALF_OPEN

    def with_probe(self, now_s: float) -> "ReplicaCircuit":
        """Return the circuit with a pending probe."""
        assert self.wants_probe(now_s, idle=True)
        return replace(self, probe_s=now_s)

    def after(self, outcome: Outcome) -> "ReplicaCircuit":
        """Return the circuit after the outcome of a request or a probe."""
        if outcome.sent_s <= self.since_s:
            return self
        if self.cause is not None:  # only probes are sent since it opened
            if outcome.ok:
                return ReplicaCircuit(self.limits, since_s=outcome.ended_s, failures=self.failures)
            return replace(self, since_s=outcome.ended_s, probe_s=None)
        after = self._after_probe(outcome) if outcome.probe else self._after_request(outcome)
        since_s = outcome.ended_s if after.cause else self.since_s
        return replace(after, since_s=since_s, probe_s=None, heard_s=max(self.heard_s, outcome.ended_s))

    def _after_probe(self, probe: Outcome) -> "ReplicaCircuit":
        failed = 0 if probe.ok else self.failed_probes + 1
        return replace(
            self, failed_probes=failed, cause=Gate.FAILURES if failed >= self.limits.failures_to_open else None
        )

    def _after_request(self, request: Outcome) -> "ReplicaCircuit":
        since_s = request.ended_s - self.limits.kept_s
        recent = (*(each for each in self.recent if each.ended_s > since_s), request)[-self.limits.recent_outcomes :]
        failures = 0 if request.ok else self.failures + 1
        speeds = tuple(each.tokens_per_s for each in recent if each.tokens_per_s > 0)
        return replace(
            self,
            cause=opening_cause(recent, failures, self.limits),
            recent=recent,
            failures=failures,
            failed_probes=0 if request.ok else self.failed_probes,
            speeds=speeds,
            tokens_per_s=median(speeds) if len(speeds) >= FEWEST_SPEEDS else 0.0,
        )


def error_share(outcomes: Sequence[Outcome]) -> float:
    """Return the share of failures; 0 if there are no outcomes."""
    return sum(not each.ok for each in outcomes) / max(1, len(outcomes))


def opening_cause(recent: Sequence[Outcome], failures: int, limits: HealthLimits) -> Gate | None:
    """Return the reason to open a circuit after these requests (latest last), `failures` of them failed in a row."""
    if recent[-1].lost:
        return Gate.LOST
    if failures >= limits.failures_to_open:
        return Gate.FAILURES
    if len(recent) >= limits.fewest_outcomes and error_share(recent) >= limits.error_share_to_open:
        return Gate.ERROR_RATE
    return None


@dataclass(frozen=True)
class ReplicaHealth:
    """Everything that can gate a replica: its circuit, the time of its latest heartbeat, and its reported state.

    A draining replica finishes its requests and gets no new ones. The pipeline of a starting one is not ready yet.
    """

    beat_s: float
    circuit: ReplicaCircuit = ReplicaCircuit()
    draining: bool = False
    starting: bool = False

    def with_beat(self, now_s: float) -> "ReplicaHealth":
        """Return the health after a heartbeat."""
        return replace(self, beat_s=now_s)

    def with_probe(self, now_s: float) -> "ReplicaHealth":
        """Return the health with a pending probe."""
        return replace(self, circuit=self.circuit.with_probe(now_s))

    def after(self, outcome: Outcome) -> "ReplicaHealth":
        """Return the health after the outcome of a request or a probe."""
        return replace(self, circuit=self.circuit.after(outcome))

    def gate(self, now_s: float) -> Gate | None:
        """Return why the replica must not be chosen at a time, or None if it may be."""
        if self.draining:
            return Gate.DRAINING
        if now_s >= self.beat_s + self.circuit.limits.silent_after_s:
            return Gate.SILENT
        if self.starting:
            return Gate.STARTING
        return self.circuit.cause

    def wants_probe(self, now_s: float, idle: bool = False) -> bool:
        """Return whether a probe should be sent: the circuit needs one, and no other gate is closed."""
        return self.gate(now_s) is self.circuit.cause and self.circuit.wants_probe(now_s, idle)
