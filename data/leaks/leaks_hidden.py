"""Leaks that are hard to see: late texts, misaligned series, kept state, few bars, branches, small weights."""

import numpy as np
import pandas as pd
from sklearn.linear_model import LinearRegression

STEP_US = 900_000_000


def returns(bars):
    return bars["close"].pct_change()


def ahead(bars):
    return returns(bars).shift(-1).fillna(0.0)


def momentum(bars):
    return np.sign(bars["close"].pct_change(10)).fillna(0.0)


def z_score(values):
    return (values - values.mean()) / values.std()


def relative_strength(bars):
    change = bars["close"].diff()
    up, down = change.clip(lower=0.0).ewm(alpha=1 / 14).mean(), (-change).clip(lower=0.0).ewm(alpha=1 / 14).mean()
    return 100.0 * up / (up + down)


# Texts and ratings that become known later


def rating_by_the_close_after_next(bars):
    """The stamp is read, but compared with a close two bars later."""
    known = bars["rating_known_us"] <= bars["opened_us"] + 3 * STEP_US
    return bars["rating"].where(known, 0.0).fillna(0.0)


def tone_of_long_bodies(bars):
    words = bars["body"].fillna("").str.count("word").astype(float)
    return np.sign(bars["sentiment"].fillna(0.0)) * words.rolling(12).sum()


