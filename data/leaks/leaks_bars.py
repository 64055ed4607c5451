"""Signals that look ahead by the way they shift, smooth, fill, resample or rank bars."""

import numpy as np
import pandas as pd
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d
from scipy.signal import butter, find_peaks, hilbert, medfilt, savgol_filter, sosfiltfilt
from statsmodels.nonparametric.smoothers_lowess import lowess
from statsmodels.tsa.filters.hp_filter import hpfilter


def returns(bars):
    return bars["close"].pct_change()


def day(bars):
    return bars.index.date


# Shifts


def mean_of_windows_at_their_start(bars):
    close = bars["close"].to_numpy()
    found = np.full(len(close), np.nan)
    if len(close) >= 4:
        found[:-3] = np.lib.stride_tricks.sliding_window_view(close, 4).mean(axis=1)
    return found


def highest_of_the_next_bars(bars):
    ahead = pd.api.indexers.FixedForwardWindowIndexer(window_size=4)
    return bars["high"].rolling(ahead, min_periods=1).max() / bars["close"]


def return_with_an_index_off_by_one(bars):
    close, found = bars["close"].to_numpy(), np.zeros(len(bars))
    for bar in range(1, len(close)):
        last = min(bar + 1, len(close) - 1)
        found[bar] = close[last] / close[bar - 1] - 1.0
    return found


# Filters that run both ways


def exponential_means_from_both_ends(bars):
    close = bars["close"]
    return (close.ewm(span=10).mean() + close[::-1].ewm(span=10).mean()[::-1]) / 2.0 - close


def kalman_smoother(bars, noise=4.0):
    """A local level, filtered forwards and smoothed backwards (Rauch, Tung and Striebel)."""
    price = np.log(bars["close"].to_numpy())
    level, spread, ahead = np.zeros(len(price)), np.zeros(len(price)), np.zeros(len(price))
    level[0], spread[0] = price[0], noise
    for bar in range(1, len(price)):
        ahead[bar] = spread[bar - 1] + 1.0
        gain = ahead[bar] / (ahead[bar] + noise)
        level[bar] = level[bar - 1] + gain * (price[bar] - level[bar - 1])
        spread[bar] = (1.0 - gain) * ahead[bar]
    for bar in range(len(price) - 2, -1, -1):
        level[bar] += spread[bar] / ahead[bar + 1] * (level[bar + 1] - level[bar])
    return price - level


# Turning points


def zigzag(bars, move=0.03):
    """Mark each pivot at its own bar, although it is confirmed only by a later move of 3 %."""
    close = bars["close"].to_numpy()
    found, pivot, direction = np.zeros(len(close)), 0, 1
    for bar in range(1, len(close)):
        if direction * (close[bar] - close[pivot]) > 0:
            pivot = bar
        elif direction * (close[pivot] / close[bar] - 1.0) > move:
            found[pivot], pivot, direction = direction, bar, -direction
    return found


def one_change_of_the_mean(bars):
    values = returns(bars).fillna(0.0).to_numpy()
    sums, count = np.cumsum(values), np.arange(1, len(values) + 1)
    gain = (sums - count * values.mean()) ** 2 / (count * (len(values) - count + 1.0))
    return (np.arange(len(values)) > int(np.argmax(gain))).astype(float)


def peaks_ten_bars_apart(bars):
    found = np.zeros(len(bars))
    found[find_peaks(bars["close"].to_numpy(), distance=10)[0]] = 1.0
    return found


def inside_the_largest_drawdown(bars):
    close = bars["close"].to_numpy()
    trough = int(np.argmin(close / np.maximum.accumulate(close)))
    top = int(np.argmax(close[: trough + 1]))
    place = np.arange(len(close))
    return ((place >= top) & (place <= trough)).astype(float)


# Gaps


def between_known_volumes(bars):
    known = np.flatnonzero(bars["volume"].notna())
    return np.interp(np.arange(len(bars)), known, bars["volume"].to_numpy()[known])


def spline_through_every_tenth_close(bars):
    place = np.arange(len(bars))
    return CubicSpline(place[::10], bars["close"].to_numpy()[::10])(place)


