"""Bars: checked once where they enter, aligned by their close, nothing filled in."""

from dataclasses import replace

import numpy as np
import pytest
from markets import market_of, random_market

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.bars import COLUMNS, PRICES, Bars
from qubic_lab.oracle.model.records import Price, bars_of_prices
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US

NAN = float("nan")


def one_of(bars: Bars, asset: int, rows: list[int]) -> Bars:
    """Some rows of one of the assets."""
    columns = {name: getattr(bars, f"{name}_BA")[rows, asset] for name in COLUMNS}
    return Bars.of(bars.closed_us[rows], **columns, opened_us=bars.opened_us[rows], frame_us=bars.frame_us)


def test_assets_are_aligned_by_their_close_and_nothing_is_filled_in() -> None:
    whole = random_market(6, 2)
    bars = Bars.aligned({"x": one_of(whole, 0, [0, 1, 2, 4, 5]), "y": one_of(whole, 1, [2, 3, 4, 5])})
    traded = [[True, False], [True, False], [True, True], [False, True], [True, True], [True, True]]
    assert bars.assets == ("x", "y") and bars.traded.tolist() == traded
    assert np.array_equal(bars.close_BA[bars.traded], whole.close_BA[bars.traded])
    shorter = one_of(whole, 1, [0, 1, 2])
    shorter = replace(shorter, opened_us=shorter.opened_us + HOUR_US)
    with pytest.raises(InputError, match="bars of y differ in length from the others at 2024-01-02"):
        Bars.aligned({"x": one_of(whole, 0, [0, 1, 2]), "y": shorter})
    with pytest.raises(InputError, match="there is no asset"):
        Bars.aligned({})


def test_bars_are_made_from_what_files_give() -> None:
    prices = [Price(day * DAY_US, (day + 1) * DAY_US, 3.0, 2.0, 4.0, 1.0, None if day else 5.0) for day in range(3)]
    bars = bars_of_prices(prices, "qubic-network")
    assert bars.assets == ("qubic-network",) and bars.closed_us.tolist() == [DAY_US, 2 * DAY_US, 3 * DAY_US]
    assert [getattr(bars, name)[1] for name in PRICES] == [2.0, 4.0, 1.0, 3.0]
    assert np.array_equal(bars.volume, [5.0, NAN, NAN], equal_nan=True)


def test_bars_with_impossible_values_are_refused() -> None:
    with pytest.raises(InputError, match="low of asset0 at 2024-01-03T00:00:00Z is -1"):
        market_of([1.0, 1.0, 1.0], [1.0, -1.0, 1.0])
    with pytest.raises(InputError, match="asset has no bar at all"):
        Bars.of([DAY_US], [NAN])
    with pytest.raises(InputError, match=r"volume of asset0 at 2024-01-02T00:00:00Z is -1.0: it must be 0 or more"):
        market_of([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], volume=-1.0)
    with pytest.raises(InputError, match="does not follow the bar before it"):
        Bars.of([2 * DAY_US, DAY_US], [1.0, 1.0], frame_us=DAY_US)
