"""What to tell of the level of risk, and when: each episode once, each rise within it once, and that it is over.

Pure decisions: from what was told last and the levels of all bars so far follows what is to be told now. Nothing else
is remembered, so a process that starts anew goes on where another one ended.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qubic_lab.errors import InputError, check_at_least, check_choice
from qubic_lab.oracle.model.candles import Instants
from qubic_lab.oracle.risk.rules import LEVELS, Level

Kind = Literal["raised", "escalated", "all-clear", "no-prices"]
COOL_DOWN_BARS = 6


@dataclass(frozen=True)
class Policy:
    """What is worth telling.

    Attributes:
        level: an episode begins with a bar of this level or a higher one,
        cool_down: and ends with the last of so many bars in a row below it.
    """

    level: Level = "warning"
    cool_down: int = COOL_DOWN_BARS

    def __post_init__(self) -> None:
        check_choice("level", self.level, LEVELS[1:])
        check_at_least("cool_down", self.cool_down, 1)

    @property
    def least(self) -> int:
        """The level's number."""
        return LEVELS.index(self.level)


@dataclass(frozen=True)
class Told:
    """What was told last of a coin's bars.

    Attributes:
        episode_us: the close of the bar with which the episode began.
        at_us: of the bar that was told of.
        highest: number of the highest level that was told in the episode.
        over: that it is over was told, too.
    """

    episode_us: int
    at_us: int
    highest: int
    over: bool


@dataclass(frozen=True)
class Due:
    """Something to be told: `at_us` is the close of the bar that it is about, `level` the number of that bar's."""

    kind: Kind
    level: int
    episode_us: int
    at_us: int


def decide(told: Told | None, closed_us: Instants, levels: NDArray[np.int8], policy: Policy) -> list[Due]:
    """Return what is to be told now, in order.

    A level is told where the last bar has it; what rose and fell again before anybody looked is not news. An episode
    that was told is told to be over even so.

    Args:
        told: what was told last; None: nothing yet.
        closed_us: of the bars with a level, the last one fresh, [bars].
        levels: numbers of levels, [bars].
        policy: what is worth telling.

    Raises:
        InputError: lengths that differ.
    """
    if closed_us.shape != levels.shape:
        raise InputError(f"{len(closed_us)} bars and {len(levels)} levels: give one for each bar")
    start = 0 if told is None else int(np.searchsorted(closed_us, told.at_us, side="right"))
    found: list[Due] = []
    if told is not None and not told.over:
        end = _end(levels[start:].tolist(), policy)
        if end is None:
            if start < len(levels) and levels[-1] > told.highest:
                found.append(Due("escalated", int(levels[-1]), told.episode_us, int(closed_us[-1])))
            return found
        end += start
        found.append(Due("all-clear", int(levels[end]), told.episode_us, int(closed_us[end])))
        start = end + 1
    begin = _running(levels[start:].tolist(), policy)
    if begin is not None and levels[-1] >= policy.least:
        found.append(Due("raised", int(levels[-1]), int(closed_us[start + begin]), int(closed_us[-1])))
    return found


def _end(levels: Iterable[int], policy: Policy) -> int | None:
    """Return the place of the bar with which a running episode ends; None: it goes on."""
    below = 0
    for place, level in enumerate(levels):
        below = 0 if level >= policy.least else below + 1
        if below == policy.cool_down:
            return place
    return None


def _running(levels: list[int], policy: Policy) -> int | None:
    """Return the place at which the episode began that has not ended with the last bar; None: there is none."""
    place = 0
    while True:
        begin = next((n for n in range(place, len(levels)) if levels[n] >= policy.least), None)
        if begin is None:
            return None
        end = _end(levels[begin:], policy)
        if end is None:
            return begin
        place = begin + end + 1
