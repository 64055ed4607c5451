"""What a fault did, from what the clients saw: missing and wrong answers, the time to recover, and latencies."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from qubic_lab.bench.result import quantile
from qubic_lab.chaos.clients import Answered
from qubic_lab.cluster.tasks import LogEntry

LATE_S, TIMES_USUAL = 0.2, 2.0
"""A token or an answer is late if it takes longer than this, and this many times as long as usual: the p95 before."""
QUIET_S = 5.0
"""The cluster has recovered when no client waits longer than usual for this time."""


@dataclass(frozen=True)
class PhaseLatencies:
    """The 95th percentile of whole answers, in ms, and how many there were: before the fault, during it and after it.

    During it are those that it found at work and those that were due until it was mended and overcome. None: there
    were no answers, or none came; `why` says which.
    """

    before: float | None
    during: float | None
    after: float | None
    requests: tuple[int, int, int]
    why: str


@dataclass(frozen=True)
class CaseResult:
    """What one case did.

    Attributes:
        case: its name, and what it `does`.
        sent, answered: requests, and those that ended as they were to.
        lost: requests without such an end, or tasks without an outcome in the queue's log.
        duplicated: further outcomes of a task in that log.
        wrong: answers that are not the undisturbed one.
        interrupted: requests that were at work when it struck; `moved`: those that took more than one attempt.
        repeated: requests whose clients had to ask again.
        recovery_s: from the strike, or from its end if that disturbs too, until no client waits longer than usual;
            None: it did not recover.
        limit_s: the most that it may be.
        p95_ms: latencies; None if the case was skipped.
        skipped: why it was not run; empty: it was.
        faults: what clients were told instead of answers, each once.
        seconds: how long the case took.
        passed: whether nothing was lost, doubled or wrong, and it recovered in time; None: it was skipped.
    """

    case: str
    does: str
    sent: int
    answered: int
    lost: int
    duplicated: int
    wrong: int
    interrupted: int
    moved: int
    repeated: int
    recovery_s: float | None
    limit_s: float
    p95_ms: PhaseLatencies | None
    skipped: str
    faults: tuple[str, ...]
    seconds: float
    passed: bool | None


def skipped_case(case: str, does: str, limit_s: float, why: str) -> CaseResult:
    """Return the result of a case that was not run."""
    return CaseResult(case, does, 0, 0, 0, 0, 0, 0, 0, 0, None, limit_s, None, why, (), 0.0, None)


def judge(
    case: str,
    does: str,
    limit_s: float,
    answers: Sequence[Answered],
    culprits: Sequence[Answered],
    log: Sequence[LogEntry],
    struck_s: float,
    mended_s: float,
    seconds: float,
) -> CaseResult:
    """Return the result of a case from what its clients saw and the queue's log.

    Clients that are themselves the fault, the `culprits`, must get their answers, but their times say nothing.
    """
    everyone, ended = [*answers, *culprits], {entry.task_id for entry in log}
    lost = sum(not each.is_answered or bool(each.task and each.task not in ended) for each in everyone)
    late = late_times(answers, struck_s)
    at_s = [recovered_at(late, event_s) for event_s in (struck_s, mended_s)]
    recovery_s = None
    if at_s[0] is not None and at_s[1] is not None:
        recovery_s = max(at_s[0] - struck_s, at_s[1] - mended_s)
    duplicated, wrong = len(log) - len(ended), sum(each.is_answered and not each.is_right for each in everyone)
    return CaseResult(
        case=case,
        does=does,
        sent=len(everyone),
        answered=sum(each.is_answered for each in everyone),
        lost=lost,
        duplicated=duplicated,
        wrong=wrong,
        interrupted=sum(each.question.due_s < struck_s < (each.ended_s or struck_s + 1) for each in answers),
        moved=sum(each.attempts > 1 or each.is_dead_letter for each in everyone),
        repeated=sum(each.repeated > 0 for each in everyone),
        recovery_s=recovery_s,
        limit_s=limit_s,
        p95_ms=_latencies(answers, struck_s, max(mended_s, at_s[1] or mended_s)),
        skipped="",
        faults=tuple(sorted({each.fault for each in everyone if each.fault})),
        seconds=seconds,
        passed=not (lost or duplicated or wrong) and recovery_s is not None and recovery_s < limit_s,
    )


def late_times(answers: Sequence[Answered], struck_s: float) -> list[tuple[float, float]]:
    """Return from when to when a client waited longer than usual for a token, an end or a whole answer.

    What is usual is taken from the answers that had ended before the fault. What never came is awaited for ever.
    """
    calm = [each for each in answers if each.ended_s is not None and each.ended_s < struck_s]
    gap_s = _limit([later - before for each in calm for before, later in pairwise(_times(each))])
    whole_s = _limit([_times(each)[-1] - each.question.due_s for each in calm])
    found = []
    for each in answers:
        times = _times(each)
        pairs = [(before + gap_s, later) for before, later in pairwise(times)]
        if not each.is_answered:
            pairs.append((times[-1] + gap_s, float("inf")))
        pairs.append((each.question.due_s + whole_s, times[-1]))
        found += [(begun, until) for begun, until in pairs if until > begun]
    return sorted(found)


def recovered_at(late: Sequence[tuple[float, float]], event_s: float) -> float | None:
    """Return when an event was overcome: no client waited longer than usual for QUIET_S then. None: it never was."""
    at_s = event_s
    for begun, until in late:
        if until > event_s and begun <= at_s + QUIET_S:
            at_s = max(at_s, until)
    return None if at_s == float("inf") else at_s


def _times(answered: Answered) -> list[float]:
    ended = [] if answered.ended_s is None else [answered.ended_s]
    return [answered.question.due_s, *answered.token_s, *ended]


def _limit(usual_s: Sequence[float]) -> float:
    return max(LATE_S, TIMES_USUAL * quantile(usual_s, 0.95)) if usual_s else LATE_S


def _latencies(answers: Sequence[Answered], struck_s: float, over_s: float) -> PhaseLatencies:
    phases: dict[str, list[float]] = {"before": [], "during": [], "after": []}
    for each in answers:
        if each.ended_s is not None:
            after = each.question.due_s > over_s
            phase = "before" if each.ended_s < struck_s else "after" if after else "during"
            phases[phase].append(1e3 * (each.ended_s - each.question.due_s))
    p95 = {name: quantile(found, 0.95) if found else None for name, found in phases.items()}
    missing = [name for name, found in phases.items() if not found]
    why = f"no request was answered {' or '.join(missing)} the fault" if missing else ""
    return PhaseLatencies(**p95, requests=(len(phases["before"]), len(phases["during"]), len(phases["after"])), why=why)
