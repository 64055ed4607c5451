"""Experiment files: a study is a notebook with a grid of parameters, a week is a list of studies.

They lie in `experiments/`, beside `notebooks/` and `data/`; everything in them is checked before anything runs.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qubic_lab.errors import InputError, did_you_mean
from qubic_lab.runs.parameters import NotebookSource, read_source
from qubic_lab.runs.status import Problem, Status

WEEK_KEYS = ("title", "studies", "progress", "problems", "next_focus")
STUDY_KEYS = ("title", "notebook", "data", "measures_time", "quick", "full")
FORM_KEYS = ("parameters", "grid")
PROGRESS_KEYS = ("done", "in_progress", "not_started")
PROBLEM_KEYS = ("problem", "solution")
KINDS: dict[type, str] = {str: "a text", list: "a list", dict: "a map of names and values", bool: "true or false"}


@dataclass(frozen=True)
class Form:
    """One form of a study: fixed parameters, and lists of values of which every combination is run."""

    parameters: Mapping[str, Any]
    grid: Mapping[str, list[Any]]

    def combinations(self) -> list[dict[str, Any]]:
        """Return the parameters of each run; an empty grid is one run."""
        return [
            {**self.parameters, **dict(zip(self.grid, values, strict=True))}
            for values in itertools.product(*self.grid.values())
        ]


@dataclass(frozen=True)
class Study:
    """A notebook and how it is run; `root` is the folder that it runs in.

    What `measures_time` is measured again in each week and on each machine.
    """

    name: str
    title: str
    root: Path
    source: NotebookSource
    data: tuple[Path, ...]
    measures_time: bool
    quick: Form
    full: Form


@dataclass(frozen=True)
class Week:
    """Studies that are run and reported together; a study's file alone has no `status`."""

    title: str
    studies: tuple[Study, ...]
    status: Status | None = None


def load(path: Path) -> Week:
    """Read a week's file, or a study's file as a week of one study.

    Raises:
        InputError: a file is missing, or a key, a parameter or a value is not what it must be.
    """
    content = _read_yaml(path)
    if "studies" not in content:
        study = _study(path, content)
        return Week(study.title, (study,))
    _check_keys(path, content, WEEK_KEYS, required=("title", "studies"))
    title, names = _value(path, content, "title", str), _value(path, content, "studies", list)
    files = [path.parent / str(name) for name in names]
    for number, file in enumerate(files):
        if file.stem in [other.stem for other in files[:number]]:
            raise InputError(f"{path}: studies names {file.name} twice: keep one of them")
    status = _status(path, content)
    return Week(title, tuple(_study(file, _read_yaml(file)) for file in files), status)


def _status(path: Path, content: Mapping[str, Any]) -> Status:
    progress = _value(path, content, "progress", dict, default={})
    _check_keys(f"{path}: progress", progress, PROGRESS_KEYS)
    problems = []
    for entry in _value(path, content, "problems", list, default=[]):
        if not isinstance(entry, dict):
            raise InputError(f"{path}: problems holds {entry!r}: it must be a map of 'problem' and 'solution'")
        _check_keys(f"{path}: problems", entry, PROBLEM_KEYS, required=PROBLEM_KEYS)
        problems.append(Problem(*(_value(f"{path}: problems", entry, key, str) for key in PROBLEM_KEYS)))
    return Status(
        **{key: _texts(f"{path}: progress", progress, key) for key in PROGRESS_KEYS},
        problems=tuple(problems),
        next_focus=_texts(path, content, "next_focus"),
    )


def _texts(where: Path | str, content: Mapping[str, Any], key: str) -> tuple[str, ...]:
    texts: Sequence[Any] = _value(where, content, key, list, default=[])
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"{where}: {key} holds {text!r}: it must be {KINDS[str]}; put it in quotes")
    return tuple(texts)


def _study(path: Path, content: Mapping[str, Any]) -> Study:
    _check_keys(path, content, STUDY_KEYS, required=("title", "notebook", "quick", "full"))
    root = path.resolve().parent.parent
    source = read_source(_notebook(path, root / "notebooks", _value(path, content, "notebook", str)))
    data = tuple(root / str(name) for name in _value(path, content, "data", list, default=[]))
    for file in data:
        if not file.is_file():
            raise InputError(f"{path}: there is no data file {file}: mend the entry under 'data'")
    return Study(
        name=path.stem,
        title=_value(path, content, "title", str),
        root=root,
        source=source,
        data=data,
        measures_time=_value(path, content, "measures_time", bool, default=False),
        quick=_form(path, content, "quick", source),
        full=_form(path, content, "full", source),
    )


def _notebook(path: Path, folder: Path, name: str) -> Path:
    file = folder / f"{name}.ipynb"
    if not file.is_file():
        raise InputError(f"{path}: there is no notebook {name!r} in {folder}{_similar(file)}")
    return file


def _form(path: Path, content: Mapping[str, Any], name: str, source: NotebookSource) -> Form:
    where = f"{path}: {name}"
    form = _value(path, content, name, dict)
    _check_keys(where, form, FORM_KEYS)
    parameters = _value(where, form, "parameters", dict, default={})
    grid = _value(where, form, "grid", dict, default={})
    for name_in_grid, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{where}: grid {name_in_grid} is {values!r}: it must be a list of at least one value")
        if name_in_grid in parameters:
            raise InputError(f"{where}: {name_in_grid} is in both 'parameters' and 'grid': keep one of them")
    try:
        for parameter, value in [*parameters.items(), *((name, item) for name in grid for item in grid[name])]:
            source.check(parameter, value)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return Form(parameters, grid)


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise InputError(f"there is no experiment file {path}{_similar(path)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not an experiment file: it must hold 'title' and 'studies', or a study's keys")
    return content


def _similar(missing: Path) -> str:
    known = [found.stem for found in missing.parent.glob(f"*{missing.suffix}")]
    return f": {did_you_mean(missing.stem, known)}" if known else ""


def _check_keys(
    where: Path | str, content: Mapping[str, Any], known: tuple[str, ...], required: tuple[str, ...] = ()
) -> None:
    for key in content:
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}: {did_you_mean(str(key), known)}")
    for key in required:
        if key not in content:
            raise InputError(f"{where}: the key {key!r} is missing: add it")


def _value(where: Path | str, content: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = content.get(key, default)
    if not isinstance(value, kind):
        raise InputError(f"{where}: {key} is {value!r}: it must be {KINDS[kind]}")
    return value
