"""Bars of one asset or of several on one clock; where an asset has no bar, there is none: nothing is filled in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from qubic_lab.errors import InputError
from qubic_lab.oracle.model import candles
from qubic_lab.oracle.model.records import Price
from qubic_lab.oracle.model.timestamps import DAY_US, iso

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
YEAR_US = 365 * DAY_US
"""Of markets that never close: 365 days of 24 hours."""
PRICES = ("open", "high", "low", "close")
COLUMNS = (*PRICES, "volume")
LEAST_BARS = 3


class Columns(candles.Columns, Protocol):
    """What a market is made from: `FrameBars` and `PriceColumns` have it, and more."""

    @property
    def opened_us(self) -> Integers: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Market:
    """Closed bars in order of time. Made by `of` or `aligned`.

    Attributes:
        assets: their names, [assets].
        opened_us, closed_us: of each bar, [bars].
        open, high, low, close: [bars, assets], NaN where an asset has no bar.
        volume: traded within the bar in units of the asset, [bars, assets]; NaN where it is not known.
    """

    assets: tuple[str, ...]
    opened_us: Integers
    closed_us: Integers
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats

    def __post_init__(self) -> None:
        _check_times(self.opened_us, self.closed_us)
        for name in COLUMNS:
            _check_shape(name, getattr(self, name), (len(self.closed_us), len(self.assets)))
        self._check_prices()

    def __len__(self) -> int:
        return len(self.closed_us)

    @classmethod
    def of(cls, columns: Columns, asset: str = "asset") -> "Market":
        """Return the market of one asset.

        Raises:
            InputError: too few bars, bars out of order or overlapping, or a price that is none.
        """
        values = (np.asarray(getattr(columns, name), np.float64).reshape(-1, 1) for name in COLUMNS)
        opened, closed = (np.asarray(each, np.int64) for each in (columns.opened_us, columns.closed_us))
        return cls((asset,), opened, closed, *values)

    @classmethod
    def of_prices(cls, prices: Sequence[Price], asset: str = "asset") -> "Market":
        """Return the market of one asset from bars as sources and files give them.

        Raises:
            InputError: quotes, which have no open, or what `of` refuses.
        """
        opened = np.array([price.opened_us for price in prices], np.int64)
        closed = np.array([price.closed_us for price in prices], np.int64)
        values = (np.array([getattr(price, name) for price in prices], np.float64) for name in COLUMNS)
        return cls((asset,), opened, closed, *(each.reshape(-1, 1) for each in values))

    @classmethod
    def aligned(cls, by_asset: Mapping[str, Columns]) -> "Market":
        """Return the market of several assets: one bar for every `closed_us` that any of them has.

        Raises:
            InputError: no asset, bars that do not open together, or what `of` refuses.
        """
        if not by_asset:
            raise InputError("there is no asset: give the bars of at least one")
        closed = np.unique(np.concatenate([np.asarray(each.closed_us, np.int64) for each in by_asset.values()]))
        opened = np.full(len(closed), -1, np.int64)
        values = {name: np.full((len(closed), len(by_asset)), np.nan) for name in COLUMNS}
        for place, (asset, columns) in enumerate(by_asset.items()):
            rows = np.searchsorted(closed, columns.closed_us)
            if (np.diff(rows) <= 0).any():
                raise InputError(f"bars of {asset} are not in order of time: sort them, and give each time once")
            clash = (opened[rows] >= 0) & (opened[rows] != columns.opened_us)
            if clash.any():
                at = iso(int(closed[rows[clash.argmax()]]))
                raise InputError(f"bars of {asset} are of another length than the others' at {at}: give equal ones")
            opened[rows] = columns.opened_us
            for name in COLUMNS:
                values[name][rows, place] = getattr(columns, name)
        return cls(tuple(by_asset), opened, closed, **values)

    @cached_property
    def traded(self) -> NDArray[np.bool_]:
        """Where an asset has a bar, [bars, assets]."""
        return np.isfinite(self.close)

    @cached_property
    def complete(self) -> bool:
        """Whether every asset has every bar."""
        return bool(self.traded.all())

    @cached_property
    def marks(self) -> tuple[Floats, Floats]:
        """What a unit is worth at each bar's open and close, [bars, assets].

        Where an asset has no bar it is its last close before; 0 before its first bar, when nobody can hold it.
        """
        if self.complete:
            return self.open, self.close
        rows = np.arange(len(self))[:, None]
        last = np.maximum.accumulate(np.where(self.traded, rows, -1), axis=0)
        closes = np.where(last < 0, 0.0, np.take_along_axis(self.close, np.maximum(last, 0), axis=0))
        before = np.vstack([np.zeros((1, len(self.assets))), closes[:-1]])
        return np.where(self.traded, self.open, before), closes

    @cached_property
    def gap_years(self) -> Floats:
        """How long it was between the last bar's close and this one's open, [bars]."""
        gaps = np.zeros(len(self))
        gaps[1:] = (self.opened_us[1:] - self.closed_us[:-1]) / YEAR_US
        return gaps

    @cached_property
    def bar_years(self) -> Floats:
        """How long each bar is, [bars]."""
        years: Floats = (self.closed_us - self.opened_us) / YEAR_US
        return years

    @cached_property
    def years(self) -> float:
        """Calendar time from the first bar's open to the last one's close."""
        return float(self.closed_us[-1] - self.opened_us[0]) / YEAR_US

    def frame(self) -> "pd.DataFrame":
        """Return the bars as a DataFrame, indexed by the instants of their close in UTC (named `closed`).

        Its columns are opened_us, open, high, low, close and volume; of several assets, pairs of these and the asset.
        """
        import pandas as pd

        index = pd.DatetimeIndex(self.closed_us.astype("datetime64[us]"), name="closed").tz_localize("UTC")
        if len(self.assets) == 1:
            values = {"opened_us": self.opened_us, **{name: getattr(self, name)[:, 0] for name in COLUMNS}}
            return pd.DataFrame(values, index=index)
        pairs = {
            (name, asset): getattr(self, name)[:, place] for name in COLUMNS for place, asset in enumerate(self.assets)
        }
        return pd.DataFrame(pairs, index=index)

    def _check_prices(self) -> None:
        there = np.isfinite(self.close)
        for name in PRICES:
            values = getattr(self, name)
            wrong = np.where(there, ~(np.isfinite(values) & (values > 0.0)), ~np.isnan(values))
            if wrong.any():
                raise InputError(f"{self._first(name, wrong)}: a bar needs four prices above 0")
        if (self.volume < 0.0).any():
            wrong = self.volume < 0.0
            raise InputError(f"{self._first('volume', wrong)}: give 0 or more, NaN where it is not known")
        if not there.any(axis=0).all():
            raise InputError(f"{self.assets[int((~there.any(axis=0)).argmax())]} has no bar at all: leave it out")

    def _first(self, name: str, wrong: NDArray[np.bool_]) -> str:
        """Return which value of a column is the first wrong one, for errors."""
        bar, place = (int(each) for each in np.argwhere(wrong)[0])
        value = getattr(self, name)[bar, place]
        return f"{name} of {self.assets[place]} at {iso(int(self.closed_us[bar]))} is {value}"


def _check_times(opened_us: Integers, closed_us: Integers) -> None:
    if len(closed_us) < LEAST_BARS:
        raise InputError(f"there are {len(closed_us)} bars: a backtest needs at least {LEAST_BARS}")
    if opened_us.shape != closed_us.shape:
        raise InputError(f"{len(opened_us)} bars open and {len(closed_us)} close: give both times of each bar")
    wrong = opened_us >= closed_us
    wrong[1:] |= opened_us[1:] < closed_us[:-1]
    if wrong.any():
        at = iso(int(closed_us[wrong.argmax()]))
        raise InputError(f"bar that closes at {at} opens too late or before the last one closed: sort and check bars")


def _check_shape(name: str, values: Floats, shape: tuple[int, int]) -> None:
    if values.shape != shape:
        raise InputError(f"{name} is of shape {values.shape}: it must be {shape}, bars by assets")
