"""Make the sample that comes with the project: the studies of the week run as two weeks, so that a page has a past.

The earlier week is of the same day: its clock is set back by seven days, and this is all that is not as it was.

    python scripts/sample_weeks.py; python scripts/golden.py --write sample_week

It takes as long as the week and once more its studies of times, about 15 minutes. What ended is kept: broken off, it
goes on there. Each study says how long it took; another week's file makes a smaller sample.
"""

import shutil
import sys
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from qubic_lab.runs import batch, collect_week, one_run, store
from qubic_lab.runs.experiment import load
from qubic_lab.runs.page import make_page
from qubic_lab.runs.page_numbers import NUMBERS
from qubic_lab.runs.report import PAGE, build_page, render
from qubic_lab.runs.week_report import KEPT, SAMPLE, WeekReport, read_week

ROOT = Path(__file__).parents[1]
EARLIER = "earlier"
"""The folder in the sample's own that has the week before it."""


class _Lines:
    """Prints a line for each run of a batch, and ends at the first that failed."""

    def start(self, *_: Any) -> None: ...

    def wait(self, *_: Any) -> None: ...

    def begin(self, *_: Any) -> None: ...

    def cell(self, *_: Any) -> None: ...

    def end(self, outcome: Any) -> None:
        if outcome.error is not None:
            raise SystemExit(f"{outcome.folder}: {outcome.error}")
        took = "is there" if outcome.reused else f"{outcome.seconds:.0f} s"
        print(f"{outcome.folder.parent.name}/{outcome.folder.name}: {took}", flush=True)


def make_week(file: Path, days_back: int) -> Path:
    """Run a week's studies as so many days ago, and return the folder of its page."""

    def then() -> object:
        return store.utc_now() - timedelta(days=days_back)

    with ExitStack() as stack:
        for module in (batch, one_run, collect_week):
            stack.enter_context(mock.patch.object(module, "utc_now", then))
        batch.run_batch(load(file), full=False, watcher=_Lines(), jobs=2)
        return build_page().parent


def without_notebooks(report: WeekReport) -> WeekReport:
    """Return a week whose page links to no executed notebook."""
    runs = (replace(run, manifest=run.manifest and replace(run.manifest, files={})) for run in report.runs)
    return replace(report, runs=tuple(runs))


def main() -> None:
    """Write reports/sample, and the week before it into a folder there."""
    sample = store.reports_folder() / SAMPLE
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "experiments" / "weekly.yaml"
    earlier, latest = make_week(file, 7), make_week(file, 0)
    shutil.rmtree(sample, ignore_errors=True)
    # Numbers cannot be checked without the runs, and the notebooks of one week are megabytes enough.
    shutil.copytree(latest, sample, ignore=shutil.ignore_patterns(NUMBERS))
    store.write_atomically(sample / EARLIER / PAGE, render(make_page(without_notebooks(read_week(earlier / KEPT)))))
    print(sample)


if __name__ == "__main__":
    main()
