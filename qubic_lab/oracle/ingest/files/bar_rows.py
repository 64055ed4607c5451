"""Rows of a file of prices: how long bars are, which had not closed, in what order they are and where some are missing.

Plain arrays in, plain arrays out; whatever contradicts itself is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.records import Price
from qubic_lab.oracle.model.timestamps import MINUTE_US, SECOND_US, iso

_LEAST_SHARE = 0.5
"""Of the steps between bars that the commonest must make, to be their length."""
_CLOSE_MARGINS_US = (0, 1, 1_000, SECOND_US)
"""By so much may a file's close time be before the next bar opens: 12:14:59.999 means 12:15."""


@dataclass(frozen=True)
class Rows:
    """Rows that have prices, in the order of the file or turned round; arrays of one length.

    Attributes:
        lines: where each is in the file.
        stamps: its time in microseconds, of a bar's open if `opens`, else of its close; a quote's instant.
        ends: a bar's close where the file has both.
        numbers: columns by our names, NaN where there is no number.
    """

    file: str
    lines: NDArray[np.int64]
    stamps: NDArray[np.int64]
    ends: NDArray[np.int64] | None
    numbers: Mapping[str, NDArray[np.float64]]
    opens: bool

    def __len__(self) -> int:
        return len(self.stamps)

    def take(self, index: NDArray[Any] | slice) -> "Rows":
        """Return some of the rows."""
        ends = None if self.ends is None else self.ends[index]
        numbers = {name: column[index] for name, column in self.numbers.items()}
        return Rows(self.file, self.lines[index], self.stamps[index], ends, numbers, self.opens)

    def forwards(self) -> "Rows":
        """Return the rows with the last first, where most go back in time."""
        steps = np.diff(self.stamps)
        return self.take(slice(None, None, -1)) if (steps < 0).sum() > (steps > 0).sum() else self

    def opened_us(self, interval_us: int) -> NDArray[np.int64]:
        """Return when each bar opens."""
        return self.stamps if self.opens else self.stamps - interval_us

    def place(self, number: int) -> str:
        """Return where a row is, for errors."""
        return f"{self.file}:{self.lines[number]}"

    def places(self) -> list[str]:
        """Return where all rows are, for errors."""
        return [f"{self.file}:{line}" for line in self.lines.tolist()]


@dataclass(frozen=True)
class Gap:
    """Bars that a file does not have: from the end of one to the beginning of the next."""

    from_us: int
    to_us: int
    missing: int


