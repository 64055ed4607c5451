"""Flags of odd prices, which are never dropped or changed.

A flag depends on the price itself and on earlier ones of its series: later prices never change it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.records import Price
from qubic_lab.oracle.model.timestamps import iso

FLAGS = {
    "outlier": "the return is far from those before it",
    "zero-volume": "nothing was traded",
    "flat": "open, high, low and close are one price",
    "gap-before": "bars are missing before it",
    "outside-range": "open or close is above the high or below the low",
}
"""All flags and their meaning."""
_ROWS_AT_ONCE = 20_000
_MAD_TO_DEVIATION = 1.4826
"""The ratio of a normal distribution's standard deviation to its median absolute deviation."""


@dataclass(frozen=True)
class OutlierRule:
    """When a return is an outlier: Hampel's identifier over past returns only.

    A log return r at t, over n median steps of time, is an outlier if |r - m| > threshold × s × √n; m is the median and
    s the scaled median absolute deviation of the `window` returns before t (Hampel, The influence curve and its role in
    robust estimation, JASA 1974; Davies and Gather, JASA 1993).

    Attributes:
        window: past returns that it is compared with.
        warm_up: past returns that are needed; earlier prices are not judged.
        threshold: far above the 3 of a normal distribution, as returns of coins have heavy tails.
        floor: the least s, so that a price that stood still may move.
    """

    window: int = 96
    warm_up: int = 32
    threshold: float = 12.0
    floor: float = 2e-4

    def __post_init__(self) -> None:
        if not 2 <= self.warm_up <= self.window:
            raise InputError(f"outlier rule with warm-up {self.warm_up} and window {self.window}: 2 ≤ warm-up ≤ window")
        if not (self.threshold > 0 and self.floor > 0):
            raise InputError(
                f"outlier rule with threshold {self.threshold} and floor {self.floor}: both must be above 0"
            )


RULE = OutlierRule()


def context_of(rule: OutlierRule = RULE) -> int:
    """Return the number of earlier prices that a price's flags depend on."""
    return rule.window + 2


def flag_prices(prices: Sequence[Price], history: Sequence[Price] = (), rule: OutlierRule = RULE) -> tuple[Price, ...]:
    """Return the prices with their flags.

    Args:
        prices: of one series, in order of time.
        history: earlier ones, in order of time; the last `context_of(rule)` matter.
        rule: when a return is an outlier.

    Raises:
        InputError: they are not in order of time.
    """
    past = history[-context_of(rule) :]
    everything = [*past, *prices]
    for earlier, later in pairwise(everything):
        if later.closed_us <= earlier.closed_us:
            raise InputError(f"price of {iso(later.closed_us)} follows that of {iso(earlier.closed_us)}: sort them")
    times = np.array([price.closed_us for price in everything], np.int64)
    odd = outliers(times, [price.close for price in everything], rule)
    flagged = []
    for number, price in enumerate(everything[len(past) :], len(past)):
        before = everything[number - 1] if number else None
        flags = ["outlier"] * bool(odd[number]) + _own_flags(price, before)
        flagged.append(with_flags(price, tuple(dict.fromkeys((*price.flags, *flags)))))
    return tuple(flagged)


def with_flags(price: Price, flags: tuple[str, ...]) -> Price:
    """Return a price with these flags."""
    return price if price.flags == flags else replace(price, flags=flags)


def _own_flags(price: Price, before: Price | None) -> list[str]:
    flags = ["zero-volume"] * (price.volume == 0.0)
    if price.open is None or price.high is None or price.low is None:
        return flags
    flags += ["flat"] * (price.open == price.high == price.low == price.close)
    flags += ["gap-before"] * (before is not None and price.opened_us > before.closed_us)
    outside = max(price.open, price.close) > price.high or min(price.open, price.close) < price.low
    return flags + ["outside-range"] * outside


def outliers(times_us: NDArray[np.int64], closes: Sequence[float], rule: OutlierRule = RULE) -> NDArray[np.bool_]:
    """Return which prices are outliers, [prices], each compared with earlier ones only."""
    odd = np.zeros(len(times_us), bool)
    logs = np.array([math.log(close) for close in closes])  # np.log may round differently at an array's end
    returns, waits = np.diff(logs), np.diff(times_us).astype(float)
    for number in range(rule.warm_up, min(rule.window, len(returns))):
        odd[number + 1] = _judge(
            returns[None, :number], waits[None, :number], returns[[number]], waits[[number]], rule
        )[0]
    if len(returns) <= rule.window:
        return odd
    past_returns = np.lib.stride_tricks.sliding_window_view(returns[:-1], rule.window)
    past_waits = np.lib.stride_tricks.sliding_window_view(waits[:-1], rule.window)
    for first in range(0, len(past_returns), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        now = slice(first + rule.window, first + rule.window + len(past_returns[rows]))
        judged = _judge(past_returns[rows], past_waits[rows], returns[now], waits[now], rule)
        odd[first + rule.window + 1 : first + rule.window + 1 + len(judged)] = judged
    return odd


def _judge(
    past_returns: NDArray[np.float64],
    past_waits: NDArray[np.float64],
    returns: NDArray[np.float64],
    waits: NDArray[np.float64],
    rule: OutlierRule,
) -> NDArray[np.bool_]:
    """Return whether each return, [rows], is far from those before it, [rows, past]."""
    middle = np.median(past_returns, axis=1)
    spread = np.median(np.abs(past_returns - middle[:, None]), axis=1) * _MAD_TO_DEVIATION
    steps = np.maximum(1.0, waits / np.median(past_waits, axis=1))
    judged: NDArray[np.bool_] = np.abs(returns - middle) > rule.threshold * np.maximum(spread, rule.floor) * np.sqrt(
        steps
    )
    return judged
