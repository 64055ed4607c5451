"""What a cluster answers under load, overload and an hour of faults: kept results of benchmarks, in words."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qubic_lab.bench.load import LoadLevel, LoadResult, Overload
from qubic_lab.bench.result import BenchResult
from qubic_lab.chaos.soak import SoakResult
from qubic_lab.studies.finding import Finding, answering, say

QUESTION = "loss"
GOODPUT, RECOVERY_S = 0.9, 10.0
"""What is asked of an overload: the least share of the peak, the longest recovery; and that answers are in time."""
COMMANDS = {
    "load": "qubic-lab bench load --json",
    "overload": "qubic-lab bench load --surface cluster,openai --rate 12 --overload 5 --seconds 120 --json",
    "soak": "qubic-lab bench soak --minutes 60 --fault-every 20 --json",
}
T = TypeVar("T", bound=BenchResult)


@dataclass(frozen=True)
class Loads:
    """The kept results, by their files' names."""

    load: dict[str, LoadResult]
    overload: dict[str, LoadResult]
    soak: dict[str, SoakResult]


def read(folder: Path) -> Loads:
    """Read the results that a folder keeps: a file's name begins with load, overload or soak.

    Raises:
        InputError: a file is not what its name says.
    """

    def kept(kind: type[T], name: str) -> dict[str, T]:
        return {file.name: kind.from_json(file) for file in sorted(folder.glob(f"{name}*.json"))}

    return Loads(kept(LoadResult, "load"), kept(LoadResult, "overload"), kept(SoakResult, "soak"))


def rows(loads: Loads) -> list[dict[str, Any]]:
    """Return one row for each rate that came, and for each overload."""
    found = [(name, each) for name, result in loads.load.items() for each in result.levels]
    found += [(name, over.over) for name, result in loads.overload.items() for over in result.overloads]
    return [
        {
            "file": name,
            **{key: getattr(each, key) for key in ("surface", "rate", "seconds", "sent", "in_time", "late")},
            **{key: getattr(each, key) for key in ("refused", "failed", "goodput_per_s")},
            "p99_ms": each.latency_ms.get("p99"),
        }
        for name, each in found
    ]


def findings(loads: Loads) -> list[Finding]:
    """Say what was answered under load and overload, whether anything grew in an hour, and what was not measured."""
    said = [_of_level(each) for result in loads.load.values() for each in _highest(result)]
    for result in loads.overload.values():
        said += [_of_overload(each, result) for each in result.overloads]
    said += [_of_soak(each) for each in loads.soak.values()]
    absent = [
        say("{kind} ({command})", kind=kind, command=command)
        for kind, command in COMMANDS.items()
        if not getattr(loads, kind)
    ]
    if absent:
        said.append(say("Not measured, as no result of its command is kept: {absent}.", absent=absent))
    return answering(QUESTION, said)


def _highest(result: LoadResult) -> Iterator[LoadLevel]:
    for surface in dict.fromkeys(each.surface for each in result.levels):
        yield max((each for each in result.levels if each.surface == surface), key=lambda each: each.rate)


def _of_level(level: LoadLevel) -> Finding:
    return say(
        "At {rate:.0f} requests a second to {surface}, {in_time} of {sent:request} were answered right and in time.",
        **{name: getattr(level, name) for name in ("rate", "surface", "in_time", "sent")},
    )


def verdict(over: Overload, bound_s: float) -> Finding:
    """Return what an overload misses of what is asked of it, or that it holds all of it."""
    wrong = [
        what
        for what, is_missed in (
            (say("goodput"), over.share_of_peak < GOODPUT),
            (say("latency"), not over.over.latency_ms or over.over.latency_ms["p99"] > 1e3 * bound_s),
            (say("recovery"), over.recovery_s is None or over.recovery_s > RECOVERY_S),
        )
        if is_missed
    ]
    return say("missed: {wrong}", wrong=wrong) if wrong else say("all held")


def _of_overload(over: Overload, result: LoadResult) -> Finding:
    p99_ms = over.over.latency_ms.get("p99")
    return say(
        "{times:g} times the peak of {peak:.1f} answers a second, sent to {surface} for {seconds:.0f} s "
        "({sent:request}, limited by the {limit}): goodput is {share:percent} of the peak (asked: {least:percent}), "
        "99 % of the answers took at most {p99} (asked: {bound:g} s), recovery took {recovery} "
        "(asked: {longest:g} s): {verdict}.",
        times=over.times,
        peak=over.peak_per_s,
        surface=over.surface,
        seconds=over.over.seconds,
        sent=over.over.sent,
        limit=say("nodes") if over.limit == "nodes" else say("coordinator"),
        share=over.share_of_peak,
        least=GOODPUT,
        p99=say("unknown") if p99_ms is None else say("{seconds:.2f} s", seconds=p99_ms / 1e3),
        bound=result.bound_s,
        recovery=say("longer than was watched")
        if over.recovery_s is None
        else say("{seconds:.1f} s", seconds=over.recovery_s),
        longest=RECOVERY_S,
        verdict=verdict(over, result.bound_s),
    )


def _of_soak(soak: SoakResult) -> Finding:
    grown = [each.what for each in soak.growths if not each.is_flat]
    return say(
        "In {minutes:g} minutes with {faults:fault} clients saw {errors:error} in {requests:request} (asked: none); "
        "{grown}: {verdict}.",
        minutes=soak.minutes,
        faults=sum(soak.faults.values()),
        errors=soak.errors,
        requests=sum(soak.requests.values()),
        grown=say("these grew: {grown}", grown=grown) if grown else say("nothing grew"),
        verdict=say("held") if soak.passed else say("missed"),
    )
