"""Which kind of leak explains what an audit saw change, and what to say of it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from qubic_lab.oracle.backtest.lookahead.frames import known_at, late_columns, time_of, with_other_row
from qubic_lab.oracle.backtest.lookahead.report import Finding
from qubic_lab.oracle.backtest.lookahead.runs import (
    ROUNDING,
    Difference,
    Signal,
    Unusable,
    changed_rows,
    differing,
    is_rounding,
    run_signal,
)
from qubic_lab.oracle.inference.bootstrap import is_constant
from qubic_lab.oracle.model.bars import Floats


def diagnose(
    function: Signal,
    frame: pd.DataFrame,
    values: Floats,
    differences: Sequence[Difference],
    used: Sequence[int],
    earliest: Sequence[Difference] = (),
) -> Finding:
    """Return the finding with the first bar that changed and the likely kind of leak.

    Args:
        function: the signal.
        frame: of all bars.
        values: that it gives on them, [bars, columns].
        differences: what changed at the cuts.
        used: all cuts that could be run.
        earliest: changes at a cut before those, which tell of the first bar but not of the kind.
    """
    differences = [each for each in differences if not is_rounding(each)] or differences
    first = min([*differences, *earliest], key=lambda each: (int(each.changed.argmax()), each.test, each.cut))
    bar = int(first.changed.argmax())
    kind, why = _kind(function, frame, values, differences, used)
    column = int(np.flatnonzero(differing(first.then[bar], first.later[bar]))[0])
    then, later = float(first.then[bar, column]), float(first.later[bar, column])
    shown = "the bars after it were changed" if first.test == "scramble" else _known(first.cut)
    told = (
        f"is {_shown(then)}, and {_shown(later)} once {shown}"
        if first.test == "scramble"
        else f"is {_shown(then)} from {shown}, and {_shown(later)} from all {len(frame)}"
    )
    return Finding(
        kind=kind,
        text=f"bar {bar}{when(frame, bar)} {told}: {why}",
        leaks=kind != "rounding",
        test=first.test,
        bar=bar,
        closed=time_of(frame, bar),
        cut=first.cut,
        then=then if math.isfinite(then) else None,
        later=later if math.isfinite(later) else None,
    )


def _known(bars: int) -> str:
    return "the only bar known then" if bars == 1 else f"the {bars} bars known then"


def when(frame: pd.DataFrame, bar: int) -> str:
    """Return when a bar closes, to be put behind its number; nothing where the frame does not say."""
    closed = time_of(frame, bar)
    return "" if closed is None else f" ({closed})"


def _shown(value: float) -> str:
    return "missing" if math.isnan(value) else f"{value:.6g}"


def _kind(
    function: Signal, frame: pd.DataFrame, values: Floats, differences: Sequence[Difference], used: Sequence[int]
) -> tuple[str, str]:
    """Return the likely kind of leak, and what to say of it."""
    if all(is_rounding(each) for each in differences):
        return "rounding", "the values differ by rounding alone, so later bars are in the calculation, if not in effect"
    prefixes = [each for each in differences if each.test == "prefix"]
    if columns := _late(function, frame, values, prefixes):
        return "published later", f"it uses {', '.join(columns)} before that was known ({columns[0]}_known_us)"
    told = prefixes or list(differences)
    if _is_warm_up(values, told, used):
        return "backfill", "the bars before its first value are filled in from later ones (bfill)"
    if prefixes and _is_gap_filling(function, frame, told):
        return "backfill", "what is missing is filled in from later bars (bfill, interpolation or a mean)"
    wide = [each for each in told if _share_changed(each) >= 0.8 and each.cut >= 10]
    if len(wide) >= max(1, len(told) // 2):
        return _whole_sample(wide)
    ahead, behind = _footprint(function, frame, values)
    reaches = [each.cut - int(each.changed.argmax()) for each in told]
    commonest = max(set(reaches), key=reaches.count)
    steady = reaches.count(commonest) >= 0.75 * len(reaches)
    steady &= len(told) >= 0.6 * len(used) or ahead == commonest
    if steady and 0 < ahead == commonest and 0 <= behind - ahead <= 1:  # of returns, a price makes two
        return "centred window", f"each value uses {ahead} bars on both sides: centre no window"
    if steady:
        bars = "the next bar" if commonest == 1 else f"{commonest} bars ahead"
        return "shift", f"each value looks at {bars}, as shift(-{commonest}) does"
    most = max(reaches)
    if _fades(told):
        return "backward filter", f"values fade {most} bars or more back: is a filter run backwards, or both ways?"
    if most <= len(frame) // 3:
        return (
            "resample",
            f"values look up to {most} bars ahead, some not at all: is a longer bar used before it closes, or an "
            "extreme before it stands?",
        )
    return "look-ahead", f"values change up to {most} bars before what they depend on"


def _late(function: Signal, frame: pd.DataFrame, values: Floats, prefixes: Sequence[Difference]) -> list[str]:
    """Return the columns with late cells without whose hiding nothing would have changed."""
    late = late_columns(frame)
    if not late or not prefixes:
        return []
    cut = prefixes[-1].cut

    def changes(hidden: dict[Any, Any]) -> bool:
        try:
            return bool(changed_rows(run_signal(function, known_at(frame, cut, hidden)), values[:cut]).any())
        except Unusable:
            return True

    if changes({}):
        return []
    return [str(column) for column, stamp in late.items() if changes({column: stamp})]


def _share_changed(difference: Difference) -> float:
    known = ~(np.isnan(difference.then) & np.isnan(difference.later)).all(axis=1)
    return float(difference.changed.sum() / max(1, known.sum()))


def _whole_sample(wide: Sequence[Difference]) -> tuple[str, str]:
    """Tell scaling and ranking apart from other uses of all bars."""
    affine = rising = True
    compared = 0
    for each in wide:
        then, later = each.then[:, 0], each.later[:, 0]
        known = ~(np.isnan(then) | np.isnan(later))
        then, later = then[known], later[known]
        if len(then) < 5 or is_constant(then) or is_constant(later):
            continue
        compared += 1
        slope, height = np.polyfit(then, later, 1)
        affine &= bool(np.abs(slope * then + height - later).max() <= 1e-6 * np.ptp(later))
        rising &= bool((np.diff(later[np.argsort(then, kind="stable")]) >= -1e-9 * np.ptp(later)).all())
    if affine and compared:
        return (
            "full-sample scaling",
            "all values are scaled by numbers from the whole sample (mean, deviation, extremes)",
        )
    if rising and compared:
        return "full-sample ranking", "all values are ranked or mapped by the whole sample"
    return "whole sample", "nearly all values change with later bars: something is fitted on the whole sample"


def _is_warm_up(values: Floats, told: Sequence[Difference], used: Sequence[int]) -> bool:
    """Tell whether cuts before some bar changed all that was before, later ones nothing, and all values there are one.

    That is what filling in a warm-up from its first value does.
    """
    last, cuts = max(each.cut for each in told), {each.cut for each in told}
    early = last < len(values) // 2 and all(cut in cuts for cut in used if cut <= last)
    head = values[: last + 1, 0]
    from_start = all(int(each.changed.argmax()) == 0 for each in told)
    return bool(early and from_start and not np.isnan(head).any() and is_constant(head))


def _is_gap_filling(function: Signal, frame: pd.DataFrame, told: Sequence[Difference]) -> bool:
    """Tell whether nothing would change in a frame that misses nothing."""
    late = late_columns(frame)
    columns = [column for column in frame.columns if column not in late and frame[column].isna().any()]
    if not columns:
        return False
    filled = frame.copy(deep=True)
    for column in columns:
        known = filled[column].dropna()
        filled[column] = filled[column].ffill().fillna(known.iloc[0] if len(known) else 0.0)
    try:
        values = run_signal(function, known_at(filled, len(filled)))
        cuts = [each.cut for each in told][:: max(1, len(told) // 8)]
        return not any(changed_rows(run_signal(function, known_at(filled, cut)), values[:cut]).any() for cut in cuts)
    except Unusable:
        return False


def _fades(told: Sequence[Difference]) -> bool:
    """Tell whether changes grow towards most cuts, from next to nothing, as those of a filter from the other end do."""
    fading = reaching = 0
    for each in told:
        bar = int(each.changed.argmax())
        moved = np.abs(each.then[bar:, 0] - each.later[bar:, 0])
        moved = moved[np.isfinite(moved)]
        if len(moved) >= 10:
            reaching += 1
            fading += bool(moved[0] < 1e-4 * moved[-5:].max())
    return reaching >= 3 and fading >= 0.75 * reaching


def _footprint(function: Signal, frame: pd.DataFrame, values: Floats) -> tuple[int, int]:
    """Return how many bars before and after a single changed bar values change, at the most of some bars; 0: none."""
    draw = np.random.default_rng(0)
    ahead = behind = 0
    for place in (0.4, 0.55, 0.7):
        bar = int(place * len(frame))
        try:
            other = run_signal(function, with_other_row(frame, bar, draw))
            changed = np.flatnonzero(changed_rows(values, other, ROUNDING))
        except Unusable:
            continue
        if changed.size:
            ahead, behind = max(ahead, bar - int(changed[0])), max(behind, int(changed[-1]) - bar)
    return ahead, behind