# Bars of a longer frame


def close_of_its_day(bars):
    return (bars["close"].groupby(day(bars)).transform("last") / bars["close"] - 1.0).to_numpy()


def day_up_or_down(bars):
    days = bars.groupby(day(bars))
    return np.sign(days["close"].transform("last") - days["open"].transform("first"))


def week_from_its_first_bar(bars):
    weeks = bars.index.tz_localize(None).to_period("W")
    return bars["close"].groupby(weeks).transform("max") - bars["close"]


def range_of_two_hours(bars):
    return bars["close"].resample("2h", closed="right").transform(lambda part: part.max() - part.min())


def hours_labelled_by_their_start(bars):
    hours = bars["close"].resample("4h", label="left", closed="right").mean()
    return hours.reindex(bars.index, method="ffill")


def hour_interpolated(bars):
    hours = bars["close"].resample("1h", label="right", closed="right").last()
    return hours.resample("15min").interpolate().reindex(bars.index)


def forming_hour(bars):
    hours = bars["high"].resample("1h", label="right", closed="right").max()
    return hours.reindex(bars.index, method="bfill") / bars["close"] - 1.0


def high_of_the_clock_hour(bars):
    hour = (bars.index - pd.Timedelta("15min")).floor("h")
    return bars["high"].groupby(hour).transform("max") - bars["close"]


# Day's totals


def share_of_the_days_volume(bars):
    return bars["volume"] / bars["volume"].groupby(day(bars)).transform("sum")


def away_from_the_days_average_price(bars):
    paid = (bars["close"] * bars["volume"]).groupby(day(bars)).transform("sum")
    return bars["close"] - paid / bars["volume"].groupby(day(bars)).transform("sum")


def first_known_sentiment_of_the_hour(bars):
    """`first` skips what is missing, so a bar without sentiment gets that of a later bar of its hour."""
    return bars["sentiment"].groupby((bars.index - pd.Timedelta("15min")).floor("h")).transform("first")


