"""Bars: checked once where they enter, aligned by their close, nothing filled in."""

import math
from typing import Any

import numpy as np
import pytest
from bar_series import START, bars_of

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.bars import PRICES, Bars, exact_logs
from qubic_lab.oracle.model.records import Price, bars_of_prices
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US

NAN = float("nan")


def test_bars_are_made_from_what_files_give() -> None:
    prices = [Price(day * DAY_US, (day + 1) * DAY_US, 3.0, 2.0, 4.0, 1.0, None if day else 5.0) for day in range(3)]
    bars = bars_of_prices(prices, "qubic-network")
    assert bars.assets == ("qubic-network",) and bars.closed_us.tolist() == [DAY_US, 2 * DAY_US, 3 * DAY_US]
    assert [getattr(bars, name)[1] for name in PRICES] == [2.0, 4.0, 1.0, 3.0]
    assert np.array_equal(bars.volume, [5.0, NAN, NAN], equal_nan=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"low": [1.0, -1.0, 1.0]}, "low of asset at 2026-01-01T01:00:00Z is -1"),
        ({"close": [1.0, 0.0, 3.0]}, "close of asset at .* is 0.0: it must be a price above 0"),
        ({"close": [1.0, NAN, 3.0], "assets": ["BTC"]}, "open of BTC at .* is 2.0: it must be a price above 0"),
        ({"high": [1.0, math.inf, 3.0]}, "high of asset at .* is inf"),
        ({"high": [1.0, 1.5, 3.0]}, "not below the low"),
        ({"volume": [1.0, -1.0, 3.0]}, "volume of asset at .* is -1.0: it must be 0 or more"),
        ({"volume": [1.0, 1.0]}, "volume has shape"),
        ({"closed_us": np.array([1, 2, 2]) + START}, "does not follow the bar before it"),
    ],
)
def test_impossible_values_are_refused(changed: dict[str, Any], message: str) -> None:
    columns: dict[str, Any] = {name: [1.0, 2.0, 3.0] for name in ("open", "high", "low", "close", "volume")}
    with pytest.raises(InputError, match=message):
        Bars.of(**{"closed_us": START + np.arange(3) * HOUR_US} | columns | changed)
    with pytest.raises(InputError, match="asset has no bar at all"):
        Bars.of([DAY_US], [NAN])


def test_the_close_of_a_quote_is_also_its_open_high_and_low() -> None:
    quotes = bars_of([1.0, 2.0, 3.0])
    assert quotes.open.tolist() == quotes.high.tolist() == quotes.low.tolist() == [1.0, 2.0, 3.0]
    assert np.isnan(quotes.volume).all()


def test_steps_count_missing_bars() -> None:
    gapped = bars_of([1.0, math.e, math.e], places=[0, 4, 5])
    assert gapped.steps.tolist() == [1.0, 4.0, 1.0]
    np.testing.assert_allclose(gapped.step_returns, [0.0, 0.5, 0.0])


def test_logs_depend_on_each_value_alone() -> None:
    values = np.random.default_rng(0).random(1_000) + 0.01
    assert exact_logs(values).tolist() == [math.log(each) for each in values.tolist()]
