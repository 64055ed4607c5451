"""Signals that look ahead, and clean ones, for tests of the look-ahead check."""

import functools
from collections.abc import Callable
from typing import Any

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


# Leaks


def next_return(frame: pd.DataFrame) -> pd.Series:
    return returns(frame).shift(-1)


def sign_of_next_return(frame: pd.DataFrame) -> pd.Series:
    return np.sign(returns(frame).shift(-1)).fillna(0.0)


def three_bars_ahead(frame: pd.DataFrame) -> pd.Series:
    return frame["close"].rolling(5).mean().shift(-3)


def off_by_one_slice(frame: pd.DataFrame) -> np.ndarray:
    values = returns(frame).to_numpy()
    return np.append(values[1:], 0.0)


def centred_mean(frame: pd.DataFrame) -> pd.Series:
    return frame["close"] - frame["close"].rolling(11, center=True).mean()


def smoothed_both_ways(frame: pd.DataFrame) -> np.ndarray:
    return np.convolve(returns(frame).fillna(0.0), np.ones(7) / 7, mode="same")


def local_peaks(frame: pd.DataFrame) -> pd.Series:
    close = frame["close"]
    return ((close > close.shift(1)) & (close > close.shift(-1))).astype(float)


def standardised(frame: pd.DataFrame) -> pd.Series:
    close = frame["close"]
    return (close - close.mean()) / close.std()


def scaled_to_extremes(frame: pd.DataFrame) -> pd.Series:
    low, high = frame["low"].min(), frame["high"].max()
    return (frame["close"] - low) / (high - low)


def scaler_of_all(frame: pd.DataFrame) -> np.ndarray:
    return StandardScaler().fit_transform(returns(frame).fillna(0.0).to_numpy()[:, None])[:, 0]


def over_the_last_close(frame: pd.DataFrame) -> pd.Series:
    return frame["close"] / frame["close"].iloc[-1]


def ranked_in_all(frame: pd.DataFrame) -> pd.Series:
    return returns(frame).rank(pct=True)


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


def threshold_of_all(frame: pd.DataFrame) -> pd.Series:
    return (returns(frame) > returns(frame).quantile(0.9)).astype(float)


def reversed_window(frame: pd.DataFrame) -> np.ndarray:
    return frame["close"][::-1].rolling(5).mean()[::-1].to_numpy()


def warm_up_filled_back(frame: pd.DataFrame) -> pd.Series:
    return frame["close"].rolling(20).mean().bfill()


def gaps_filled_back(frame: pd.DataFrame) -> pd.Series:
    return frame["sentiment"].bfill()


def gaps_interpolated(frame: pd.DataFrame) -> pd.Series:
    return frame["sentiment"].interpolate()


def gaps_filled_with_the_mean(frame: pd.DataFrame) -> pd.Series:
    return frame["volume"].fillna(frame["volume"].mean())


def hour_labelled_by_its_start(frame: pd.DataFrame) -> pd.Series:
    hourly = frame["close"].resample("1h", label="left", closed="right").last()
    return hourly.reindex(frame.index, method="ffill")


def hour_labelled_by_its_end_filled_back(frame: pd.DataFrame) -> pd.Series:
    hourly = frame["close"].resample("1h", label="right", closed="right").last()
    return hourly.reindex(frame.index, method="bfill")


def mean_of_the_whole_day(frame: pd.DataFrame) -> pd.Series:
    return frame["close"] / frame["close"].groupby(frame.index.date).transform("mean")


