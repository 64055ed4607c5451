"""Closed bars as arrays: the one form in which analysis, risk, backtests and studies read prices."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.timestamps import DAY_US, iso

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]
T = TypeVar("T")

YEAR_US = 365 * DAY_US
"""A year of a market that never closes: 365 days of 24 hours."""
PRICES = ("open", "high", "low", "close")
COLUMNS = (*PRICES, "volume")
SMALLEST, LARGEST = 1e-30, 1e30
"""Prices and volumes outside this range are refused: squares of their ratios would overflow."""
_ROWS = (*("opened_us", "closed_us", "known_us", "points", "slots", "flagged"), *(f"{name}_BA" for name in COLUMNS))


@dataclass(frozen=True, eq=False)
class Bars:
    """Closed bars in order of time, of one asset or of several. Missing bars are not filled in.

    Build them with `of` or `records.bars_of_prices`, which check the values once; all else relies on that.

    Attributes:
        assets: their names.
        opened_us, closed_us: microseconds since 1970, [bars]; a quote opens and closes at one instant.
        open_BA, high_BA, low_BA, close_BA: prices, [bars, assets]; NaN where an asset has no bar.
        volume_BA: traded in the bar, in units of the asset, [bars, assets]; NaN where it is not known.
        frame_us: the length of a bar; 0 where lengths differ, and for quotes.
        known_us: when the newest price of the bar was recorded (transaction time), [bars]; 0 where that is not known.
        points: prices that a bar is made from, [bars].
        slots: how many of its expected times have a price, [bars].
        flagged: how many of its prices cleaning has flagged, [bars].
    """

    assets: tuple[str, ...]
    opened_us: Integers
    closed_us: Integers
    open_BA: Floats
    high_BA: Floats
    low_BA: Floats
    close_BA: Floats
    volume_BA: Floats
    known_us: Integers
    points: Integers
    slots: Integers
    flagged: Integers
    frame_us: int = 0
    _computed: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.closed_us)

    @classmethod
    def of(
        cls,
        closed_us: ArrayLike,
        close: ArrayLike,
        *,
        open: ArrayLike | None = None,
        high: ArrayLike | None = None,
        low: ArrayLike | None = None,
        volume: ArrayLike | None = None,
        opened_us: ArrayLike | None = None,
        frame_us: int = 0,
        assets: Sequence[str] = ("asset",),
        check: bool = True,
        **per_bar: ArrayLike,
    ) -> "Bars":
        """Return checked bars from columns, each [bars] or [bars, assets].

        A close is NaN where one of several assets has no bar. Opens, highs and lows that are None or NaN are the close;
        such a volume is not known. Bars without `opened_us` open `frame_us` before their end. `check` is False for
        values that were checked before they were stored; `per_bar` are `known_us`, `points`, `slots` or `flagged`.

        Raises:
            InputError: columns of different lengths, bars that are out of order or overlap, a price that is not a
                number from 1e-30 to 1e30, a volume that is negative or above that, or a high below a low.
        """
        closed = np.ascontiguousarray(closed_us, np.int64)
        opened = closed - frame_us if opened_us is None else np.ascontiguousarray(opened_us, np.int64)
        shape = (len(closed), len(assets))
        close_BA = _column("close", close, shape)
        values = {"close": close_BA}
        for name, given in {"open": open, "high": high, "low": low}.items():
            found = np.full(shape, np.nan) if given is None else _column(name, given, shape)
            values[name] = np.where(np.isnan(found), close_BA, found)
        values["volume"] = np.full(shape, np.nan) if volume is None else _column("volume", volume, shape)
        if check:
            _check_times(opened, closed)
        columns: dict[str, Any] = {f"{name}_BA": values[name] for name in COLUMNS}
        bars = cls(tuple(assets), opened, closed, **columns, **_per_bar(len(closed), per_bar), frame_us=frame_us)
        if check:
            _check_values(bars)
        return bars

    @property
    def open(self) -> Floats:
        """Opens of the only asset, [bars]."""
        return self._only(self.open_BA)

    @property
    def high(self) -> Floats:
        """Highs of the only asset, [bars]."""
        return self._only(self.high_BA)

    @property
    def low(self) -> Floats:
        """Lows of the only asset, [bars]."""
        return self._only(self.low_BA)

    @property
    def close(self) -> Floats:
        """Closes of the only asset, [bars]."""
        return self._only(self.close_BA)

    @property
    def volume(self) -> Floats:
        """Volumes of the only asset, [bars]."""
        return self._only(self.volume_BA)

    def _only(self, values_BA: Floats) -> Floats:
        assert len(self.assets) == 1, f"bars of {self.assets}: choose an asset"
        return values_BA[:, 0]

    def slice(self, start: int, end: int) -> "Bars":
        """Return the bars from one row up to before another."""
        return replace(self, **{name: getattr(self, name)[start:end] for name in _ROWS})

    def tail(self, count: int) -> "Bars":
        """Return the last bars, `count` at most."""
        return self.slice(max(0, len(self) - count), len(self))

    def until(self, at_us: int) -> "Bars":
        """Return the bars that are closed at an instant."""
        return self.slice(0, int(np.searchsorted(self.closed_us, at_us, side="right")))

    def after(self, at_us: int) -> "Bars":
        """Return the bars that close after an instant."""
        return self.slice(int(np.searchsorted(self.closed_us, at_us, side="right")), len(self))

    def resample(self, frame_us: int, until_us: int, step_us: int = 0) -> "Bars":
        """Return longer bars of one asset that are closed at `until_us`, from quotes or from bars that divide them.

        A bar has the prices with opened < closed_us <= closed, so a price that is stamped with a bar's end is its
        close. Frames, which are counted from 1970, have no bar without a price. `step_us` is how often a price is
        expected: above 0, `slots` counts the steps that have one; at 0, these bars know their slots already.
        """
        frame_of = (self.closed_us - 1) // frame_us
        count = int(np.searchsorted((frame_of + 1) * frame_us, until_us, side="right"))
        if not count:
            return replace(self.slice(0, 0), frame_us=frame_us)
        source, frame_of = self.slice(0, count), frame_of[:count]
        starts = np.flatnonzero(np.diff(frame_of, prepend=frame_of[0] - 1))
        ends = np.append(starts[1:], count) - 1
        slots = source.slots
        if step_us:
            is_new = np.diff((source.closed_us - 1) // step_us, prepend=-1) != 0
            is_new[starts] = True
            slots = is_new.astype(np.int64)
        return Bars(
            self.assets,
            opened_us=frame_of[starts] * frame_us,
            closed_us=(frame_of[starts] + 1) * frame_us,
            open_BA=source.open_BA[starts],
            high_BA=np.maximum.reduceat(source.high_BA, starts),
            low_BA=np.minimum.reduceat(source.low_BA, starts),
            close_BA=source.close_BA[ends],
            volume_BA=np.add.reduceat(source.volume, starts).reshape(-1, 1),
            known_us=np.maximum.reduceat(source.known_us, starts),
            points=np.add.reduceat(source.points, starts),
            slots=np.add.reduceat(slots, starts),
            flagged=np.add.reduceat(source.flagged, starts),
            frame_us=frame_us,
        )

    def once(self, name: str, compute: "Callable[[Bars], T]") -> T:
        """Return what `compute` gives for these bars; it is computed at the first call with a name, then kept."""
        if name not in self._computed:
            self._computed[name] = compute(self)
        return cast(T, self._computed[name])

    @cached_property
    def log_close(self) -> Floats:
        """Natural logarithm of each close of the only asset, [bars]."""
        return exact_logs(self.close)

    @cached_property
    def log_returns(self) -> Floats:
        """Log return of each bar since the bar before, [bars]; NaN for the first. A gap counts as one step."""
        return np.diff(self.log_close, prepend=np.nan) if len(self) else self.log_close

    @cached_property
    def steps(self) -> Floats:
        """Time since the bar before, in bars of `frame_us`, at least 1, [bars]; 1 for the first."""
        steps = np.ones(len(self))
        steps[1:] = np.maximum(1.0, np.rint(np.diff(self.closed_us) / self.frame_us))
        return steps

    @cached_property
    def step_returns(self) -> Floats:
        """Log return of each bar over √steps, [bars]: of equal spread for a random walk; 0 for the first bar."""
        returns = np.zeros(len(self))
        returns[1:] = np.diff(self.log_close) / np.sqrt(self.steps[1:])
        return returns

    @cached_property
    def traded(self) -> Flags:
        """Where an asset has a bar, [bars, assets]."""
        return np.isfinite(self.close_BA)

    @cached_property
    def gap_years(self) -> Floats:
        """Time between the last bar's close and this one's open, in years, [bars]; 0 for the first."""
        gaps = np.zeros(len(self))
        gaps[1:] = (self.opened_us[1:] - self.closed_us[:-1]) / YEAR_US
        return gaps

    @cached_property
    def bar_years(self) -> Floats:
        """Length of each bar in years, [bars]."""
        years: Floats = (self.closed_us - self.opened_us) / YEAR_US
        return years

    @cached_property
    def years(self) -> float:
        """Calendar time from the first bar's open to the last one's close, in years."""
        return float(self.closed_us[-1] - self.opened_us[0]) / YEAR_US

    def frame(self) -> "pd.DataFrame":
        """Return a DataFrame indexed by the instants of the closes in UTC (named `closed`).

        Its columns are opened_us, open, high, low, close and volume; for several assets, pairs of these and the asset.
        """
        import pandas as pd

        index = pd.DatetimeIndex(self.closed_us.astype("datetime64[us]"), name="closed").tz_localize("UTC")
        if len(self.assets) == 1:
            values = {"opened_us": self.opened_us, **{name: getattr(self, name) for name in COLUMNS}}
            return pd.DataFrame(values, index=index)
        pairs = {
            (name, asset): getattr(self, f"{name}_BA")[:, column]
            for name in COLUMNS
            for column, asset in enumerate(self.assets)
        }
        return pd.DataFrame(pairs, index=index)


def join_bars(parts: Sequence[Bars]) -> Bars:
    """Return bars of the same assets one after the other; at least one part."""
    columns: dict[str, Any] = {name: np.concatenate([getattr(each, name) for each in parts]) for name in _ROWS}
    return replace(parts[0], **columns)


def exact_logs(values: Floats) -> Floats:
    """Return natural logarithms, each of which depends on its own value alone.

    `np.log` may round the last few values of an array differently from those before, so later bars would change them.
    """
    return np.fromiter(map(math.log, values.tolist()), np.float64, len(values))


def is_constant(values: Floats) -> bool:
    """Return whether values do not vary, except for rounding."""
    if not values.size:
        return True
    return float(np.ptp(values)) <= 1e-13 * float(np.abs(values).max())


def mask_warm_up(warm_up: int, values: Floats) -> Floats:
    """Return a copy whose first `warm_up` values are NaN."""
    masked = np.array(values, np.float64)
    masked[:warm_up] = np.nan
    return masked


def _column(name: str, values: ArrayLike, shape: tuple[int, int]) -> Floats:
    found = np.ascontiguousarray(values, np.float64)
    if found.ndim == 1 and shape[1] == 1:
        found = found.reshape(-1, 1)
    if found.shape != shape:
        raise InputError(f"{name} has shape {found.shape}: it must be {shape}, bars by assets")
    return found


def _per_bar(count: int, given: Mapping[str, ArrayLike]) -> dict[str, Any]:
    defaults = {"known_us": 0, "points": 1, "slots": 1, "flagged": 0}
    assert given.keys() <= defaults.keys(), given.keys()
    return {
        name: np.ascontiguousarray(given[name], np.int64) if name in given else np.full(count, default, np.int64)
        for name, default in defaults.items()
    }


def _check_times(opened_us: Integers, closed_us: Integers) -> None:
    if opened_us.shape != closed_us.shape:
        raise InputError(f"{len(opened_us)} bars open and {len(closed_us)} close: give both times of each bar")
    wrong = opened_us > closed_us
    wrong[1:] |= (closed_us[1:] <= closed_us[:-1]) | (opened_us[1:] < closed_us[:-1])
    if wrong.any():
        at = iso(int(closed_us[wrong.argmax()]))
        raise InputError(f"bar that closes at {at} does not follow the bar before it: sort the bars, give each once")


def _check_values(bars: Bars) -> None:
    traded = ~np.isnan(bars.close_BA)
    for name in PRICES:
        values = getattr(bars, f"{name}_BA")
        good = (values >= SMALLEST) & (values <= LARGEST)
        _refuse_first(bars, name, values, np.where(traded, good, np.isnan(values)), "a price above 0, at most 1e30")
    volume = bars.volume_BA
    good = np.isnan(volume) | ((volume >= 0.0) & (volume <= LARGEST))
    _refuse_first(bars, "volume", volume, good, "0 or more, at most 1e30, or NaN where it is not known")
    ordered = ~traded | (bars.high_BA >= bars.low_BA)
    _refuse_first(bars, "high", bars.high_BA, ordered, "a price that is not below the low")
    without = ~traded.any(axis=0)
    if without.any() and (len(bars.assets) > 1 or len(bars)):
        raise InputError(f"{bars.assets[int(without.argmax())]} has no bar at all: leave it out")


def _refuse_first(bars: Bars, name: str, values: Floats, good: Flags, rule: str) -> None:
    if good.all():
        return
    bar, column = (int(each) for each in np.argwhere(~good)[0])
    raise InputError(
        f"{name} of {bars.assets[column]} at {iso(int(bars.closed_us[bar]))} is {values[bar, column]}: "
        f"it must be {rule}"
    )
