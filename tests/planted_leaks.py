"""Signals that look ahead, and clean ones, for tests of the look-ahead check."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pandas as pd
import talib
from joblib import Parallel, delayed
from scipy.signal import butter, filtfilt, lfilter
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler

Signal = Callable[[pd.DataFrame], Any]

START = 1_632_700_800_000_000  # 2021-09-27T00:00:00Z
STEP_US = 900_000_000
PRICES = ("open", "high", "low", "close")


def bars_frame(bars: int = 480, seed: int = 0) -> pd.DataFrame:
    """Return bars of 15 minutes with volumes, sentiment and texts; some cells are missing, some known late."""
    draw = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(draw.normal(0.0, 0.01, bars)))
    open_ = np.append(100.0, close[:-1])
    spread = np.exp(np.abs(draw.normal(0.0, 0.004, bars)))
    opened = START + STEP_US * np.arange(bars)
    closed = opened + STEP_US
    volume = draw.lognormal(3.0, 0.5, bars)
    volume[draw.random(bars) < 0.05] = np.nan
    sentiment = draw.normal(0.0, 1.0, bars)
    sentiment[draw.random(bars) < 0.4] = np.nan
    headline = [f"headline {number}" if draw.random() < 0.3 else None for number in range(bars)]
    body = [None if text is None else text + " word" * int(draw.integers(1, 30)) for text in headline]
    late = closed + STEP_US * draw.integers(0, 6, bars)
    index = pd.DatetimeIndex(closed.astype("datetime64[us]"), name="closed").tz_localize("UTC")
    columns = {"opened_us": opened, "open": open_, "high": np.maximum(open_, close) * spread}
    columns |= {"low": np.minimum(open_, close) / spread, "close": close, "volume": volume, "sentiment": sentiment}
    columns |= {"headline": headline, "body": body, "body_known_us": late}
    return pd.DataFrame(columns, index=index)


def returns(frame: pd.DataFrame) -> pd.Series:
    """Return the return of each bar since the one before."""
    return frame["close"].pct_change()


def hourly_closes(frame: pd.DataFrame, label: Literal["left", "right"] = "right") -> pd.Series:
    """Return the last close of each hour, labelled by the start or the end of the hour."""
    return frame["close"].resample("1h", label=label, closed="right").last()


def by_name(*signals: Signal) -> dict[str, Signal]:
    return {each.__name__: each for each in signals}


# Leaks


def next_return(frame: pd.DataFrame) -> pd.Series:
    return returns(frame).shift(-1)


def local_peaks(frame: pd.DataFrame) -> pd.Series:
    close = frame["close"]
    return ((close > close.shift(1)) & (close > close.shift(-1))).astype(float)


def trend_of_all(frame: pd.DataFrame) -> np.ndarray:
    place = np.arange(len(frame))
    slope, height = np.polyfit(place, frame["close"], 1)
    return frame["close"].to_numpy() - slope * place - height


def model_of_all(frame: pd.DataFrame) -> np.ndarray:
    past = np.stack([returns(frame).shift(lag).fillna(0.0) for lag in range(3)], axis=1)
    outcome = returns(frame).shift(-1).fillna(0.0)
    return LinearRegression().fit(past, outcome).predict(past)


def fourier_filter(frame: pd.DataFrame) -> np.ndarray:
    spectrum = np.fft.rfft(np.log(frame["close"]))
    spectrum[len(spectrum) // 8 :] = 0.0
    return np.fft.irfft(spectrum, len(frame))


def next_sentiment(frame: pd.DataFrame) -> np.ndarray:
    known = frame.dropna(subset=["sentiment"])[["sentiment"]]
    options = {"left_index": True, "right_index": True, "direction": "forward"}
    return pd.merge_asof(frame[["close"]], known, **options)["sentiment"].to_numpy()


def best_lookback_of_all(frame: pd.DataFrame) -> pd.Series:
    change = returns(frame).fillna(0.0)
    gains = {bars: float((np.sign(frame["close"].diff(bars)).shift(1) * change).sum()) for bars in (5, 10, 20, 40)}
    return np.sign(frame["close"].diff(max(gains, key=gains.__getitem__)))


def components_of_all(frame: pd.DataFrame) -> np.ndarray:
    parts = [returns(frame).fillna(0.0), frame["high"] / frame["low"] - 1.0, frame["close"] / frame["open"] - 1.0]
    away = np.stack(parts, axis=1) - np.mean(parts, axis=1)
    return away @ np.linalg.svd(away, full_matrices=False)[2][0]


def next_return_on_one_bar_in_twenty(frame: pd.DataFrame) -> pd.Series:
    ahead = returns(frame).shift(-1).fillna(0.0)
    return ahead.where(ahead.abs() > 0.02, 0.0)


LEAKS: dict[str, Signal] = {
    "sign_of_next_return": lambda frame: np.sign(returns(frame).shift(-1)).fillna(0.0),
    "three_bars_ahead": lambda frame: frame["close"].rolling(5).mean().shift(-3),
    "off_by_one_slice": lambda frame: np.append(returns(frame).to_numpy()[1:], 0.0),
    "standardised": lambda frame: (frame["close"] - frame["close"].mean()) / frame["close"].std(),
    "scaled_to_extremes": lambda frame: (frame["close"] - frame["low"].min()) / np.ptp(frame["high"]),
    "hour_labelled_by_its_start": lambda frame: hourly_closes(frame, "left").reindex(frame.index, method="ffill"),
    "hour_labelled_by_its_end_filled_back": lambda frame: hourly_closes(frame).reindex(frame.index, method="bfill"),
    "high_of_the_hour": lambda frame: frame["high"].resample("1h", closed="right").transform("max") - frame["close"],
    "centred_mean": lambda frame: frame["close"] - frame["close"].rolling(11, center=True).mean(),
    "smoothed_both_ways": lambda frame: np.convolve(returns(frame).fillna(0.0), np.ones(7) / 7, mode="same"),
    "scaler_of_all": lambda frame: StandardScaler().fit_transform(returns(frame).fillna(0.0).to_numpy()[:, None])[:, 0],
    "over_the_last_close": lambda frame: frame["close"] / frame["close"].iloc[-1],
    "ranked_in_all": lambda frame: returns(frame).rank(pct=True),
    "threshold_of_all": lambda frame: (returns(frame) > returns(frame).quantile(0.9)).astype(float),
    "reversed_window": lambda frame: frame["close"][::-1].rolling(5).mean()[::-1].to_numpy(),
    "warm_up_filled_back": lambda frame: frame["close"].rolling(20).mean().bfill(),
    "gaps_filled_back": lambda frame: frame["sentiment"].bfill(),
    "gaps_interpolated": lambda frame: frame["sentiment"].interpolate(),
    "gaps_filled_with_the_mean": lambda frame: frame["volume"].fillna(frame["volume"].mean()),
    "mean_of_the_whole_day": lambda frame: frame["close"] / frame["close"].groupby(frame.index.date).transform("mean"),
    "length_of_a_late_body": lambda frame: frame["body"].fillna("").str.len().astype(float).ewm(span=10).mean(),
    "long_until_the_top": lambda frame: (np.arange(len(frame)) < int(np.argmax(frame["close"]))).astype(float),
    "towards_the_last_close": lambda frame: np.sign(frame["close"].iloc[-1] - frame["close"]),
    "highest_yet_to_come": lambda frame: frame["close"][::-1].cummax()[::-1] / frame["close"] - 1.0,
    "exponential_mean_from_the_end": lambda frame: frame["close"][::-1].ewm(span=5).mean()[::-1],
    "filtered_both_ways": lambda frame: filtfilt(*butter(2, 0.1), np.log(frame["close"].to_numpy())),
    "rolled_volume": lambda frame: np.roll(frame["volume"].to_numpy(), -1),
    "hours_to_the_end": lambda frame: ((frame.index[-1] - frame.index) / pd.Timedelta("1h")).to_numpy(),
    # No return is that large; a calm future shows the leak.
    "rare_by_the_spread_of_all": lambda frame: 1.0 * (returns(frame).abs() > 4.0 * returns(frame).std()),
    **by_name(next_return, local_peaks, trend_of_all, model_of_all, fourier_filter, next_sentiment),
    **by_name(best_lookback_of_all, components_of_all, next_return_on_one_bar_in_twenty),
}
"""Signals that look ahead, by name."""


# Clean signals


def momentum(frame: pd.DataFrame) -> pd.Series:
    return np.sign(frame["close"].pct_change(10))


def bollinger(frame: pd.DataFrame) -> np.ndarray:
    upper, _, lower = talib.BBANDS(frame["close"].to_numpy(), 20)
    return (frame["close"].to_numpy() - lower) / (upper - lower)


def stateful_loop(frame: pd.DataFrame) -> list[float]:
    position, entry, found = 0.0, 0.0, []
    for price in frame["close"].tolist():
        if position == 0.0 and entry and price > entry * 1.01:
            position, entry = 1.0, price
        elif position and price < entry * 0.99:
            position, entry = 0.0, price
        entry = entry or price
        found.append(position)
    return found


def hour_before(frame: pd.DataFrame) -> pd.Series:
    hourly = hourly_closes(frame)
    whole = hourly[hourly.index <= frame.index[-1]]
    return whole.reindex(frame.index, method="ffill")


def body_once_it_was_known(frame: pd.DataFrame) -> np.ndarray:
    closed = (frame["opened_us"] + STEP_US).to_numpy()
    length = frame["body"].fillna("").str.len().to_numpy(float)
    order = np.argsort(frame["body_known_us"].to_numpy(), kind="stable")
    known, found, last, place = frame["body_known_us"].to_numpy()[order], [], 0.0, 0
    for now in closed:
        while place < len(known) and known[place] <= now:
            last = length[order[place]] or last
            place += 1
        found.append(last)
    return np.array(found)


def walk_forward_model(frame: pd.DataFrame) -> np.ndarray:
    past = np.stack([returns(frame).shift(lag).fillna(0.0) for lag in range(3)], axis=1)
    outcome = returns(frame).to_numpy()
    found = np.full(len(frame), np.nan)
    for bar in range(60, len(frame), 40):
        model = LinearRegression().fit(past[2 : bar - 1], outcome[3:bar])
        # One row at a time: products of matrices may be rounded differently by their size.
        rows = past[bar : bar + 40]
        found[bar : bar + 40] = [model.intercept_ + sum(c * x for c, x in zip(model.coef_, row)) for row in rows]  # noqa: B905
    return found


def last_sentiment(frame: pd.DataFrame) -> np.ndarray:
    known = frame.dropna(subset=["sentiment"])[["sentiment"]]
    return pd.merge_asof(frame[["close"]], known, left_index=True, right_index=True)["sentiment"].to_numpy()


def high_of_yesterday(frame: pd.DataFrame) -> np.ndarray:
    days = frame.index.floor("D")
    return frame["close"].to_numpy() / days.map(frame["high"].groupby(days).max().shift(1)).to_numpy()


def z_score(values: pd.Series, window: Any) -> pd.Series:
    return (values - window.mean()) / window.std()


@functools.cache
def _line(bars: int) -> np.ndarray:
    return np.arange(1, bars + 1) / bars


CLEAN: dict[str, Signal] = {
    "moving_average_cross": lambda frame: 1.0 * (frame["close"].rolling(5).mean() > frame["close"].rolling(20).mean()),
    "exponential_mean": lambda frame: frame["close"].ewm(12).mean() - frame["close"].ewm(26, adjust=False).mean(),
    "rolling_z_score": lambda frame: z_score(frame["close"], frame["close"].rolling(30)),
    "expanding_z_score": lambda frame: z_score(returns(frame), returns(frame).expanding(20)),
    "expanding_quantile": lambda frame: (returns(frame) > returns(frame).expanding(20).quantile(0.9)).astype(float),
    "rolling_rank": lambda frame: returns(frame).rolling(50).rank(pct=True),
    "rolling_median": lambda frame: frame["close"] / frame["close"].rolling(15).median() - 1.0,
    "filled_forward": lambda frame: frame["sentiment"].ffill().fillna(0.0),
    "rsi": lambda frame: talib.RSI(frame["close"].to_numpy(), 14),
    "macd": lambda frame: talib.MACD(frame["close"].to_numpy())[2],
    "average_true_range": lambda frame: talib.ATR(*(frame[name].to_numpy() for name in PRICES[1:]), 14),
    "engulfing": lambda frame: talib.CDLENGULFING(*(frame[name].to_numpy() for name in PRICES)),
    "seeded_by_bar": lambda frame: [np.random.default_rng(int(stamp)).normal() for stamp in frame["opened_us"]],
    "seeded_draw": lambda frame: np.random.default_rng(7).normal(size=len(frame)),
    "hour_of_day": lambda frame: np.where(frame.index.hour < 8, 1.0, -1.0),
    "day_so_far": lambda frame: frame["close"] / frame["close"].groupby(frame.index.date).cummax(),
    "drawdown_so_far": lambda frame: frame["close"] / frame["close"].cummax() - 1.0,
    "headline_count": lambda frame: frame["headline"].notna().rolling(10).sum(),
    "constant": lambda frame: np.ones(len(frame)),
    "two_columns": lambda frame: pd.DataFrame({"long": momentum(frame), "short": -momentum(frame)}),
    "top_of_the_channel": lambda frame: np.sign(frame["close"] - frame["high"].rolling(20).max().shift(1)),
    "filtered_forwards": lambda frame: lfilter(*butter(2, 0.1), returns(frame).fillna(0.0)),
    "hours_of_a_city": lambda frame: (frame.index.tz_convert("Europe/Berlin").hour < 12).astype(float),
    "spread_over_jobs": lambda frame: Parallel(n_jobs=1)([delayed(returns)(frame), delayed(len)(frame)])[0],
    "weighted_by_a_cached_line": lambda frame: (
        frame["close"].rolling(10).apply(lambda part: part @ _line(10), raw=True)
    ),
    **by_name(momentum, bollinger, stateful_loop, hour_before, body_once_it_was_known, walk_forward_model),
    **by_name(last_sentiment, high_of_yesterday),
}
"""Signals that do not look ahead, by name."""
