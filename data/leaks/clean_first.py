"""The clean signals with which the audit was first written; all are in the development part."""

import functools

import numpy as np
import pandas as pd
import talib
from joblib import Parallel, delayed
from scipy.signal import butter, lfilter
from sklearn.linear_model import LinearRegression

STEP_US = 900_000_000
PRICES = ("open", "high", "low", "close")


def returns(frame):
    """Return the return of each bar since the one before."""
    return frame["close"].pct_change()


def hourly_closes(frame, label="right"):
    """Return the last close of each hour, labelled by the start or the end of the hour."""
    return frame["close"].resample("1h", label=label, closed="right").last()


def momentum(frame):
    return np.sign(frame["close"].pct_change(10))


def bollinger(frame):
    upper, _, lower = talib.BBANDS(frame["close"].to_numpy(), 20)
    return (frame["close"].to_numpy() - lower) / (upper - lower)


def stateful_loop(frame):
    position, entry, found = 0.0, 0.0, []
    for price in frame["close"].tolist():
        if position == 0.0 and entry and price > entry * 1.01:
            position, entry = 1.0, price
        elif position and price < entry * 0.99:
            position, entry = 0.0, price
        entry = entry or price
        found.append(position)
    return found


def hour_before(frame):
    hourly = hourly_closes(frame)
    whole = hourly[hourly.index <= frame.index[-1]]
    return whole.reindex(frame.index, method="ffill")


def body_once_it_was_known(frame):
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


def walk_forward_model(frame):
    past = np.stack([returns(frame).shift(lag).fillna(0.0) for lag in range(3)], axis=1)
    outcome = returns(frame).to_numpy()
    found = np.full(len(frame), np.nan)
    for bar in range(60, len(frame), 40):
        model = LinearRegression().fit(past[2 : bar - 1], outcome[3:bar])
        # One row at a time: products of matrices may be rounded differently by their size.
        rows = past[bar : bar + 40]
        found[bar : bar + 40] = [model.intercept_ + sum(c * x for c, x in zip(model.coef_, row)) for row in rows]  # noqa: B905
    return found


def last_sentiment(frame):
    known = frame.dropna(subset=["sentiment"])[["sentiment"]]
    return pd.merge_asof(frame[["close"]], known, left_index=True, right_index=True)["sentiment"].to_numpy()


def high_of_yesterday(frame):
    days = frame.index.floor("D")
    return frame["close"].to_numpy() / days.map(frame["high"].groupby(days).max().shift(1)).to_numpy()


def z_score(values, window):
    return (values - window.mean()) / window.std()


@functools.cache
def _line(bars):
    return np.arange(1, bars + 1) / bars


KINDS = {
    "shift forwards": {
        "momentum": momentum,
        "top_of_the_channel": lambda frame: np.sign(frame["close"] - frame["high"].rolling(20).max().shift(1)),
    },
    "so far": {
        "expanding_z_score": lambda frame: z_score(returns(frame), returns(frame).expanding(20)),
        "expanding_quantile": lambda frame: (returns(frame) > returns(frame).expanding(20).quantile(0.9)).astype(float),
        "day_so_far": lambda frame: frame["close"] / frame["close"].groupby(frame.index.date).cummax(),
        "drawdown_so_far": lambda frame: frame["close"] / frame["close"].cummax() - 1.0,
    },
    "window": {
        "moving_average_cross": lambda frame: (
            1.0 * (frame["close"].rolling(5).mean() > frame["close"].rolling(20).mean())
        ),
        "rolling_z_score": lambda frame: z_score(frame["close"], frame["close"].rolling(30)),
        "rolling_rank": lambda frame: returns(frame).rolling(50).rank(pct=True),
        "rolling_median": lambda frame: frame["close"] / frame["close"].rolling(15).median() - 1.0,
        "bollinger": bollinger,
        "engulfing": lambda frame: talib.CDLENGULFING(*(frame[name].to_numpy() for name in PRICES)),
        "weighted_by_a_cached_line": lambda frame: (
            frame["close"].rolling(10).apply(lambda part: part @ _line(10), raw=True)
        ),
        "two_columns": lambda frame: pd.DataFrame({"long": momentum(frame), "short": -momentum(frame)}),
        "constant": lambda frame: np.ones(len(frame)),
    },
    "recursive filter": {
        "exponential_mean": lambda frame: frame["close"].ewm(12).mean() - frame["close"].ewm(26, adjust=False).mean(),
        "rsi": lambda frame: talib.RSI(frame["close"].to_numpy(), 14),
        "macd": lambda frame: talib.MACD(frame["close"].to_numpy())[2],
        "average_true_range": lambda frame: talib.ATR(*(frame[name].to_numpy() for name in PRICES[1:]), 14),
        "filtered_forwards": lambda frame: lfilter(*butter(2, 0.1), returns(frame).fillna(0.0)),
    },
    "gaps": {
        "filled_forward": lambda frame: frame["sentiment"].ffill().fillna(0.0),
        "last_sentiment": last_sentiment,
    },
    "chance with a seed": {
        "seeded_by_bar": lambda frame: [np.random.default_rng(int(stamp)).normal() for stamp in frame["opened_us"]],
        "seeded_draw": lambda frame: np.random.default_rng(7).normal(size=len(frame)),
    },
    "calendar": {
        "hour_of_day": lambda frame: np.where(frame.index.hour < 8, 1.0, -1.0),
        "hours_of_a_city": lambda frame: (frame.index.tz_convert("Europe/Berlin").hour < 12).astype(float),
    },
    "closed bars only": {
        "hour_before": hour_before,
        "high_of_yesterday": high_of_yesterday,
    },
    "text in time": {
        "headline_count": lambda frame: frame["headline"].notna().rolling(10).sum(),
        "body_once_it_was_known": body_once_it_was_known,
    },
    "rebuilt state": {
        "stateful_loop": stateful_loop,
        "spread_over_jobs": lambda frame: Parallel(n_jobs=1)([delayed(returns)(frame), delayed(len)(frame)])[0],
    },
    "online learning": {
        "walk_forward_model": walk_forward_model,
    },
}
