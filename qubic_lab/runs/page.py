"""The weekly page as plain values: what is shown, in which order, and where each number is from.

HTML and PDF are made from it. A source is `<run>#<path>` or `week#<path>`, such as `cluster/1a2b…#findings/0` for the
first finding of a run and `week#rows/11.4` for an acceptance row.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qubic_lab.errors import check_choice
from qubic_lab.runs.cells import format_column, format_value, heading, is_numeric, is_prose
from qubic_lab.runs.first_screen import FirstScreen, QuestionRow, first_screen
from qubic_lab.runs.language import translated as _
from qubic_lab.runs.language import translated_finding, translated_text
from qubic_lab.runs.picture import in_language
from qubic_lab.runs.records import RecordedPicture, RecordedTable
from qubic_lab.runs.summary import MISSED, SIGNS, Answer, Sentence, meaningless_models, reader_answers, rows_of
from qubic_lab.runs.week_report import ReportedRun, WeekReport, differing_parameters
from qubic_lab.studies.acceptance import PARTS, AcceptanceRow
from qubic_lab.studies.questions import ASKED, Question

PICTURES = 2
"""Of each question, beside its text."""
ROWS = 8
"""Of each question's table; the others are folded."""
WIDE_TABLE = 8
"""Columns; a wider table is set in smaller type."""
PARAGRAPH_WORDS = 80
"""Findings beyond these are folded."""


@dataclass(frozen=True)
class Column:
    """A column as it stands in the page; its kind is number, prose or short."""

    heading: str
    kind: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class ShownTable:
    """A table as it stands in the page; `more` is the number of rows that are left out."""

    caption: str
    source: str
    columns: tuple[Column, ...]
    more: int = 0

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Its cells, row by row."""
        return list(zip(*(column.cells for column in self.columns), strict=True))

    @property
    def wide(self) -> bool:
        """Whether it takes smaller type."""
        return len(self.columns) > WIDE_TABLE


@dataclass(frozen=True)
class ShownPicture:
    """A picture with its caption, and `alt`: the text for readers who cannot see it."""

    name: str
    caption: str
    alt: str
    svg: str
    source: str


@dataclass(frozen=True)
class RunDetails:
    """What a run recorded beyond what its section shows: the rest of its findings, and all of its tables."""

    run: ReportedRun
    heading: str
    findings: tuple[Sentence, ...]
    tables: tuple[ShownTable, ...]


@dataclass(frozen=True)
class Section:
    """A question at length: a paragraph, at most PICTURES pictures, at most one table of ROWS rows; the rest folded."""

    row: QuestionRow
    criteria: Sentence | None
    notes: tuple[Sentence, ...]
    paragraph: tuple[Sentence, ...]
    pictures: tuple[ShownPicture, ...]
    table: ShownTable | None
    details: tuple[RunDetails, ...]


@dataclass(frozen=True)
class WeekPage:
    """The page; tables of changes, of the project and of the runs are those of `report`."""

    report: WeekReport
    first: FirstScreen
    hero: ShownPicture | None
    answers: tuple[Answer, ...]
    sections: tuple[Section, ...]

    @property
    def missed(self) -> list[AcceptanceRow]:
        """The criteria that miss their target, or show no benefit; failures first."""
        found = [row for row in self.report.rows if row.measurable and row.verdict in MISSED]
        return sorted(found, key=lambda row: MISSED.index(row.verdict))


def make_page(report: WeekReport) -> WeekPage:
    """Return the page of a week.

    Raises:
        InputError: the week's file names a picture to open the page with that its study did not record.
    """
    asked = asked_questions(report)
    answering = {question: _answering_runs(question, report) for question in asked}
    first = first_screen(report, answering)
    hero = _hero(report, [run for runs in answering.values() for run in runs], asked)
    return WeekPage(
        report=report,
        first=first,
        hero=hero,
        answers=reader_answers(report, asked),
        sections=tuple(_section(row, report, answering[row.question], hero) for row in first.rows),
    )


def asked_questions(report: WeekReport) -> list[Question]:
    """Return the questions that studies of the week are about; a study without one asks its title."""
    studies = report.studies()
    known = {study for question in ASKED for study in question.studies}
    others = [Question(study, runs[0].title, runs[0].title, (study,)) for study, runs in studies.items()]
    return [each for each in ASKED if not studies.keys().isdisjoint(each.studies)] + [
        each for each in others if each.name not in known
    ]


def _answering_runs(question: Question, report: WeekReport) -> list[ReportedRun]:
    """Return one run of each study: that which decides a criterion, or else the first one with findings."""
    decided = [row.run for row in rows_of(question, report.rows) if row.run]
    found = []
    for study in question.studies:
        runs = [run for run in report.studies().get(study, ()) if run.records.findings]
        found += sorted(runs, key=lambda run: decided.index(run.name) if run.name in decided else len(decided))[:1]
    return found


def _section(row: QuestionRow, report: WeekReport, runs: Sequence[ReportedRun], hero: ShownPicture | None) -> Section:
    question = row.question
    said = list(_paragraph(runs))
    pictures = [each for each in _pictures(question, runs) if hero is None or each.source != hero.source]
    of_question = [run for study in question.studies for run in report.studies().get(study, ())]
    return Section(
        row=row,
        criteria=_criteria(rows_of(question, report.rows)),
        notes=tuple(_meaningless(of_question)),
        paragraph=tuple(said),
        pictures=tuple(pictures[:PICTURES]),
        table=_table(question, runs),
        details=tuple(_details(of_question, {sentence.source for sentence in said})),
    )


def _meaningless(runs: Sequence[ReportedRun]) -> Iterator[Sentence]:
    for model, run in meaningless_models(runs):
        text = _("The weights of {model} are random: its answers mean nothing, its speed does.", model=model)
        yield Sentence(text, f"{run.name}#manifest")


def _paragraph(runs: Sequence[ReportedRun]) -> Iterator[Sentence]:
    """Yield the first finding of each run, then the others of the first runs, while there is room."""
    said = [list(zip(map(str, run.records.findings), _findings(run), strict=True)) for run in runs]
    headlines = [each for of_run in said for each in of_run[:1]]
    others = [each for of_run in said for each in of_run[1:]]
    words, seen = 0, set[str]()
    for place, (english, sentence) in enumerate(headlines + others):
        words += len(english.split())  # of English, so that a page shows the same in each language
        if place and words > PARAGRAPH_WORDS:
            return
        if english not in seen:
            yield sentence
        seen.add(english)


def _findings(run: ReportedRun) -> list[Sentence]:
    sources = (f"{run.name}#findings/{place}" for place in itertools.count())
    return list(map(Sentence, map(translated_finding, run.records.findings), sources))


def _criteria(rows: Sequence[AcceptanceRow]) -> Sentence | None:
    """Count the criteria of a question that pass, and name those that do not."""
    if not rows:
        return None
    passed = sum(row.verdict == "pass" for row in rows)
    others = ", ".join(f"{row.id} {SIGNS[row.verdict][0]}" for row in rows if row.verdict != "pass")
    said = _("{passed} of {count} criteria pass", passed=passed, count=len(rows))
    return Sentence(_(PARTS).join(filter(None, (said, others))), "week#rows")


def _hero(report: WeekReport, runs: Sequence[ReportedRun], asked: Sequence[Question]) -> ShownPicture | None:
    """Return the picture that opens the page: that which the week's file names, if its study ran, or the first one."""
    name = report.status.hero if report.status else ""
    study, _slash, picture = name.partition("/")
    for run in report.studies().get(study, ()):
        if run.records.pictures:
            check_choice("picture to open the page", picture, [each.name for each in run.records.pictures])
            return next(_shown(run, each) for each in run.records.pictures if each.name == picture)
    return next((picture for question in asked for picture in _pictures(question, runs)), None)


