"""Check a page: its files, its runs and what they were made from, its numbers, and results that are executed again.

The week is collected again from its runs and the page is written again; both must be what lies there. A sample of
results that are no times, such as answers and backtests, is executed again and must be equal bit for bit. Who changes
results, hashes and page alike is found by this sample alone, and not at all where the changed results are times.
"""

import contextlib
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from typing import Any

from qubic_lab.core import Progress, no_progress
from qubic_lab.errors import InputError, NotFoundError, QubicLabError
from qubic_lab.model.folders import file_hash
from qubic_lab.provenance import machine, versions
from qubic_lab.runs import fingerprint
from qubic_lab.runs.collect_week import collect_week, judge, read_run
from qubic_lab.runs.language import language, language_of
from qubic_lab.runs.notebook import EXECUTED
from qubic_lab.runs.page_difference import compare_pages, shorten
from qubic_lab.runs.page_numbers import (
    NUMBERS,
    PageManifest,
    RecordedWeek,
    RunProof,
    folder_of,
    hash_run,
    read_page_manifest,
    read_pieces,
)
from qubic_lab.runs.parameters import read_source
from qubic_lab.runs.report import PAGE, week_files
from qubic_lab.runs.store import MANIFEST, Manifest, in_project
from qubic_lab.runs.week_index import WeekEntry, latest_of_each_study, read_index
from qubic_lab.runs.week_report import KEPT, ReportedRun, WeekReport, read_week
from qubic_lab.studies.re_execution import Recorded, findings_again, items_of, re_execute

MOST_NAMED = 20
"""Differences of a page that are named; the others are counted."""
KINDS = {
    "results": "a results file",
    "figures": "a picture",
    "tables": "a table",
    "measures": "a measure",
    EXECUTED: "the executed notebook",
    MANIFEST: "the run's manifest",
}
"""What a file of a run is, by its name or its folder."""


@dataclass(frozen=True)
class Verification:
    """What was found: each problem is a line that names what is wrong, and `unchecked` says what could not be checked.

    Of the numbers that the page shows, the `traced` ones are those of their sources; of the results that were executed
    again, the `equal` ones are what was recorded. The same seed draws the same sample.
    """

    page: str
    week: str
    numbers: int
    traced: int
    executed: int
    equal: int
    seed: int
    problems: tuple[str, ...]
    unchecked: tuple[str, ...]

    def summary(self) -> str:
        """Return both counts in a sentence."""
        return (
            f"{self.traced:,} of {self.numbers:,} shown numbers traced; {self.equal:,} of {self.executed:,} results "
            f"executed again are equal (seed {self.seed})"
        )


def verify_page(
    path: Path, sample: int | None = 20, seed: int | None = None, progress: Progress = no_progress
) -> Verification:
    """Check a page, or that of a folder, and execute a sample of its results again; None: all of them.

    Without a seed one is drawn.

    Raises:
        QubicLabError: there is no such page, or what lies beside it cannot be read.
    """
    page = path / PAGE if path.is_dir() else path
    if not page.is_file():
        raise NotFoundError(f"there is no page {page}: write it with 'qubic-lab report'")
    manifest, kept = read_page_manifest(page.with_name(NUMBERS)), _read_kept(page.with_name(KEPT))
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    damages = {name: list(_damage(name, proof)) for name, proof in manifest.runs.items()}
    damaged = {name for name, found in damages.items() if found}
    made = {name: proof.manifest for name, proof in manifest.runs.items() if name not in damaged and proof.manifest}
    changed = _changed_inputs(made)
    again, unchecked = _week_again(kept, damaged)
    content, recorded = page.read_text(encoding="utf-8"), RecordedWeek(again)
    with language(language_of(content)):
        files = week_files(again)
    compared = compare_pages(content, files[PAGE], recorded, damaged)
    runs = [run for run in again.runs if run.name not in damaged and run.error is None]
    repeatable = [run for run in runs if run.name not in changed.other_inputs]
    executed = _execute_sample(repeatable, sample, seed, progress)
    problems = (
        *_changed_files(page, manifest),
        *(line for found in damages.values() for line in found),
        *changed.problems,
        *_first(compared.differences),
        *_other_files(manifest, files, kept, again, recorded),
        *(line for run in runs if run.name not in changed.other_code for line in _other_findings(run)),
        *(line for run in runs for line in _missing_times(run)),
        *executed.problems,
    )
    return Verification(
        page=str(page),
        week=manifest.week,
        numbers=compared.numbers,
        traced=compared.traced,
        executed=executed.count,
        equal=executed.equal,
        seed=seed,
        problems=tuple(dict.fromkeys(problems)),
        unchecked=(*changed.unchecked, *unchecked, *executed.unchecked),
    )


