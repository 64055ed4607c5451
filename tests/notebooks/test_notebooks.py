"""Every notebook runs from top to bottom with small parameters, in a kernel of its own, and leaves no rank behind."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from bar_series import walk, write_closes
from clusters import all_gone, wait_until
from forked_kernels import forked_kernels
from IPython.core.interactiveshell import InteractiveShell

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.timestamps import HOUR_US
from qubic_lab.runs.collect_week import judge
from qubic_lab.runs.notebook import RUN_DIR
from qubic_lab.runs.parameters import read_injected, read_source
from qubic_lab.runs.records import read_records

ROOT = Path(__file__).parents[2]
SMALL: dict[str, dict[str, Any]] = {
    "accuracy_comparison": {
        "questions": 2,
        "max_new_tokens": 6,
        "strategies": ["C"],
        "batches": [1],
        "dtypes": ["fp32"],
    },
    "balancing": {
        "nodes": 12,
        "requests": 40,
        "seeds": 2,
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
        "vote_clients": [1, 2],
        "votes": 3,
        "levels": [2, 20],
    },
    "cluster_faults": {"cases": []},  # shows the last matrix
    "concurrency": {"clients": [1, 3], "requests": 4, "repeat": 2, "slots": 2, "max_new_tokens": 5, "pace_rounds": 2},
    "consensus_evaluation": {"questions": 6, "k": 2, "samples": 2, "max_new_tokens": 4},
    "dashboard": {"updates": 2, "coordinator": "http://127.0.0.1:1"},
    "engine_gains": {},  # shows what is kept
    "engine_speed": {},  # shows the last full run
    "harnesses": {"limit": 2, "ranks": 1},
    "oracle_backtest": {"effects": [0.25], "horizons": [1, 4], "draws": 5, "resamples": 100},
    "oracle_overview": {"shown": 60, "sizes": [8.0], "walks": 6, "sentiment_model": "crypto-lexicon"},
    "pipeline_service": {"max_new_tokens": 8},
    "risk_warnings": {"refit_bars": 2000},
    "split_strategies": {
        "ranks": [2],
        "batches": [1],
        "new_tokens": 12,
        "repeat": 1,
        "replicas": False,
        "messages": 20,
    },
    "weekly": {},
}
QUICK_AUDITS = """from functools import partial
from qubic_lab.oracle.backtest import lookahead
lookahead.check_lookahead = partial(lookahead.check_lookahead, cuts=2, extra_s=0.0)
"""
"""As the fixture `quick_audits`, in a kernel."""
JUDGED = {"oracle_backtest": "13.7", "oracle_overview": "13.7", "risk_warnings": "14"}
"""Notebooks that record here what they find, each with a row of the acceptance table that is read from it."""
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
START_NO_RANKS = {
    "balancing",
    "cluster_faults",
    "dashboard",
    "engine_gains",
    "engine_speed",
    "oracle_backtest",
    "oracle_overview",
    "risk_warnings",
    "weekly",
}
RUNS = [
    pytest.param(path, id=path.stem, marks=() if path.stem in START_NO_RANKS else pytest.mark.dist)
    for path in NOTEBOOKS
]


def test_every_notebook_has_small_parameters() -> None:
    assert {notebook.stem for notebook in NOTEBOOKS} == set(SMALL)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_checks_what_papermill_passes(notebook: Path) -> None:
    source = read_source(notebook)
    _, first, *_others = source.code_cells
    used = ast.parse(first).body
    calls = [each for each in used if not isinstance(each, ast.Import | ast.ImportFrom)]
    assert ast.unparse(calls[0]) == "begin(globals())"
    assert all(isinstance(each, ast.AnnAssign) for each in ast.parse(source.code_cells[0]).body)
    assert ("file" in source.parameters) <= ("reading" in source.parameters)


def test_balancing_asserts_arithmetic_and_no_finding() -> None:
    last = read_source(ROOT / "notebooks" / "balancing.ipynb").code_cells[-1]
    assert "assert" in last and "verdict" not in last


def given_to_a_notebook(**parameters: Any) -> dict[str, Any]:
    """Run the first cells of a notebook as papermill does, and return its names."""
    from papermill.translators import translate_parameters

    shell = InteractiveShell()
    shell.run_cell("file: str = ''\nreading: dict = {}\nmodels: list[str] = []\nseed: int = 0", store_history=True)
    injected = translate_parameters("python3", "python", parameters, "Parameters")
    shell.run_cell(injected, store_history=True)
    shell.run_cell("later = 1", store_history=True)
    read_injected(shell.user_ns)
    return dict(shell.user_ns)


def test_json_texts_of_papermill_are_read() -> None:
    names = given_to_a_notebook(reading='{"stamp": "open"}', models='["vader", "default"]', file="[1].csv", seed=3)
    assert (names["reading"], names["models"]) == ({"stamp": "open"}, ["vader", "default"])
    assert (names["file"], names["seed"]) == ("[1].csv", 3)
    assert given_to_a_notebook(reading={"stamp": "open"})["reading"] == {"stamp": "open"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"redaing": "{}"}, "unknown parameter 'redaing' of this notebook: did you mean 'reading'?"),
        ({"reading": "{stamp: open}"}, "parameter reading is '{stamp: open}': give dict as JSON"),
        ({"models": '"vader"'}, "parameter models is 'vader': this notebook takes list"),
        ({"seed": "1"}, "parameter seed is '1': this notebook takes int"),
    ],
)
def test_what_a_notebook_does_not_take_is_an_error(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        given_to_a_notebook(**given)
    assert said in str(error.value)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, psutil.Process]]:
    """A JUPYTER_PATH whose kernels need not import what each notebook imports, and the process that they are of."""
    with forked_kernels(tmp_path_factory.mktemp("kernels"), NOTEBOOKS) as (folder, number):
        yield folder, psutil.Process(number)


def test_an_unknown_name_of_papermill_ends_a_notebook(
    tmp_path: Path, kernels: tuple[str, psutil.Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    import papermill

    monkeypatch.setenv("JUPYTER_PATH", kernels[0])
    with pytest.raises(papermill.PapermillExecutionError, match="unknown parameter 'weak' of this notebook"):
        papermill.execute_notebook(
            ROOT / "notebooks" / "weekly.ipynb", tmp_path / "out.ipynb", {"weak": "x"}, cwd=ROOT, progress_bar=False
        )


@pytest.mark.parametrize("notebook", RUNS)
def test_a_notebook_runs_from_top_to_bottom(
    notebook: Path, tiny: Path, tmp_path: Path, kernels: tuple[str, psutil.Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    import papermill

    folder, process = kernels
    before = process.children(recursive=True)
    monkeypatch.setenv("JUPYTER_PATH", folder)
    monkeypatch.setenv("QUBIC_LAB_RUNS", str(tmp_path / "runs"))  # none: the weekly notebook shows the kept week
    if notebook.stem in JUDGED:
        monkeypatch.setenv(RUN_DIR, str(tmp_path))
    parameters = SMALL[notebook.stem]
    if "model" in read_source(notebook).parameters:
        parameters = {"model": str(tiny), **parameters}
    if notebook.stem == "oracle_backtest":  # to check signals for lookahead on the packaged bars takes half a minute
        startup = tmp_path / "ipython" / "profile_default" / "startup"
        startup.mkdir(parents=True)
        (startup / "quick_audits.py").write_text(QUICK_AUDITS)
        monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
        file = write_closes(tmp_path / "bars.csv", walk(400).close, HOUR_US)
        parameters = {"file": file, "reading": {"stamp": "open"}, **parameters}
    papermill.execute_notebook(notebook, tmp_path / "out.ipynb", parameters, cwd=ROOT, progress_bar=False)
    wait_until(lambda: all_gone([each for each in process.children(recursive=True) if each not in before]))
    if notebook.stem in JUDGED:
        (row,) = (row for row in judge({"run": read_records(tmp_path)}) if row.id == JUDGED[notebook.stem])
        assert (row.run, bool(row.measured)) == ("run", True)
