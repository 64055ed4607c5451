"""Runs on disk: `runs/<study>/<key>/` once finished, under other names before that and after a failure.

A folder takes its final name only when it is complete, so a killed run leaves nothing that looks finished. Its
manifest.json says what its numbers depend on. One process at a time runs notebooks: two would disturb each other's
timings, and make the same run twice.
"""

import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qubic_lab.errors import InputError
from qubic_lab.model.folders import file_hash
from qubic_lab.settings import settings

UNFINISHED = "unfinished-"
FAILED = "failed-"
PROJECT_MARK = "experiments"
MANIFEST = "manifest.json"


def write_atomically(path: Path, content: str) -> None:
    """Write a text file so that readers see the old content or the new one, never a part, after a power cut too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time write into a folder, and clear what killed ones left of `write_atomically`.

    The system drops the lock of a process that dies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        for left in folder.glob(".*.[0-9]*"):
            left.unlink()
        yield


@contextmanager
def _lock(folder: Path, flags: int = fcntl.LOCK_EX) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, flags)
        yield
    finally:
        os.close(descriptor)


def in_project(path: Path) -> Path:
    """Return the absolute form of a path that is relative to the project, also from a folder within it."""
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / PROJECT_MARK).is_dir()), here)
    return root / path


def runs_folder() -> Path:
    """Return the absolute path of the folder that holds all runs."""
    return in_project(settings().runs)


def reports_folder() -> Path:
    """Return the absolute path of the folder that holds the pages of all weeks."""
    return in_project(settings().reports)


def run_folder(study: str, key: str, *, failed: bool = False) -> Path:
    """Return the absolute path where a run's folder is, or would be."""
    return runs_folder() / study / f"{FAILED if failed else ''}{key}"


@contextmanager
def turn_to_run() -> Iterator[None]:
    """Wait until no other process runs a notebook here, delete what killed ones have left, and keep the turn."""
    folder = runs_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        for left in folder.glob(f"*/{UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def somebody_runs() -> bool:
    """Tell whether a process runs a notebook at this moment."""
    try:
        with _lock(runs_folder(), fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


@contextmanager
def unfinished_folder(study: str, key: str) -> Iterator[Path]:
    """Make a folder for a run in progress; what has not been moved away by `keep` is deleted at the end."""
    folder = run_folder(study, key).with_name(f"{UNFINISHED}{key}-{os.getpid()}")
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def keep(unfinished: Path, study: str, key: str, *, failed: bool, replaces: bool = False) -> Path:
    """Give a complete run its final name and return it; an earlier failure of the same run goes.

    A run that is there already by this name is the same, and stays unless this one `replaces` it: its key is that of
    the trials after it.
    """
    final = run_folder(study, key, failed=failed)
    if replaces and final.is_dir():
        delete(final)
    shutil.rmtree(run_folder(study, key, failed=True), ignore_errors=True)
    return final if final.is_dir() else unfinished.rename(final)


def delete(folder: Path) -> None:
    """Delete a run; if this is broken off, the next turn does the rest."""
    shutil.rmtree(folder.rename(folder.with_name(f"{UNFINISHED}{folder.name}")))


@dataclass(frozen=True)
class Manifest:
    """One run: what was run, on what, when, and how it ended (`error` is None for a finished one).

    `files` has the SHA-256 of each other file in its folder, by the path within it; `package_hash` and `notebook_hash`
    say which code made it. Older versions did not write these.
    """

    key: str
    study: str
    title: str
    notebook: str
    parameters: Mapping[str, Any]
    started_utc: str
    finished_utc: str
    seconds: float
    commit: str
    dirty: bool
    versions: Mapping[str, str]
    machine: str
    model: str | None
    model_hash: str | None
    data_hashes: Mapping[str, str]
    circumstances: Mapping[str, Any]
    error: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    package_hash: str = ""
    notebook_hash: str = ""


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a run's manifest into its folder."""
    write_atomically(folder / MANIFEST, json.dumps(dataclasses.asdict(manifest), indent=2) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read a run's manifest; an InputError if its folder is gone or the manifest is damaged."""
    try:
        return Manifest(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise InputError(f"{folder} holds no readable {MANIFEST}: delete it and run the study again") from None


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a run's folder, apart from its manifest, by the path within it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / MANIFEST)
    return {file.relative_to(folder).as_posix(): file_hash(file) for file in files}


def check_files(folder: Path, manifest: Manifest) -> None:
    """Check that the files of a run are those that it wrote; an InputError if one is missing or has changed."""
    found = hash_files(folder)
    for name, digest in manifest.files.items():
        if found.get(name) != digest:
            what = "has changed" if name in found else "is missing"
            raise InputError(f"{name} in {folder} {what} since the run: delete the folder and run the study again")


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what a run's notebook recorded: name → value."""
    files = sorted((folder / "results").glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def utc_now() -> datetime:
    """Return the present moment."""
    return datetime.now(UTC)