def _read_kept(file: Path) -> WeekReport:
    try:
        return read_week(file)
    except InputError as error:  # it is no input here, but what is to be checked
        raise QubicLabError(str(error)) from None


def _changed_files(page: Path, manifest: PageManifest) -> Iterator[str]:
    for name, digest in manifest.files.items():
        file = page.with_name(name)
        if not file.is_file():
            yield f"{name} is missing beside the page"
        elif file_hash(file) != digest:
            yield f"{name} has changed since it was written"


def _damage(name: str, proof: RunProof) -> Iterator[str]:
    """Say how the files of a run differ from those that the page was made from."""
    if not (folder := folder_of(name)).is_dir():
        yield f"run {name} is gone: its folder {folder} is missing"
        return
    found = hash_run(folder)
    for file in dict.fromkeys([*proof.files, *found]):
        if proof.files.get(file) == found.get(file):
            continue
        what = "is missing" if file not in found else "was added" if file not in proof.files else "has changed"
        kind = KINDS.get(file) or KINDS.get(file.partition("/")[0], "a file of the run")
        yield f"run {name}: {file} ({kind}) {what} since the page was written"


@dataclass(frozen=True)
class _ChangedInputs:
    problems: tuple[str, ...]
    unchecked: tuple[str, ...]
    other_inputs: frozenset[str]
    """The runs whose model or data are others now."""
    other_code: frozenset[str]
    """The runs that other code made, or code that is not known."""


def _changed_inputs(made: Mapping[str, Manifest]) -> _ChangedInputs:
    """Compare code, model and data with those of the runs."""
    now, runs_of, unchecked = _Inputs(), dict[tuple[str, str], list[str]](), dict[str, list[str]]()
    other: dict[str, list[str]] = {"code": [name for name, manifest in made.items() if not manifest.package_hash]}
    for name, manifest in made.items():
        for kind, detail in now.differing(manifest):
            runs_of.setdefault((kind, detail), []).append(name)
            other.setdefault(kind, []).append(name)
        for what in _unknown(manifest):
            unchecked.setdefault(what, []).append(name)
    inputs = [*other.get("model", ()), *other.get("data", ())]
    for names, what in ((other["code"], "findings were not derived"), (inputs, "results were not executed")):
        if names:
            unchecked[f"{what} again, as what made them is another"] = list(dict.fromkeys(names))
    return _ChangedInputs(
        tuple(f"other {kind} than that of {_listed(names)}: {detail}" for (kind, detail), names in runs_of.items()),
        tuple(f"{_listed(names)}: {what}" for what, names in unchecked.items()),
        frozenset(inputs),
        frozenset(other["code"]),
    )


