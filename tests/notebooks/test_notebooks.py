"""Every notebook runs from top to bottom with small parameters, in a kernel of its own, and leaves no rank behind."""

from pathlib import Path
from typing import Any

import papermill
import psutil
import pytest

from qubic_lab.runs.collect_week import judge
from qubic_lab.runs.notebook import RUN_DIR
from qubic_lab.runs.records import read_records

ROOT = Path(__file__).parents[2]
SMALL: dict[str, dict[str, Any]] = {
    "accuracy_comparison": {"questions": 2, "max_new_tokens": 6, "strategies": ["B", "C"], "batches": [1]},
    "balancing": {
        "nodes": 12,
        "requests": 40,
        "others": [],
        "heartbeats_s": [0.0, 5.0],
        "loads": [0.5],
        "coordinator_numbers": [10],
        "slot_numbers": [1],
        "hardware": [[10, 3, 1]],
        "tails": [3.0],
        "node_numbers": [3],
    },
    "cluster": {
        "requests": 4,
        "concurrency": 2,
        "nodes": 2,
        "seconds": 0.1,
        "failover_requests": 6,
        "every_s": 0.15,
        "answer_s": 0.6,
        "queue_tasks": 8,
        "levels": [2, 20],
    },
    "concurrency": {"clients": [1, 3], "requests": 4, "repeat": 2, "slots": 2, "max_new_tokens": 5},
    "consensus_evaluation": {"questions": 6, "k": 2, "samples": 2, "max_new_tokens": 4},
    "engine_speed": {},  # shows the last full run
    "oracle_backtest": {"effects": [0.25], "horizons": [1, 4], "draws": 5, "resamples": 100},
    "oracle_overview": {"shown": 60, "sizes": [8.0], "walks": 6, "sentiment_model": "crypto-lexicon"},
    "pipeline_service": {"max_new_tokens": 8},
    "risk_warnings": {"refit_bars": 500},
    "split_strategies": {"ranks": [2], "batches": [1], "new_tokens": 12, "repeat": 1, "replicas": False},
    "weekly": {},
}
JUDGED = {"oracle_backtest": "13.7", "oracle_overview": "13.7", "risk_warnings": "14"}
"""Notebooks that record here what they find, each with a row of the acceptance table that is read from it."""
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_every_notebook_has_small_parameters() -> None:
    assert {notebook.stem for notebook in NOTEBOOKS} == set(SMALL)


@pytest.mark.dist
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(
    notebook: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUBIC_LAB_RUNS", str(tmp_path / "runs"))  # none: the weekly notebook shows the kept week
    if notebook.stem in JUDGED:
        monkeypatch.setenv(RUN_DIR, str(tmp_path))
    before = {p.pid for p in psutil.process_iter()}
    parameters = {"model": str(tiny), **SMALL[notebook.stem]}
    papermill.execute_notebook(notebook, tmp_path / "out.ipynb", parameters, cwd=ROOT, progress_bar=False)
    new = [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before]
    assert not [p for p in new if "qubic_lab.pipeline.rank" in (p.info["cmdline"] or [])]
    if notebook.stem in JUDGED:
        (row,) = (row for row in judge({"run": read_records(tmp_path)}) if row.id == JUDGED[notebook.stem])
        assert (row.run, bool(row.measured)) == ("run", True)
