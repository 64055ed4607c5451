"""Faults of a cluster (`qubic_lab.chaos`): what was lost and how soon it recovered, in words, a table and a picture."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from qubic_lab.chaos.judge import CaseResult
from qubic_lab.chaos.run import CASES, ChaosResult
from qubic_lab.chaos.simulated import SimulationResult
from qubic_lab.studies.acceptance import AcceptanceRow, Criterion, WeekResults, joined, too_few, too_noisy
from qubic_lab.studies.finding import Finding, answering, say
from qubic_lab.studies.style import DARK, INK, Dot, dots, rows

QUESTION = "loss"
FAULTS = Criterion(
    "10.7.1",
    "Faults of every part",
    f"{len(CASES)} kinds: nothing lost, doubled or wrong; recovered in 10 s (killed) or 45 s (silent)",
    "cluster_faults",
)
SIMULATED = Criterion(
    "10.7.2",
    "Faults of a simulated cluster",
    "1,000 seeds without a broken promise; each kind of fault strikes 100 times; all planted defects found",
    "cluster_faults",
)
SEEDS, STRIKES, TIMES_REAL = 1_000, 100, 500
"""What is asked of the simulation; its speed is no matter of the row, as no promise depends on it."""
NOW, KEPT, KEPT_SIMULATION = "chaos", "chaos_kept", "simulation_kept"
"""Names of results: what a run did itself, and the last whole matrix and the last simulation that were kept."""


def played(kept: ChaosResult | None, now: ChaosResult | None) -> dict[str, CaseResult]:
    """Return the cases by name, those of now in place of kept ones."""
    return {case.case: case for result in (kept, now) if result is not None for case in result.cases}


def case_rows(cases: Mapping[str, CaseResult]) -> list[dict[str, Any]]:
    """Return one row a case: what was counted, when it had recovered, and the latencies."""
    return [
        {
            **{name: getattr(case, name) for name in ("case", "sent", "answered", "lost", "duplicated", "wrong")},
            **{name: getattr(case, name) for name in ("interrupted", "moved", "repeated", "recovery_s", "limit_s")},
            **{f"p95_{name}_ms": getattr(case.p95_ms, name, None) for name in ("before", "during", "after")},
            "skipped": case.skipped,
        }
        for case in cases.values()
    ]


def strike_rows(simulated: SimulationResult) -> list[dict[str, Any]]:
    """Return one row for each kind of a simulated fault: how often it struck."""
    return [{"fault": kind, "struck": times} for kind, times in simulated.struck.items()]


def recoveries(cases: Mapping[str, CaseResult]) -> Figure:
    """Draw how long each fault disturbed clients, beside the most that it may."""
    found = [case for case in cases.values() if case.recovery_s is not None]
    with rows([case.case for case in found]) as (figure, axes):
        times = [Dot(case.recovery_s or 0.0, None, None) for case in found]
        dots(axes, range(len(found)), times, "o", DARK, "recovered", across=True)
        limits = [case.limit_s for case in found]
        axes.plot(limits, range(len(found)), "|", color=INK, markersize=12, label="the most that it may take")
        axes.set_xlim(left=-0.5)
        axes.set_xlabel("time from the fault (s)")
    return figure


def findings(
    now: ChaosResult | None, kept: ChaosResult | None, simulated: SimulationResult | None = None
) -> list[Finding]:
    """Say what was lost, how soon the slowest case recovered, of when the matrix is, and what the simulation found."""
    cases = played(kept, now)
    done = [case for case in cases.values() if not case.skipped]
    said = [_headline(done)]
    if late := [case.case for case in done if _is_whole(case) and not case.passed]:
        said.append(say("Slower to recover than promised: {late}.", late=late))
    if times := [(case.recovery_s, case.case) for case in done if case.recovery_s is not None]:
        seconds, name = max(times)
        said.append(say("The longest disturbance took {seconds:.1f} s: {case}.", seconds=seconds, case=name))
    if now is not None:
        text = "Played in this run: {cases}, with {requests:request} each."
        said.append(say(text, cases=[case.case for case in now.cases], requests=now.requests))
    if kept is not None:
        text = "The other cases are those of {day}, at commit {commit} on {machine}, with {requests:request} each."
        values = {"commit": kept.commit, "machine": kept.machine, "requests": kept.requests}
        said.append(say(text, day=kept.measured_utc[:10], **values))
    if skipped := [case.case for case in cases.values() if case.skipped]:
        said.append(say("Not played: {cases}.", cases=skipped))
    if simulated is not None:
        said += _of_simulation(simulated)
    return answering(QUESTION, said)


def _of_simulation(found: SimulationResult) -> list[Finding]:
    said = [
        say(
            "A simulated cluster ran for {hours:.1f} virtual hours on {day}: {seeds} seeds, {requests:request}, "
            "{strikes:,} faults; {broken} seeds broke a promise.",
            hours=found.virtual_s / 3_600,
            day=found.measured_utc[:10],
            seeds=found.seeds,
            requests=found.requests,
            strikes=sum(found.struck.values()),
            broken=len(found.violations),
        ),
        say("It is {times:.0f} times as fast as real time; {aim} is the aim.", times=found.times_real, aim=TIMES_REAL),
    ]
    if found.mutants is not None:
        text = "Its checks found {found} of {planted} planted defects."
        said.append(say(text, found=found.mutants.found, planted=found.mutants.planted))
    return said


def _headline(done: list[CaseResult]) -> Finding:
    bad = [case.case for case in done if not _is_whole(case)]
    values = {"requests": sum(case.sent for case in done), "kinds": len(done)}
    if bad:
        return say("Of {kinds:kind} of faults these broke a promise: {bad}.", bad=bad, **values)
    return say("None of {requests:request} was lost, doubled or wrong in {kinds:kind} of faults.", **values)


def _is_whole(case: CaseResult) -> bool:
    return not (case.lost or case.duplicated or case.wrong)


def acceptance(week: WeekResults) -> list[AcceptanceRow]:
    """Judge the cases of the run that has the most of them, and the simulation."""
    return [_acceptance_of_cases(week), _acceptance_of_simulation(week)]


def _acceptance_of_simulation(week: WeekResults) -> AcceptanceRow:
    runs = week.read(KEPT_SIMULATION, SimulationResult)
    if not runs:
        return SIMULATED.not_measured()
    run, found = max(runs.items(), key=lambda item: item[1].seeds)
    least = min(found.struck.values(), default=0)
    planted = found.mutants
    measured = say(
        "{broken} of {seeds} seeds broke a promise; the rarest fault struck {least} times",
        broken=len(found.violations),
        seeds=found.seeds,
        least=least,
    )
    defects = (
        say("{found} of {planted} planted defects found", found=planted.found, planted=planted.planted)
        if planted
        else ""
    )
    undecided = say("{number} histories not decided", number=found.undecided) if found.undecided else ""
    few = joined(
        too_few(found.seeds, SEEDS, say("seeds")),
        too_few(least, STRIKES, say("strikes of each fault")),
        "" if planted else say("nobody planted defects"),
    )
    is_kept = not found.violations and (planted is None or planted.found == planted.planted)
    return SIMULATED.row(joined(measured, defects, undecided), is_kept, "", run, few=few)


def _acceptance_of_cases(week: WeekResults) -> AcceptanceRow:
    now, kept = week.read(NOW, ChaosResult), week.read(KEPT, ChaosResult)
    if not (runs := {run: played(kept.get(run), now.get(run)) for run in {**kept, **now}}):
        return FAULTS.not_measured()
    run, cases = max(runs.items(), key=lambda item: len(item[1]))
    done = [case for case in cases.values() if not case.skipped]
    bad = [case.case for case in done if not case.passed]
    sums = {name: sum(getattr(case, name) for case in done) for name in ("lost", "duplicated", "wrong", "sent")}
    counted = say(
        "{lost} lost, {duplicated} answered twice, {wrong} wrong of {sent:request} in {kinds:kind} of faults",
        kinds=len(done),
        **sums,
    )
    broken = say("not as promised: {bad}", bad=bad) if bad else ""
    late_only = not (sums["lost"] or sums["duplicated"] or sums["wrong"])
    noise = now[run].noise if run in now else kept[run].noise
    few = too_few(len(done), len(CASES), say("kinds of faults"))
    noisy = too_noisy(noise) if late_only else ""
    return FAULTS.row(joined(counted, broken), not bad, say("all on one machine"), run, few=few, noisy=noisy)
