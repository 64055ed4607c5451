"""A week in words, made from its numbers by rules: what matters most comes first."""

from collections import Counter
from collections.abc import Sequence

from qubic_lab.runs.cells import format_number, in_words
from qubic_lab.runs.change import FALSE_ALARMS, Shift, is_time
from qubic_lab.runs.history import MeasureChange, Repetition
from qubic_lab.runs.week_report import ReportedRun, WeekReport
from qubic_lab.studies.acceptance import AcceptanceRow, Verdict

NAMED_CHANGES = 4
"""Changes of each kind that are named; the table has the others."""
SIGNS: dict[Verdict, tuple[str, str]] = {
    "pass": ("✓", "pass"),
    "partial": ("◐", "partial"),
    "measured, no benefit": ("○", "none"),
    "fail": ("✗", "fail"),
    "not measured here": ("–", "open"),
}
"""The sign of each verdict on acceptance, and its class in the page's style."""


def headlines(runs: Sequence[ReportedRun]) -> list[tuple[str, ReportedRun]]:
    """Return the first finding of each run, its most important one, with the run."""
    return [(str(run.records.findings[0]), run) for run in runs if run.records.findings]


def meaningless_models(runs: Sequence[ReportedRun]) -> list[tuple[str, ReportedRun]]:
    """Return the models whose answers mean nothing, each with the first run that says so."""
    found: dict[str, ReportedRun] = {}
    for run in runs:
        for result in run.records.results.values():
            if result.get("meaningless"):
                found.setdefault(str(result.get("model", run.title)), run)
    return list(found.items())


def acceptance_sentence(rows: Sequence[AcceptanceRow]) -> str:
    """Count the verdicts, and name what fails or has no benefit."""
    measurable = [row for row in rows if row.measurable]
    counts = Counter(row.verdict for row in measurable)

    def named(verdict: Verdict, title: str) -> str:
        found = [f"{row.id} ({row.what[0].lower()}{row.what[1:]})" for row in measurable if row.verdict == verdict]
        return f" {title}: {', '.join(found)}." if found else ""

    return (
        f"Of {len(measurable)} acceptance criteria that studies can measure, {counts['pass']} pass, "
        f"{counts['fail']} fail, {counts['partial']} are partial, {counts['measured, no benefit']} were measured "
        f"without a benefit, {counts['not measured here']} were not measured here."
        + named("fail", "What fails")
        + named("measured, no benefit", "Without a benefit")
    )


def change_sentences(changes: Sequence[MeasureChange], repetitions: Sequence[Repetition]) -> list[str]:
    """Say what has changed since earlier weeks, the worse first, and what should have repeated and did not."""
    compared = [change for change in changes if change.judgement.shift is not None]
    sentences = []
    for verdict in ("worse", "better"):
        changed = [change for change in compared if change.judgement.verdict == verdict]
        sentences += [_change_sentence(change) for change in changed[:NAMED_CHANGES]]
        if (more := len(changed) - NAMED_CHANGES) > 0:
            sentences.append(f"{more} more measures are {verdict}: see the table of changes.")
    sentences += [
        f"{in_words(each.study)}, {each.what}: {each.value} now, {each.earlier_value} in {each.earlier_week}."
        for each in repetitions
        if not each.same
    ]
    quiet = sum(change.judgement.verdict == "no change beyond noise" for change in compared)
    if compared:
        sentences.append(f"No change beyond noise in {quiet} of {len(compared)} measures compared with earlier weeks.")
    elif changes:
        sentences.append("No measure could be compared with an earlier week.")
    return sentences


def _change_sentence(change: MeasureChange) -> str:
    return (
        f"{in_words(change.study)}, {in_words(change.measure)}: {change_word(change)} than in {change.earlier_week}, "
        f"{describe_shift(change.judgement.shift)}."
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
    return f"{_per_cent(shift.ratio)} ({_per_cent(shift.low)} to {_per_cent(shift.high)})"


def interval_sentence(changes: Sequence[MeasureChange]) -> str:
    """Say what the intervals of the changes mean."""
    confidences = [change.judgement.shift.confidence for change in changes if change.judgement.shift]
    if not confidences:
        return ""
    return (
        "Each interval is at the confidence that a verdict takes (Holm, at least "
        f"{format_number(100 * min(confidences))} %), of the scatter from run to run. Over all measures, at most "
        f"{FALSE_ALARMS * 100:g} % of the weeks have a false alarm. Where the memory's speed was probed, weeks are "
        "compared at equal speed."
    )


def _per_cent(ratio: float) -> str:
    percent = (ratio - 1) * 100
    sign = "+" if percent > 0 else "−" if percent < 0 else "±"
    return f"{sign}{abs(percent):.1f}\N{NO-BREAK SPACE}%"


def figures_of(report: WeekReport) -> list[tuple[str, str]]:
    """Return the numbers that open the page, each with what it counts."""
    measurable = Counter(row.verdict for row in report.rows if row.measurable)
    verdicts = Counter(change.judgement.verdict for change in report.changes)
    return [
        (str(measurable["pass"]), "acceptance criteria pass"),
        (str(measurable["fail"]), "fail"),
        (str(measurable["partial"]), "are partial: too little to judge"),
        (str(measurable["measured, no benefit"]), "were measured without a benefit"),
        (str(measurable["not measured here"]), "were not measured here"),
        (str(verdicts["worse"]), "measures are worse than in an earlier week"),
    ]
