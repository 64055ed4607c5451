"""Rows of a file of prices: how long bars are, which had not closed, their order, and where some are missing.

Rows are data frames, indexed by their line in the file: `stamp` is a bar's open or close or a quote's instant, `end` a
bar's close if the file has both, in microseconds; the other columns are numbers. Contradictions are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.records import Price
from qubic_lab.oracle.model.timestamps import MINUTE_US, SECOND_US, iso

_LEAST_SHARE = 0.5
"""The share of the steps between bars that the commonest one must have, to be their length."""
_CLOSE_MARGINS_US = (0, 1, 1_000, SECOND_US)
"""How far a file's close may be before the next open: 12:14:59.999 means 12:15."""


@dataclass(frozen=True)
class Gap:
    """Bars that a file does not have: from the end of one to the beginning of the next."""

    from_us: int
    to_us: int
    missing: int


def forwards(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows in reverse if most of them go back in time."""
    steps = np.diff(rows["stamp"])
    return rows[::-1] if (steps < 0).sum() > (steps > 0).sum() else rows


def whole_closes(stamps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return closes as the next bars' opens, if a file has the last moment before: 12:14:59.999 means 12:15."""
    for margin_us in _CLOSE_MARGINS_US[1:]:
        if ((stamps + margin_us) % MINUTE_US == 0).mean() > _LEAST_SHARE:
            return stamps + margin_us
    return stamps


def find_interval(file: str, stamps: NDArray[np.int64], given_s: int | None) -> int:
    """Return a bar's length in microseconds: the commonest step between times, which must be the given one, if any.

    Raises:
        InputError: no step is common enough, or it is another one.
    """
    steps = np.diff(np.unique(stamps))
    if not len(steps):
        if given_s is None:
            raise InputError(f"{file}: one bar does not show how long bars are: give `interval`")
        return given_s * SECOND_US
    lengths, counts = np.unique(steps, return_counts=True)
    common, share = int(lengths[np.argmax(counts)]), float(counts.max()) / len(steps)
    found_s = f"{common / SECOND_US:g} s"
    if given_s is not None:
        if common != given_s * SECOND_US and len(steps) > 1:
            raise InputError(f"{file}: bars are mostly {found_s} apart, not {given_s} s: give the right `interval`")
        return given_s * SECOND_US
    if share < _LEAST_SHARE:
        raise InputError(f"{file}: only {share:.0%} of bars are {found_s} apart: give `interval`")
    if common % SECOND_US:
        raise InputError(f"{file}: bars are {found_s} apart: only whole seconds can be kept")
    return common


def is_forming(
    file: str, rows: pd.DataFrame, interval_us: int, *, opens: bool, now_us: int, written_us: int
) -> NDArray[np.bool_]:
    """Return which bars had not closed when they were downloaded, [rows].

    A row off the grid at the end of the file, or of a block in it, is the price at the instant of the download: it is
    not a bar, and the bar around it was forming. So was the newest bar if it ends after `now_us`, if the file was last
    written within it, or if it says itself that it ends early.

    Args:
        file: its name, for errors.
        rows: forwards in time.
        interval_us: a bar's length.
        opens: whether stamps are opens; else they are closes.
        now_us: the present.
        written_us: when the file was last written.

    Raises:
        InputError: a row is off the grid or of another length without such a reason, or opens after `now_us`.
    """
    stamps = rows["stamp"].to_numpy()
    opened = stamps if opens else stamps - interval_us
    forming = _downloaded_within(file, rows, interval_us, opens)
    for number in np.flatnonzero(opened > now_us)[:1]:
        when = iso(int(opened[number]))
        raise InputError(f"{file}:{rows.index[number]}: {when} is still to come: is `zone` right?")
    closed = opened + interval_us
    newest = opened == opened[~forming].max(initial=0)
    forming |= newest & ((closed > now_us) | ((opened <= written_us) & (written_us < closed)))
    if "end" in rows:
        ends = rows["end"].to_numpy()
        forming |= newest & (ends - opened < interval_us - _CLOSE_MARGINS_US[-1])
        wrong = ~forming & ~np.isin(stamps + interval_us - ends, _CLOSE_MARGINS_US)
        for number in np.flatnonzero(wrong)[:1]:
            raise InputError(
                f"{file}:{rows.index[number]}: bar of {iso(int(stamps[number]))} closes {iso(int(ends[number]))}, not "
                f"{interval_us // SECOND_US} s later as others do: correct it or leave it out"
            )
    if forming.all():
        raise InputError(f"{file}:{rows.index[0]}: no bar in the file has closed yet: try again later")
    return forming


def _downloaded_within(file: str, rows: pd.DataFrame, interval_us: int, opens: bool) -> NDArray[np.bool_]:
    """Return which rows are not whole bars, by a row off the grid that ends a block."""
    stamps = rows["stamp"].to_numpy()
    phases, counts = np.unique(stamps % interval_us, return_counts=True)
    phase = int(phases[np.argmax(counts)])
    forming = np.zeros(len(rows), bool)
    for number in np.flatnonzero((stamps - phase) % interval_us).tolist():
        at = int(stamps[number])
        if not _ends_block(stamps, number, phase, interval_us):
            raise InputError(
                f"{file}:{rows.index[number]}: {iso(at)} is off the grid of {interval_us // SECOND_US} s that others "
                "are on: correct it or leave it out"
            )
        forming[number] = True
        earlier = number - 1
        while opens and earlier >= 0 and stamps[earlier] <= at < stamps[earlier] + interval_us:
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


def in_order(file: str, rows: pd.DataFrame, duplicates: str) -> tuple[pd.DataFrame, list[str]]:
    """Return one row for each time, in order, and notes on what was done.

    Args:
        file: its name, for errors.
        rows: in any order.
        duplicates: what to do with rows that contradict each other: refuse, or take the first or last in the file.

    Raises:
        InputError: rows contradict each other, and that is to be refused; names both lines.
    """
    notes = ["rows were out of order: sorted"] * bool((np.diff(rows["stamp"]) < 0).any())
    ordered = rows.sort_index().sort_values("stamp", kind="stable")
    repeats = ordered["stamp"].duplicated()
    if not repeats.any():
        return ordered, notes
    values = ordered.drop(columns=["stamp", "end"], errors="ignore")
    before = values.shift()
    contradicting = repeats & ~((values == before) | (values.isna() & before.isna())).all(axis=1)
    if contradicting.any() and duplicates == "refuse":
        number = int(np.flatnonzero(contradicting)[0])
        first, second = ordered.index[number - 1 : number + 1]
        when = iso(int(ordered["stamp"].iloc[number]))
        raise InputError(
            f"{file}:{first}: contradicts line {second} about {when}: correct one, or give `duplicates`, first or last"
        )
    kept = ordered.drop_duplicates("stamp", keep="last" if duplicates == "last" else "first")
    what = f", {contradicting.sum()} contradicting it: the {duplicates} counts" * bool(contradicting.any())
    return kept, [*notes, f"{repeats.sum()} row(s) left out for another of the same time{what}"]


def find_gaps(bars: Sequence[Price], interval_us: int) -> tuple[Gap, ...]:
    """Return where bars are missing, by time."""
    return tuple(
        Gap(a.closed_us, b.opened_us, (b.opened_us - a.closed_us) // interval_us)
        for a, b in pairwise(bars)
        if b.opened_us > a.closed_us
    )
