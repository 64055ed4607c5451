"""A week in words, made from its numbers by rules: what changed, what to decide, and how far to trust it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qubic_lab.runs.cells import format_number, format_value, in_words
from qubic_lab.runs.change import FALSE_ALARMS, Shift, is_time
from qubic_lab.runs.history import MeasureChange, Repetition
from qubic_lab.runs.language import translated as _
from qubic_lab.runs.language import translated_text
from qubic_lab.runs.week_report import ReportedRun, WeekReport
from qubic_lab.studies.acceptance import AcceptanceRow, Verdict, least_favourable
from qubic_lab.studies.questions import Question

NAMED = 4
"""Changes of each kind, or criteria, that are named; the tables have the others."""
SIGNS: dict[Verdict, tuple[str, str]] = {
    "pass": ("✓", "pass"),
    "partial": ("◐", "partial"),
    "measured, no benefit": ("○", "none"),
    "fail": ("✗", "fail"),
    "not measured here": ("–", "open"),
}
"""The sign of each verdict on acceptance, and its class in the page's style."""
MISSED: tuple[Verdict, ...] = ("fail", "measured, no benefit")


@dataclass(frozen=True)
class Sentence:
    """A text, and where its numbers are from: `<run>#<path>` or `week#<path>`."""

    text: str
    source: str


@dataclass(frozen=True)
class Answer:
    """What a reader asks of any week, and what is said to it; `more` is folded."""

    asked: str
    said: tuple[Sentence, ...]
    more: tuple[Sentence, ...] = ()


def rows_of(question: Question, rows: Sequence[AcceptanceRow]) -> list[AcceptanceRow]:
    """Return the acceptance rows that decide a question, in the order of its criteria."""
    found = [row for row in rows if row.measurable and question.is_judged_by(row.id)]
    order = {id: place for place, id in enumerate(question.criteria)}
    return sorted(found, key=lambda row: order.get(row.id, len(order)))


def deciding_row(rows: Sequence[AcceptanceRow]) -> AcceptanceRow | None:
    """Return the least favourable of the rows that were measured, or else of all."""
    return least_favourable([row for row in rows if row.verdict != "not measured here"]) or least_favourable(rows)


def reader_answers(report: WeekReport, questions: Sequence[Question]) -> tuple[Answer, ...]:
    """Answer what a reader asks of any week, in the order of asking."""
    changes = change_sentences(report.changes, report.repetitions)
    if not changes:
        changes = [Sentence(_("This is the first week with measures: there is nothing to compare."), "week#changes")]
    left_out = list(_left_out(report.runs))
    short = Counter(run.full for run in report.runs if run.error is None)[False]
    said = _("{count} runs are of the quick form, which leaves out nothing but size.", count=short)
    failing = [row for row in report.rows if row.measurable and row.verdict == "fail"]
    answers = (
        Answer(_("What has changed?"), tuple(changes)),
        Answer(_("What is to be decided?"), tuple(_decisions(report, questions))),
        Answer(_("Is a failure noise?"), tuple(map(_noise, failing))),
        Answer(_("What do a million tokens cost?"), tuple(_costs(report))),
        Answer(
            _("What did the quick form leave out?"), (Sentence(said, "week#runs"),) if left_out else (), tuple(left_out)
        ),
        Answer(_("How far is it from the full form?"), tuple(_distances(report))),
    )
    return tuple(answer for answer in answers if answer.said)


def _decisions(report: WeekReport, questions: Sequence[Question]) -> Iterator[Sentence]:
    for question in questions:
        row = deciding_row(rows_of(question, report.rows))
        if row is None:
            continue
        if row.verdict == "pass":
            advice = _(question.met)
        elif row.verdict in MISSED:
            advice = _(question.missed)
        else:
            advice = _("Nothing yet – {reason}.", reason=translated_text(row.reason))
        yield Sentence(_("{label}: {advice}", label=_(question.label), advice=advice), f"week#rows/{row.id}")


def _noise(row: AcceptanceRow) -> Sentence:
    """Say whether a miss may be chance, as far as its interval, or the last full run, tells."""
    if row.certain:
        said = _("no, the whole interval misses the target")
    elif row.certain is False:
        said = _("it may be: the interval holds the target")
    elif row.last_full is not None:
        verdict = _(row.last_full.verdict)
        said = _("there is no interval; the full form of {day} says: {verdict}", day=row.last_full.day, verdict=verdict)
    else:
        said = _("there is no interval, and no full form to compare")
    return _of_row(row, said)


def _of_row(row: AcceptanceRow, said: str) -> Sentence:
    text = _("{id} {what}: {said}.", id=row.id, what=translated_text(row.what), said=said)
    return Sentence(text, f"week#rows/{row.id}")


def _costs(report: WeekReport) -> Iterator[Sentence]:
    """Price the recommended plan of each run by what its devices cost an hour, as the week's file says."""
    prices = report.status.usd_per_hour if report.status else {}
    for run in report.runs:
        plan = run.records.results.get("plan", {})
        best = next((each for each in plan.get("plans", ()) if each["strategy"] == plan["recommendation"]), None)
        if best is None or not all(device in prices for device in plan["devices"]):
            continue
        hourly = sum(prices[device] for device in plan["devices"])

        def dollars(tokens_per_s: float, hourly: float = hourly) -> str:
            return format_number(hourly / (tokens_per_s * 3600) * 1e6)

        text = _(
            "Predicted for {model} on {devices} at {hourly} USD an hour: {alone} USD with {requests} requests at once, "
            "{full} USD with {most} on each.",
            model=plan["model"],
            devices=", ".join(plan["devices"]),
            hourly=format_number(hourly),
            alone=dollars(best["tokens_per_s"]),
            requests=best["requests"],
            full=dollars(best["most_tokens_per_s"]),
            most=best["most_batch"],
        )
        yield Sentence(text, f"{run.name}#results/plan")


