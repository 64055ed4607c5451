"""How far a batch is and how long the rest takes, in a terminal and under a cell of JupyterLab."""

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from rich.progress_bar import ProgressBar
from rich.table import Table

from qubic_lab.runs.kept import expected_seconds

if TYPE_CHECKING:
    from qubic_lab.runs.one_run import PlannedRun, RunOutcome

BAR_WIDTH = 30


class TimeLeft:
    """The time that the rest of a batch takes.

    Args:
        expected: seconds that each run is likely to take, by its number; None if that is not known: then it is taken to
            be the mean of those that have ended, or else of those that are known.
        alone: numbers of the runs beside which no other is made.
        jobs: how many of the others are made at once.
    """

    def __init__(self, expected: Mapping[int, float | None], alone: Collection[int], jobs: int) -> None:
        self._expected, self._alone, self._jobs = dict(expected), alone, jobs
        self._begun: dict[int, float] = {}
        self._took: list[float] = []

    def begin(self, number: int, now_s: float) -> None:
        """A run begins."""
        self._begun[number] = now_s

    def end(self, number: int, now_s: float, reused: bool) -> None:
        """A run has ended."""
        del self._expected[number]
        begun = self._begun.pop(number, now_s)
        if not reused:
            self._took.append(now_s - begun)

    def seconds(self, now_s: float) -> float | None:
        """Return the time that is left; None while nothing is known of it."""
        known = self._took or [each for each in self._expected.values() if each is not None]
        if not known:
            return None if self._expected else 0.0
        rest = {
            number: max(0.0, (mean(known) if seconds is None else seconds) - now_s + self._begun.get(number, now_s))
            for number, seconds in self._expected.items()
        }
        together = [seconds for number, seconds in rest.items() if number not in self._alone]
        return sum(rest.values()) - sum(together) + max(sum(together) / self._jobs, *together, 0.0)


class BatchProgress:
    """A watcher of a batch that shows, as a rich renderable, what runs and how long the rest takes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of = 0
        self._ended = set[int]()
        self._left = TimeLeft({0: None}, (), 1)  # until it starts
        self._running: dict[int, tuple[str, int, int]] = {}

    def start(self, runs: Sequence["PlannedRun"], jobs: int) -> None:
        self._of = len(runs)
        self._left = TimeLeft(expected_seconds(runs), {run.number for run in runs if run.study.runs_alone}, jobs)

    def wait(self) -> None:
        """It waits for another process."""

    def begin(self, run: "PlannedRun") -> None:
        with self._lock:
            self._left.begin(run.number, time.monotonic())
        self.cell(run, 0, 1)

    def cell(self, run: "PlannedRun", number: int, of: int) -> None:
        with self._lock:
            if run.number not in self._ended:  # a Dask cluster may tell of it after the end
                self._running[run.number] = (self.label(run), number, of)
        self.changed()

    def end(self, outcome: "RunOutcome") -> None:
        with self._lock:
            self._ended.add(outcome.run.number)
            self._left.end(outcome.run.number, time.monotonic(), outcome.reused)
            self._running.pop(outcome.run.number, None)
        self.changed()

    def changed(self) -> None:
        """Show what has changed, where nobody looks at it from time to time."""

    def label(self, run: "PlannedRun") -> str:
        """Return what a run is called."""
        return f"{run.study.name} ({run.number} of {self._of})"

    def __rich__(self) -> Table:
        table = Table.grid(padding=(0, 1))
        with self._lock:
            left = self._left.seconds(time.monotonic())
            rows = [*self._running.values(), (f"all runs, {left_in_words(left)}", len(self._ended), self._of)]
        for label, done, of in rows:
            table.add_row(label, ProgressBar(total=max(1, of), completed=done, width=BAR_WIDTH), f"{done}/{of}")
        return table


class LabProgress(BatchProgress):
    """Shows the progress of a batch under the running cell of a notebook."""

    def __init__(self) -> None:
        super().__init__()
        from IPython.display import display

        self._shown: Any = display(self.__rich__(), display_id=True)

    def changed(self) -> None:
        self._shown.update(self.__rich__())


def left_in_words(seconds: float | None) -> str:
    """Return the time that is left as people say it."""
    if seconds is None:
        return "time left unknown"
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute left"
    return f"about {minutes} min left" if minutes < 90 else f"about {minutes // 60} h {minutes % 60} min left"
