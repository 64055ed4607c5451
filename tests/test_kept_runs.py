"""Runs of all weeks: listed, shown, compared, made again, deleted; read as one data frame; shared through a store."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from studies import Silent, make_manifest, write_notebook, write_project, write_study
from typer.testing import CliRunner, Result

from qubic_lab import runs
from qubic_lab.cli.console import add_group
from qubic_lab.errors import InputError, NotFoundError
from qubic_lab.runs.batch import run_batch
from qubic_lab.runs.experiment import load
from qubic_lab.runs.kept import expected_seconds, find_run, kept_runs, old_runs
from qubic_lab.runs.one_run import plan_runs
from qubic_lab.runs.shared_store import SharedStore
from qubic_lab.runs.store import hash_files, run_folder, write_manifest
from qubic_lab.runs.week_index import WeekEntry, add_entry


def invoke(*arguments: str) -> Result:
    app = typer.Typer()
    add_group(app, "runs", "Runs of all weeks.", "list")
    return CliRunner().invoke(app, arguments)


def keep_run(key: str, day: str, speed: float = 2.0, study: str = "study", **changes: object) -> Path:
    """Write a run that began on a day."""
    folder = run_folder(study, key)
    (folder / "results").mkdir(parents=True)
    (folder / "results" / "speed.json").write_text(
        json.dumps({"tokens_per_s": speed, "by_rank": [1, 2], "a": {"b": "c"}})
    )
    (folder / "results" / "findings.json").write_text('{"sentences": ["It is fast."]}')
    (folder / "measures").mkdir()
    measure = {"name": "step", "samples": [1.0, speed, 9.0], "unit": "s", "better": "lower"}
    (folder / "measures" / "step.json").write_text(json.dumps(measure))
    times = {"started_utc": f"{day}T08:00:00+00:00", "parameters": {"number": 1, "share": 0.5}, "error": None}
    manifest = make_manifest(**times | {"key": key, "study": study, "files": hash_files(folder)} | changes)
    write_manifest(folder, manifest)
    return folder


def test_runs_of_all_weeks_are_one_frame(lab_root: Path):
    keep_run("bb", "2026-11-24", speed=3.0, parameters={"number": 2})
    keep_run("aa", "2026-11-16")
    keep_run("cc", "2026-12-01", study="other", error="it failed")
    frame = runs.load()
    assert frame["key"].tolist() == ["aa", "bb", "cc"]
    assert frame["week"].tolist() == ["2026-W47", "2026-W48", "2026-W49"]
    assert frame["parameters.number"].tolist()[:2] == [1, 2]
    assert frame["results.speed.tokens_per_s"].tolist() == [2.0, 3.0, 2.0]
    assert frame["measures.step"].tolist() == [2.0, 3.0, 2.0]
    assert (frame["results.speed.a.b"] == "c").all()
    assert not [name for name in frame.columns if "by_rank" in name or "findings" in name]
    assert runs.load(study="study", since="2026-W48")["key"].tolist() == ["bb"]
    assert runs.load(since="2026-11-25")["error"].tolist() == ["it failed"]
    with pytest.raises(InputError, match=r"no run of study .sudy. is kept: did you mean .study.\?"):
        runs.load(study="sudy")
    with pytest.raises(InputError, match="since is 'May': give a week or a day, such as"):
        runs.load(since="May")
    (run_folder("study", "aa") / "results" / "speed.json").write_text("{")
    with pytest.raises(InputError, match="aa is damaged"):
        runs.load()


def test_a_run_is_named_by_the_beginning_of_its_key(lab_root: Path):
    keep_run("ab1", "2026-11-24")
    keep_run("ab2", "2026-11-25", speed=2.5)
    assert find_run("study/ab1").name == find_run("ab1").name == "study/ab1"
    with pytest.raises(InputError, match="'ab' may be study/ab1, study/ab2: give more of the key"):
        find_run("ab")
    with pytest.raises(NotFoundError, match="there is no run 'x'"):
        find_run("x")

    listed = invoke("runs", "list", "--study", "study").stdout.splitlines()
    assert len(listed) == 4 and "study/ab1" in listed[2] and "2026-11-24T08:00" in listed[2]
    assert [run["key"] for run in json.loads(invoke("runs", "list", "--json").stdout)["runs"]] == ["ab1", "ab2"]
    assert json.loads(invoke("runs", "show", "ab2", "--json").stdout)["measures.step"] == 2.5
    assert "| results.speed.a.b " in invoke("runs", "show", "ab2").stdout
    found = json.loads(invoke("runs", "diff", "ab1", "ab2", "--json").stdout)
    assert found.pop("started_utc") and found.pop("key") == ["ab1", "ab2"]
    assert found == {"results.speed.tokens_per_s": [2.0, 2.5], "measures.step": [2.0, 2.5]}


def test_runs_that_no_recent_week_used_are_deleted_but_the_last_full_ones(lab_root: Path):
    for key in ("old", "used", "full", "new"):
        keep_run(key, "2026-09-28" if key != "new" else "2026-11-24")
    entry = WeekEntry("study", "used", "2026-11-24T08:00:00+00:00", of=1, reused=True, failed=False)
    add_entry("2026-W48", entry)
    add_entry("2026-W40", replace(entry, key="full", batch="2026-09-28T08:00:00+00:00", full=True))
    now = datetime(2026, 11, 30, tzinfo=UTC)
    assert [run.manifest.key for run in old_runs(8, now)] == ["old"]
    assert {run.manifest.key for run in old_runs(1, now)} == {"new", "old", "used"}
    assert not invoke("runs", "gc", "--weeks", "2000", "--dry-run").stdout
    assert len(kept_runs()) == 4


def test_gc_deletes_what_it_names(lab_root: Path):
    folder = keep_run("old", "2020-01-06")
    kept = keep_run("full", "2020-01-06")
    add_entry("2020-W02", WeekEntry("study", "full", "2020-01-06", of=1, reused=False, failed=False, full=True))
    assert invoke("runs", "gc", "--dry-run").stdout == f"{folder}\n"
    assert folder.is_dir()
    assert invoke("runs", "gc").stdout == f"{folder}\n"
    assert list(folder.parent.iterdir()) == [kept]


def test_a_run_takes_as_long_as_the_likest_earlier_one(lab_root: Path):
    write_notebook(lab_root / "notebooks" / "tiny.ipynb")
    week = load(write_study(lab_root, quick={"grid": {"number": [1, 2]}}))
    first, second = plan_runs(week, full=False, iso_week="")
    assert expected_seconds([first, second]) == {1: None, 2: None}
    keep_run("early", "2026-11-16", parameters=first.parameters, seconds=50.0)
    keep_run("late", "2026-11-17", parameters=first.parameters, seconds=40.0)
    keep_run("failed", "2026-11-18", parameters=first.parameters, seconds=1.0, error="it failed")
    keep_run("unlike", "2026-11-18", parameters=first.parameters | {"number": 3, "share": 0.1}, seconds=2.0)
    assert expected_seconds([first, second]) == {1: 40.0, 2: 40.0}
    keep_run(first.key, "2026-11-19", parameters=first.parameters | {"number": 7, "share": 0.7})
    assert expected_seconds([first, second]) == {1: 0.0, 2: 40.0}


def test_a_run_made_again_takes_its_own_place(lab_root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(lab_root)
    code = "from pathlib import Path\nfrom qubic_lab.runs.notebook import record\n"
    code += "record('found', {'value': float(Path('value.txt').read_text()), 'same': 1})"
    write_notebook(lab_root / "notebooks" / "tiny.ipynb", code)
    (lab_root / "value.txt").write_text("1.5")
    (first,) = run_batch(load(write_study(lab_root)), full=False, watcher=Silent())
    (lab_root / "value.txt").write_text("2.5")  # what no key knows of
    again = invoke("runs", "rerun", first.run.key[:6], "--json")
    found = json.loads(again.stdout)
    assert found["results.found.value"] == [1.5, 2.5]
    assert not {"results.found.same", "key", "parameters.number"} & set(found)
    assert [path.name for path in first.folder.parent.iterdir()] == [first.run.key]
    (lab_root / "experiments" / "study.yaml").unlink()
    gone = invoke("runs", "rerun", first.run.key)
    assert isinstance(gone.exception, InputError)
    assert "there is no experiment file" in str(gone.exception)


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SharedStore:
    pytest.importorskip("fsspec")
    return SharedStore(str(tmp_path / "shared") if request.param == "folder" else f"memory://{tmp_path}")


def test_a_store_keeps_each_run_whole_and_once(store: SharedStore, lab_root: Path, caplog: pytest.LogCaptureFixture):
    folder = keep_run("aa", "2026-11-24")
    os.utime(folder / "results" / "speed.json", ns=(1_700_000_000_123_456_768,) * 2)
    assert not store.holds("study", "aa")
    store.push(folder, "study", "aa", failed=True)
    assert not store.holds("study", "aa")
    store.push(folder, "study", "aa")
    assert not store.fetch("study", "aa", lab_root / "none", failed=True), "a success takes the place of a failure"
    content = store._files.cat(store._run("study", "aa", failed=False))
    (folder / "results" / "other.json").write_text("{}")
    store.push(folder, "study", "aa")
    assert store._files.cat(store._run("study", "aa", failed=False)) == content, "nothing is written twice"

    fetched = lab_root / "fetched"
    fetched.mkdir()
    assert store.fetch("study", "aa", fetched)
    assert set(hash_files(fetched)) == set(hash_files(folder)) - {"results/other.json"}
    times = [(each / "results" / "speed.json").stat().st_mtime_ns for each in (folder, fetched)]
    assert abs(times[0] - times[1]) < 1000, "by which pictures are ordered"
    damaged = lab_root / "damaged"
    damaged.mkdir()
    store._files.pipe(store._run("study", "aa", failed=False), content[: len(content) // 2])
    assert not store.fetch("study", "aa", damaged)
    assert not store.holds("study", "aa") and list(damaged.iterdir()) == []
    assert "its run made again" in caplog.text

    digest = store.put_input(folder / "results" / "speed.json")
    store.get_input(digest, lab_root / "deep" / "copy.json")
    assert (lab_root / "deep" / "copy.json").read_bytes() == (folder / "results" / "speed.json").read_bytes()
    store._files.pipe(f"{store._root}/inputs/{digest}", b"other")
    with pytest.raises(InputError, match="has changed: delete it"):
        store.get_input(digest, lab_root / "copy.json")
    with pytest.raises(InputError, match="check that it can be reached"):
        store.get_input("gone", lab_root / "copy.json")


def test_another_machine_uses_a_run_of_the_store(store: SharedStore, lab_root: Path, set_settings: Callable[..., None]):
    week = load(write_project(lab_root, runs=1))
    (first,) = run_batch(week, full=False, watcher=Silent(), store=store)
    set_settings(runs=lab_root / "of another machine")
    (other,) = run_batch(week, full=False, watcher=Silent(), store=store)
    assert (first.error, other.error) == (None, None)
    assert (first.run.key, first.reused, other.reused) == (other.run.key, False, True)
    assert hash_files(other.folder) == hash_files(first.folder)
    assert other.folder != first.folder


@pytest.mark.parametrize("url", ["nosuch://x", "adl://x/y"])
def test_an_unknown_store_is_one_line(url: str):
    pytest.importorskip("fsspec")
    with pytest.raises(InputError, match=r"cannot be used .*: give a folder, s3://… or gs://…"):
        SharedStore(url)
