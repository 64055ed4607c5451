"""Texts, scores and returns on the same bars: what was known at each bar's close, and what the price did next."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.model.bars import Bars, Floats
from qubic_lab.oracle.model.known import known_text

WINDOW, LEAST_BEFORE = 250, 50
"""A value is ranked among this many known values before it; with fewer than the least it has no rank."""


@dataclass(frozen=True)
class AvailableText:
    """A text that decisions may use from `available_us` on.

    It is about coins, by their ids, and has scores by model, in −1..1. `latency_us` is the time to read and score it.
    `assumed`: no record says when it was known, only an assumption about its archive.
    """

    id: str
    title: str
    published_us: int
    fetched_us: int
    body: str = ""
    coins: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    latency_us: int = 0
    assumed: bool = False

    @property
    def available_us(self) -> int:
        """The later one of publication and fetching, plus the latency."""
        return max(self.published_us, self.fetched_us) + self.latency_us


def available_texts(texts: Iterable[AvailableText], latency_us: int = 0) -> tuple[AvailableText, ...]:
    """Return texts with a latency in the order in which they become available.

    Raises:
        InputError: a latency below 0.
    """
    check_at_least("latency_us", latency_us, 0)
    found = [replace(text, latency_us=latency_us) for text in texts]
    return tuple(sorted(found, key=lambda each: (each.available_us, each.id)))


def assumption(texts: Sequence[AvailableText]) -> tuple[str, ...]:
    """Return a line on texts whose times are assumed, if there are any: no check of a signal can vouch for them."""
    times = [text.fetched_us - text.published_us for text in texts if text.assumed]
    if not times:
        return ()
    return (
        f"{len(times)} of {len(texts)} texts: {known_text(max(times))}; if they were known later, this looks ahead",
    )


def text_columns(market: Bars, texts: Sequence[AvailableText]) -> dict[str, Floats]:
    """Return columns of the texts that became available in each bar, up to its close, [bars, assets] each.

    "texts": their number; "score NAME": their mean score by that model, NaN without texts. With one asset all texts
    count, with several only those about each asset.
    """
    shape = market.close_BA.shape
    names = sorted({name for text in texts for name in text.scores})
    counts, sums, scored = np.zeros(shape), np.zeros((len(names), *shape)), np.zeros((len(names), *shape))
    bars = np.searchsorted(market.closed_us, [text.available_us for text in texts], side="left")
    for text, bar in zip(texts, bars.tolist(), strict=True):
        if bar == len(market) or text.available_us <= market.opened_us[0]:
            continue
        about = [len(market.assets) == 1 or asset in text.coins for asset in market.assets]
        counts[bar, about] += 1.0
        for name, score in text.scores.items():
            sums[names.index(name), bar, about] += score
            scored[names.index(name), bar, about] += 1.0
    means = np.divide(sums, scored, out=np.full(sums.shape, np.nan), where=scored > 0.0)
    return {"texts": counts, **{f"score {name}": mean for name, mean in zip(names, means, strict=True)}}


@dataclass(frozen=True, eq=False)
class Aligned:
    """A score for each bar of one asset and one length, known at the bar's close, [bars]; NaN where there is none.

    `texts` is the number of texts that became available in each bar, [bars].
    """

    bars: Bars
    score: Floats
    texts: Floats

    def __len__(self) -> int:
        return len(self.bars)

    @classmethod
    def of(cls, bars: Bars, texts: Sequence[AvailableText], model: str, last: int = 1) -> "Aligned":
        """Return the scores that a model gave to texts of `available_texts`, beside the bars of one asset.

        A text counts in the bar in which it became available, and its score is known at that bar's close. `last`: the
        scores of this many last bars are averaged; 1: of the bar alone.

        Raises:
            InputError: several assets, or no text has a score by this model.
        """
        check_at_least("last", last, 1)
        if len(bars.assets) > 1:
            raise InputError(f"there are {len(bars.assets)} assets: study scores with one asset at a time")
        columns = text_columns(bars, texts)
        if f"score {model}" not in columns:
            raise InputError(f"none of {len(texts)} texts has a score by {model!r}: score them with it first")
        return cls(bars, _mean_of_last(columns[f"score {model}"][:, 0], bars, last), columns["texts"][:, 0])

    @cached_property
    def log_open(self) -> Floats:
        """Natural logarithm of each open, [bars]."""
        return np.asarray(np.log(self.bars.open))

    def move(self, first: int, last: int) -> Floats:
        """Return log open[t + last] − log open[t + first] for each bar t, [bars].

        It is NaN beyond the ends, and where a bar is missing between t and either open: a return must start at the open
        that follows the close at which the score was known.
        """
        count, opened_us = len(self), self.bars.opened_us
        row = np.arange(count)
        start, end = row + first, row + last
        inside = (np.minimum(start, end) >= 0) & (np.maximum(start, end) < count)
        start, end = np.where(inside, start, row), np.where(inside, end, row)
        for away, at in ((first, start), (last, end)):
            inside &= opened_us[at] - opened_us == away * self.bars.frame_us
        return np.asarray(np.where(inside, self.log_open[end] - self.log_open[start], np.nan))

    def ahead(self, horizon: int, skip: int = 0) -> Floats:
        """Return log returns over `horizon` bars from the next open on, or from `skip` bars later, [bars].

        `ahead(1, k − 1)` is the single bar k ahead. A negative `skip` looks back: `ahead(1, −1)` is the bar itself.
        """
        check_at_least("horizon", horizon, 1)
        return self.move(1 + skip, 1 + skip + horizon)

    @property
    def scored(self) -> int:
        """Number of bars with a score."""
        return int((~np.isnan(self.score)).sum())


def _mean_of_last(score: Floats, bars: Bars, last: int) -> Floats:
    """Return the mean of the known scores of the last bars, by time. Later bars do not change how it is rounded."""
    total, count = np.zeros(len(score)), np.zeros(len(score))
    for back in range(min(last, len(score))):
        earlier = score[: len(score) - back]
        near = bars.closed_us[back:] - bars.closed_us[: len(score) - back] < last * bars.frame_us
        known = near & ~np.isnan(earlier)
        total[back:] += np.where(known, earlier, 0.0)
        count[back:] += known
    return np.asarray(np.divide(total, count, out=np.full(len(score), np.nan), where=count > 0.0))


def trailing_share(values: Floats) -> Floats:
    """Return the rank of each value among the known values before it, [bars]: the share that is lower, ties count half.

    It goes from 0, the lowest, to 1, the highest; NaN where values are unknown, or too few are known before.
    """
    import pandas as pd

    known = np.flatnonzero(~np.isnan(values))
    before = np.minimum(np.arange(len(known)), WINDOW)
    ranks = pd.Series(values[known]).rolling(WINDOW + 1, min_periods=1).rank().to_numpy()  # 1: the lowest
    shares = np.full(len(values), np.nan)
    shares[known] = np.where(before >= LEAST_BEFORE, (ranks - 1.0) / np.maximum(before, 1), np.nan)
    return shares
