"""Is a replica fit for requests? A score of what was measured, and gates that a score cannot outvote.

A replica is a whole pipeline: it has one health, whatever its number of ranks. All values are replaced, never changed.
Times are seconds of one clock, which the caller reads: nothing here looks at a clock.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean

from qubic_lab.errors import InputError, check_at_least

CPU_WEIGHT = 30
MEMORY_WEIGHT = 30
RESPONSE_WEIGHT = 25
ERROR_WEIGHT = 15
SLOW_RESPONSE_S = 10.0
"""A mean response of so many seconds or more earns nothing: what the project asks of the slowest 5 % of answers."""


def _check_between(what: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # NaN is never between
        raise InputError(f"{what} is {value}: it must be {least:g} or more and {most:g} or less")


def _check_above_0(what: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise InputError(f"{what} is {value}: it must be a number above 0")


@dataclass(frozen=True)
class Vitals:
    """What was measured of a replica: shares from 0 to 1, and the mean response in seconds.

    CPU and memory in use are those of the busiest rank, since a pipeline is as fast as its slowest stage.

    Raises:
        InputError: a value is out of its range, or is no number.
    """

    cpu_share: float
    memory_share: float
    response_s: float
    error_share: float

    def __post_init__(self) -> None:
        for name in ("cpu_share", "memory_share", "error_share"):
            _check_between(name, getattr(self, name), 0.0, 1.0)
        _check_between("response_s", self.response_s, 0.0, math.inf)


def health_score(vitals: Vitals, slow_response_s: float = SLOW_RESPONSE_S) -> float:
    """Return 0 (worst) to 100 (best): CPU 30 %, memory 30 %, response time 25 %, errors 15 %, each linear.

    A part earns its whole weight where nothing is used, waited for or failed. The weights are the project's own choice,
    not a fit to measurements.

    Raises:
        InputError: `slow_response_s` is not above 0.
    """
    _check_above_0("slow_response_s", slow_response_s)
    return (
        CPU_WEIGHT * (1 - vitals.cpu_share)
        + MEMORY_WEIGHT * (1 - vitals.memory_share)
        + RESPONSE_WEIGHT * (1 - min(1.0, vitals.response_s / slow_response_s))
        + ERROR_WEIGHT * (1 - vitals.error_share)
    )


class Gate(StrEnum):
    """Why a replica gets no requests, whatever its score."""

    DRAINING = "draining"
    STARTING = "starting"
    SILENT = "no heartbeat"
    LOST = "lost in mid-answer"
    FAILURES = "failures in a row"
    ERROR_RATE = "error rate"


class CircuitState(StrEnum):
    """Closed: requests pass. Open: none does. Half open: one probe may."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


@dataclass(frozen=True)
class HealthLimits:
    """When a replica is taken out and when it is tried again; times in seconds.

    Attributes:
        failures_to_open: failures in a row that open the circuit.
        error_share_to_open: share of failures among the recent requests that opens it.
        fewest_outcomes: the share counts from so many requests on.
        recent_outcomes: so many of the latest requests are remembered.
        open_s: how long an open circuit waits before it takes a probe.
        idle_probe_s: a replica that has nothing to do and was not heard of for so long is probed, too.
        probe_timeout_s: a probe without outcome for so long is lost, and another may go.
        silent_after_s: a replica without heartbeat for so long is out; one and a half heartbeats of 5 s.

    Raises:
        InputError: a limit is out of its range.
    """

    failures_to_open: int = 3
    error_share_to_open: float = 0.5
    fewest_outcomes: int = 10
    recent_outcomes: int = 20
    open_s: float = 5.0
    idle_probe_s: float = 2.0
    probe_timeout_s: float = 3.0
    silent_after_s: float = 7.5

    def __post_init__(self) -> None:
        check_at_least("failures_to_open", self.failures_to_open, 1)
        check_at_least("fewest_outcomes", self.fewest_outcomes, 1)
        check_at_least("recent_outcomes", self.recent_outcomes, max(self.failures_to_open, self.fewest_outcomes))
        _check_between("error_share_to_open", self.error_share_to_open, 0.0, 1.0)
        for name in ("error_share_to_open", "open_s", "idle_probe_s", "probe_timeout_s", "silent_after_s"):
            _check_above_0(name, getattr(self, name))


DEFAULT_LIMITS = HealthLimits()


@dataclass(frozen=True)
class Outcome:
    """How a request or a probe ended: answered or failed, when it was sent and when that was known, in seconds.

    `lost`: the replica is gone, or does not answer any more; one such outcome is enough.
    """

    ok: bool
    sent_s: float
    ended_s: float
    lost: bool = False


