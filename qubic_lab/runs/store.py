"""Where runs live on disk: `runs/<study>/<key>/` once finished, under other names before that and after a failure.

A folder takes its final name only when it is complete, so a killed run leaves nothing that looks finished.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qubic_lab.settings import settings

UNFINISHED = "unfinished-"
FAILED = "failed-"


def write_atomically(path: Path, content: str) -> None:
    """Write a text file so that readers see the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(path)


def run_folder(study: str, key: str, *, failed: bool = False) -> Path:
    """Return the absolute path where a run's folder is, or would be."""
    return settings().runs.absolute() / study / f"{FAILED if failed else ''}{key}"


@contextmanager
def unfinished_folder(study: str, key: str) -> Iterator[Path]:
    """Make a folder for a run in progress; what has not been moved away by `keep` is deleted at the end."""
    folder = run_folder(study, key).with_name(f"{UNFINISHED}{key}-{os.getpid()}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def keep(unfinished: Path, study: str, key: str, *, failed: bool) -> Path:
    """Give a complete run its final name and return it; an earlier failure of the same run goes."""
    final = run_folder(study, key, failed=failed)
    shutil.rmtree(run_folder(study, key, failed=True), ignore_errors=True)
    try:
        unfinished.rename(final)
    except OSError:
        if not final.is_dir():  # else the same run has been finished by another process meanwhile: equally good
            raise
    return final


def sweep_unfinished() -> None:
    """Delete what killed runs have left, sparing the runs of processes that live."""
    import psutil

    for folder in settings().runs.glob(f"*/{UNFINISHED}*"):
        if not psutil.pid_exists(int(folder.name.rpartition("-")[2])):
            shutil.rmtree(folder, ignore_errors=True)
