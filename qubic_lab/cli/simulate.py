"""`qubic-lab simulate`: the whole cluster in virtual time, with faults from a seed."""

from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from qubic_lab.cli import options
from qubic_lab.cli.bench import show
from qubic_lab.cli.console import duration_text, progress_bar, require
from qubic_lab.errors import InputError, QubicLabError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qubic_lab.simulation.runs import Progress
    from qubic_lab.simulation.world import Report

_ALL = 100
"""Steps of a seed's progress."""


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
    from qubic_lab.bench.noise import NoiseWatch
    from qubic_lab.simulation import runs
    from qubic_lab.simulation.world import World

    if not 0 < hours < float("inf"):
        raise InputError(f"--hours is {hours:g}: it must be a number above 0")
    if (log or only) and seeds > 1:
        raise InputError("--log and --only are for a single seed: leave --seeds out")
    kept = None if only is None else frozenset(_numbers(only))
    reports: list[Report] = []
    watch = NoiseWatch()
    stopped: KeyboardInterrupt | None = None
    with progress_bar() as progress:
        tell = _teller(progress, seeds)
        try:
            if jobs > 1 and seeds > 1:
                for report in runs.run_seeds(range(seed, seed + seeds), hours, jobs):
                    reports.append(report)
                    tell(len(reports))
            else:
                for number in range(seeds):
                    world = World(seed + number, hours, kept, log, on_progress=lambda share: tell(len(reports) + share))
                    reports.append(world.run())
        except KeyboardInterrupt as error:
            stopped = error
        failed = [report for report in reports if report.violation]
        shrunk = [runs.shrink(report, progress) for report in failed] if shrink and not stopped else []
    if stopped and not reports:
        raise stopped
    show(runs.summed(reports, shrunk, watch.noise()), json)
    if stopped:
        done = len(reports)
        rest = f"qubic-lab simulate --seed {seed + done} --seeds {seeds - done} --hours {hours:g}"
        typer.echo(f"\nStopped after {done:,} of {seeds:,} seeds; the rest: {rest}", err=True)
        raise stopped
    if failed:
        raise QubicLabError(f"{len(failed)} of {seeds} seeds broke a promise")


def _teller(progress: "Progress", seeds: int) -> "Callable[[float], None]":
    """Return a function that shows how many seeds are done, and about how long the rest takes."""
    begun_s = monotonic()

    def tell(done: float) -> None:
        left = f", about {duration_text((monotonic() - begun_s) * (seeds - done) / done)} left" if done else ""
        progress(f"{int(done):,} of {seeds:,} seeds{left}", int(_ALL * done), _ALL * seeds)

    tell(0)
    return tell


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError:
        raise InputError(f"--only is {text!r}: give numbers of faults, such as 3,17") from None
