"""Rows of the acceptance table, and the results of a week's runs that they are judged by.

Each study holds its own criteria, with their targets, and judges them in a function `acceptance`.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from qubic_lab.bench.noise import QUIET, MachineNoise
from qubic_lab.checked_yaml import codec
from qubic_lab.studies.finding import Finding, say

Verdict = Literal["pass", "fail", "partial", "measured, no benefit", "not measured here"]
Text = str | Finding
T = TypeVar("T")

PARTS = "; "
"""What stands between the parts of a row's text; no part has it in itself."""
CONFIDENCE = 0.95
"""Of the intervals in the table."""
MEANINGS: dict[Verdict, str] = {
    "fail": "the target is missed",
    "measured, no benefit": "measured in full, and no benefit is shown",
    "not measured here": "nothing was measured, not all that the row asks for, or on a machine too noisy: it says why",
    "partial": "no miss so far, but too little to judge: the row says how much a verdict takes",
    "pass": "the target is met, by as much as a verdict takes",
}
"""What each verdict says; the least favourable comes first."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FullVerdict:
    """What the last full run of a study said of a criterion, with the day (UTC) and the week in which it was made."""

    day: str
    week: str
    run: str
    measured: str
    verdict: Verdict


@dataclass(frozen=True)
class AcceptanceRow:
    """One criterion: what is asked, what was measured, and by which run (None if by none).

    `last_full` is another run's verdict: that of the last full run, where a quick run or none decides the row.
    """

    id: str
    what: str
    target: str
    measured: str
    verdict: Verdict
    reason: str
    run: str | None
    measurable: bool = True
    """False where the criterion is about something that is not built, or that no study measures."""
    last_full: FullVerdict | None = None
    certain: bool | None = None
    """Of a miss: whether all of the measured interval misses the target; None: there is no interval."""


@dataclass(frozen=True)
class Criterion:
    """What one row of the table asks for, and the name of the study that measures it."""

    id: str
    what: str
    target: str
    study: str = ""

    def row(
        self,
        measured: Text,
        verdict: Verdict | bool,
        reason: Text = "",
        run: str | None = None,
        *,
        few: Text = "",
        noisy: Text = "",
        certain: bool | None = None,
    ) -> AcceptanceRow:
        """Return the row of a run; a verdict of True is a pass, of False a failure.

        `few` says what there is too little of (see `too_few`): then the verdict is partial in place of a pass. `noisy`
        is for a target of times (see `too_noisy`): a miss is then not the program's, and nothing is measured.
        `certain` is of a miss, see `AcceptanceRow`.
        """
        if isinstance(verdict, bool):
            verdict = "pass" if verdict else "fail"
        verdict = "partial" if few and verdict == "pass" else verdict
        if noisy and verdict == "fail":
            verdict, few = "not measured here", joined(noisy, few)
        certain = certain if verdict == "fail" else None
        return AcceptanceRow(
            self.id, self.what, self.target, str(measured), verdict, joined(few, reason), run, certain=certain
        )

    def complete(self, measured: Text, missing: Sequence[Text], run: str) -> AcceptanceRow:
        """Return the row of a criterion that is met when nothing is missing."""
        reason = say("missing: {missing}", missing=missing) if missing else ""
        return self.row(measured, "not measured here" if missing else "pass", reason, run)

    def not_measured(self, more: Text = "") -> AcceptanceRow:
        """Return the row without a verdict: no run of the study recorded what it needs; `more` qualifies "no run"."""
        text = "no finished run of {study} this week {more}" if more else "no finished run of {study} this week"
        return self.row("", "not measured here", say(text, study=self.study, more=more))


def too_few(found: int, needed: int, what: Finding) -> Text:
    """Return in words how many a verdict takes; empty where as many were found."""
    if found >= needed:
        return ""
    return say("{found} of the {needed} {what} that a verdict takes", found=found, needed=needed, what=what)


def too_noisy(noise: MachineNoise | None) -> Text:
    """Return in words that others used too much of the machine to call a time too long; empty where they did not."""
    if noise is None or noise.during <= QUIET:
        return ""
    return say(
        "machine too noisy: other processes used {during:percent} of its cores during the measurement, "
        "{before:percent} in the moment before (a verdict takes {limit:percent} at most)",
        during=noise.during,
        before=noise.before,
        limit=QUIET,
    )


def joined(*parts: Text) -> str:
    """Join the texts of a row that are not empty, so that a page in another language finds each of them again."""
    return PARTS.join(filter(None, map(str, parts)))


def least_favourable(rows: Iterable[AcceptanceRow]) -> AcceptanceRow | None:
    """Return the first row with the least favourable verdict; None if there are no rows."""
    order = list(MEANINGS)
    return min(rows, key=lambda row: order.index(row.verdict), default=None)


@dataclass(frozen=True)
class WeekResults:
    """What the finished runs of a week recorded: run → name → result, and run → name → caption of a picture."""

    results: Mapping[str, Mapping[str, Mapping[str, Any]]]
    pictures: Mapping[str, Mapping[str, str]]

    def read(self, name: str, kind: type[T]) -> dict[str, T]:
        """Return the results of a name by run, as the type that the study records.

        A result that does not fit the type was recorded by another version: it is logged and left out.
        """
        found: dict[str, T] = {}
        for run, results in self.results.items():
            if name in results:
                try:
                    found[run] = codec(kind).validate_python(results[name])
                except ValidationError:
                    log.warning("run %s is not judged: another version recorded its result %r", run, name)
        return found


def meaningless_note(meaningless: bool) -> Text:
    """Return what a verdict on random weights does not mean; empty for real weights."""
    return say("random weights: this shows the split, not a model's answers") if meaningless else ""