def _pictures(question: Question, runs: Sequence[ReportedRun]) -> list[ShownPicture]:
    """Return the pictures that a question names, or else all that its runs recorded."""
    recorded = {
        f"{run.study}/{picture.name}": _shown(run, picture)
        for run in runs
        if run.study in question.studies
        for picture in run.records.pictures
    }
    named = [recorded[name] for name in question.pictures if name in recorded]
    return named or list(recorded.values())


def _shown(run: ReportedRun, picture: RecordedPicture) -> ShownPicture:
    said = f" {translated_finding(run.records.findings[0])}" if run.records.findings else ""
    source = f"{run.name}#figures/{picture.name}"
    caption = translated_text(picture.caption)
    return ShownPicture(picture.name, caption, f"{caption}{said}", in_language(picture.svg), source)


def _table(question: Question, runs: Sequence[ReportedRun]) -> ShownTable | None:
    """Return the table that a question names, or else the first one that was recorded."""
    found = {f"{run.study}/{table.name}": (run, table) for run in runs for table in run.records.tables}
    run, table = found.get(question.table) or next(iter(found.values()), (None, None))
    if run is None or table is None:
        return None
    return show_table(table, f"{run.name}#tables/{table.name}", question.columns, ROWS)


def show_table(
    table: RecordedTable, source: str, names: Sequence[str] = (), most_rows: int | None = None
) -> ShownTable:
    """Return a recorded table as a page shows it: of its columns the named ones, if it has them all."""
    shown = names if names and set(names) <= set(table.columns) else table.columns
    rows = table.rows[:most_rows]
    places = [table.columns.index(name) for name in shown]
    columns = [_column(table.columns[place], [row[place] for row in rows]) for place in places]
    return ShownTable(translated_text(table.caption), source, tuple(columns), len(table.rows) - len(rows))


def _column(name: str, values: Sequence[object]) -> Column:
    kind = "number" if is_numeric(values) else "prose" if is_prose(values) else "short"
    written = format_column(name, values)
    return Column(_(heading(name)), kind, tuple(written if kind == "number" else map(translated_text, written)))


def _details(runs: Sequence[ReportedRun], shown: set[str]) -> Iterator[RunDetails]:
    differing = differing_parameters(runs)
    for run in runs:
        own = differing.get(run.name, {})
        given = {name: value for name, value in own.items() if value not in (None, "", [])}
        different = ", ".join(f"{name}={format_value(name, value)}" for name, value in given.items())
        yield RunDetails(
            run=run,
            heading=f"{_(run.title)} {different}".strip(),
            findings=tuple(each for each in _findings(run) if each.source not in shown),
            tables=tuple(show_table(table, f"{run.name}#tables/{table.name}") for table in run.records.tables),
        )
