"""Two forms of a signal: asked at every bar with what is known then, or once for all bars and audited for it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qubic_lab.errors import InputError
from qubic_lab.oracle.backtest.texts import AvailableText, text_columns
from qubic_lab.oracle.model.bars import COLUMNS, Bars, Floats, Integers
from qubic_lab.oracle.model.timestamps import iso

if TYPE_CHECKING:
    import pandas as pd

    from qubic_lab.oracle.backtest.lookahead.check import LookaheadReport


class View:
    """What is known at a bar's close: this bar, earlier ones, and the texts that could be read by then.

    Arrays are [bars so far] of one asset and [bars so far, assets] of several, and cannot be written to. What they are
    slices of holds no later bar either: it is written as time goes on.
    """

    __slots__ = ("_count", "_rows", "_texts", "_texts_count")

    def __init__(self, rows: dict[str, NDArray[Any]], count: int, texts: list[AvailableText]) -> None:
        self._rows, self._count = rows, count
        self._texts, self._texts_count = texts, len(texts)

    def __len__(self) -> int:
        return self._count

    @property
    def now_us(self) -> int:
        """This instant: the bar's close."""
        return int(self._rows["closed_us"][self._count - 1])

    @property
    def opened_us(self) -> Integers:
        """When each bar opened."""
        return self._slice("opened_us")

    @property
    def closed_us(self) -> Integers:
        """When each bar closed."""
        return self._slice("closed_us")

    @property
    def open(self) -> Floats:
        """Opens."""
        return self._slice("open")

    @property
    def high(self) -> Floats:
        """Highs."""
        return self._slice("high")

    @property
    def low(self) -> Floats:
        """Lows."""
        return self._slice("low")

    @property
    def close(self) -> Floats:
        """Closes."""
        return self._slice("close")

    @property
    def volume(self) -> Floats:
        """Volumes, NaN where they are not known."""
        return self._slice("volume")

    def texts(self, since_us: int | None = None) -> list[AvailableText]:
        """Return the texts that were available by now, after `since_us` where it is given, by that time."""
        found = self._texts[: self._texts_count]
        return found if since_us is None else [text for text in found if text.available_us > since_us]

    def _slice(self, name: str) -> NDArray[Any]:
        values = self._rows[name][: self._count]
        values.flags.writeable = False
        return values


OnBar = Callable[[View], ArrayLike | None]
Signal = Callable[["pd.DataFrame"], ArrayLike]


def decide_by_bar(market: Bars, on_bar: OnBar, texts: Sequence[AvailableText] = ()) -> Floats:
    """Return what `on_bar` wants at each bar's close, [bars, assets], NaN where it returns None.

    It sees the future in no way, because that does not exist yet where it looks.

    Raises:
        InputError: it returns something else than a weight for each asset.
    """
    one = len(market.assets) == 1
    sources = {name: getattr(market, name if one else f"{name}_BA") for name in COLUMNS}
    sources |= {"opened_us": market.opened_us, "closed_us": market.closed_us}
    rows = {
        name: np.full(values.shape, np.nan if values.dtype.kind == "f" else 0, values.dtype)
        for name, values in sources.items()
    }
    targets, known, following = np.full(market.close_BA.shape, np.nan), [], 0
    closes = market.closed_us.tolist()
    for bar, now_us in enumerate(closes):
        for name, values in sources.items():
            rows[name][bar] = values[bar]
        while following < len(texts) and texts[following].available_us <= now_us:
            known.append(texts[following])
            following += 1
        wanted = on_bar(View(rows, bar + 1, known))
        if wanted is not None:
            targets[bar] = wanted if one and isinstance(wanted, float) else _weights(wanted, market.assets, now_us)
    return targets


def _weights(wanted: Any, assets: Sequence[str], now_us: int) -> Floats:
    """Return the weights that `on_bar` wants, [assets], those of a Series by its labels.

    Raises:
        InputError: it is not one number for each asset.
    """
    import pandas as pd

    if isinstance(wanted, pd.Series) and not isinstance(wanted.index, pd.RangeIndex):
        if sorted(map(str, wanted.index)) != sorted(assets):
            raise InputError(f"on_bar returned weights of {list(wanted.index)} at {iso(now_us)}: give {list(assets)}")
        wanted = wanted.loc[list(assets)]
    try:
        weights = np.asarray(wanted, np.float64)
    except (TypeError, ValueError):
        weights = np.empty(0)
    if weights.shape != (len(assets),) and (weights.shape or len(assets) > 1):
        raise InputError(
            f"on_bar returned {wanted!r:.100} at {iso(now_us)}: return a weight for each of "
            f"{len(assets)} assets, or None to keep the last one"
        )
    return weights.reshape(len(assets))


def signal_frame(market: Bars, texts: Sequence[AvailableText] = ()) -> "pd.DataFrame":
    """Return what `signal` is given: the bars, and beside them the texts of each (see `text_columns`)."""
    frame = market.frame()
    if texts:
        for name, values in text_columns(market, texts).items():
            for place, asset in enumerate(market.assets):
                frame[name if len(market.assets) == 1 else (name, asset)] = values[:, place]
    return frame


def decide_at_once(
    signal: Signal, frame: "pd.DataFrame", report: "LookaheadReport | None" = None
) -> tuple[Floats, "LookaheadReport"]:
    """Return the weights that `signal` gives for all bars, and the report that it does not look ahead.

    It may return an array, [bars] or [bars, assets], or a Series or DataFrame on the frame's index; a DataFrame has a
    column for each asset.

    Args:
        signal: gives a weight for each bar.
        frame: as `signal_frame` gives it.
        report: of the same signal on the same frame; None: check it now.

    Raises:
        InputError: the signal looks ahead, or does not give a weight for each bar.
    """
    if report is None:
        from qubic_lab.oracle.backtest.lookahead.check import check_lookahead

        report = check_lookahead(signal, frame)
    if not report.passed:
        raise InputError(f"signal {name_of(signal)} is refused: {report}")
    return _by_bar(signal(frame.copy()), frame, name_of(signal)), report


def _by_bar(wanted: Any, frame: "pd.DataFrame", name: str) -> Floats:
    """Return a signal's values as numbers, in the order of bars and assets."""
    import pandas as pd

    if not np.shape(wanted) or len(wanted) != len(frame):
        count = len(wanted) if np.shape(wanted) else "no"
        raise InputError(f"signal {name} gave {count} values for {len(frame)} bars: give one for each")
    if isinstance(wanted, (pd.Series, pd.DataFrame)) and not wanted.index.equals(frame.index):
        raise InputError(f"signal {name} gave values on another index than the bars': keep their order and times")
    if isinstance(wanted, pd.DataFrame) and frame.columns.nlevels > 1:
        assets = list(dict.fromkeys(frame.columns.get_level_values(1)))
        if set(wanted.columns) != set(assets):
            raise InputError(f"signal {name} gave columns {list(wanted.columns)}: give one for each of {assets}")
        wanted = wanted[assets]
    try:
        return np.array(wanted, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"signal {name} gave values that are no numbers ({error}): give weights") from error


def name_of(function: Callable[..., Any]) -> str:
    """Return what a function is called."""
    inner = getattr(function, "func", function)
    return str(getattr(inner, "__qualname__", type(inner).__name__))
