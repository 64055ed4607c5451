import re
from pathlib import Path
from typing import Any

import pytest
from studies import write_notebook, write_study, write_week

from qubic_lab.errors import InputError
from qubic_lab.runs.experiment import ProjectItem, ProjectProblem, ProjectStatus, load
from qubic_lab.runs.fingerprint import cache_key, hash_folder
from qubic_lab.runs.parameters import read_source

ROOT = Path(__file__).resolve().parents[1]


def refusal(file: Path, message: str) -> str:
    """Return the error of a file, which is one line and matches the pattern."""
    with pytest.raises(InputError, match=message) as error:
        load(file)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_notebook(tmp_path / "notebooks" / "tiny.ipynb", "number + 1")
    return tmp_path


def test_a_week_lists_its_studies_in_order(root: Path):
    write_study(root, "first")
    write_study(root, "second", title="Another")
    week = load(write_week(root, "second.yaml", "first.yaml"))
    assert week.title == "A week"
    assert [(study.name, study.title) for study in week.studies] == [("second", "Another"), ("first", "A study")]


def test_a_study_alone_is_a_week_of_one_with_every_combination_of_its_grid(root: Path):
    (study,) = load(write_study(root)).studies
    assert (study.root, study.source.path) == (root, root / "notebooks" / "tiny.ipynb")
    complete = {"number": 7, "share": 0.5, "names": ["a"], "threads": 0, "free": None}
    assert study.source.complete({"number": 7}) == complete
    # An integer is a float, and a name without a type takes anything.
    parameters = {"share": 1, "free": {"any": [1, "thing"]}}
    [other] = load(write_study(root, "other", quick={"parameters": parameters})).studies
    assert other.quick.combinations() == [parameters]
    assert study.quick.combinations() == [{"number": 2}]
    every = [{"number": number, "names": names} for number in (1, 2) for names in (["a"], ["b", "c"])]
    assert study.full.combinations() == every


def test_a_quick_run_says_in_what_the_full_form_has_more(root: Path):
    full = {"number": 5, "share": 0.1, "names": ["a", "b"], "free": True}
    (study,) = load(write_study(root, full={"parameters": full})).studies
    assert study.left_out(study.source.complete({"number": 2})) == {"number": 5, "names": ["a", "b"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"notbook": "tiny"}, "unknown name 'notbook': did you mean 'notebook'?"),
        ({"title": None}, "'title' is missing"),
        ({"title": 3}, "title is 3: it must be a text"),
        ({"notebook": "tinny"}, "no notebook 'tinny'.*did you mean 'tiny'?"),
        ({"data": ["data/gone.jsonl"]}, "no data file .*gone.jsonl"),
        ({"measures_time": "yes"}, "measures_time is 'yes': it must be true or false"),
        ({"quick": []}, "quick is \\[\\]: it must be a map"),
        ({"quick": {"grids": {}}}, "quick: unknown name 'grids': did you mean 'grid'?"),
        ({"quick": {"parameters": {"numbr": 1}}}, "quick: unknown parameter 'numbr'.*did you mean 'number'?"),
        ({"quick": {"parameters": {"number": "two"}}}, "parameter number is 'two': tiny.ipynb takes int"),
        ({"quick": {"parameters": {"number": True}}}, "parameter number is True: tiny.ipynb takes int"),
        ({"quick": {"parameters": {"names": [1]}}}, "parameter names is \\[1\\]: tiny.ipynb takes list\\[str\\]"),
        ({"quick": {"grid": {"number": 3}}}, "quick: grid: number is 3: it must be a list"),
        ({"quick": {"grid": {"number": []}}}, "number is \\[\\]: List should have at least 1 item"),
        ({"quick": {"grid": {"number": [1, "x"]}}}, "parameter number is 'x'"),
        ({"quick": {"parameters": {"number": 1}, "grid": {"number": [2]}}}, "in both 'parameters' and 'grid'"),
    ],
)
def test_a_wrong_entry_is_one_line_with_a_remedy(root: Path, changes: dict[str, Any], message: str):
    file = write_study(root, **changes)
    assert str(file) in refusal(file, message)


