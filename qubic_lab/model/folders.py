"""Folders that are created atomically, with a manifest of hashes to check their files later."""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qubic_lab.errors import InputError, ModelError
from qubic_lab.settings import cache_folder

MANIFEST = "manifest.json"
FORMAT = 1
SETTLED_NS = 1_000_000_000
"""A file that was changed within this time may change again without a new time: its hash is not kept."""


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `out`, synced to disk, if the block succeeds, and is removed otherwise.

    Raises:
        InputError: `out` exists and is not empty, or cannot be written.
    """
    check_new(out)
    out = out.resolve()
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in partial.rglob("*"):
            _sync(file)
        partial.rename(out)
        _sync(out.parent)
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror}): give a folder that can, with room") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_new(out: Path) -> None:
    """Check that a folder is new or empty; an InputError if `out` is a file or a folder that is not empty."""
    if out.is_dir():
        if any(out.iterdir()):
            raise InputError(f"{out} is not empty: give a new folder")
    elif out.exists():
        raise InputError(f"{out} is a file: give a new folder")


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """Write a manifest.json with `about`, and the size and SHA-256 of each file."""
    files = {file.name: {"bytes": file.stat().st_size, "sha256": file_hash(file)} for file in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(_sealed({"format": FORMAT, **about, "files": files}), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return a folder's manifest, or None if it has none; a ModelError if the manifest was changed."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        del content["seal"]
        intact = text == _sealed(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read ({error}): make the folder again") from error
    if not intact or content.get("format") != FORMAT:
        raise ModelError(f"{path} was changed or comes from another version: make the folder again")
    return dict(content)


def file_hash(file: Path) -> str:
    """Return the hex SHA-256 of a file; a ModelError if the file cannot be read."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror}): fetch it again") from error


def known_hash(file: Path) -> str:
    """Return the hex SHA-256 of a file, as kept in the cache if its size and times are still those of that reading.

    No program can set the time of a file's last change back, as it can that of its content. Errors as for `file_hash`.
    """
    try:
        status = file.stat()
        kept = cache_folder("hashes") / hashlib.sha256(os.fsencode(file.resolve())).hexdigest()
    except (OSError, InputError):  # unreadable, or no cache
        return file_hash(file)
    stamp = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    with suppress(OSError, ValueError):
        known = json.loads(kept.read_text())
        if known["stamp"] == stamp:
            return str(known["sha256"])
    digest = file_hash(file)
    if time.time_ns() - status.st_ctime_ns > SETTLED_NS:
        with suppress(OSError):
            temporary = kept.with_name(f"{kept.name}.{os.getpid()}")
            temporary.write_text(json.dumps({"stamp": stamp, "sha256": digest}))
            temporary.replace(kept)
    return digest


def check_intact(folder: Path) -> None:
    """Check a folder's files by the hashes in its manifest, before they are used.

    Raises:
        ModelError: a file is missing, extra or changed.
    """
    if found := problems(folder, known_hash):
        raise ModelError(f"{found[0]}: copy the folder again, or make it again (`qubic-lab verify` checks all of it)")


def problems(folder: Path, hash_of: Callable[[Path], str] | None = file_hash) -> list[str]:
    """Compare a folder with its manifest; return missing, extra, resized and (with `hash_of`) changed files."""
    try:
        manifest = read_manifest(folder)
    except ModelError as error:
        return [str(error)]
    if manifest is None:
        return [f"{folder / MANIFEST} is missing"]
    present = {file.name for file in folder.iterdir()} - {MANIFEST}
    found = [f"{folder / name} is not in the manifest" for name in sorted(present - manifest["files"].keys())]
    for name, record in manifest["files"].items():
        file = folder / name
        if name not in present:
            found.append(f"{file} is missing")
        elif (size := file.stat().st_size) != record["bytes"]:
            found.append(f"{file} has {size} bytes: {record['bytes']} were written")
        elif hash_of is not None and hash_of(file) != record["sha256"]:
            found.append(f"{file} has changed: its SHA-256 is not the one that was written")
    return found


def rank_name(rank: int) -> str:
    """Return the name of one rank's folder in a split model's folder."""
    return f"rank-{rank}"


def rank_folders(folder: Path) -> list[Path]:
    """Return the folders of a split's ranks on this host, in rank order; empty if it is not a split."""
    found = [path for path in folder.glob("rank-*") if path.is_dir() and re.fullmatch(r"rank-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("rank-")))


def _sealed(content: Mapping[str, Any]) -> str:
    """Return the text of a manifest with a hash over itself, so that changes to the manifest are detected too."""
    seal = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "seal": seal}, indent=2) + "\n"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
