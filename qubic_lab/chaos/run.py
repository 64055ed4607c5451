"""Plays cases of chaos one after the other, each with a cluster of its own, and judges what the clients saw."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from queue import Empty
from threading import Thread
from typing import Any

from qubic_lab.bench.local_cluster import local_cluster, temporary_folder
from qubic_lab.bench.noise import NoiseWatch
from qubic_lab.bench.result import MeasuredResult, Table
from qubic_lab.chaos.case import ChaosCase
from qubic_lab.chaos.clients import GIVE_UP_S, Answered, ask_all, asker
from qubic_lab.chaos.judge import CaseResult, judge, skipped_case
from qubic_lab.chaos.node_cases import NODE_CASES
from qubic_lab.chaos.service_cases import SERVICE_CASES
from qubic_lab.chaos.stage import Stage
from qubic_lab.cluster.redis_server import connect
from qubic_lab.cluster.tasks import TaskQueue
from qubic_lab.core import Progress, no_progress
from qubic_lab.errors import check_choice, check_range

CASES = {case.name: case for case in (make() for make in (*NODE_CASES, *SERVICE_CASES))}
FEWEST_REQUESTS, MOST_REQUESTS = 12, 1_000
LEAST_CALM_S, CALM_S_EACH = 8.0, 0.1
"""Requests come for this time beside the fault: at least, and for each of them."""
BEFORE = 0.3
"""The share of that time before the fault."""
_LOOK_S = 0.05


@dataclass(frozen=True)
class ChaosResult(MeasuredResult):
    """What each case did to `requests` requests."""

    requests: int
    cases: tuple[CaseResult, ...]
    measured_utc: str

    def report(self) -> Iterator[Table | str]:
        counts, struck = ("sent", "answered", "lost", "twice", "wrong"), ("at work", "moved", "repeated")
        header = ("case", *counts, *struck, "recovered after s", "verdict")
        yield Table(header, [_row(each) for each in self.cases])
        latencies = [(each.case, each.p95_ms) for each in self.cases if each.p95_ms]
        rows = [(name, *(map(_ms, (p.before, p.during, p.after))), p.why or "-") for name, p in latencies]
        yield Table(("case", "p95 before ms", "during ms", "after ms", "not measured"), rows)
        for each in self.cases:
            yield f"{each.case}: {each.skipped or each.does}{''.join(f'; a client was told: {f}' for f in each.faults)}"
        played = [each for each in self.cases if not each.skipped]
        bad = [each.case for each in played if not each.passed]
        said = f"{sum(each.sent for each in played)} requests in {len(played)} cases"
        lost, twice, wrong = (sum(getattr(each, name) for each in played) for name in ("lost", "duplicated", "wrong"))
        verdict = f"not as promised: {', '.join(bad)}" if bad else "each case as promised"
        yield f"{said}: {lost} lost, {twice} answered twice, {wrong} wrong; {verdict}"


def _row(case: CaseResult) -> tuple[str, ...]:
    if case.skipped:
        return (case.case, *("-",) * 9, "skipped")
    counts = (case.sent, case.answered, case.lost, case.duplicated, case.wrong)
    struck = (case.interrupted, case.moved, case.repeated)
    after = "never" if case.recovery_s is None else f"{case.recovery_s:.1f} (at most {case.limit_s:g})"
    return (case.case, *map(str, (*counts, *struck)), after, "as promised" if case.passed else "NOT as promised")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def run_chaos(names: Sequence[str] = (), requests: int = 200, progress: Progress = no_progress) -> ChaosResult:
    """Play cases, by default all.

    Raises:
        InputError: a case is unknown, or the number of requests is out of range.
        QubicLabError: a process does not start.
    """
    cases = [CASES[check_choice("case", name, CASES)] for name in names or CASES]
    check_range("--requests", requests, FEWEST_REQUESTS, MOST_REQUESTS)
    watch, found = NoiseWatch(), list[CaseResult]()
    for number, case in enumerate(cases):
        done = number * requests

        def tell(answered: int, what: str = case.name, before: int = done) -> None:
            progress(what, before + answered, len(cases) * requests)

        tell(0)
        why = case.missing()
        found.append(skipped_case(case.name, case.does, case.limit_s, why) if why else play(case, requests, tell))
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return ChaosResult(requests=requests, cases=tuple(found), measured_utc=at, noise=watch.noise())


def play(case: ChaosCase, requests: int, tell: Any = lambda answered: None) -> CaseResult:
    """Play one case on a new cluster, which is gone afterwards; a QubicLabError if a process does not start."""
    begun = time.monotonic()
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        settings = case.prepare(folder, stack)
        cluster = stack.enter_context(local_cluster(case.coordinators, settings=settings, folder=folder))
        first_s = [begun]
        stage = Stage(cluster, stack, folder, lambda: time.monotonic() - first_s[0], requests)
        case.start(stage)
        calm_s = max(LEAST_CALM_S, requests * CALM_S_EACH)
        strike_s, every_s = BEFORE * calm_s, (calm_s + case.lasts_s) / requests
        questions = case.questions(stage, [number * every_s for number in range(requests)], strike_s)
        first_s[0] = time.monotonic()
        case.begin(stage, strike_s)
        ask = asker(tuple(cluster.urls.values()), stage.clock, cluster.trusted)
        sent, coming = ask_all(questions, ask, stage.clock)
        answers: list[Answered] = []
        culprits: list[Answered] = []
        struck_s = mended_s = None
        slow: list[Thread] = []
        while len(answers) < sent or mended_s is None or any(each.is_alive() for each in slow):
            now_s = stage.clock()
            if struck_s is None and now_s >= strike_s:
                case.strike(stage)
                struck_s = stage.clock()
                acts = case.culprits(stage)
                slow = [Thread(target=lambda act=act: culprits.append(act()), daemon=True) for act in acts]
                for each in slow:
                    each.start()
            elif struck_s is not None and mended_s is None and now_s >= struck_s + case.lasts_s:
                mended_s = now_s
                case.mend(stage)
            if case.restarts:
                stage.restart_ended()
            with suppress(Empty):
                answers.append(coming.get(timeout=_LOOK_S))
                tell(len(answers))
        assert struck_s is not None
        with connect(cluster.redis.url, answer_s=GIVE_UP_S) as client:
            log = list(TaskQueue(client).log())
    seconds = time.monotonic() - begun
    return judge(case.name, case.does, case.limit_s, answers, culprits, log, struck_s, mended_s, seconds)
