"""Collect the messages of the weekly page and the dashboard, and bring its catalogues up to date with them.

Messages are the templates of findings, labels of the page's templates and code, captions of notebooks, headings of
tables, questions, verdicts and acceptance criteria. `--check` names those that a catalogue lacks or no longer needs.
"""

import argparse
import ast
import importlib
import json
import re
import sys
from calendar import month_abbr
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po

from qubic_lab.cluster.health import Gate
from qubic_lab.consensus.bands import ConfidenceLevel
from qubic_lab.dashboard import cluster_view, consensus_view
from qubic_lab.oracle.inference import track_record
from qubic_lab.oracle.model.response import Direction
from qubic_lab.oracle.risk.measures import LEVELS
from qubic_lab.runs import change
from qubic_lab.runs.cells import heading
from qubic_lab.runs.collect_week import NOT_MEASURABLE, STUDIES
from qubic_lab.runs.experiment import load
from qubic_lab.runs.language import ENGLISH, LANGUAGES, catalogue_file
from qubic_lab.runs.picture import texts_of
from qubic_lab.runs.week_report import SAMPLE, WeekReport, read_week
from qubic_lab.studies import cloud, engine_gains, finding
from qubic_lab.studies.acceptance import MEANINGS, PARTS, Criterion
from qubic_lab.studies.engine_speed import WHAT
from qubic_lab.studies.questions import ASKED

ROOT = Path(__file__).parents[1]
CALLS = ("say", "translated", "_")
"""Functions whose first argument is a message."""
RECORDING = ("record_figure", "record_table")
"""Functions whose third argument is a caption."""
HEADINGS, PICTURES = "headings of tables", "pictures"
OF_SAMPLE = (HEADINGS, PICTURES)
"""What is collected from the sample week; other weeks may show more of it, so what was known once is kept."""
RECORDED = (
    "no earlier week has it with the same parameters, model and data",
    "the run of {week} was used again, as nothing had changed",
    "in {week} it was {machine}",
    "certain, but smaller than {share}",
    "too noisy to show {share}",
    "{now} against {before}: a change takes {needed} on each side",
    "Entries of the ledger: {entries} (trials: {trials}, claims: {claims}).",
    "Evidence of skill needs an e-value of {needed} ({each} for each of {families} families): {shown}.",
    "none has it",
    "no collected texts",
    "Families with claims that are due and not scored: {count}; the oldest is of {family}.",
    "Its head is {head}: whoever keeps it can see whether an entry up to now was changed.",
    "The heads on all earlier pages are in it ({count}).",
    "The ledger is not that of the pages of {weeks}: it was replaced, or rewritten.",
    "What we said and what came, by family of claims.",
    "{study}: {done} of {of} runs are done; qubic-lab run goes on with the others.",
    "whole, batch {batch}",
    "split, {ranks} ranks, {strategy}, batch {batch}",
    "price signals, {bars}",
    "{value} (too few)",
    "naive",
    "bars of {bars} are longer than {hours} h",
    "{processor}, {cores} cores, {memory} GiB",
)
"""What changes, the ledger and cells of tables say, with their values as placeholders."""
VOTES = (
    "no voter gave an answer",
    *(
        f"{who} {share}{each}, which {met} {{rule}} (more than {{least}})"
        for who, each in (("group {group} has", ""), ("groups {groups} have", " each"))
        for share in ("{votes} of {total} ballots", "{share} of the weight")
        for met in ("meets", "falls short of")
    ),
    "{group} was chosen by {what}",
    "super-majority",
    "plurality",
    "weighted-plurality",
    "ballots",
    "weight",
    "uncalibrated: none for this model and {kind} questions",
    "uncalibrated: fitted to votes of {known} ballots, not of {ballots}",
    "uncalibrated: {signals} must be known",
    "{method} on {signals}, {votes} votes",
    "of votes at this level or a better one at most {share} are wrong",
    "not needed: the decision was certain",
)
"""What a vote says of its decision and its confidence (`consensus/voting.py`, `confidence.py`, `votes/`)."""
CELLS = (
    "embedding",
    "layer",
    "head",
    "whole model",
    "strategy {name}",
    "ours by torch",
    "the run was not asked for it",
    "it is that of one rank, which was not measured",
    "not checkable",
    "spread",
    "in bursts",
    "hangs",
    "majority",
    "weighted",
    "oracle",
    "shortest",
    "longest",
    "median length",
    "words that two samples share",
    "repetition within an answer",
    "empty answers",
    "cash",
    "our forecast",
    "the price stays",
    "mean return",
    "packaged",
    "averages",
    "momentum",
    "no collected texts are of that time",
    "volatility",
    "fall",
    "loss beyond value at risk",
    "illiquidity",
    "times the usual",
    "deviations",
    "times value at risk",
    "standard errors",
    "no volume is known",
    "no sentiment is known",
    "no other asset is known",
    "1 day",
    "on demand",
    "spot",
    "weekdays 9–19",
    "daily 8–20",
    "replicas",
    "pipeline",
)
"""Words in the cells of tables that a page shows."""
WORD = re.compile(r"[A-Za-z]{2}")
VALUE = re.compile(r"(?<!\w)[-−+]?\d(?:[\d.,]*\d)?(?=\W|$)|\b(?:bf16|fp16|fp32)\b")
"""What is a value in a picture's text."""