def test_a_week_says_how_the_project_stands(root: Path):
    write_study(root)
    progress = {"done": ["this"], "in_progress": ["that"], "not_started": []}
    problems = [{"problem": "slow", "solution": "wait"}]
    file = write_week(root, "study.yaml", progress=progress, problems=problems, next_focus=["more"])
    status = load(file).status
    stated = (ProjectProblem("slow", "wait"),)
    assert status == ProjectStatus(done=("this",), in_progress=("that",), problems=stated, next_focus=("more",))
    overview = [{"item": "Week 9", "built": ["a", "b"]}, {"item": "Week 10", "built": ["c"], "open": ["d", "e"]}]
    found = load(
        write_week(root, "study.yaml", overview=overview, tomorrow=["rest"], hero="a/b", usd_per_hour={"t4": 1})
    ).status
    items = (ProjectItem("Week 9", ("a", "b")), ProjectItem("Week 10", ("c",), ("d", "e")))
    assert found == ProjectStatus(overview=items, tomorrow=("rest",), hero="a/b", usd_per_hour={"t4": 1})
    assert ([each.percent for each in items], found.items_done) == ([100, 33], 1)
    assert load(write_study(root)).status is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"progres": {}}, "unknown name 'progres': did you mean 'progress'?"),
        ({"progress": {"dne": []}}, "progress: unknown name 'dne': did you mean 'done'?"),
        ({"progress": {"done": [{"a": "b"}]}}, "done: entry 1 is {'a': 'b'}: it must be a text; put it in quotes"),
        ({"problems": ["slow"]}, "problems: entry 1 is 'slow': it must be a map"),
        ({"problems": [{"problem": "a", "solutoin": "b"}]}, "unknown name 'solutoin': did you mean 'solution'?"),
        ({"overview": [{"item": "Week 9", "percent": 90}]}, "unknown name 'percent'"),
        ({"studies": ["study.yaml", "study.yaml"]}, "studies names study.yaml twice"),
    ],
)
def test_a_wrong_status_is_one_line_with_a_remedy(root: Path, changes: dict[str, Any], message: str):
    write_study(root)
    refusal(write_week(root, "study.yaml", **changes), re.escape(message))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "is not valid YAML"),
        ("- a", "not an experiment file"),
        ("", "not an experiment"),
        (
            "{title: T, notebook: tiny, full: {}, quick: {parameters: {free: [2026-11-24]}}}",
            "is read as a date: put it",
        ),
    ],
)
def test_a_file_that_is_no_experiment(root: Path, content: str, message: str):
    file = write_study(root, "broken")
    file.write_text(content)
    refusal(file, message)


def test_a_missing_file_names_a_similar_one(root: Path):
    write_study(root, "accuracy")
    refusal(root / "experiments" / "acuracy.yaml", "did you mean 'accuracy'")
    refusal(write_week(root, "gone.yaml"), re.escape(str(root / "experiments" / "gone.yaml")))


@pytest.mark.parametrize(
    ("parameters", "tag", "message"),
    [
        ("a = 1", "settings", "0 code cells tagged 'parameters'"),
        ("a = compute()", "parameters", "name: type = value"),
        ("import os", "parameters", "name: type = value"),
        ("a: tuple = (1,)", "parameters", "type tuple"),
        ("a: int | None = None", "parameters", "type int | None"),
        ("a = ", "parameters", "name: type = value"),
    ],
)
def test_a_parameters_cell_holds_plain_values_only(tmp_path: Path, parameters: str, tag: str, message: str):
    with pytest.raises(InputError, match=message):
        read_source(write_notebook(tmp_path / "odd.ipynb", parameters=parameters, tag=tag))


def test_the_committed_experiments_are_valid():
    for file in sorted((ROOT / "experiments").glob("*.yaml")):
        assert load(file).studies


VERSIONS = {"python": "3.12", "torch": "2.6", "transformers": "5.0", "numpy": "2.0", "safetensors": "0.6"}
INPUT: dict[str, Any] = {
    "code_cells": ["a = 1", "a + 1"],
    "parameters": {"model": "m", "seed": 0},
    "package_hash": "p",
    "versions": VERSIONS,
    "model_hash": "m",
    "data_hashes": {"data/a": "d"},
}


@pytest.mark.parametrize(
    "change",
    [
        {"code_cells": ["a = 1", "a + 2"]},
        {"code_cells": ["a = 1a + 1"]},
        {"parameters": {"model": "m", "seed": 1}},
        {"package_hash": "q"},
        {"versions": VERSIONS | {"torch": "2.7"}},
        {"model_hash": None},
        {"data_hashes": {"data/a": "e"}},
        {"occasion": {"week": "2026-W48"}},
    ],
)
def test_each_part_of_the_input_changes_the_key(change: dict[str, Any]):
    assert cache_key(**INPUT | change) != cache_key(**INPUT)


def test_order_and_versions_that_decide_nothing_leave_the_key():
    other = {"parameters": {"seed": 0, "model": "m"}, "versions": VERSIONS | {"safetensors": "0.7"}}
    assert cache_key(**INPUT | other) == cache_key(**INPUT)


def test_the_package_hash_follows_names_and_contents(tmp_path: Path):
    (tmp_path / "a.py").write_text("1")
    first = hash_folder(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("x")
    assert hash_folder(tmp_path) == first
    (tmp_path / "a.py").write_text("2")
    changed = hash_folder(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, changed, hash_folder(tmp_path)}) == 3
