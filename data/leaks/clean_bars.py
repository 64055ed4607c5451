"""Signals that do not look ahead although they look so: shifts, windows, filters, gaps, longer frames, rounding."""

import bisect
import math

import numpy as np
import pandas as pd
import talib
from scipy.signal import butter, fftconvolve, lfilter, oaconvolve, savgol_coeffs, sosfilt

STEP_US = 900_000_000
QUARTER = pd.Timedelta("15min")


def returns(bars):
    return bars["close"].pct_change()


def day(bars):
    return (bars.index - QUARTER).date


def lagged(bars, lags=8):
    """Return past returns, [bars, lags], newest first."""
    return np.stack([returns(bars).shift(lag).fillna(0.0) for lag in range(lags)], axis=1)


# Shifts and windows that end at the bar


def last_value_blanked_after_a_roll(bars):
    before = np.roll(bars["close"].to_numpy(), 3)
    before[:3] = np.nan
    return bars["close"].to_numpy() / before - 1.0


def slope_of_each_window(bars):
    price = np.log(bars["close"].to_numpy())
    found = np.full(len(price), np.nan)
    if len(price) >= 12:
        windows = np.lib.stride_tricks.sliding_window_view(price, 12)
        found[11:] = windows @ (np.arange(12) - 5.5) / 143.0
    return found


def outcome_of_earlier_signals(bars):
    """What each sign of momentum earned over the next bar is counted once that bar has closed."""
    sign = np.sign(bars["close"].pct_change(5))
    earned = (sign * returns(bars).shift(-1)).shift(1)
    return sign * np.sign(earned.rolling(50, min_periods=10).mean())


def each_prefix_for_itself(bars):
    close = bars["close"].to_numpy()
    return [float(np.log(close[: bar + 1])[-15:].mean()) for bar in range(len(close))]


# Statistics so far


def welford(bars):
    mean, total, found = 0.0, 0.0, []
    for count, value in enumerate(bars["close"].tolist(), 1):
        step = value - mean
        mean += step / count
        total += step * (value - mean)
        found.append((value - mean) / math.sqrt(total / count) if total > 0.0 else 0.0)
    return found


