"""The study `new_study` runs from top to bottom in its quick form, and records what the weekly page shows."""

import os
import subprocess
import sys
from pathlib import Path

from qubic_lab.runs.records import read_records

EXPERIMENT = Path(__file__).parents[1] / "experiments" / "new_study.yaml"


def test_the_quick_form_runs_and_records_what_the_page_shows(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qubic_lab.cli.main", "run", str(EXPERIMENT)]
    subprocess.run(command, env=os.environ | {"QUBIC_LAB_RUNS": str(tmp_path)}, check=True)
    (folder,) = (tmp_path / "new_study").iterdir()
    records = read_records(folder)
    assert records.findings and records.tables and records.pictures
    share = records.results["share"]
    assert share["low"] <= share["share"] <= share["high"]