class _Inputs:
    """What runs are made from, as it is now."""

    def __init__(self) -> None:
        self._root = in_project(Path())
        self._known: dict[tuple[str, str], str | None] = {}
        self._package = fingerprint.hash_package()

    def differing(self, manifest: Manifest) -> Iterator[tuple[str, str]]:
        """Yield what differs from what made a run: code, model or data, and in which way."""
        if manifest.package_hash not in ("", self._package):
            yield "code", f"the package has the hash {self._package[:12]}, and had {manifest.package_hash[:12]}"
        notebook = self._root / "notebooks" / manifest.notebook
        if manifest.notebook_hash and not notebook.is_file():
            yield "code", f"there is no notebook {notebook}"
        elif manifest.notebook_hash not in ("", fingerprint.hash_code(read_source(notebook).code_cells)):
            yield "code", f"the cells of {manifest.notebook} have changed"
        inputs = [("data", name, digest) for name, digest in manifest.data_hashes.items()]
        if manifest.model is not None:
            inputs.append(("model", manifest.model, str(manifest.model_hash)))
        for kind, name, digest in inputs:
            if (found := self._hash(kind, name, manifest)) != digest:
                now = f"has the hash {found[:12]}, and had {digest[:12]}" if found else "is gone, or cannot be read"
                yield kind, f"{name} {now}"

    def _hash(self, kind: str, name: str, manifest: Manifest) -> str | None:
        key = kind, f"{name} {json.dumps(manifest.parameters.get(name), default=str)}"
        if key not in self._known:
            self._known[key] = None
            with contextlib.suppress(QubicLabError, OSError):
                self._known[key] = (
                    fingerprint.hash_model(name)
                    if kind == "model"
                    else fingerprint.hash_input(name, manifest.parameters, self._root)
                )
        return self._known[key]


def _unknown(manifest: Manifest) -> Iterator[str]:
    if not manifest.package_hash:
        yield "the manifest is of an older version and does not say which code made it"
    if manifest.machine != str(machine()):
        yield "made on another machine, where the last bits of a number may be others"
    others = [f"{name} {has}" for name, has in versions().items() if manifest.versions.get(name) not in (None, has)]
    if others:
        yield f"made with other versions than {', '.join(others)}, where the last bits of a number may be others"