def high_of_the_hour(frame: pd.DataFrame) -> pd.Series:
    hour = (frame["opened_us"] // (4 * STEP_US)).to_numpy()
    return frame["high"].groupby(hour).transform("max") - frame["close"]


def length_of_a_late_body(frame: pd.DataFrame) -> pd.Series:
    return frame["body"].fillna("").str.len().astype(float).ewm(span=10).mean()


def long_until_the_top(frame: pd.DataFrame) -> np.ndarray:
    return (np.arange(len(frame)) < int(np.argmax(frame["close"]))).astype(float)


def towards_the_last_close(frame: pd.DataFrame) -> pd.Series:
    return np.sign(frame["close"].iloc[-1] - frame["close"])


def highest_yet_to_come(frame: pd.DataFrame) -> pd.Series:
    return frame["close"][::-1].cummax()[::-1] / frame["close"] - 1.0


def exponential_mean_from_the_end(frame: pd.DataFrame) -> pd.Series:
    return frame["close"][::-1].ewm(span=5).mean()[::-1]


def filtered_both_ways(frame: pd.DataFrame) -> np.ndarray:
    return filtfilt(*butter(2, 0.1), np.log(frame["close"].to_numpy()))


def next_sentiment(frame: pd.DataFrame) -> np.ndarray:
    known = frame.dropna(subset=["sentiment"])[["sentiment"]]
    options = {"left_index": True, "right_index": True, "direction": "forward"}
    return pd.merge_asof(frame[["close"]], known, **options)["sentiment"].to_numpy()


def rolled_volume(frame: pd.DataFrame) -> np.ndarray:
    return np.roll(frame["volume"].to_numpy(), -1)


def best_lookback_of_all(frame: pd.DataFrame) -> pd.Series:
    change = returns(frame).fillna(0.0)
    gains = {bars: float((np.sign(frame["close"].diff(bars)).shift(1) * change).sum()) for bars in (5, 10, 20, 40)}
    return np.sign(frame["close"].diff(max(gains, key=gains.__getitem__)))


def components_of_all(frame: pd.DataFrame) -> np.ndarray:
    parts = [returns(frame).fillna(0.0), frame["high"] / frame["low"] - 1.0, frame["close"] / frame["open"] - 1.0]
    away = np.stack(parts, axis=1) - np.mean(parts, axis=1)
    return away @ np.linalg.svd(away, full_matrices=False)[2][0]


def hours_to_the_end(frame: pd.DataFrame) -> np.ndarray:
    return ((frame.index[-1] - frame.index) / pd.Timedelta("1h")).to_numpy()


def rare_by_the_spread_of_all(frame: pd.DataFrame) -> pd.Series:
    return (returns(frame).abs() > 4.0 * returns(frame).std()).astype(float)  # no bar is: a calm future shows it


LEAKS: tuple[Signal, ...] = (
    *(long_until_the_top, towards_the_last_close, highest_yet_to_come, exponential_mean_from_the_end),
    *(filtered_both_ways, next_sentiment, rolled_volume, best_lookback_of_all, components_of_all, hours_to_the_end),
    *(rare_by_the_spread_of_all, next_return, sign_of_next_return, three_bars_ahead, off_by_one_slice),
    *(reversed_window, centred_mean, smoothed_both_ways, local_peaks, standardised, scaled_to_extremes),
    *(scaler_of_all, over_the_last_close, ranked_in_all, trend_of_all, model_of_all, fourier_filter),
    *(threshold_of_all, warm_up_filled_back, gaps_filled_back, gaps_interpolated, gaps_filled_with_the_mean),
    *(hour_labelled_by_its_start, hour_labelled_by_its_end_filled_back, mean_of_the_whole_day, high_of_the_hour),
    length_of_a_late_body,
)
"""Signals that look ahead."""


# Clean signals


def momentum(frame: pd.DataFrame) -> pd.Series:
    return np.sign(frame["close"].pct_change(10))


def moving_average_cross(frame: pd.DataFrame) -> pd.Series:
    return (frame["close"].rolling(5).mean() > frame["close"].rolling(20).mean()).astype(float)


def rolling_z_score(frame: pd.DataFrame) -> pd.Series:
    window = frame["close"].rolling(30)
    return (frame["close"] - window.mean()) / window.std()


def exponential_mean(frame: pd.DataFrame) -> pd.Series:
    return frame["close"].ewm(span=12).mean() - frame["close"].ewm(span=26, adjust=False).mean()


def expanding_z_score(frame: pd.DataFrame) -> pd.Series:
    return (returns(frame) - returns(frame).expanding(20).mean()) / returns(frame).expanding(20).std()


def expanding_quantile(frame: pd.DataFrame) -> pd.Series:
    return (returns(frame) > returns(frame).expanding(20).quantile(0.9)).astype(float)


def rolling_rank(frame: pd.DataFrame) -> pd.Series:
    return returns(frame).rolling(50).rank(pct=True)


def rolling_median(frame: pd.DataFrame) -> pd.Series:
    return frame["close"] / frame["close"].rolling(15).median() - 1.0


def filled_forward(frame: pd.DataFrame) -> pd.Series:
    return frame["sentiment"].ffill().fillna(0.0)


def rsi(frame: pd.DataFrame) -> np.ndarray:
    return talib.RSI(frame["close"].to_numpy(), 14)


def macd(frame: pd.DataFrame) -> np.ndarray:
    return talib.MACD(frame["close"].to_numpy())[2]


def bollinger(frame: pd.DataFrame) -> np.ndarray:
    upper, _, lower = talib.BBANDS(frame["close"].to_numpy(), 20)
    return (frame["close"].to_numpy() - lower) / (upper - lower)


def average_true_range(frame: pd.DataFrame) -> np.ndarray:
    return talib.ATR(*(frame[name].to_numpy() for name in ("high", "low", "close")), 14)


def engulfing(frame: pd.DataFrame) -> np.ndarray:
    return talib.CDLENGULFING(*(frame[name].to_numpy() for name in ("open", "high", "low", "close")))


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


def seeded_by_bar(frame: pd.DataFrame) -> np.ndarray:
    return np.array([np.random.default_rng(int(stamp)).normal() for stamp in frame["opened_us"]])


def seeded_draw(frame: pd.DataFrame) -> np.ndarray:
    return np.random.default_rng(7).normal(size=len(frame))


def hour_of_day(frame: pd.DataFrame) -> np.ndarray:
    return np.where(frame.index.hour < 8, 1.0, -1.0)


def hour_before(frame: pd.DataFrame) -> pd.Series:
    hourly = frame["close"].resample("1h", label="right", closed="right").last()
    whole = hourly[hourly.index <= frame.index[-1]]
    return whole.reindex(frame.index, method="ffill")


def day_so_far(frame: pd.DataFrame) -> pd.Series:
    return frame["close"] / frame["close"].groupby(frame.index.date).cummax()


def drawdown_so_far(frame: pd.DataFrame) -> pd.Series:
    return frame["close"] / frame["close"].cummax() - 1.0


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


def headline_count(frame: pd.DataFrame) -> pd.Series:
    return frame["headline"].notna().rolling(10).sum()


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


def constant(frame: pd.DataFrame) -> np.ndarray:
    return np.ones(len(frame))


def two_columns(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"long": momentum(frame), "short": -momentum(frame)})


