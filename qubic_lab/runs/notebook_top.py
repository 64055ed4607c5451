"""The top of a notebook: its parameters, and the verdict of its checks as soon as there is one.

The checks are the asserts of its last cell. In a run, the verdicts on acceptance from its results stand beside them.
"""

import ast
import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qubic_lab.runs.cells import format_value
from qubic_lab.runs.notebook import RUN_DIR
from qubic_lab.runs.parameters import read_injected
from qubic_lab.runs.records import read_records
from qubic_lab.runs.shown import CaptionedTable, View, register
from qubic_lab.studies.acceptance import WeekResults

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

NOT_YET = "Verdict: none yet; the checks are in the last cell."


def begin(namespace: MutableMapping[str, Any]) -> None:
    """Read the parameters that papermill has put into a notebook, and show them with the verdict, which is renewed.

    Call it with `globals()` in the cell after the parameters. Outside IPython nothing is shown.

    Raises:
        InputError: see `parameters.read_injected`.
    """
    read_injected(namespace)
    from IPython.core.getipython import get_ipython

    if (shell := get_ipython()) is None:
        return
    register(shell)
    for earlier in list(shell.events.callbacks["post_run_cell"]):  # the notebook is run again
        if isinstance(getattr(earlier, "__self__", None), _Top):
            shell.events.unregister("post_run_cell", earlier)
    _Top(shell, {name: namespace[name] for name in namespace.get("__annotations__", {})})


class _Top:
    """What stands at the top of the notebook that runs in a shell."""

    def __init__(self, shell: "InteractiveShell", parameters: Mapping[str, Any]) -> None:
        from IPython.display import display
        from pandas import DataFrame

        rows = [(name, format_value(name, value)) for name, value in parameters.items()]
        self._table = CaptionedTable(DataFrame(rows, columns=["parameter", "value"]), "Parameters of this notebook.")
        self._shown: Any = display(self._view(NOT_YET), display_id=True)
        shell.events.register("post_run_cell", self.after_cell)

    def after_cell(self, result: Any) -> None:
        """Renew the verdict if a cell has failed, or has made the notebook's checks."""
        error = result.error_before_exec or result.error_in_exec
        if error is not None:
            text = " ".join(str(error).split())
            self._shown.update(self._view(f"Verdict: ✗ failed, {type(error).__name__}{': ' if text else ''}{text}"))
        elif checks := count_checks(result.info.raw_cell):
            held = "the check holds" if checks == 1 else f"all {checks} checks hold"
            self._shown.update(self._view(f"Verdict: ✓ {held}.", *acceptance_lines()))

    def _view(self, *lines: str) -> View:
        return View(lines, (self._table,))


def count_checks(code: str) -> int:
    """Return the number of asserts in a cell; 0 where it is not plain Python."""
    try:
        return sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(code)))
    except SyntaxError:
        return 0


def acceptance_lines() -> list[str]:
    """Return the verdicts on acceptance that the present run's results give, a line each; none outside a run.

    They are of the studies that the notebook has imported: to import all others takes a second.
    """
    if not (folder := os.environ.get(RUN_DIR)):
        return []
    records = read_records(Path(folder))
    captions = {picture.name: picture.caption for picture in records.pictures}
    week = WeekResults({"this run": records.results}, {"this run": captions})
    imported = [module for name, module in sys.modules.items() if name.startswith("qubic_lab.studies.")]
    rows = [row for module in imported if hasattr(module, "acceptance") for row in module.acceptance(week)]
    return [f"{row.id} {row.what}: {row.verdict}. {row.measured}" for row in rows if row.run is not None]