def collect() -> dict[str, str]:
    """Return every message with the place where it is from."""
    found: dict[str, str] = {}
    for place, messages in _sources():
        for each in messages:
            found.setdefault(each, place)
    return found


def _sources() -> Iterator[tuple[str, Iterable[str]]]:
    for file in sorted(
        file for part in ("runs", "studies", "dashboard") for file in (ROOT / "qubic_lab" / part).glob("*.py")
    ):
        yield str(file.relative_to(ROOT)), _of_module(file, ast.parse(file.read_text(encoding="utf-8")))
    for file in sorted(
        file for part in ("runs", "dashboard") for file in (ROOT / "qubic_lab" / part / "templates").glob("*.html")
    ):
        calls = re.finditer(r"\b_\(\s*(\"[^\"]*\"|'[^']*')", file.read_text(encoding="utf-8"))
        yield str(file.relative_to(ROOT)), [ast.literal_eval(call[1]) for call in calls]
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        yield str(file.relative_to(ROOT)), _captions(file)
    yield "the six questions", finding.QUESTIONS.values()
    yield "findings", (finding.LIST, finding.FIGURE, finding.FIGURE_WITH_INTERVAL)
    yield "acceptance", (PARTS,)
    yield "verdicts", (*MEANINGS, *MEANINGS.values())
    criteria = [each for study in (*STUDIES, cloud) for each in vars(study).values() if isinstance(each, Criterion)]
    yield "acceptance", (text for each in criteria for text in (each.what, each.target))
    yield "acceptance", (text for each in NOT_MEASURABLE for text in each[1:])
    yield "studies", (str(yaml.safe_load(file.read_bytes())["title"]) for file in (ROOT / "experiments").glob("*.yaml"))
    yield "the project", project_texts(ROOT / "experiments" / "weekly.yaml")
    yield (
        "what a page asks and shows",
        (text for each in ASKED for text in (each.label, each.met, each.missed, each.limits)),
    )
    yield "acceptance", (*RECORDED, *CELLS, *WHAT.values(), *engine_gains.WHAT.values())
    yield "the dashboard", (*Gate, *cluster_view.STATES, *cluster_view.PARTS, *ConfidenceLevel, *consensus_view.COLORS)
    yield "the dashboard", VOTES
    yield "the dashboard", (*LEVELS, *get_args(Direction), "consensus", "single")
    yield "changes", (*get_args(change.Verdict), "faster", "slower", "yes", "no")
    sample = read_week(ROOT / "reports" / SAMPLE / "week.json")
    yield HEADINGS, headings(sample)
    yield PICTURES, picture_texts(sample)
    yield "the ledger", track_record.HEADER


def project_texts(file: Path) -> Iterator[str]:
    """Return what a week's file says of how the project stands."""
    status = load(file).status
    assert status is not None
    yield from (*status.done, *status.in_progress, *status.not_started, *status.next_focus, *status.tomorrow)
    yield from (text for each in status.problems for text in (each.problem, each.solution))
    yield from (text for each in status.overview for text in (each.item, *each.built, *each.open))


def headings(week: WeekReport) -> Iterator[str]:
    """Return the headings of a week's tables that have words in them."""
    tables = [table for run in week.runs for table in run.records.tables]
    shown = {heading(column) for table in tables for column in table.columns}
    return (each for each in sorted(shown) if WORD.search(each))


def picture_texts(week: WeekReport) -> Iterator[str]:
    """Return the texts in a week's pictures that have words in them, values as placeholders; and the months of axes."""
    svgs = (picture.svg for run in week.runs for picture in run.records.pictures)
    found = {VALUE.sub("0", text) for svg in svgs for text in texts_of(svg) if WORD.search(VALUE.sub("", text))}
    months = {form.format(month) for month in month_abbr[1:] for form in ("{}", "{}-0", "0-{}", "0-{}-0")}
    for text in sorted(found | months):
        names = iter("abcdefgh")
        yield re.sub(r"(?<!\w)0(?!\w)", lambda _value: f"{{{next(names)}}}", text)  # noqa: B023