def _listed(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"run{'s' * (len(names) > 1)} {', '.join(names[:most])}{more}"


def _week_again(kept: WeekReport, damaged: set[str]) -> tuple[WeekReport, list[str]]:
    """Return the week from its runs, with what could not be derived again."""
    written = datetime.fromisoformat(kept.written_utc)
    index, names = read_index(kept.week), {run.name for run in kept.runs}
    latest = {
        f"{entry.study}/{entry.key}" for entries in latest_of_each_study(index.runs).values() for entry in entries
    }
    newer = latest != names or any(datetime.fromisoformat(entry.batch) > written for entry in index.runs)
    if not damaged and not newer:
        return collect_week(kept.week, kept.against, written), []
    runs = tuple(run if run.name in damaged else _read_again(run) for run in kept.runs)
    # What was compared with other weeks stays as it was; rows are judged by the runs that are whole.
    last_full = {row.id: row.last_full for row in kept.rows}
    judged = judge({run.name: run.records for run in runs if run.manifest is not None and run.error is None})
    rows = tuple(replace(row, last_full=last_full.get(row.id)) for row in judged)
    why = "some of its runs have changed" if damaged else "its week has newer runs: write the page again"
    said = f"changes, repetitions, ledger and full runs of the page were not derived again, as {why}"
    return replace(kept, runs=runs, rows=rows), [said]


def _read_again(run: ReportedRun) -> ReportedRun:
    study, _, key = run.name.partition("/")
    entry = WeekEntry(study, key, "", 1, reused=False, failed=run.error is not None)
    found = read_run(entry)
    return replace(run, manifest=found.manifest, records=found.records, error=found.error)


def _first(lines: Sequence[str]) -> Iterator[str]:
    yield from lines[:MOST_NAMED]
    if (more := len(lines) - MOST_NAMED) and more > 0:
        yield f"the page differs in {more:,} more places from what its runs give"


def _other_files(
    manifest: PageManifest, files: Mapping[str, str], kept: WeekReport, again: WeekReport, recorded: RecordedWeek
) -> Iterator[str]:
    """Name the other files of the page that do not follow from the runs."""
    if manifest.runs.keys() != {run.name for run in kept.runs}:
        yield f"{NUMBERS} has other runs than {KEPT}"
    differing = [each.name for each in fields(WeekReport) if getattr(kept, each.name) != getattr(again, each.name)]
    if differing:
        yield f"{KEPT} does not agree with the runs: {', '.join(differing)}"
    for name, content in files.items():
        right = sha256(content.encode()).hexdigest()
        if name not in (PAGE, KEPT, NUMBERS) and manifest.files.get(name) != right:
            yield f"{name} is not what the runs give"
    numbers = tuple(recorded.trace_all(read_pieces(files[PAGE])))
    if tuple(manifest.numbers) != numbers:
        wrong = [each for each in manifest.numbers if each not in numbers] or numbers
        yield f"{NUMBERS} has other numbers than the runs give, such as {wrong[0].shown} of {wrong[0].source}"


def _other_findings(run: ReportedRun) -> Iterator[str]:
    """Compare a run's findings with those that follow from its results."""
    found = findings_again(run.study, run.records.results)
    for place, (recorded, right) in enumerate(zip_longest(run.records.findings, found)) if found is not None else ():
        # Older versions recorded sentences alone.
        if str(recorded) != str(right) or (recorded.values and recorded != right):
            yield (
                f"{run.name}#findings/{place}: recorded is {shorten(str(recorded))}, and from the results follows "
                f"{shorten(str(right))}"
            )


def _missing_times(run: ReportedRun) -> Iterator[str]:
    for measure in run.records.measures:
        if not measure.samples or not all(math.isfinite(each) and each > 0 for each in measure.samples):
            yield f"{run.name}#measures/{measure.name}: a sample is missing, or no positive number"


@dataclass(frozen=True)
class _Executed:
    count: int
    problems: tuple[str, ...]
    unchecked: tuple[str, ...]

    @property
    def equal(self) -> int:
        return self.count - len(self.problems)


def _execute_sample(runs: Sequence[ReportedRun], sample: int | None, seed: int, progress: Progress) -> _Executed:
    """Execute a sample of all results again, those of a run together: a model is loaded once for them."""
    recorded = {run.name: _recorded(run) for run in runs}
    items = {name: items_of(each) for name, each in recorded.items()}
    known = [(run, item) for run, found in items.items() for item in found]
    drawn = set(known if sample is None else random.Random(seed).sample(known, min(sample, len(known))))
    done, problems, unchecked = 0, list[str](), list[str]()
    times = list(dict.fromkeys(run.study for run in runs if not items[run.name]))
    if times:
        unchecked.append(f"not executed again, as most of it is times: {', '.join(times)}")
    for name, found in items.items():
        if not (chosen := [item for item in found if (name, item) in drawn]):
            continue
        progress(f"executing {len(chosen)} results of {name}", done, len(drawn))
        try:
            with contextlib.chdir(in_project(Path())):
                for item, value in zip(chosen, re_execute(recorded[name], chosen), strict=False):
                    done += 1
                    progress(f"{name}: {item}", done, len(drawn))
                    if difference := first_difference(found[item], value):
                        problems.append(f"{name}: {item} executed again is another: {difference}")
        except QubicLabError as error:
            unchecked.append(f"results of {name} were not executed again: {error}")
    return _Executed(done, tuple(problems), tuple(unchecked))


def _recorded(run: ReportedRun) -> Recorded:
    assert run.manifest is not None
    tables = {
        table.name: tuple(dict(zip(table.columns, row, strict=True)) for row in table.rows)
        for table in run.records.tables
    }
    return Recorded(run.study, run.manifest.parameters, run.records.results, tables)


def first_difference(recorded: Any, value: Any, path: str = "") -> str:
    """Say where a value first differs from what was recorded; empty if it does not."""
    if isinstance(recorded, dict) and isinstance(value, dict) and recorded.keys() == value.keys():
        parts: Iterable[tuple[Any, Any, Any]] = ((name, recorded[name], value[name]) for name in recorded)
    elif isinstance(recorded, list) and isinstance(value, list) and len(recorded) == len(value):
        parts = zip(range(len(value)), recorded, value, strict=True)
    else:
        same = recorded == value
        return (
            "" if same else f"{path and path + ' is '}{shorten(str(value))}, and recorded is {shorten(str(recorded))}"
        )
    found = (first_difference(old, new, f"{path}/{name}".lstrip("/")) for name, old, new in parts)
    return next(filter(None, found), "")