def middle_of_the_channel(frame: pd.DataFrame) -> pd.Series:
    return np.sign(frame["close"] - (frame["high"].rolling(20).max() + frame["low"].rolling(20).min()).shift(1) / 2.0)


def last_sentiment(frame: pd.DataFrame) -> np.ndarray:
    known = frame.dropna(subset=["sentiment"])[["sentiment"]]
    return pd.merge_asof(frame[["close"]], known, left_index=True, right_index=True)["sentiment"].to_numpy()


def filtered_forwards(frame: pd.DataFrame) -> np.ndarray:
    return lfilter(*butter(2, 0.1), returns(frame).fillna(0.0))


def high_of_yesterday(frame: pd.DataFrame) -> np.ndarray:
    days = frame.index.floor("D")
    return frame["close"].to_numpy() / days.map(frame["high"].groupby(days).max().shift(1)).to_numpy()


def hours_of_a_city(frame: pd.DataFrame) -> np.ndarray:
    return (frame.index.tz_convert("Europe/Berlin").hour < 12).astype(float)


def spread_over_jobs(frame: pd.DataFrame) -> pd.Series:
    return Parallel(n_jobs=1)([delayed(returns)(frame), delayed(len)(frame)])[0]


@functools.cache
def _line(bars: int) -> np.ndarray:
    return np.arange(1, bars + 1) / bars


def weighted_by_a_cached_line(frame: pd.DataFrame) -> pd.Series:
    return frame["close"].rolling(10).apply(lambda part: float((part * _line(10)).sum()), raw=True)


CLEAN: tuple[Signal, ...] = (
    *(middle_of_the_channel, last_sentiment, filtered_forwards, high_of_yesterday, hours_of_a_city),
    *(spread_over_jobs, weighted_by_a_cached_line),
    *(momentum, moving_average_cross, rolling_z_score, exponential_mean, expanding_z_score, expanding_quantile),
    *(rolling_rank, rolling_median, filled_forward, rsi, macd, bollinger, average_true_range, engulfing),
    *(stateful_loop, seeded_by_bar, seeded_draw, hour_of_day, hour_before, day_so_far, drawdown_so_far),
    *(body_once_it_was_known, headline_count, walk_forward_model, constant, two_columns),
)
"""Signals that do not look ahead."""
