"""The signals that look ahead with which the audit was first written; all are in the development part."""

import numpy as np
import pandas as pd
from scipy.signal import butter, filtfilt
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler


def returns(frame):
    """Return the return of each bar since the one before."""
    return frame["close"].pct_change()


def hourly_closes(frame, label="right"):
    """Return the last close of each hour, labelled by the start or the end of the hour."""
    return frame["close"].resample("1h", label=label, closed="right").last()


def next_return(frame):
    return returns(frame).shift(-1)


def local_peaks(frame):
    close = frame["close"]
    return ((close > close.shift(1)) & (close > close.shift(-1))).astype(float)


def trend_of_all(frame):
    place = np.arange(len(frame))
    slope, height = np.polyfit(place, frame["close"], 1)
    return frame["close"].to_numpy() - slope * place - height


def model_of_all(frame):
    past = np.stack([returns(frame).shift(lag).fillna(0.0) for lag in range(3)], axis=1)
    outcome = returns(frame).shift(-1).fillna(0.0)
    return LinearRegression().fit(past, outcome).predict(past)


def fourier_filter(frame):
    spectrum = np.fft.rfft(np.log(frame["close"]))
    spectrum[len(spectrum) // 8 :] = 0.0
    return np.fft.irfft(spectrum, len(frame))


def next_sentiment(frame):
    known = frame.dropna(subset=["sentiment"])[["sentiment"]]
    options = {"left_index": True, "right_index": True, "direction": "forward"}
    return pd.merge_asof(frame[["close"]], known, **options)["sentiment"].to_numpy()


def best_lookback_of_all(frame):
    change = returns(frame).fillna(0.0)
    gains = {bars: float((np.sign(frame["close"].diff(bars)).shift(1) * change).sum()) for bars in (5, 10, 20, 40)}
    return np.sign(frame["close"].diff(max(gains, key=gains.__getitem__)))


def components_of_all(frame):
    parts = [returns(frame).fillna(0.0), frame["high"] / frame["low"] - 1.0, frame["close"] / frame["open"] - 1.0]
    away = np.stack(parts, axis=1) - np.mean(parts, axis=1)
    return away @ np.linalg.svd(away, full_matrices=False)[2][0]


def next_return_on_one_bar_in_twenty(frame):
    ahead = returns(frame).shift(-1).fillna(0.0)
    return ahead.where(ahead.abs() > 0.02, 0.0)


KINDS = {
    "shift": {
        "sign_of_next_return": lambda frame: np.sign(returns(frame).shift(-1)).fillna(0.0),
        "three_bars_ahead": lambda frame: frame["close"].rolling(5).mean().shift(-3),
        "off_by_one_slice": lambda frame: np.append(returns(frame).to_numpy()[1:], 0.0),
        "reversed_window": lambda frame: frame["close"][::-1].rolling(5).mean()[::-1].to_numpy(),
        "rolled_volume": lambda frame: np.roll(frame["volume"].to_numpy(), -1),
        "next_return": next_return,
        "local_peaks": local_peaks,
        "highest_yet_to_come": lambda frame: frame["close"][::-1].cummax()[::-1] / frame["close"] - 1.0,
    },
    "centred window": {
        "centred_mean": lambda frame: frame["close"] - frame["close"].rolling(11, center=True).mean(),
        "smoothed_both_ways": lambda frame: np.convolve(returns(frame).fillna(0.0), np.ones(7) / 7, mode="same"),
    },
    "filtered both ways": {
        "exponential_mean_from_the_end": lambda frame: frame["close"][::-1].ewm(span=5).mean()[::-1],
        "filtered_both_ways": lambda frame: filtfilt(*butter(2, 0.1), np.log(frame["close"].to_numpy())),
        "fourier_filter": fourier_filter,
    },
    "scaler on all": {
        "scaler_of_all": lambda frame: StandardScaler().fit_transform(returns(frame).fillna(0.0).to_numpy()[:, None])[
            :, 0
        ],
        "standardised": lambda frame: (frame["close"] - frame["close"].mean()) / frame["close"].std(),
        "scaled_to_extremes": lambda frame: (frame["close"] - frame["low"].min()) / np.ptp(frame["high"]),
        "components_of_all": components_of_all,
    },
    "global statistic": {
        "over_the_last_close": lambda frame: frame["close"] / frame["close"].iloc[-1],
        "threshold_of_all": lambda frame: (returns(frame) > returns(frame).quantile(0.9)).astype(float),
        "towards_the_last_close": lambda frame: np.sign(frame["close"].iloc[-1] - frame["close"]),
        # No return is that large; a calm future shows the leak.
        "rare_by_the_spread_of_all": lambda frame: 1.0 * (returns(frame).abs() > 4.0 * returns(frame).std()),
    },
    "order over time": {
        "ranked_in_all": lambda frame: returns(frame).rank(pct=True),
    },
    "resample label": {
        "hour_labelled_by_its_start": lambda frame: hourly_closes(frame, "left").reindex(frame.index, method="ffill"),
        "hour_labelled_by_its_end_filled_back": lambda frame: hourly_closes(frame).reindex(frame.index, method="bfill"),
    },
    "forming bar": {
        "high_of_the_hour": lambda frame: (
            frame["high"].resample("1h", closed="right").transform("max") - frame["close"]
        ),
    },
    "total of the day": {
        "mean_of_the_whole_day": lambda frame: (
            frame["close"] / frame["close"].groupby(frame.index.date).transform("mean")
        ),
    },
    "backfill": {
        "warm_up_filled_back": lambda frame: frame["close"].rolling(20).mean().bfill(),
        "gaps_filled_back": lambda frame: frame["sentiment"].bfill(),
        "gaps_filled_with_the_mean": lambda frame: frame["volume"].fillna(frame["volume"].mean()),
    },
    "interpolation": {
        "gaps_interpolated": lambda frame: frame["sentiment"].interpolate(),
    },
    "alignment": {
        "next_sentiment": next_sentiment,
    },
    "text known later": {
        "length_of_a_late_body": lambda frame: frame["body"].fillna("").str.len().astype(float).ewm(span=10).mean(),
    },
    "extreme of all": {
        "long_until_the_top": lambda frame: (np.arange(len(frame)) < int(np.argmax(frame["close"]))).astype(float),
    },
    "fitted on all": {
        "trend_of_all": trend_of_all,
        "model_of_all": model_of_all,
        "best_lookback_of_all": best_lookback_of_all,
    },
    "branch or date": {
        "hours_to_the_end": lambda frame: ((frame.index[-1] - frame.index) / pd.Timedelta("1h")).to_numpy(),
    },
    "few bars": {
        "next_return_on_one_bar_in_twenty": next_return_on_one_bar_in_twenty,
    },
}