def _of_module(file: Path, tree: ast.Module) -> Iterator[str]:
    """Return the messages of the calls in a module: literals, names of literals, or values of a table of the module."""
    for scope in ast.walk(tree):
        if isinstance(scope, ast.FunctionDef | ast.Module):
            assigned = _assigned(scope)
            for node in ast.walk(scope):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Name)
                    and node.func.id in CALLS
                    and node.args
                ):
                    yield from _messages(file, node.args[0], assigned, whole=isinstance(scope, ast.Module))


def _assigned(scope: ast.AST) -> dict[str, list[ast.expr]]:
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, []).append(node.value)
    return found


def _messages(file: Path, node: ast.expr, assigned: Mapping[str, list[ast.expr]], whole: bool) -> Iterator[str]:
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp():
            yield from _messages(file, node.body, assigned, whole)
            yield from _messages(file, node.orelse, assigned, whole)
        case ast.Subscript(value=ast.Name(id=name)):
            yield from _named(file, name).values()
        case ast.Name(id=name) if name in assigned and not whole:
            for each in assigned[name]:
                if isinstance(each, ast.Constant | ast.IfExp):
                    yield from _messages(file, each, assigned, whole)
        case ast.Name(id=name) if name.isupper():
            yield _named(file, name)


def _named(file: Path, name: str) -> Any:
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return getattr(importlib.import_module(module), name)


def _captions(file: Path) -> Iterator[str]:
    """Return the captions of a notebook's figures and tables; values in them are placeholders."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    tree = ast.parse(code)
    assigned = _assigned(tree)
    given = list(assigned.get("caption", ()))
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    given += [call.args[2] for call in calls if isinstance(call.func, ast.Name) and call.func.id in RECORDING]
    for value in given:
        yield from _caption(value)
        for part in ast.walk(value):  # words that are put into a caption
            if isinstance(part, ast.Name):
                for chosen in assigned.get(part.id, ()):
                    if isinstance(chosen, ast.IfExp):
                        yield from _messages(file, chosen, {}, whole=True)


def _caption(value: ast.expr) -> Iterator[str]:
    match value:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr():
            number = iter("abcdefgh")
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else f"{{{next(number)}}}" for part in value.values
            )
        case ast.Call(args=[_, ast.Constant(value=str(text))]):  # of a caption that may be of a simulation
            yield text
            yield f"SIMULATION: {text}"


def read(tag: str) -> Catalog:
    """Return the catalogue of a language; an empty one if there is none."""
    if not catalogue_file(tag).exists():
        return Catalog(locale=tag.replace("-", "_"), project="Qubic Lab", charset="utf-8")
    with catalogue_file(tag).open("rb") as file:
        return read_po(file, locale=tag.replace("-", "_"))


def update(tag: str, messages: Mapping[str, str]) -> Catalog:
    """Return the catalogue of a language with exactly these messages, and the translations that it has of them."""
    old, new = read(tag), Catalog(locale=tag.replace("-", "_"), project="Qubic Lab", charset="utf-8")
    for message, place in {**_of_earlier_samples(old), **messages}.items():
        known = old.get(message)
        new.add(message, known.string if known else "", auto_comments=[place])
    return new


def _of_earlier_samples(catalogue: Catalog) -> dict[str, str]:
    """Return the messages of a catalogue that weeks other than the sample may need."""
    return {str(each.id): place for each in catalogue if each.id for place in each.auto_comments if place in OF_SAMPLE}


def write(tag: str, catalogue: Catalog) -> None:
    """Write the catalogue of a language, without dates, so that it changes only where a message does."""
    catalogue_file(tag).parent.mkdir(parents=True, exist_ok=True)
    for each in catalogue:
        each.flags.clear()  # guesses of a format from % and {
    with catalogue_file(tag).open("wb") as file:
        write_po(file, catalogue, width=120, omit_header=True, no_location=True)


def faults(tag: str, messages: Mapping[str, str]) -> list[str]:
    """Return a line for each message that a language does not translate, or translates without being asked."""
    catalogue = read(tag)
    known = {str(each.id): each.string for each in catalogue if each.id}
    asked = messages.keys() | _of_earlier_samples(catalogue).keys()
    lacking = [f"{tag} lacks {each!r} ({place})" for each, place in messages.items() if not known.get(each)]
    return lacking + [f"{tag} has {each!r}, which nothing asks for" for each in known if each not in asked]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="name what is missing, and change nothing")
    check, messages = parser.parse_args().check, collect()
    found = []
    for tag in (each for each in LANGUAGES if each != ENGLISH):
        if not check:
            write(tag, update(tag, messages))
        found += faults(tag, messages)
    print(*found, f"{len(messages)} messages", sep="\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
