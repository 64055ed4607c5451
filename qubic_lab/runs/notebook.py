"""Run one notebook with papermill in a process of its own, and keep what the notebook records."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import TypeAdapter

from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.runs.parameters import NotebookSource
from qubic_lab.runs.shown import CaptionedFigure, CaptionedTable, draw_png
from qubic_lab.runs.store import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from qubic_lab.runs.limits import Limits
    from qubic_lab.studies.finding import Finding

T = TypeVar("T")

EXECUTED = "executed.ipynb"
LOG = "notebook.log"
# Not a setting: the parent process sets it to say where a running notebook records.
RUN_DIR = "QUBIC_LAB_RUN_DIR"
FINDINGS = "findings"
CAPTION = b"caption"
"""The key of a table's caption among its Parquet metadata."""


class NotebookError(QubicLabError):
    """A notebook stopped; the message names it, the cell and the last line of the error."""


def run_notebook(
    source: NotebookSource,
    parameters: Mapping[str, Any],
    *,
    root: Path,
    folder: Path,
    limits: "Limits",
    on_cell: Callable[[int, int], None],
    stop: threading.Event | None = None,
) -> None:
    """Execute a notebook in `root` and leave the executed notebook, its log and what it records in `folder`.

    `on_cell(n, of)` is called as each code cell begins.

    Raises:
        NotebookError: a cell failed, a limit was passed or the process was lost; `folder` holds the notebook as far as
            it got.
        KeyboardInterrupt: `stop` was set.
    """
    from qubic_lab.runs.limits import guarded  # not in notebooks, which import this module too

    job = {"notebook": str(source.path), "parameters": dict(parameters), "root": str(root), "folder": str(folder)}
    command = [sys.executable, "-m", "qubic_lab.runs.worker", json.dumps(job)]
    cells = len(source.code_cells) + bool(parameters)  # papermill adds a cell with the parameters
    failure = None
    with (
        (folder / LOG).open("wb") as log,
        # The worker reads its standard input only to notice that this process has ended. Ctrl-C is for us, not for it.
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        ) as worker,
        guarded(worker, (RUN_DIR, str(folder)), limits, stop) as passed,
    ):
        assert worker.stdout is not None
        for line in worker.stdout:
            message = json.loads(line)
            if "error" in message:
                where = f"cell In [{message['cell']}]" if message["cell"] else "before the first cell"
                failure = f"{where}: {message['error']}"
                if message["error"].startswith("ModuleNotFoundError"):
                    failure += '; what the studies of this project need: pip install "qubic-lab[lab,oracle]"'
            else:
                on_cell(message["cell"], cells)
    if stop is not None and stop.is_set():
        raise KeyboardInterrupt
    if worker.returncode and passed:
        failure = passed[0]
    elif worker.returncode and failure is None:
        failure = f"its process ended with status {worker.returncode}, see {LOG}"
    if failure is not None:
        raise NotebookError(f"{source.path.name}: {failure}")


def record(name: str, value: T) -> T:
    """Keep a result, a dataclass or a dict, as `results/<name>.json` of its run and return it.

    Outside a run, as in JupyterLab, it is only returned. Names are lower-case letters, digits and underscores.

    Raises:
        InputError: another name.
    """
    if folder := _record_folder("results", name):
        plain = TypeAdapter(type(value)).dump_python(value, by_alias=True, mode="json")
        write_atomically(folder / f"{name}.json", json.dumps(plain, indent=2, allow_nan=False) + "\n")
    return value


def record_figure(name: str, figure: "Figure", caption: str) -> CaptionedFigure:
    """Keep a figure as `figures/<name>.svg` and `.png` of its run, its caption inside, and return both to be shown."""
    from matplotlib import pyplot

    png = b""
    if folder := _record_folder("figures", name):
        folder.mkdir(parents=True, exist_ok=True)
        # With fixed names inside and without a date, equal figures are equal files. Texts stay texts, for translation.
        with pyplot.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
            figure.savefig(folder / f"{name}.svg", metadata={"Title": caption, "Date": None})
        figure.set_layout_engine("none")  # all is in its place; to place it again takes a third of drawing it
        png = draw_png(figure, caption)
        (folder / f"{name}.png").write_bytes(png)
    pyplot.close(figure)  # else the notebook would show it twice: as pyplot's and as the cell's value
    return CaptionedFigure(figure, caption, png)


def record_table(name: str, frame: "DataFrame", caption: str) -> CaptionedTable:
    """Keep a table as `tables/<name>.parquet` of its run, its caption inside, and return both to be shown."""
    if folder := _record_folder("tables", name):
        import pyarrow
        from pyarrow import parquet

        table = pyarrow.Table.from_pandas(frame, preserve_index=False)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{name}"
        parquet.write_table(table.replace_schema_metadata({**table.schema.metadata, CAPTION: caption}), temporary)
        temporary.replace(folder / f"{name}.parquet")
    return CaptionedTable(frame, caption)


def record_findings(findings: Sequence["Finding | str"]) -> None:
    """Print a study's findings, the most important one first, and keep them with its run for the report.

    A plain sentence is a finding without values, which is not translated.
    """
    from qubic_lab.studies.finding import Finding

    record(FINDINGS, {"findings": [Finding.read(each) for each in findings]})
    print(*findings, sep="\n")


def record_measure(
    name: str, samples: Sequence[float], unit: str, better: Literal["higher", "lower"], probe: Sequence[float] = ()
) -> None:
    """Keep repeated measurements of one quantity as `measures/<name>.json`: a report compares them week by week.

    `probe` is a speed of the machine, measured beside each sample: a change of the machine is then no change.
    """
    if folder := _record_folder("measures", name):
        measure = {"name": name, "samples": list(samples), "unit": unit, "better": better, "probe": list(probe)}
        write_atomically(folder / f"{name}.json", json.dumps(measure, indent=2, allow_nan=False) + "\n")


def show_progress() -> Callable[[str, int, int], None]:
    """Show how far a cell is and return a function that renews it, given text, done and total.

    In JupyterLab it is a bar with the time left; in a run it is one line, which stays in the executed notebook.
    """
    if not os.environ.get(RUN_DIR):
        return _show_bar()
    from IPython.display import display

    line = display({"text/plain": "starting"}, raw=True, display_id=True)

    def update(text: str, done: int, total: int) -> None:
        line.update({"text/plain": f"{done} of {total} done: {text}"}, raw=True)

    return update


def _show_bar() -> Callable[[str, int, int], None]:
    from tqdm.auto import tqdm

    bar = tqdm(total=1.0, desc="starting", bar_format="{l_bar}{bar}| {elapsed}, {remaining} left")

    def update(text: str, done: int, total: int) -> None:
        bar.n = done / max(total, 1)
        bar.set_description(text)  # which draws it
        if done >= total:
            bar.close()

    return update


def _record_folder(kind: str, name: str) -> Path | None:
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise InputError(f"{name!r} cannot name a result: use lower-case letters, digits and underscores")
    run_dir = os.environ.get(RUN_DIR)
    # A kernel outlives its killed run for a moment: it must not make the folder again that has been cleared away.
    return Path(run_dir, kind) if run_dir and Path(run_dir).is_dir() else None