def _left_out(runs: Sequence[ReportedRun]) -> Iterator[Sentence]:
    said: dict[str, Sentence] = {}
    for run in runs:
        if run.left_out and run.manifest:
            given = run.manifest.parameters
            parts = [
                _("{name} {quick} of {full}", name=in_words(name), quick=_value(given[name]), full=_value(value))
                for name, value in run.left_out.items()
            ]
            said.setdefault(run.study, Sentence(f"{_(run.title)} {'; '.join(parts)}.", f"{run.name}#left_out"))
    yield from said.values()


def _value(value: Any) -> str:
    return format_value("", value)


def _distances(report: WeekReport) -> Iterator[Sentence]:
    """Say which rows have too little for a verdict, and where the last full run says something else."""
    partial = [row for row in report.rows if row.verdict == "partial" and row.run]
    for row in partial[:NAMED]:
        yield _of_row(row, translated_text(row.reason))
    if len(partial) > NAMED:
        yield Sentence(_("{count} more rows have too little.", count=len(partial) - NAMED), "week#rows")
    for row in report.rows:
        if (full := row.last_full) and full.verdict != row.verdict:
            said = {"id": row.id, "now": _(row.verdict), "full": _(full.verdict), "day": full.day}
            text = _("{id}: {now} now, {full} in the full form of {day}.", **said)
            yield Sentence(text, f"week#rows/{row.id}")


def meaningless_models(runs: Sequence[ReportedRun]) -> list[tuple[str, ReportedRun]]:
    """Return the models whose answers mean nothing, each with the first run that says so."""
    found: dict[str, ReportedRun] = {}
    for run in runs:
        for result in run.records.results.values():
            if result.get("meaningless"):
                found.setdefault(str(result.get("model", run.title)), run)
    return list(found.items())


def change_sentences(changes: Sequence[MeasureChange], repetitions: Sequence[Repetition]) -> list[Sentence]:
    """Say what has changed since earlier weeks, the worse first, and what should have repeated and did not."""
    compared = [change for change in changes if change.judgement.shift is not None]
    sentences = []
    for verdict in ("worse", "better"):
        changed = [(place, each) for place, each in enumerate(changes) if each.judgement.verdict == verdict]
        sentences += [Sentence(_change_text(change), f"week#changes/{place}") for place, change in changed[:NAMED]]
        if (more := len(changed) - NAMED) > 0:
            text = _("{count} more measures are {verdict}: see the table of changes.", count=more, verdict=_(verdict))
            sentences.append(Sentence(text, "week#changes"))
    sentences += [
        Sentence(
            _(
                "{study}, {what}: {value} now, {earlier} in {week}.",
                study=in_words(each.study),
                what=each.what,
                value=each.value,
                earlier=each.earlier_value,
                week=each.earlier_week,
            ),
            f"week#repetitions/{place}",
        )
        for place, each in enumerate(repetitions)
        if not each.same
    ]
    quiet = sum(change.judgement.verdict == "no change beyond noise" for change in compared)
    if compared:
        text = _("No change beyond noise in {quiet} of {count} measures.", quiet=quiet, count=len(compared))
        sentences.append(Sentence(text, "week#changes"))
    elif changes:
        sentences.append(Sentence(_("No measure could be compared with an earlier week."), "week#changes"))
    return sentences


def _change_text(change: MeasureChange) -> str:
    return _(
        "{study}, {measure}: {word} than in {week}, {shift}.",
        study=in_words(change.study),
        measure=in_words(change.measure),
        word=_(change_word(change)),
        week=change.earlier_week,
        shift=describe_shift(change.judgement.shift),
    )


def change_word(change: MeasureChange) -> str:
    """Return the verdict in the words of its unit: speeds and durations are faster or slower."""
    verdict = change.judgement.verdict
    if is_time(change.unit):
        return {"better": "faster", "worse": "slower"}.get(verdict, verdict)
    return verdict


def describe_shift(shift: Shift | None) -> str:
    """Return the change of a value in per cent with its interval, as in '−12 % (−15 % to −8 %)'."""
    if shift is None:
        return ""
    ends = {name: _per_cent(getattr(shift, name)) for name in ("ratio", "low", "high")}
    return _("{ratio} ({low} to {high})", **ends)


def interval_sentence(changes: Sequence[MeasureChange]) -> str:
    """Say what the intervals of the changes mean."""
    confidences = [change.judgement.shift.confidence for change in changes if change.judgement.shift]
    if not confidences:
        return ""
    return _(
        "Each interval is at the confidence that a verdict takes (Holm, at least {confidence} %), of the scatter from "
        "run to run. Over all measures, at most {share} % of the weeks have a false alarm. CPU times count in "
        "units of a fixed computation.",
        confidence=format_number(100 * min(confidences)),
        share=f"{FALSE_ALARMS * 100:g}",
    )


def _per_cent(ratio: float) -> str:
    percent = (ratio - 1) * 100
    sign = "+" if percent > 0 else "−" if percent < 0 else "±"
    return f"{sign}{abs(percent):.1f}\N{NO-BREAK SPACE}%"
