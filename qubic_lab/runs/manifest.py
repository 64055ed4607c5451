"""The manifest of a run, manifest.json beside its results: everything that its numbers depend on."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qubic_lab.errors import InputError
from qubic_lab.runs.store import write_atomically

MANIFEST = "manifest.json"
# Fields of results that say how they were computed.
CIRCUMSTANCES = ("device", "dtype", "threads", "seed")


@dataclass(frozen=True)
class Manifest:
    """One run: what was run, on what, when, and how it ended (`error` is None for a finished one)."""

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


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a run's manifest into its folder."""
    write_atomically(folder / MANIFEST, json.dumps(dataclasses.asdict(manifest), indent=2) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read a run's manifest.

    Raises:
        InputError: the folder is gone, or its manifest is damaged.
    """
    try:
        return Manifest(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise InputError(f"{folder} holds no readable {MANIFEST}: delete it and run the study again") from None


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what a run's notebook recorded: name → value."""
    files = sorted((folder / "results").glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def find_circumstances(results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the device, dtype, threads and seed that recorded results name."""
    return {name: result[name] for result in results for name in CIRCUMSTANCES if name in result}


def utc_now() -> datetime:
    """Return the present moment."""
    return datetime.now(UTC)