def median_so_far(bars):
    seen, found = [], []
    for value in bars["close"].tolist():
        bisect.insort(seen, value)
        found.append(value / seen[len(seen) // 2] - 1.0)
    return found


def hour_so_far(bars):
    """The mean return of the same hour on earlier days."""
    return returns(bars).groupby(bars.index.hour).transform(lambda part: part.shift(1).expanding().mean())


def beta_so_far(bars):
    own, other = returns(bars), bars["other_close"].ffill().pct_change()
    return own - own.expanding(30).cov(other) / other.expanding(30).var() * other


def share_of_the_volume_so_far(bars):
    volume = bars["volume"].fillna(0.0)
    return volume / volume.groupby(day(bars)).cumsum().clip(lower=1e-9)


def high_before_the_fall(bars):
    """The index of the highest close so far, as a share of the bars so far."""
    close = bars["close"].to_numpy()
    return [int(np.argmax(close[: bar + 1])) / (bar + 1.0) for bar in range(len(close))]


# Recursive filters


def kalman_level(bars, noise=4.0):
    price, level, spread, found = np.log(bars["close"].to_numpy()), 0.0, 1e3, []
    for value in price:
        spread += 1.0
        gain = spread / (spread + noise)
        level, spread = level + gain * (value - level), (1.0 - gain) * spread
        found.append(value - level)
    return found


def level_and_trend(bars):
    level, trend, found = float(bars["close"].iloc[0]), 0.0, []
    for value in bars["close"]:
        before, level = level, 0.3 * value + 0.7 * (level + trend)
        trend = 0.1 * (level - before) + 0.9 * trend
        found.append(trend)
    return found


def adaptive_mean(bars, window=10):
    close, found = bars["close"].to_numpy(), bars["close"].to_numpy().copy()
    for bar in range(window, len(close)):
        path = np.abs(np.diff(close[bar - window : bar + 1])).sum()
        speed = (abs(close[bar] - close[bar - window]) / path * 0.6 + 0.05) ** 2
        found[bar] = found[bar - 1] + speed * (close[bar] - found[bar - 1])
    return found


def variance_with_fixed_parameters(bars):
    variance, found = 1e-4, []
    for value in returns(bars).fillna(0.0):
        found.append(value / math.sqrt(variance))
        variance = 1e-6 + 0.1 * value * value + 0.88 * variance
    return found


def heikin_ashi(bars):
    mean = bars[["open", "high", "low", "close"]].mean(axis=1).to_numpy()
    opened, found = float(bars["open"].iloc[0]), []
    for value in mean:
        found.append(np.sign(value - opened))
        opened = (opened + value) / 2.0
    return found


def trailing_stop(bars):
    side, stop, found = 1, 0.0, []
    distance = talib.ATR(*(bars[name].to_numpy() for name in ("high", "low", "close")), 10)
    for price, away in zip(bars["close"].tolist(), (3.0 * np.nan_to_num(distance)).tolist(), strict=True):
        stop = max(stop, price - away) if side > 0 else min(stop, price + away)
        if side * (price - stop) < 0.0:
            side, stop = -side, price + side * away
        found.append(side)
    return found


def zigzag_once_confirmed(bars, move=0.03):
    """The direction changes at the bar that confirms a pivot, not at the pivot."""
    pivot, direction, found = float(bars["close"].iloc[0]), 1, []
    for price in bars["close"].tolist():
        if direction * (price - pivot) > 0.0:
            pivot = price
        elif direction * (pivot / price - 1.0) > move:
            pivot, direction = price, -direction
        found.append(direction)
    return found


def savitzky_golay_at_the_end(bars):
    return np.convolve(np.log(bars["close"].to_numpy()), savgol_coeffs(9, 2, pos=8))[: len(bars)]


# Gaps


def bars_since_a_known_volume(bars):
    known = bars["volume"].notna()
    return (~known).groupby(known.cumsum()).cumsum().astype(float)


def gaps_dropped_and_filled_forwards(bars):
    known = bars["sentiment"].dropna().ewm(span=6).mean()
    return known.reindex(bars.index).ffill(limit=8).fillna(0.0)


def line_through_the_last_two_known(bars):
    """A gap is filled by going on along the line through the last two known values."""
    before, last, since, found = math.nan, math.nan, 0, []
    for value in bars["other_close"].tolist():
        if math.isnan(value):
            since += 1
            found.append(last + (last - before) * since)
        else:
            before, last, since = last, value, 0
            found.append(value)
    return found


# Closed bars of a longer frame


def hours_that_have_closed(bars):
    hours = bars["close"].resample("4h", label="right", closed="right").agg(["first", "last"])
    closed = hours[hours.index <= bars.index[-1]]
    return (closed["last"] / closed["first"]).reindex(bars.index, method="ffill")


def yesterdays_range(bars):
    days = bars.groupby(day(bars)).agg({"high": "max", "low": "min"}).shift(1)
    return (pd.Series(day(bars), bars.index).map(days["high"]) - bars["close"]).fillna(0.0)


def hour_before_by_its_start(bars):
    """Hours are labelled by their start, and shifted by one before they are used."""
    hours = bars["close"].resample("1h", label="left", closed="right").last().shift(1)
    place = (bars.index - pd.Timedelta("1us")).floor("h")
    return hours.reindex(place).to_numpy()


def day_summed_up_when_it_ends(bars):
    total, last, found = 0.0, 0.0, []
    stamps = bars.index
    for stamp, value in zip(stamps, returns(bars).fillna(0.0).tolist(), strict=True):
        total += value
        if stamp.hour == 0 and stamp.minute == 0:
            last, total = total, 0.0
        found.append(last)
    return found


def first_bar_of_the_day(bars):
    return bars["close"] / bars["open"].groupby(day(bars)).transform("first") - 1.0


# Rounding


def means_from_the_other_end(bars):
    """A window that runs from the end, moved forwards: equal to a rolling mean, except for rounding."""
    return bars["close"] - bars["close"][::-1].rolling(5).mean()[::-1].shift(4)


def over_and_times_the_number_of_bars(bars):
    return bars["close"].diff() / len(bars) * len(bars)


def sums_from_differences_of_sums(bars):
    sums = np.cumsum(returns(bars).fillna(0.0).to_numpy())
    return np.append(sums[:20], sums[20:] - sums[:-20]) if len(sums) > 20 else sums


def matrix_in_single_precision(bars):
    weights = np.linspace(1.0, -1.0, 8, dtype=np.float32)
    return (lagged(bars).astype(np.float32) @ weights).astype(float)


def window_summed_in_blocks(bars):
    """Sums of blocks whose borders depend on the number of bars."""
    price = np.log(bars["close"].to_numpy())
    start = len(price) % 7
    sums = np.concatenate([np.cumsum(price[:start]), np.cumsum(price[start:]) + price[:start].sum()])
    return sums / np.arange(1, len(price) + 1)


KINDS = {
    "shift forwards": {
        "centred_mean_moved_forwards": lambda bars: (
            bars["close"] - bars["close"].rolling(11, center=True).mean().shift(5)
        ),
        "there_and_back": lambda bars: bars["close"].shift(-3).shift(3) / bars["close"].shift(6) - 1.0,
        "moved_by_time": lambda bars: bars["close"] / bars["close"].shift(freq="30min").reindex(bars.index) - 1.0,
        "outcome_of_earlier_signals": outcome_of_earlier_signals,
        "last_value_blanked_after_a_roll": last_value_blanked_after_a_roll,
        "slope_of_each_window": slope_of_each_window,
        "each_prefix_for_itself": each_prefix_for_itself,
        "negative_difference_moved": lambda bars: -bars["close"].diff(-2).shift(2),
    },
    "so far": {
        "rank_so_far": lambda bars: returns(bars).expanding().rank(pct=True),
        "over_the_first_close": lambda bars: np.log(bars["close"] / bars["close"].iloc[0]),
        "clipped_at_quantiles_so_far": lambda bars: returns(bars).clip(upper=returns(bars).expanding(20).quantile(0.9)),
        "mean_from_sums": lambda bars: bars["close"].cumsum() / np.arange(1, len(bars) + 1) - bars["close"],
        "largest_so_far": lambda bars: returns(bars) / returns(bars).abs().cummax(),
        "welford": welford,
        "median_so_far": median_so_far,
        "hour_so_far": hour_so_far,
        "beta_so_far": beta_so_far,
        "share_of_the_volume_so_far": share_of_the_volume_so_far,
        "high_before_the_fall": high_before_the_fall,
    },
    "recursive filter": {
        "butterworth_forwards": lambda bars: sosfilt(butter(3, 0.2, output="sos"), returns(bars).fillna(0.0)),
        "all_pole_filter": lambda bars: lfilter([0.1], [1.0, -1.6, 0.7], returns(bars).fillna(0.0)),
        "decay_by_time": lambda bars: bars["close"].ewm(halflife="2h", times=bars.index).mean(),
        "parabolic_stop": lambda bars: talib.SAR(bars["high"].to_numpy(), bars["low"].to_numpy()),
        "dominant_cycle": lambda bars: talib.HT_DCPERIOD(bars["close"].to_numpy()),
        "kaufman_of_talib": lambda bars: talib.KAMA(bars["close"].to_numpy(), 20),
        "stochastic_strength": lambda bars: talib.STOCHRSI(bars["close"].to_numpy())[0],
        "kalman_level": kalman_level,
        "level_and_trend": level_and_trend,
        "adaptive_mean": adaptive_mean,
        "variance_with_fixed_parameters": variance_with_fixed_parameters,
        "heikin_ashi": heikin_ashi,
        "trailing_stop": trailing_stop,
        "zigzag_once_confirmed": zigzag_once_confirmed,
        "savitzky_golay_at_the_end": savitzky_golay_at_the_end,
    },
    "gaps": {
        "filled_by_the_mean_so_far": lambda bars: bars["sentiment"].fillna(bars["sentiment"].expanding().mean()),
        "other_filled_forwards": lambda bars: bars["other_close"].ffill().pct_change(4),
        "few_known_are_enough": lambda bars: bars["sentiment"].rolling(20, min_periods=2).mean(),
        "gap_as_a_signal": lambda bars: 1.0 * bars["volume"].isna() - bars["volume"].isna().rolling(30).mean(),
        "bars_since_a_known_volume": bars_since_a_known_volume,
        "gaps_dropped_and_filled_forwards": gaps_dropped_and_filled_forwards,
        "line_through_the_last_two_known": line_through_the_last_two_known,
    },
    "closed bars only": {
        "hours_that_have_closed": hours_that_have_closed,
        "yesterdays_range": yesterdays_range,
        "hour_before_by_its_start": hour_before_by_its_start,
        "day_summed_up_when_it_ends": day_summed_up_when_it_ends,
        "first_bar_of_the_day": first_bar_of_the_day,
        "high_of_the_day_so_far": lambda bars: bars["high"].groupby(day(bars)).cummax() - bars["close"],
    },
    "rounding": {
        "convolved_by_fourier": lambda bars: fftconvolve(returns(bars).fillna(0.0), np.ones(12) / 12)[: len(bars)],
        "convolved_in_blocks": lambda bars: oaconvolve(np.log(bars["close"]), np.ones(10) / 10)[: len(bars)],
        "matrix_times_weights": lambda bars: lagged(bars) @ np.linspace(1.0, -1.0, 8),
        "exponential_of_a_logarithm": lambda bars: np.expm1(np.log(bars["close"]).diff().fillna(0.0)),
        "means_from_the_other_end": means_from_the_other_end,
        "over_and_times_the_number_of_bars": over_and_times_the_number_of_bars,
        "sums_from_differences_of_sums": sums_from_differences_of_sums,
        "matrix_in_single_precision": matrix_in_single_precision,
        "window_summed_in_blocks": window_summed_in_blocks,
        "products_of_sums": lambda bars: np.einsum("bl,l->b", lagged(bars), np.arange(8.0)) * bars["close"].to_numpy(),
    },
    "calendar": {
        "hour_on_a_circle": lambda bars: np.sin(2.0 * np.pi * bars.index.hour / 24.0),
        "minutes_left_in_the_day": lambda bars: 1440.0 - bars.index.hour * 60.0 - bars.index.minute,
        "end_of_the_month": lambda bars: bars.index.is_month_end.astype(float),
        "days_since_the_first_bar": lambda bars: (bars["opened_us"] - bars["opened_us"].iloc[0]) / 8.64e10,
    },
}
