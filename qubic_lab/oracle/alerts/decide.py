"""Decides which alerts of a risk level are due: each episode and each rise within it once, and the end of the episode.

Pure decisions: what is due follows from the last alert and the levels of all bars so far. Nothing else is remembered,
so a new process continues where another one ended.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.bars import Integers

AlertKind = Literal["raised", "escalated", "all-clear", "no-prices"]


@dataclass(frozen=True)
class EmittedAlert:
    """What the last alerts on the level of a coin's bars said.

    Attributes:
        episode_us: close of the bar with which the episode began.
        at_us: close of the bar that the last alert was about.
        highest: number of the highest level that was emitted in the episode.
        over: whether the end of the episode was emitted.
    """

    episode_us: int
    at_us: int
    highest: int
    over: bool


@dataclass(frozen=True)
class DueAlert:
    """An alert to emit: `at_us` is the close of the bar that it is about, `level` the number of that bar's level."""

    kind: AlertKind
    level: int
    episode_us: int
    at_us: int


def decide(
    emitted: EmittedAlert | None, closed_us: Integers, levels: NDArray[np.int8], least: int, cool_down: int
) -> list[DueAlert]:
    """Return the alerts that are due, in order.

    Only the level of the last bar is emitted: a rise that ended before anybody looked is not news. The end of an
    episode that was emitted is due in any case.

    Args:
        emitted: the last alerts; None: there were none yet.
        closed_us: closes of the bars with a level, [bars]; the last one is fresh.
        levels: numbers of levels, [bars].
        least: number of the level that begins an episode.
        cool_down: number of bars in a row below it that end an episode.

    Raises:
        InputError: arrays of different lengths.
    """
    if closed_us.shape != levels.shape:
        raise InputError(f"{len(closed_us)} bars and {len(levels)} levels: give one for each bar")
    high = (levels >= least).tolist()
    start = 0 if emitted is None else int(np.searchsorted(closed_us, emitted.at_us, side="right"))
    due: list[DueAlert] = []
    if emitted is not None and not emitted.over:
        end = _end_of_episode(high, start, cool_down)
        if end is None:
            if start < len(levels) and levels[-1] > emitted.highest:
                due.append(DueAlert("escalated", int(levels[-1]), emitted.episode_us, int(closed_us[-1])))
            return due
        due.append(DueAlert("all-clear", int(levels[end]), emitted.episode_us, int(closed_us[end])))
        start = end + 1
    begin = _begin_of_last_episode(high, start, cool_down)
    if begin is not None and high[-1]:
        due.append(DueAlert("raised", int(levels[-1]), int(closed_us[begin]), int(closed_us[-1])))
    return due


def _end_of_episode(high: list[bool], start: int, cool_down: int) -> int | None:
    """Return the bar that ends an episode running at `start`; None: it goes on."""
    below = 0
    for bar in range(start, len(high)):
        below = 0 if high[bar] else below + 1
        if below == cool_down:
            return bar
    return None


def _begin_of_last_episode(high: list[bool], start: int, cool_down: int) -> int | None:
    """Return the bar that began the episode that has not ended with the last bar; None: there is none."""
    while True:
        begin = next((bar for bar in range(start, len(high)) if high[bar]), None)
        if begin is None:
            return None
        end = _end_of_episode(high, begin, cool_down)
        if end is None:
            return begin
        start = end + 1