@dataclass(frozen=True)
class Circuit:
    """A circuit breaker: it opens on failures, waits, lets one probe through, and closes when that is answered.

    A probe is a short request of the coordinator's own: no client's request is risked, and the way back does not depend
    on a balancer that would choose a replica with failures last. While it is closed, a replica that has nothing to do
    is probed now and then: one that is rarely chosen would else be found out late.

    Outcomes of requests that were sent before the latest change tell of an earlier time and are left out: a request
    from before an outage cannot end the replica's return.

    Source: M. T. Nygard, "Release It!", 2nd edition (2018), chapter 5.

    Attributes:
        cause: why it is not closed, or None.
        since_s: when it last opened or closed.
        probe_s: when a probe was sent whose outcome has not come, or None.
        recent: outcomes of requests and probes since it last closed, the latest last; while it is open, those before.
    """

    limits: HealthLimits = DEFAULT_LIMITS
    cause: Gate | None = None
    since_s: float = -math.inf
    probe_s: float | None = None
    recent: tuple[Outcome, ...] = ()

    @property
    def error_share(self) -> float:
        """The share of recent requests that failed; 0 where there are none."""
        return error_share(self.recent)

    @property
    def response_s(self) -> float:
        """The mean time to an answer of recent requests in seconds; 0 where there is none: a new replica is tried."""
        return fmean([each.ended_s - each.sent_s for each in self.recent if each.ok] or [0.0])

    def state(self, now_s: float) -> CircuitState:
        """Return whether it is closed, open or half open at a time."""
        if self.cause is None:
            return CircuitState.CLOSED
        return CircuitState.OPEN if now_s < self.since_s + self.limits.open_s else CircuitState.HALF_OPEN

    def wants_probe(self, now_s: float, idle: bool = False) -> bool:
        """Tell whether a probe should be sent, which is never while another one is under way.

        A half-open circuit wants one; a closed one where the replica is idle and was not heard of for a while.
        """
        if self.probe_s is not None and now_s < self.probe_s + self.limits.probe_timeout_s:
            return False
        if self.cause is None:
            heard_s = self.recent[-1].ended_s if self.recent else self.since_s
            return idle and now_s >= heard_s + self.limits.idle_probe_s
        return self.state(now_s) is CircuitState.HALF_OPEN

    def with_probe(self, now_s: float) -> "Circuit":
        """Return it with a probe under way, which must have been wanted."""
        assert self.wants_probe(now_s, idle=True)
        return replace(self, probe_s=now_s)

    def after(self, outcome: Outcome) -> "Circuit":
        """Return it after a request or a probe has ended."""
        if outcome.sent_s <= self.since_s:
            return self
        if self.cause is not None:  # only probes are sent since it opened
            if outcome.ok:
                return Circuit(self.limits, since_s=outcome.ended_s)
            return replace(self, since_s=outcome.ended_s, probe_s=None)
        recent = (*self.recent, outcome)[-self.limits.recent_outcomes :]
        cause = opening_cause(recent, self.limits)
        since_s = outcome.ended_s if cause else self.since_s
        return replace(self, cause=cause, since_s=since_s, probe_s=None, recent=recent)


def error_share(outcomes: Sequence[Outcome]) -> float:
    """Return the share of failures; 0 where there are no outcomes."""
    return sum(not each.ok for each in outcomes) / max(1, len(outcomes))


def opening_cause(recent: Sequence[Outcome], limits: HealthLimits) -> Gate | None:
    """Return what opens a circuit with these outcomes, the latest last, or None."""
    if recent[-1].lost:
        return Gate.LOST
    latest = recent[-limits.failures_to_open :]
    if len(latest) == limits.failures_to_open and not any(each.ok for each in latest):
        return Gate.FAILURES
    if len(recent) >= limits.fewest_outcomes and error_share(recent) >= limits.error_share_to_open:
        return Gate.ERROR_RATE
    return None


@dataclass(frozen=True)
class ReplicaHealth:
    """All that gates a replica: its circuit, its latest heartbeat in seconds, and what that said.

    `draining`: it ends what it has begun and gets nothing new. `starting`: its pipeline is not up, or not up again.
    """

    beat_s: float
    circuit: Circuit = Circuit()
    draining: bool = False
    starting: bool = False

    def with_beat(self, now_s: float) -> "ReplicaHealth":
        """Return it after a heartbeat."""
        return replace(self, beat_s=now_s)

    def with_probe(self, now_s: float) -> "ReplicaHealth":
        """Return it with a probe under way, which must have been wanted."""
        return replace(self, circuit=self.circuit.with_probe(now_s))

    def after(self, outcome: Outcome) -> "ReplicaHealth":
        """Return it after a request or a probe has ended."""
        return replace(self, circuit=self.circuit.after(outcome))

    def gate(self, now_s: float) -> Gate | None:
        """Return why it must not be chosen at a time, or None where it may be."""
        if self.draining:
            return Gate.DRAINING
        if now_s >= self.beat_s + self.circuit.limits.silent_after_s:
            return Gate.SILENT
        if self.starting:
            return Gate.STARTING
        return self.circuit.cause

    def wants_probe(self, now_s: float, idle: bool = False) -> bool:
        """Tell whether a probe should be sent: the circuit wants one, and nothing else is in its way."""
        return self.gate(now_s) is self.circuit.cause and self.circuit.wants_probe(now_s, idle)
