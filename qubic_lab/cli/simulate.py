"""`qubic-lab simulate`: the whole cluster in virtual time, with faults from a seed."""

from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from qubic_lab.cli import options
from qubic_lab.cli.console import duration_text, print_json, print_table, progress_bar, require
from qubic_lab.errors import InputError, QubicLabError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qubic_lab.simulation.runs import Progress, Summary
    from qubic_lab.simulation.world import Report

_ALL = 100
"""Steps of a seed's progress."""
_ENDS = {
    "RankError": "without an answer: each of its tries was lost",
    "gone": "its client hung up",
    "unkeyed": "lost with its coordinator, as it had no key",
}


def simulate(
    seed: Annotated[int, Option(min=0, help="The first seed.")] = 1,
    seeds: Annotated[int, Option(min=1, help="How many seeds.")] = 1,
    jobs: Annotated[int, Option(min=1, help="Seeds to run at once, each on a core; the results are the same.")] = 1,
    hours: Annotated[float, Option(help="Virtual hours of each, with 5 requests a second.")] = 0.1,
    only: Annotated[
        str | None, Option(metavar="NUMBERS", help="Faults that strike, such as 3,17.", show_default="all of the seed")
    ] = None,
    shrink: Annotated[bool, Option("--shrink", help="Find the fewest faults by which a failed seed fails.")] = False,
    log: Annotated[Path | None, Option(metavar="FILE", help="Write the events of a single seed.")] = None,
    json: options.Json = False,
) -> None:
    """Run a cluster in virtual time, with faults from a seed.

    Three coordinators, eight nodes and Redis run in this process; machines fail, links break and clocks jump as the
    seed says, and what the cluster promises is checked. The same seed always does the same. The exit status is 1 if a
    promise was broken. Ctrl-C shows what is known so far, and the command that does the rest.
    """
    require("greenlet", "lupa", extra="simulation")
    from qubic_lab.simulation import runs
    from qubic_lab.simulation.world import World

    if not 0 < hours < float("inf"):
        raise InputError(f"--hours is {hours:g}: it must be a number above 0")
    if (log or only) and seeds > 1:
        raise InputError("--log and --only are for a single seed: leave --seeds out")
    kept = None if only is None else frozenset(_numbers(only))
    reports: list[Report] = []
    stopped: KeyboardInterrupt | None = None
    with progress_bar() as progress:
        show = _shower(progress, seeds)
        try:
            if jobs > 1 and seeds > 1:
                for report in runs.run_seeds(range(seed, seed + seeds), hours, jobs):
                    reports.append(report)
                    show(len(reports))
            else:
                for number in range(seeds):
                    world = World(seed + number, hours, kept, log, on_progress=lambda share: show(len(reports) + share))
                    reports.append(world.run())
        except KeyboardInterrupt as error:
            stopped = error
        summary = runs.Summary.of(reports)
        shrunk = [runs.shrink(report, progress) for report in summary.failed] if shrink and not stopped else []
    if stopped and not reports:
        raise stopped
    if json:
        print_json(_content(summary, shrunk))
    else:
        _show(summary, runs.PROMISES, shrunk)
    if stopped:
        done = len(reports)
        rest = f"qubic-lab simulate --seed {seed + done} --seeds {seeds - done} --hours {hours:g}"
        typer.echo(f"\nStopped after {done:,} of {seeds:,} seeds; the rest: {rest}", err=True)
        raise stopped
    if summary.failed:
        raise QubicLabError(f"{len(summary.failed)} of {seeds} seeds broke a promise")


def _shower(progress: "Progress", seeds: int) -> "Callable[[float], None]":
    """Return a function that shows how many seeds are done, and about how long the rest takes."""
    begun_s = monotonic()

    def show(done: float) -> None:
        left = f", about {duration_text((monotonic() - begun_s) * (seeds - done) / done)} left" if done else ""
        progress(f"{int(done):,} of {seeds:,} seeds{left}", int(_ALL * done), _ALL * seeds)

    show(0)
    return show


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError:
        raise InputError(f"--only is {text!r}: give numbers of faults, such as 3,17") from None


def _content(summary: "Summary", shrunk: "Sequence[Report]") -> dict[str, object]:
    return {
        "seeds": len(summary.reports),
        "virtual_s": summary.virtual_s,
        "times_real": summary.times_real,
        "requests": summary.requests,
        "ended": summary.ended,
        "struck": summary.struck,
        "sometimes": summary.sometimes,
        "violations": [asdict(report) | {"replay": _replay(report)} for report in shrunk or summary.failed],
        "digests": {str(report.seed): report.digest for report in summary.reports},
    }


def _replay(report: "Report") -> str:
    """Return the command that does the same again."""
    only = ",".join(map(str, report.faults))
    return f"qubic-lab simulate --seed {report.seed} --hours {report.hours:g}" + (f" --only {only}" if only else "")


def _show(summary: "Summary", promises: "Sequence[str]", shrunk: "Sequence[Report]") -> None:
    hours, number = summary.virtual_s / 3_600, len(summary.reports)
    typer.echo(
        f"{number} seed{'s' * (number != 1)}, {hours:.2f} virtual hours, {summary.requests:,} requests, "
        f"{summary.times_real:.0f} × real time on one core\n\nPromised:"
    )
    for promise in promises:
        typer.echo(f"- {promise}")
    typer.echo("")
    print_table(("fault", "struck"), [(kind, f"{count:,}") for kind, count in summary.struck.items()])
    typer.echo("")
    print_table(("happened", "times"), [(what, f"{count:,}") for what, count in summary.sometimes.items()])
    typer.echo("")
    print_table(("request", "number"), [(_ENDS.get(how, how), f"{count:,}") for how, count in summary.ended.items()])
    if undecided := summary.sometimes.get("history not decided"):
        typer.echo(f"\nHistories that were not decided, as their search was given up: {undecided:,}")
    typer.echo("\nViolations: none" if not summary.failed else "\nViolations:")
    for report in shrunk or summary.failed:
        typer.echo(f"- seed {report.seed}, {report.violation}\n  replay: {_replay(report)}")
