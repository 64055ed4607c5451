"""Experiment files: a study is a notebook with a grid of parameters, a week is a list of studies.

They lie in `experiments/`, beside `notebooks/` and `data/`; everything in them is checked before anything runs.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from qubic_lab.checked_yaml import STRICT, check_content, read_yaml
from qubic_lab.errors import InputError, did_you_mean
from qubic_lab.runs.limits import Limits
from qubic_lab.runs.parameters import NotebookSource, read_source


@dataclass(frozen=True)
class StudyForm:
    """One form of a study: fixed parameters, and lists of values; every combination of the values is run.

    It may measure time where the study's other form does not.
    """

    __pydantic_config__ = STRICT
    parameters: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Annotated[list[Any], Field(min_length=1)]] = field(default_factory=dict)
    measures_time: bool = False

    def combinations(self) -> list[dict[str, Any]]:
        """Return the parameters of each run; an empty grid is one run."""
        return [
            {**self.parameters, **dict(zip(self.grid, values, strict=True))}
            for values in itertools.product(*self.grid.values())
        ]

    def check(self, source: NotebookSource) -> None:
        """Make sure that a notebook takes these parameters; an InputError names the wrong one."""
        if both := [name for name in self.grid if name in self.parameters]:
            raise InputError(f"{both[0]} is in both 'parameters' and 'grid': keep one of them")
        points = [(name, each) for name, values in self.grid.items() for each in values]
        for name, value in [*self.parameters.items(), *points]:
            source.check(name, value)


@dataclass(frozen=True)
class StudyFile:
    """The content of a study's file; `notebook` is named without its ending, `data` relative to the project.

    What `measures_time` is measured again in each week and on each machine, and what `uses_ledger` once there are other
    trials in the ledger, for which its verdicts are corrected.
    """

    __pydantic_config__ = STRICT
    title: str
    notebook: str
    quick: StudyForm
    full: StudyForm
    data: tuple[str, ...] = ()
    measures_time: bool = False
    uses_ledger: bool = False
    limits: Limits = field(default_factory=Limits)

    @property
    def runs_alone(self) -> bool:
        """Whether no other run may be made meanwhile, for its times, or for its place among the ledger's trials."""
        return self.measures_time or self.uses_ledger


@dataclass(frozen=True)
class Progress:
    """What is done, in progress and not started."""

    __pydantic_config__ = STRICT
    done: tuple[str, ...] = ()
    in_progress: tuple[str, ...] = ()
    not_started: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProjectProblem:
    """Something that stood in the way, and what was or will be done about it."""

    __pydantic_config__ = STRICT
    problem: str
    solution: str


@dataclass(frozen=True)
class ProjectItem:
    """An item of the project's plan, by its parts: those that are built, and those that are open."""

    __pydantic_config__ = STRICT
    item: str
    built: tuple[str, ...] = ()
    open: tuple[str, ...] = ()

    @property
    def percent(self) -> int:
        """The share of its parts that are built, rounded down; whether they meet their targets is another question."""
        return 100 * len(self.built) // max(1, len(self.built) + len(self.open))


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """Problems with solutions, and what comes next.

    The overview has an item for each of the project's weeks; `tomorrow` is the plan of the next day. `hero` is the
    picture that opens the page, as `study/name`; `usd_per_hour` is what a device costs.
    """

    problems: tuple[ProjectProblem, ...] = ()
    next_focus: tuple[str, ...] = ()
    overview: tuple[ProjectItem, ...] = ()
    tomorrow: tuple[str, ...] = ()
    hero: str = ""
    usd_per_hour: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ProjectStatus(Outlook, Progress):
    """How the project stands in a week."""

    @property
    def items_done(self) -> int:
        """How many items of the overview are done."""
        return sum(each.percent == 100 for each in self.overview)


@dataclass(frozen=True)
class WeekFile(Outlook):
    """The content of a week's file."""

    __pydantic_config__ = STRICT
    title: str
    studies: tuple[str, ...]
    progress: Progress = Progress()


@dataclass(frozen=True, kw_only=True)
class ExperimentStudy(StudyFile):
    """A study with its name and its notebook, which runs in the folder `root`."""

    name: str
    root: Path
    source: NotebookSource

    def in_form(self, full: bool) -> "ExperimentStudy":
        """Return the study as its quick or its full form is run."""
        return replace(self, measures_time=self.measures_time or (self.full if full else self.quick).measures_time)

    def left_out(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return in which parameters of a quick run the full form has a larger number, or a longer list."""
        full = self.source.complete(dict(self.full.parameters))
        return {
            name: value
            for name, value in full.items()
            for given in [parameters.get(name)]
            if (_is_number(value) and _is_number(given) and value > given)
            or (isinstance(value, list) and isinstance(given, list) and len(value) > len(given))
        }


@dataclass(frozen=True)
class ExperimentWeek:
    """Studies that are run and reported together; a study's file alone has no `status`."""

    title: str
    studies: tuple[ExperimentStudy, ...]
    status: ProjectStatus | None = None


def load(path: Path) -> ExperimentWeek:
    """Read a week's file, or a study's file as a week of one study.

    Raises:
        InputError: a file is missing, or a key, a parameter or a value is not what it must be.
    """
    content = _read(path)
    if "studies" not in content:
        study = _study(path, content)
        return ExperimentWeek(study.title, (study,))
    week = check_content(WeekFile, content, path)
    files = [path.parent / name for name in week.studies]
    for number, file in enumerate(files):
        if file.stem in [other.stem for other in files[:number]]:
            raise InputError(f"{path}: studies names {file.name} twice: keep one of them")
    parts = {name: value for name, value in vars(week).items() if name not in ("title", "studies", "progress")}
    status = ProjectStatus(**vars(week.progress), **parts)
    return ExperimentWeek(week.title, tuple(_study(file, _read(file)) for file in files), status)


def _study(path: Path, content: dict[str, Any]) -> ExperimentStudy:
    study, root = check_content(StudyFile, content, path), path.resolve().parent.parent
    notebook = root / "notebooks" / f"{study.notebook}.ipynb"
    if not notebook.is_file():
        raise InputError(f"{path}: there is no notebook {study.notebook!r} in {notebook.parent}{_similar(notebook)}")
    for name in study.data:
        if not (root / name).is_file():
            raise InputError(f"{path}: there is no data file {root / name}: mend the entry under 'data'")
    source = read_source(notebook)
    for form in ("quick", "full"):
        try:
            getattr(study, form).check(source)
        except InputError as error:
            raise InputError(f"{path}: {form}: {error}") from None
    return ExperimentStudy(**vars(study), name=path.stem, root=root, source=source)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"there is no experiment file {path}{_similar(path)}")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is not an experiment file: it must hold 'title' and 'studies', or a study's keys")
    return content


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _similar(missing: Path) -> str:
    known = [found.stem for found in missing.parent.glob(f"*{missing.suffix}")]
    return f": {did_you_mean(missing.stem, known)}" if known else ""