def whole_closes(stamps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return closes as the next bars' opens, where a file has the last moment before: 12:14:59.999 means 12:15."""
    for margin_us in _CLOSE_MARGINS_US[1:]:
        if ((stamps + margin_us) % MINUTE_US == 0).mean() > _LEAST_SHARE:
            return stamps + margin_us
    return stamps


def find_interval(rows: Rows, given_s: int | None) -> int:
    """Return a bar's length in microseconds: the commonest step between times, which is to be the one given, if any.

    Raises:
        InputError: no step is common enough, or it is another one.
    """
    steps = np.diff(np.unique(rows.stamps))
    if not len(steps):
        if given_s is None:
            raise InputError(f"{rows.file}: one bar does not show how long bars are: give `interval`")
        return given_s * SECOND_US
    lengths, counts = np.unique(steps, return_counts=True)
    common, share = int(lengths[np.argmax(counts)]), float(counts.max()) / len(steps)
    found_s = f"{common / SECOND_US:g} s"
    if given_s is not None:
        if common != given_s * SECOND_US and len(steps) > 1:
            raise InputError(
                f"{rows.file}: bars are mostly {found_s} apart, not {given_s} s: give the right `interval`"
            )
        return given_s * SECOND_US
    if share < _LEAST_SHARE:
        raise InputError(f"{rows.file}: only {share:.0%} of bars are {found_s} apart: give `interval`")
    if common % SECOND_US:
        raise InputError(f"{rows.file}: bars are {found_s} apart: only whole seconds can be kept")
    return common


def drop_forming(rows: Rows, interval_us: int, now_us: int, written_us: int) -> tuple[Rows, NDArray[np.int64]]:
    """Leave out bars that had not closed when they were taken; return the others, and the lines of these.

    A row off the grid at the end of the file, or of a block in it, is the price at the instant when that was fetched:
    it is no bar, and the bar around it was forming. So was the newest bar if it ends after `now_us`, if the file was
    last written within it, or if it says itself that it ends early.

    Raises:
        InputError: a row is off the grid or of another length without such a reason, or opens after `now_us`.
    """
    opened = rows.opened_us(interval_us)
    forming = _taken_within(rows, interval_us)
    future = np.flatnonzero(opened > now_us)
    if len(future):
        first = int(future[0])
        raise InputError(f"{rows.place(first)}: {iso(int(opened[first]))} is still to come: is `zone` right?")
    closed = opened + interval_us
    newest = opened == opened[~forming].max(initial=0)
    forming |= newest & ((closed > now_us) | ((opened <= written_us) & (written_us < closed)))
    if rows.ends is not None:
        forming |= newest & (rows.ends - opened < interval_us - _CLOSE_MARGINS_US[-1])
    if forming.all():
        raise InputError(f"{rows.place(0)}: no bar in the file has closed yet: try again later")
    kept = rows.take(~forming)
    _check_ends(kept, interval_us)
    return kept, rows.lines[forming]


def _taken_within(rows: Rows, interval_us: int) -> NDArray[np.bool_]:
    """Return which rows are no whole bars, by a row off the grid that ends a block."""
    phases, counts = np.unique(rows.stamps % interval_us, return_counts=True)
    phase = int(phases[np.argmax(counts)])
    forming = np.zeros(len(rows), bool)
    for number in np.flatnonzero((rows.stamps - phase) % interval_us).tolist():
        at = int(rows.stamps[number])
        if not _ends_block(rows.stamps, number, phase, interval_us):
            raise InputError(
                f"{rows.place(number)}: {iso(at)} is off the grid of {interval_us // SECOND_US} s that others are on: "
                "correct it or leave it out"
            )
        forming[number] = True
        earlier = number - 1
        while rows.opens and earlier >= 0 and rows.stamps[earlier] <= at < rows.stamps[earlier] + interval_us:
            forming[earlier] = True
            earlier -= 1
    return forming


def _ends_block(stamps: NDArray[np.int64], number: int, phase: int, interval_us: int) -> bool:
    """Return whether nothing follows a row directly: the file ends, goes back in time, or bars are missing."""
    if number + 1 == len(stamps):
        return True
    here, following = int(stamps[number]), int(stamps[number + 1])
    slot = here - (here - phase) % interval_us
    on_grid = (following - phase) % interval_us == 0
    return on_grid and (following < here or following >= slot + 2 * interval_us)


def _check_ends(rows: Rows, interval_us: int) -> None:
    if rows.ends is None:
        return
    wrong = np.flatnonzero(~np.isin(rows.stamps + interval_us - rows.ends, _CLOSE_MARGINS_US))
    if len(wrong):
        first = int(wrong[0])
        raise InputError(
            f"{rows.place(first)}: bar of {iso(int(rows.stamps[first]))} closes {iso(int(rows.ends[first]))}, not "
            f"{interval_us // SECOND_US} s later as others do: correct it or leave it out"
        )


def in_order(rows: Rows, duplicates: str) -> tuple[Rows, list[str]]:
    """Return one row for each time, in order, and what was done.

    Args:
        rows: in any order.
        duplicates: of rows that contradict each other: refuse, or take the first or last in the file.

    Raises:
        InputError: rows contradict each other, and that is to be refused; names both lines.
    """
    notes = ["rows were out of order: sorted"] * bool((np.diff(rows.stamps) < 0).any())
    ordered = rows.take(np.lexsort((rows.lines, rows.stamps)))
    same = np.flatnonzero(np.diff(ordered.stamps) == 0)
    if not len(same):
        return ordered, notes
    table = np.column_stack(list(ordered.numbers.values()))
    contradicting = same[
        ~((table[same] == table[same + 1]) | (np.isnan(table[same]) & np.isnan(table[same + 1]))).all(1)
    ]
    if len(contradicting) and duplicates == "refuse":
        first = int(contradicting[0])
        when = iso(int(ordered.stamps[first]))
        raise InputError(
            f"{ordered.place(first)}: contradicts line {ordered.lines[first + 1]} about {when}: correct one, or give "
            "`duplicates`, first or last"
        )
    keep = np.ones(len(ordered), bool)
    keep[same if duplicates == "last" else same + 1] = False
    what = f", {len(contradicting)} contradicting it: the {duplicates} counts" * bool(len(contradicting))
    return ordered.take(keep), [*notes, f"{len(same)} row(s) left out for another of the same time{what}"]


def find_gaps(bars: Sequence[Price], interval_us: int) -> tuple[Gap, ...]:
    """Return where bars are missing, by time."""
    return tuple(
        Gap(a.closed_us, b.opened_us, (b.opened_us - a.closed_us) // interval_us)
        for a, b in pairwise(bars)
        if b.opened_us > a.closed_us
    )
