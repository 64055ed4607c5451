"""Studies: experiment files, executed notebooks, their results, and the weekly report made from them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame


def load(study: str | None = None, since: str | None = None) -> "DataFrame":
    """Return the kept runs of all weeks, oldest first: a row for each with parameters, results and measures.

    Args:
        study: only runs of this study.
        since: only runs of this ISO week or day, such as 2026-W48 or 2026-11-23 (UTC), or later.

    Raises:
        InputError: no run of the study is kept, `since` is malformed, or a run is damaged.
    """
    from qubic_lab.runs.kept import load_runs  # notebooks import other modules from here

    return load_runs(study, since)
