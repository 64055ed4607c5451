"""A row of the acceptance table, and what runs recorded by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qubic_lab.runs.records import Records

Verdict = Literal["pass", "fail", "not measured here"]
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One criterion: what is asked, what was measured, and by which run (None if by none)."""

    id: str
    what: str
    target: str
    measured: str
    verdict: Verdict
    reason: str
    run: str | None
    measurable: bool = True
    """False where what the criterion is about is not built, or never measured by a study."""


def recorded(runs: Mapping[str, Records], name: str) -> dict[str, Result]:
    """Return what each run recorded under a name, for those that did."""
    return {run: records.results[name] for run, records in runs.items() if name in records.results}


def not_measured(row: Callable[..., Row], study: str, what: str = "") -> Row:
    """Return a row without a verdict: no run of a study recorded what it asks for; `what` says more."""
    reason = f"no finished run of {study} this week{what}"
    return row(measured="", verdict="not measured here", reason=reason, run=None)