KINDS = {
    "shift": {
        "mean_of_the_next_five": lambda bars: returns(bars)[::-1].rolling(5).mean()[::-1].shift(-1),
        "difference_to_the_next": lambda bars: -bars["close"].diff(-1),
        "return_of_the_next_three": lambda bars: -bars["close"].pct_change(-3),
        "next_open_over_close": lambda bars: bars["open"].shift(-1) / bars["close"] - 1.0,
        "shifted_by_time": lambda bars: bars["close"].shift(freq="-15min").reindex(bars.index) / bars["close"],
        "exponential_mean_moved_back": lambda bars: bars["close"].ewm(span=10).mean().shift(-2).ffill(),
        "mean_of_windows_at_their_start": mean_of_windows_at_their_start,
        "highest_of_the_next_bars": highest_of_the_next_bars,
        "return_with_an_index_off_by_one": return_with_an_index_off_by_one,
    },
    "centred window": {
        "gradient": lambda bars: np.gradient(np.log(bars["close"])),
        "savitzky_golay": lambda bars: savgol_filter(bars["close"], 9, 2) - bars["close"],
        "median_of_five": lambda bars: medfilt(bars["close"].to_numpy(), 5) - bars["close"],
        "gaussian_kernel": lambda bars: gaussian_filter1d(np.log(bars["close"].to_numpy()), 3.0),
        "second_difference": lambda bars: np.convolve(np.log(bars["close"]), [1.0, -2.0, 1.0], mode="same"),
        "centred_deviation": lambda bars: bars["volume"].rolling(9, center=True, min_periods=1).std(),
    },
    "filtered both ways": {
        "butterworth_both_ways": lambda bars: sosfiltfilt(butter(2, 0.2, output="sos"), np.log(bars["close"])),
        "hodrick_prescott": lambda bars: hpfilter(np.log(bars["close"]), 1600)[0],
        "phase_of_the_analytic_signal": lambda bars: np.angle(hilbert(returns(bars).fillna(0.0))),
        "lowess": lambda bars: lowess(bars["close"], np.arange(len(bars)), 0.1, return_sorted=False),
        "exponential_means_from_both_ends": exponential_means_from_both_ends,
        "kalman_smoother": kalman_smoother,
    },
    "global statistic": {
        "sentiment_away_from_its_mean": lambda bars: bars["sentiment"] - bars["sentiment"].mean(),
        "volume_above_the_median": lambda bars: 1.0 * (bars["volume"] > bars["volume"].median()),
        "over_the_largest_return": lambda bars: returns(bars) / returns(bars).abs().max(),
        "clipped_at_quantiles_of_all": lambda bars: returns(bars).clip(*returns(bars).quantile([0.02, 0.98])),
        "trend_or_reversal_by_autocorrelation": lambda bars: np.sign(returns(bars).autocorr(1)) * returns(bars),
        "restless_beside_all_bars": lambda bars: 1.0 * (returns(bars).rolling(20).std() > returns(bars).std()),
        "mean_return_of_the_hour": lambda bars: returns(bars).groupby(bars.index.hour).transform("mean"),
        "over_the_mean_of_all_closes": lambda bars: np.log(bars["close"] / bars["close"].mean()),
    },
    "backfill": {
        "one_bar_filled_back": lambda bars: bars["volume"].bfill(limit=1),
        "other_deviation_filled_back": lambda bars: bars["other_close"].ffill().rolling(30).std().ffill().bfill(),
        "gaps_from_the_next_bar": lambda bars: bars["sentiment"].combine_first(bars["sentiment"].shift(-1)),
        "both_ways_by_day": lambda bars: bars["sentiment"].groupby(day(bars)).bfill().fillna(0.0),
    },
    "interpolation": {
        "other_interpolated_by_time": lambda bars: bars["other_close"].interpolate("time") / bars["close"],
        "between_known_volumes": between_known_volumes,
        "spline_through_every_tenth_close": spline_through_every_tenth_close,
        "nearest_sentiment": lambda bars: bars["sentiment"].dropna().reindex(bars.index, method="nearest"),
    },
    "resample label": {
        "hours_labelled_by_their_start": hours_labelled_by_their_start,
        "hour_interpolated": hour_interpolated,
        "range_of_two_hours": range_of_two_hours,
        "close_of_its_day": close_of_its_day,
    },
    "forming bar": {
        "forming_hour": forming_hour,
        "high_of_the_clock_hour": high_of_the_clock_hour,
        "day_up_or_down": day_up_or_down,
        "week_from_its_first_bar": week_from_its_first_bar,
    },
    "total of the day": {
        "share_of_the_days_volume": share_of_the_days_volume,
        "away_from_the_days_average_price": away_from_the_days_average_price,
        "rank_in_the_day": lambda bars: returns(bars).groupby(day(bars)).rank(pct=True),
        "first_known_sentiment_of_the_hour": first_known_sentiment_of_the_hour,
    },
    "order over time": {
        "fifth_of_all_returns": lambda bars: pd.qcut(returns(bars), 5, labels=False, duplicates="drop"),
        "place_in_the_order_of_volumes": lambda bars: np.argsort(np.argsort(bars["volume"].fillna(0.0))),
        "code_of_a_category": lambda bars: bars["sentiment"].round(1).astype("category").cat.codes,
        "ten_largest_returns": lambda bars: 1.0 * returns(bars).isin(returns(bars).nlargest(10)),
        "place_among_all_closes": lambda bars: np.searchsorted(np.sort(bars["close"]), bars["close"]),
        "bins_over_the_range_of_all": lambda bars: pd.cut(bars["close"], 5, labels=False),
    },
    "extreme of all": {
        "short_after_the_top": lambda bars: np.where(np.arange(len(bars)) > np.argmax(bars["high"]), -1.0, 1.0),
        "bars_since_the_low_of_all": lambda bars: np.arange(len(bars)) - int(np.argmin(bars["low"])),
        "at_the_highest_volume": lambda bars: 1.0 * (bars["volume"] == bars["volume"].max()),
        "zigzag": zigzag,
        "one_change_of_the_mean": one_change_of_the_mean,
        "peaks_ten_bars_apart": peaks_ten_bars_apart,
        "inside_the_largest_drawdown": inside_the_largest_drawdown,
    },
}