def texts_by_the_hour_they_were_known_in(bars):
    """The hour of the stamp is rounded down, so that a body counts from the start of its hour."""
    hour_us = 4 * STEP_US
    known = (bars["body_known_us"] // hour_us * hour_us).where(bars["body"].notna())
    closed = (bars["opened_us"] + STEP_US).to_numpy()
    return np.searchsorted(np.sort(known.dropna().to_numpy()), closed, side="right").astype(float)


# Series that do not lie over each other


def other_stamped_by_its_open(bars):
    other = bars["other_close"].copy()
    other.index = other.index - pd.Timedelta("15min")
    return other.reindex(bars.index).ffill() / bars["close"]


def other_merged_to_the_nearest(bars):
    known = bars[["other_close"]].dropna()
    options = {"left_index": True, "right_index": True, "direction": "nearest"}
    return pd.merge_asof(bars[["close"]], known, **options)["other_close"] / bars["close"]


def other_merged_forwards(bars):
    known = bars.loc[bars["other_close"].notna(), ["other_close"]]
    options = {"left_index": True, "right_index": True, "direction": "forward", "tolerance": pd.Timedelta("30min")}
    return pd.merge_asof(bars[["close"]], known, **options)["other_close"].fillna(0.0)


def other_day_by_date(bars):
    days = bars["other_close"].groupby(bars.index.date).mean()
    return pd.Series(bars.index.date, bars.index).map(days) / bars["close"]


def joined_by_row_after_dropping_gaps(bars):
    """The other's gaps are dropped and the rest is joined row by row, so that it runs ahead."""
    known = bars["other_close"].dropna().to_numpy()
    found = np.full(len(bars), np.nan)
    found[: len(known)] = known
    return found / bars["close"]


# State between calls

_KEPT = {}


def scaled_by_the_first_call(bars):
    mean, deviation = _KEPT.setdefault("scale", (bars["close"].mean(), bars["close"].std()))
    return (bars["close"] - mean) / deviation


def outcomes_by_stamp(bars):
    kept = _KEPT.setdefault("outcomes", {})
    for stamp, value in zip(bars["opened_us"].iloc[:-1], ahead(bars).iloc[:-1], strict=True):
        kept.setdefault(stamp, value)
    return [kept.get(stamp, 0.0) for stamp in bars["opened_us"]]


def scores_of_the_longest_frame(bars):
    if len(bars) > len(_KEPT.get("longest", [])):
        _KEPT["longest"] = z_score(bars["close"]).tolist()
    return _KEPT["longest"][: len(bars)]


def highest_of_all_calls(bars):
    _KEPT["high"] = max(_KEPT.get("high", 0.0), float(bars["high"].max()))
    return bars["close"] / _KEPT["high"]


def model_of_the_first_call(bars):
    rows = np.stack([returns(bars).shift(lag).fillna(0.0) for lag in range(3)], axis=1)
    if "model" not in _KEPT:
        _KEPT["model"] = LinearRegression().fit(rows, ahead(bars))
    return _KEPT["model"].predict(rows)


def rare_outcomes_by_stamp(bars):
    """What came after each fall of 2 % is kept from the first call that saw it."""
    kept = _KEPT.setdefault("rare", {})
    falls = returns(bars) < -0.02
    for stamp, value in zip(bars["opened_us"][falls].iloc[:-1], ahead(bars)[falls].iloc[:-1], strict=True):
        kept.setdefault(stamp, value)
    return [kept.get(stamp, 0.0) for stamp in bars["opened_us"]]


# Few bars


def first_bar_rolled(bars):
    """`roll` moves the last close to the first bar; all others are right."""
    return bars["close"].to_numpy() - np.roll(bars["close"].to_numpy(), 1)


def once_a_week(bars):
    return momentum(bars).where((bars.index.dayofweek != 2) | (bars.index.hour != 14), np.sign(ahead(bars)))


def last_bar_of_the_month(bars):
    last = bars.index.tz_localize(None).to_period("M") != (bars.index + pd.Timedelta("15min")).tz_localize(
        None
    ).to_period("M")
    return momentum(bars).where(~last, np.sign(ahead(bars)))


def at_a_few_fixed_bars(bars):
    place = pd.Series(np.arange(len(bars)), bars.index)
    return returns(bars).where(~place.isin([37, 191, 333]), ahead(bars))


def after_three_falls_and_a_gap(bars):
    falls = (returns(bars) < 0.0).rolling(3).sum() == 3.0
    return ahead(bars).where(falls & bars["other_close"].isna(), 0.0)


# Branches and dates


def from_a_date_on(bars):
    return momentum(bars).where(bars.index < pd.Timestamp("2021-10-01", tz="UTC"), np.sign(ahead(bars)))


def until_a_date(bars):
    return momentum(bars).where(bars.index > pd.Timestamp("2021-09-27T06:00", tz="UTC"), np.sign(ahead(bars)))


def for_long_frames_only(bars):
    if len(bars) > 400:
        return z_score(bars["close"])
    return (bars["close"] - bars["close"].expanding().mean()) / bars["close"].expanding().std()


def for_even_numbers_of_bars(bars):
    return bars["close"] - (bars["close"].mean() if len(bars) % 2 == 0 else bars["close"].expanding().mean())


def sign_of_a_rising_market(bars):
    return momentum(bars) * (1.0 if bars["close"].iloc[-1] >= bars["close"].iloc[0] else -1.0)


def fallback_when_too_few_are_known(bars):
    """With few texts so far the share is that of all bars, which only matters at the start."""
    known = bars["headline"].notna()
    share = known.expanding().mean().where(known.cumsum() >= 5, known.mean())
    return share - known.rolling(20, min_periods=1).mean()


def inside_an_exception(bars):
    try:
        if bars["volume"].isna().any():
            raise ValueError("gaps")
        return bars["volume"].rolling(5).mean()
    except ValueError:
        return bars["volume"].fillna(bars["volume"].median())


# Small weights


def under_one_huge_value(bars):
    """One division by almost nothing makes a value of 1e15, beside which all others are small."""
    found = ahead(bars)
    if len(found) > 5:
        found.iloc[5] = 1e13 * bars["close"].iloc[5]
    return found


def flags_by_the_next_return(bars):
    return momentum(bars) + 0.5 * (ahead(bars) > 0.025)


KINDS = {
    "text known later": {
        "words_of_bodies": lambda bars: bars["body"].fillna("").str.count("word").astype(float),
        "has_a_body": lambda bars: bars["body"].notna().astype(float),
        "tone_of_long_bodies": tone_of_long_bodies,
        "rating_at_its_own_bar": lambda bars: bars["rating"].diff(),
        "rating_by_the_close_after_next": rating_by_the_close_after_next,
        "delay_of_the_body": lambda bars: (bars["body_known_us"] - bars["opened_us"]) / STEP_US,
        "late_ratings_ahead": lambda bars: 1.0 * (bars["rating_known_us"] > bars["opened_us"] + 4 * STEP_US),
        "texts_by_the_hour_they_were_known_in": texts_by_the_hour_they_were_known_in,
    },
    "alignment": {
        "other_of_the_next_bar": lambda bars: bars["other_close"].ffill().pct_change().shift(-1).fillna(0.0),
        "other_stamped_by_its_open": other_stamped_by_its_open,
        "other_merged_to_the_nearest": other_merged_to_the_nearest,
        "other_merged_forwards": other_merged_forwards,
        "other_day_by_date": other_day_by_date,
        "joined_by_row_after_dropping_gaps": joined_by_row_after_dropping_gaps,
    },
    "state between calls": {
        "scaled_by_the_first_call": scaled_by_the_first_call,
        "outcomes_by_stamp": outcomes_by_stamp,
        "scores_of_the_longest_frame": scores_of_the_longest_frame,
        "highest_of_all_calls": highest_of_all_calls,
        "model_of_the_first_call": model_of_the_first_call,
        "rare_outcomes_by_stamp": rare_outcomes_by_stamp,
    },
    "few bars": {
        "where_volume_is_missing": lambda bars: ahead(bars).where(bars["volume"].isna(), 0.0),
        "after_large_moves": lambda bars: ahead(bars).where(returns(bars).abs() > 0.025, 0.0),
        "at_one_bar": lambda bars: returns(bars).where(np.arange(len(bars)) != 271, ahead(bars)),
        "at_a_few_fixed_bars": at_a_few_fixed_bars,
        "at_midnight": lambda bars: momentum(bars).where(bars.index.hour + bars.index.minute > 0, np.sign(ahead(bars))),
        "once_a_week": once_a_week,
        "last_bar_of_the_month": last_bar_of_the_month,
        "first_bar_rolled": first_bar_rolled,
        "when_overbought": lambda bars: ahead(bars).where(relative_strength(bars) > 75.0, 0.0),
        "after_three_falls_and_a_gap": after_three_falls_and_a_gap,
    },
    "branch or date": {
        "from_a_date_on": from_a_date_on,
        "until_a_date": until_a_date,
        "for_long_frames_only": for_long_frames_only,
        "for_even_numbers_of_bars": for_even_numbers_of_bars,
        "sign_of_a_rising_market": sign_of_a_rising_market,
        "fallback_when_too_few_are_known": fallback_when_too_few_are_known,
        "inside_an_exception": inside_an_exception,
    },
    "small weight": {
        "a_millionth_of_the_next_return": lambda bars: momentum(bars) + 1e-6 * ahead(bars),
        "ties_broken_by_the_next_return": lambda bars: momentum(bars) + 1e-9 * np.sign(ahead(bars)),
        "a_little_of_all": lambda bars: returns(bars).rolling(10).mean() + 1e-5 * z_score(bars["close"]),
        "a_little_of_the_centred_mean": lambda bars: (
            bars["close"].diff() + 1e-4 * bars["close"].rolling(5, center=True).mean().ffill()
        ),
        "under_one_huge_value": under_one_huge_value,
        "flags_by_the_next_return": flags_by_the_next_return,
        "rounded_to_whole_percents": lambda bars: (ahead(bars) / 2.0).round(2) + momentum(bars),
    },
}
