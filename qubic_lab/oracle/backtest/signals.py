"""The two forms of a strategy: asked at each bar with what is known then, or once for all bars and then checked."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qubic_lab.errors import InputError
from qubic_lab.oracle.inference.alignment import AvailableText, text_columns
from qubic_lab.oracle.model.bars import COLUMNS, Bars, Floats, Integers
from qubic_lab.oracle.model.timestamps import iso

if TYPE_CHECKING:
    import pandas as pd

    from qubic_lab.oracle.backtest.lookahead.check import LookaheadReport


class BarView:
    """What is known at a bar's close: this bar, earlier bars, and the texts that could be read by then.

    Arrays are [bars so far] for one asset and [bars so far, assets] for several, and read-only. The arrays behind them
    hold no later bar either: they are filled as time goes on.

    Attributes:
        now_us: the close of the bar.
        opened_us, closed_us: times of the bars.
        open, high, low, close: prices.
        volume: NaN where it is not known.
    """

    opened_us: Integers
    closed_us: Integers
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats

    def __init__(self, rows: dict[str, NDArray[Any]], count: int, texts: list[AvailableText]) -> None:
        for name, values in rows.items():
            known = values[:count]
            known.flags.writeable = False
            setattr(self, name, known)
        self.now_us = int(self.closed_us[-1])
        self._texts, self._texts_count = texts, len(texts)

    def __len__(self) -> int:
        return len(self.closed_us)

    def texts(self, since_us: int | None = None) -> list[AvailableText]:
        """Return the texts that are available now, in order of time; only those after `since_us` if it is given."""
        found = self._texts[: self._texts_count]
        return found if since_us is None else [text for text in found if text.available_us > since_us]


OnBar = Callable[[BarView], ArrayLike | None]
Signal = Callable[["pd.DataFrame"], ArrayLike]


def decide_by_bar(market: Bars, on_bar: OnBar, texts: Sequence[AvailableText] = ()) -> Floats:
    """Return the weights that `on_bar` decides at each bar's close, [bars, assets]; NaN where it returns None.

    It cannot look ahead: the arrays that it sees hold no later bar.

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
        wanted = on_bar(BarView(rows, bar + 1, known))
        if wanted is not None:
            targets[bar] = wanted if one and isinstance(wanted, float) else _weights(wanted, market.assets, now_us)
    return targets


def _weights(wanted: Any, assets: Sequence[str], now_us: int) -> Floats:
    """Return the weights that `on_bar` returned, [assets]; those of a Series by its labels.

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
    """Return the frame that a signal is given: the bars, and the columns of `text_columns` if there are texts."""
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
    """Return a signal's weights as an array, in the order of bars and assets."""
    import pandas as pd

    if not np.shape(wanted) or len(wanted) != len(frame):
        count = len(wanted) if np.shape(wanted) else "no"
        raise InputError(f"signal {name} gave {count} values for {len(frame)} bars: give one for each")
    if isinstance(wanted, (pd.Series, pd.DataFrame)) and not wanted.index.equals(frame.index):
        raise InputError(f"signal {name} gave values on another index than the bars: keep their order and times")
    if isinstance(wanted, pd.DataFrame) and frame.columns.nlevels > 1:
        assets = list(dict.fromkeys(frame.columns.get_level_values(1)))
        if set(wanted.columns) != set(assets):
            raise InputError(f"signal {name} gave columns {list(wanted.columns)}: give one for each of {assets}")
        wanted = wanted[assets]
    try:
        return np.array(wanted, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"signal {name} gave values that are not numbers ({error}): give weights") from error


def name_of(function: Callable[..., Any]) -> str:
    """Return the name of a function, or of the function in a partial."""
    inner = getattr(function, "func", function)
    return str(getattr(inner, "__qualname__", type(inner).__name__))
