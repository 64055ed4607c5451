"""The first screen of a week's page: a row a question, how many criteria have which verdict, and what to know first.

It has at most FIRST_SCREEN_WORDS. English words decide what there is room for, so that a page says the same in each
language: the sentences come before the names of failing criteria, whose ids are always there.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from qubic_lab.runs.language import ENGLISH, language, translated_figure, translated_finding, translated_text
from qubic_lab.runs.language import translated as _
from qubic_lab.runs.summary import SIGNS, Sentence, deciding_row, meaningless_models, rows_of
from qubic_lab.runs.week_report import ReportedRun, WeekReport
from qubic_lab.studies.acceptance import AcceptanceRow, Verdict
from qubic_lab.studies.questions import ASKED, Question

FIRST_SCREEN_WORDS = 150
"""Numbers counted. A study with a question of its own adds its label and its figure."""
TITLE_WORDS = 8
"""Such as Qubic Lab Week 49 of 2026, 2026-11-30 – 2026-12-06."""
NAMED_ROWS = 3
"""Failing criteria that are named; the others are counted."""
NAME_WORDS = 2
"""A criterion with a longer name has that of its question."""
NAMED_MACHINES, NAMED_MODELS = 1, 2


@dataclass(frozen=True)
class QuestionRow:
    """A question and its answer in one line; the verdict is that of `decided`, its least favourable criterion.

    `trend` has the key figure of earlier weeks and of this one, oldest first. A sentence that does not fit is left to
    the question's section.
    """

    question: Question
    decided: AcceptanceRow | None
    sentence: Sentence
    figure: Sentence | None
    trend: tuple[float, ...] = ()
    fits: bool = True

    @property
    def verdict(self) -> Verdict:
        """The verdict on the question."""
        return self.decided.verdict if self.decided else "not measured here"


@dataclass(frozen=True)
class Tile:
    """How many criteria have a verdict; of those that fail some have their id and name here, `more` have not.

    A name that does not fit is empty.
    """

    verdict: Verdict
    count: int
    named: tuple[tuple[str, str], ...] = ()
    more: int = 0


@dataclass(frozen=True)
class FirstScreen:
    """What a reader sees before anything is scrolled, but for the picture."""

    rows: tuple[QuestionRow, ...]
    tiles: tuple[Tile, ...]
    notes: tuple[Sentence, ...]
    machines: tuple[str, ...]
    models: tuple[str, ...]

    @property
    def least_words(self) -> int:
        """The words that are always there: all but sentences and the names of criteria."""
        texts = [*self.machines, *self.models, *(note.text for note in self.notes)]
        for row in self.rows:
            texts += [_(row.question.label), row.figure.text if row.figure else ""]
        for tile in self.tiles:
            texts += [str(tile.count), _(tile.verdict), *(id for id, _name in tile.named), and_more(tile.more)]
        return TITLE_WORDS + sum(map(_words, texts))


def first_screen(report: WeekReport, answering: Mapping[Question, Sequence[ReportedRun]]) -> FirstScreen:
    """Return the first screen of a week in the language used now, with as much as there is room for.

    `answering` has the runs that answer each question, the first of them with the answer.
    """
    with language(ENGLISH):
        english = _everything(report, answering)
        room = FIRST_SCREEN_WORDS - english.least_words
    sentences = [_words(row.sentence.text) for row in english.rows]
    names = [_words(name) for tile in english.tiles for _id, name in tile.named]
    told = _fitting(sentences, room)
    named = _fitting(names, room - sum(sentences[:told]))
    screen = _everything(report, answering)
    rows = (replace(row, fits=place < told) for place, row in enumerate(screen.rows))
    tiles = (
        replace(tile, named=tuple((id, name * (place < named)) for place, (id, name) in enumerate(tile.named)))
        for tile in screen.tiles
    )
    return replace(screen, rows=tuple(rows), tiles=tuple(tiles))


def and_more(count: int) -> str:
    """Return "and N more" for the number that is not named, or an empty text for 0."""
    return _("and {count} more", count=count) if count else ""


def short_machine(machine: str) -> str:
    """Return a machine without the model of its processor and its system: 'AMD EPYC, 2 cores, 24 GiB'."""
    return re.sub(r" \([^)]*\)", "", machine.partition(", Linux")[0])


def _words(text: str) -> int:
    return sum(re.search(r"\w", part) is not None for part in text.split())


def _fitting(words: Iterable[int], room: int) -> int:
    """Return how many of the first texts fit."""
    return sum(spent <= room for spent in itertools.accumulate(words))


def _everything(report: WeekReport, answering: Mapping[Question, Sequence[ReportedRun]]) -> FirstScreen:
    manifests = [(run, run.manifest) for run in report.runs if run.manifest]
    machines = dict.fromkeys(translated_text(short_machine(manifest.machine)) for _run, manifest in manifests)
    models = dict.fromkeys(_model(run, manifest.model) for run, manifest in manifests if manifest.model)
    return FirstScreen(
        rows=tuple(_row(question, report, runs) for question, runs in answering.items()),
        tiles=tuple(_tiles(report)),
        notes=tuple(_notes(report)),
        machines=tuple(machines) if len(machines) <= NAMED_MACHINES else (_("{count} machines", count=len(machines)),),
        models=tuple(models) if len(models) <= NAMED_MODELS else (_("{count} models", count=len(models)),),
    )


def _model(run: ReportedRun, model: str) -> str:
    meaningless = model in dict(meaningless_models([run]))
    return _("{model} (random weights)", model=model) if meaningless else model


def _row(question: Question, report: WeekReport, runs: Sequence[ReportedRun]) -> QuestionRow:
    decided = deciding_row(rows_of(question, report.rows))
    if not runs:
        nothing = Sentence(_("No run of it has findings."), f"week#questions/{question.name}")
        return QuestionRow(question, decided, nothing, None)
    headline, source = runs[0].records.findings[0], f"{runs[0].name}#findings/0"
    figure, trend = translated_figure(headline), report.trend(runs[0].name)
    return QuestionRow(
        question,
        decided,
        Sentence(translated_finding(headline), source),
        Sentence(figure, source) if figure else None,
        trend.figures if trend else (),
    )


def _tiles(report: WeekReport) -> Iterator[Tile]:
    for verdict in SIGNS:
        rows = [row for row in report.rows if row.measurable and row.verdict == verdict]
        shown = rows[:NAMED_ROWS] if verdict == "fail" else []
        named = tuple((row.id, criterion_name(row)) for row in shown)
        if rows:
            yield Tile(verdict, len(rows), named, len(rows) - len(named) if named else 0)


def criterion_name(row: AcceptanceRow) -> str:
    """Return what a criterion is about in a few words: what it says before a colon, or else its question's label."""
    if len(row.what.partition(":")[0].split()) <= NAME_WORDS:
        return re.split("[:：]", translated_text(row.what))[0]
    return next((_(question.label) for question in ASKED if question.is_judged_by(row.id)), "")


def _notes(report: WeekReport) -> Iterator[Sentence]:
    """Say what a reader must know before any number: what failed, and what is not done."""
    failed = [run for run in report.runs if run.error]
    if len(failed) == 1:
        text = _("A run of {study} failed and is not in the numbers.", study=failed[0].study)
        yield Sentence(text, f"{failed[0].name}#manifest")
    elif failed:
        studies = list(dict.fromkeys(run.study for run in failed))
        text = _("{count} runs failed and are not in the numbers: {studies}.", count=len(failed), studies=studies)
        yield Sentence(text, "week#runs")
    if len(report.unfinished) == 1:
        yield Sentence(_("Not all runs are done. {sentence}", sentence=report.unfinished[0]), "week#unfinished/0")
    elif report.unfinished:
        text = _("{count} studies are not done: qubic-lab run goes on with them.", count=len(report.unfinished))
        yield Sentence(text, "week#unfinished")
