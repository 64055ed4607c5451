"""Scores and returns on one clock: at each bar's close the score that was known then, and what the price did later."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.backtest.market import Floats, Integers, Market
from qubic_lab.oracle.backtest.texts import AvailableText, text_columns

WINDOW, LEAST_BEFORE = 250, 50
"""What is high or low is said by so many of the last known values, and not before there are the least."""
_CELLS = 4_000_000


@dataclass(frozen=True, eq=False)
class Aligned:
    """One score for each bar of one asset, and its prices; arrays by bar.

    Attributes:
        frame_us: length of the bars.
        opened_us, closed_us: of each.
        log_open: natural logarithm of its open.
        score: known at its close; NaN where there is none.
        texts: that became available in it.
    """

    frame_us: int
    opened_us: Integers
    closed_us: Integers
    log_open: Floats
    score: Floats
    texts: Floats

    def __len__(self) -> int:
        return len(self.closed_us)

    @classmethod
    def of(cls, market: Market, frame_us: int, texts: Sequence[AvailableText], model: str, last: int = 1) -> "Aligned":
        """Return the scores by a model beside the bars of one asset.

        A text counts in the bar in which it became available, and its score is known at that bar's close.

        Args:
            market: of one asset.
            frame_us: length of its bars.
            texts: as `available_texts` gives them.
            model: whose scores.
            last: the score is the mean over the texts' means of so many last bars; 1: of the bar alone.

        Raises:
            InputError: several assets, or no text has a score by this model.
        """
        check_at_least("last", last, 1)
        if len(market.assets) > 1:
            raise InputError(f"there are {len(market.assets)} assets: scores are studied with one at a time")
        columns = text_columns(market, texts)
        if f"score {model}" not in columns:
            raise InputError(f"none of {len(texts)} texts has a score by {model!r}: score them with it first")
        score = columns[f"score {model}"][:, 0]
        if last > 1:
            score = _mean_of_last(score, market.closed_us, frame_us, last)
        return cls(
            frame_us, market.opened_us, market.closed_us, np.log(market.open[:, 0]), score, columns["texts"][:, 0]
        )

    def move(self, first: int, last: int) -> Floats:
        """Return log open[t + last] − log open[t + first] for each bar t; NaN past the ends and where a bar lacks.

        Bars that are missing between t and any of the two leave it out: the next open is the one that follows the close
        at which the score was known, and no later one.
        """
        bars = len(self)
        place = np.arange(bars)
        start, end = place + first, place + last
        inside = (np.minimum(start, end) >= 0) & (np.maximum(start, end) < bars)
        start, end = np.where(inside, start, place), np.where(inside, end, place)
        for away, at in ((first, start), (last, end)):
            inside &= self.opened_us[at] - self.opened_us == away * self.frame_us
        return np.asarray(np.where(inside, self.log_open[end] - self.log_open[start], np.nan))

    def ahead(self, horizon: int, skip: int = 0) -> Floats:
        """Return the return over a horizon of bars from the next open on, or from one that is `skip` bars later.

        `ahead(1, k − 1)` is the single bar k ahead; a negative `skip` looks back: `ahead(1, −1)` is the bar itself.
        """
        check_at_least("horizon", horizon, 1)
        return self.move(1 + skip, 1 + skip + horizon)

    @property
    def scored(self) -> int:
        """How many bars have a score."""
        return int((~np.isnan(self.score)).sum())


def _mean_of_last(score: Floats, closed_us: Integers, frame_us: int, last: int) -> Floats:
    """Return the mean over the known scores of the last bars, by time; the same sums whatever comes later."""
    total, count = np.zeros(len(score)), np.zeros(len(score))
    for back in range(min(last, len(score))):
        earlier = score[: len(score) - back]
        near = closed_us[back:] - closed_us[: len(score) - back] < last * frame_us
        known = near & ~np.isnan(earlier)
        total[back:] += np.where(known, earlier, 0.0)
        count[back:] += known
    return np.asarray(np.divide(total, count, out=np.full(len(score), np.nan), where=count > 0.0))


def trailing_share(values: Floats, window: int = WINDOW, least: int = LEAST_BEFORE) -> Floats:
    """Return, for each value, the share of the last known ones before it that are lower; equal ones count half.

    It says how high a value is by the past alone: 0 the lowest, 1 the highest. NaN where a value is not known or has
    fewer than `least` before it.

    Raises:
        InputError: a least number below 1, or above the window.
    """
    check_at_least("least", least, 1)
    check_at_least("window", window, least)
    known = np.flatnonzero(~np.isnan(values))
    found, shares = values[known], np.full(len(values), np.nan)
    padded = np.concatenate([np.full(window, np.nan), found])
    views = np.lib.stride_tricks.sliding_window_view(padded, window)[: len(found)]
    at_once = max(1, _CELLS // window)
    for start in range(0, len(found), at_once):
        before, own = views[start : start + at_once], found[start : start + at_once, None]
        count = np.minimum(np.arange(start, start + len(own)), window)
        share = ((before < own).sum(axis=1) + 0.5 * (before == own).sum(axis=1)) / np.maximum(count, 1)
        shares[known[start : start + at_once]] = np.where(count >= least, share, np.nan)
    return shares
