"""Hashes of everything that decides a run's outcome: a run is repeated exactly when one of them changes."""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qubic_lab.database import BACKENDS, open_database
from qubic_lab.model.folders import file_hash
from qubic_lab.settings import settings

PACKAGE = Path(__file__).parent.parent
KEY_LENGTH = 16
DECIDING_VERSIONS = ("python", "torch", "transformers", "numpy")
CANDIDATE = "candidate"
"""A parameter that names a second model, which is compared with the first."""
HEAD = "sentiment head"
"""The input that a setting names, and no parameter."""


def cache_key(
    code_cells: Iterable[str],
    parameters: Mapping[str, Any],
    package_hash: str,
    versions: Mapping[str, str],
    model_hash: str | None,
    data_hashes: Mapping[str, str],
    occasion: Mapping[str, Any] | None = None,
) -> str:
    """Return the name of a run: equal inputs give equal keys, in whatever order the names stand.

    The seed is one of the parameters. Of `versions` only those that decide bits count (DECIDING_VERSIONS). The
    `occasion` (machine, cores, week) counts where a study measures time, and is None for the others.
    """
    identity = {
        "code": list(code_cells),
        "parameters": parameters,
        "package": package_hash,
        "versions": {name: versions[name] for name in DECIDING_VERSIONS},
        "model": model_hash,
        "data": data_hashes,
        "occasion": occasion,
    }
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:KEY_LENGTH]


def with_ledger(key: str, database: str) -> str:
    """Return the key of a run that depends on the trials in the ledger, which `database` names if it is not the usual.

    A run is kept under the key with its own trials: it is used again while there are no others.
    """
    from qubic_lab.oracle.backtest.ledger import open_ledger

    with open_ledger(database) as ledger:
        return hashlib.sha256(f"{key} {ledger.state()}".encode()).hexdigest()[:KEY_LENGTH]


def hash_code(cells: Iterable[str]) -> str:
    """Return one hash over the code cells of a notebook."""
    return hashlib.sha256(json.dumps(list(cells)).encode()).hexdigest()


def hash_package() -> str:
    """Return one hash over every source and data file of the package."""
    return hash_folder(PACKAGE)


def hash_folder(folder: Path) -> str:
    """Return one hash over every file in a folder, but none over compiled code."""
    digest = hashlib.sha256()
    for file in files_in(folder):
        digest.update(f"{file.relative_to(folder)}\0{file_hash(file)}\n".encode())
    return digest.hexdigest()


def files_in(folder: Path) -> list[Path]:
    """Return every file in a folder and below it, without compiled code."""
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and "__pycache__" not in file.parts]


def hash_weights(name: str) -> str:
    """Return one hash over all files of a model or of its split, whatever a manifest says of them."""
    from qubic_lab.model.resolve import resolve_model

    return hash_folder(resolve_model(name))


def hash_model(name: str) -> str:
    """Return the hash of the model that `name` (a hub id, folder, file or alias) stands for, or raise a ModelError."""
    from qubic_lab.model.checkpoint import model_hash
    from qubic_lab.model.resolve import resolve_model

    return model_hash(resolve_model(name))


def seen_from(root: Path, model: str) -> str:
    """Return the path of a model in the project, where notebooks run, or its name if it is none."""
    return str(root / model) if model and (root / model).exists() else model


def hash_named(parameters: Mapping[str, Any], root: Path) -> dict[str, str]:
    """Return a hash of each file and folder that parameters name, by its text, and of each database by its parameter.

    Of a database the newest entry counts, as others may add to it; nothing in it is overwritten.

    Raises:
        QubicLabError: a database is not there, or cannot be read.
    """
    paths = named_paths(parameters, root).items()
    found = {text: hash_folder(path) if path.is_dir() else file_hash(path) for text, path in paths}
    for name, value in parameters.items():
        for text in filter(_is_database, _texts(value)):
            with contextlib.chdir(root):  # the path in it may be relative
                found[name] = _hash_newest(text)
    return found


def named_paths(parameters: Mapping[str, Any], root: Path) -> dict[str, Path]:
    """Return the files and folders that parameters name, seen from `root`, by the texts that name them.

    `FORM:PATH` names a file or folder too, and `MODULE:FUNCTION` that module's file.
    """
    texts = {text for value in parameters.values() for text in _texts(value) if not _is_database(text)}
    return {text: path for text in sorted(texts) if (path := _path_of(text, root))}


def hash_input(name: str, parameters: Mapping[str, Any], root: Path) -> str | None:
    """Return the hash that an input of a run has now, by its name in the run's manifest; None if it is gone.

    Raises:
        QubicLabError: a database or a model is not there, or cannot be read.
    """
    if name == HEAD:
        return file_hash(head) if (head := settings().sentiment_head) else None
    if name == CANDIDATE:
        return hash_weights(seen_from(root, parameters[CANDIDATE]))
    return hash_named({name: parameters.get(name, name)}, root).get(name)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _is_database(text: str) -> bool:
    return text.partition(":")[0].partition("+")[0] in BACKENDS


def _hash_newest(database: str) -> str:
    from qubic_lab.oracle.store.transactions import read_stamp

    engine = open_database(database, make=False)
    try:
        return hashlib.sha256(str(read_stamp(engine)).encode()).hexdigest()
    finally:
        engine.dispose()


def _path_of(text: str, root: Path) -> Path | None:
    before, _, after = text.rpartition(":")
    for path in filter(None, (text, after, f"{before.replace('.', '/')}.py")):
        with contextlib.suppress(OSError):  # a long text is no path
            if (root / path).is_file() or (root / path).is_dir():
                return root / path
    return None
