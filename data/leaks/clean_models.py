"""Signals that learn, draw at random, keep or rebuild state, and yet use nothing but the past."""

import functools
import hashlib
import itertools
import random
from collections import deque

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression, Ridge, SGDRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeRegressor

STEP_US = 900_000_000
TRAINING = 100


def returns(bars):
    return bars["close"].pct_change()


def change(bars):
    return returns(bars).fillna(0.0).to_numpy()


def past(bars, lags=4):
    return np.stack([returns(bars).shift(lag).fillna(0.0) for lag in range(lags)], axis=1)


# Learning as bars come


def least_mean_squares(bars):
    weights, found, rows = np.zeros(4), [], past(bars) * 100.0
    before = np.zeros(4)
    for row, value in zip(rows, change(bars) * 100.0, strict=True):
        weights = weights + 0.01 * (value - before @ weights) * before  # the outcome of the bar before
        found.append(float(row @ weights))
        before = row
    return found


def recursive_least_squares(bars):
    weights, spread, before, found = np.zeros(3), np.eye(3) * 10.0, np.zeros(3), []
    for row, value in zip(past(bars, 3) * 100.0, change(bars) * 100.0, strict=True):
        gain = spread @ before / (0.99 + before @ spread @ before)
        weights = weights + gain * (value - before @ weights)
        spread = (spread - np.outer(gain, before @ spread)) / 0.99
        found.append(float(row @ weights))
        before = row
    return found


def experts_weighted_by_what_they_earned(bars):
    experts = np.stack([np.sign(bars["close"].diff(lag).fillna(0.0)) for lag in (1, 5, 20)], axis=1)
    earned = np.zeros_like(experts)
    earned[1:] = experts[:-1] * change(bars)[1:, None]
    weights = np.exp(20.0 * np.cumsum(earned, axis=0))
    return (experts * weights).sum(axis=1) / weights.sum(axis=1)


def perceptron(bars):
    weights, before, found = np.zeros(4), np.zeros(4), []
    for row, value in zip(past(bars) * 100.0, change(bars), strict=True):
        if value * (before @ weights) <= 0.0:
            weights = weights + np.sign(value) * before
        found.append(np.sign(row @ weights))
        before = row
    return found


def bandit(bars):
    """Momentum or reversal, whichever earned more so far; one time in ten by chance."""
    chance, gains, choice, found = random.Random(5), [0.0, 0.0], 0, []
    last = 0.0
    for value in change(bars).tolist():
        gains[choice] += last * value
        choice = chance.randrange(2) if chance.random() < 0.1 else int(gains[1] > gains[0])
        last = float(np.sign(value)) * (1.0 if choice == 0 else -1.0)
        found.append(last)
    return found


def walk_forward(model, bars, every, gap=1, lags=4):
    """Predict in blocks; a block's model has seen outcomes that ended `gap` bars before the block or earlier."""
    rows, outcome = past(bars, lags), change(bars)
    found = np.full(len(rows), np.nan)
    for bar in range(every, len(rows), every):
        model.fit(rows[: bar - gap], outcome[1 : bar - gap + 1])
        found[bar : bar + every] = model.predict(rows[bar : bar + every])
    return found


def gradient_steps_by_blocks(bars, block=60):
    model, rows, outcome = SGDRegressor(random_state=0), past(bars) * 100.0, change(bars) * 100.0
    found = np.zeros(len(rows))
    for bar in range(block, len(rows), block):
        model.partial_fit(rows[bar - block : bar - 1], outcome[bar - block + 1 : bar])
        found[bar : bar + block] = model.predict(rows[bar : bar + block])
    return found


def bayes_by_blocks(bars, block=80):
    model, rows, up = GaussianNB(), past(bars), change(bars) > 0.0
    found = np.full(len(rows), 0.5)
    for bar in range(block, len(rows), block):
        model.partial_fit(rows[bar - block : bar - 1], up[bar - block + 1 : bar], classes=[False, True])
        found[bar : bar + block] = model.predict_proba(rows[bar : bar + block])[:, 1]
    return found


def after_training(model, rows):
    """Values of a model that is fitted on the first 100 bars, for the bars after them."""
    found = np.full(len(rows), np.nan)
    if len(rows) > TRAINING:
        found[TRAINING:] = model(rows[:TRAINING], rows[TRAINING:])
    return found


def groups_of_the_first_bars(bars):
    rows = past(bars) * 100.0
    return after_training(lambda seen, new: KMeans(3, n_init=1, random_state=0).fit(seen).transform(new)[:, 0], rows)


def scaler_of_the_first_bars(bars):
    rows = bars[["close"]].to_numpy()
    return after_training(lambda seen, new: StandardScaler().fit(seen).transform(new)[:, 0], rows)


def forest_of_the_first_bars(bars):
    """Outcomes of the training rows end with the last of them."""
    rows, outcome = past(bars), change(bars)

    def predict(seen, new):
        forest = RandomForestRegressor(5, max_depth=3, random_state=0).fit(seen[:-1], outcome[1:TRAINING])
        return forest.predict(new)

    return after_training(predict, rows)


def outcome_of_the_hour_so_far(bars):
    hours, sums, counts, found = bars.index.hour, np.zeros(24), np.zeros(24), []
    for bar, (hour, value) in enumerate(zip(hours, change(bars), strict=True)):
        if bar:
            sums[hours[bar - 1]] += value
            counts[hours[bar - 1]] += 1
        found.append(sums[hour] / max(1.0, counts[hour]))
    return found


def labels_once_they_have_ended(bars, span=5, every=50):
    """Labels look five bars ahead, and are used for training only when these bars have closed."""
    label = bars["close"].pct_change(span).shift(-span).to_numpy()
    rows, found = past(bars), np.zeros(len(bars))
    for bar in range(every, len(rows), every):
        fit = Ridge().fit(rows[: bar - span], label[: bar - span])
        found[bar : bar + every] = (rows[bar : bar + every] * fit.coef_).sum(axis=1)
    return found


def best_lookback_so_far(bars):
    choices = [5, 10, 20, 40]
    signs = np.stack([np.sign(bars["close"].diff(lag).fillna(0.0)) for lag in choices], axis=1)
    earned = np.cumsum(np.vstack([np.zeros(4), signs[:-1] * change(bars)[1:, None]]), axis=0)
    return signs[np.arange(len(signs)), np.argmax(earned, axis=1)]


# Chance with a seed


def noise_added(bars):
    return change(bars) + np.random.default_rng(3).normal(0.0, 0.01, len(bars))


def left_out_by_a_hash(bars):
    kept = [hashlib.sha256(str(stamp).encode()).digest()[0] < 200 for stamp in bars["opened_us"]]
    return returns(bars).where(kept, 0.0)


def random_projection(bars):
    weights = np.random.default_rng(11).normal(size=(6, 3))
    return (np.tanh(past(bars, 6) * 100.0)[:, :, None] * weights).sum(axis=1)


def global_seed(bars):
    np.random.seed(0)
    return np.random.rand(len(bars)) - 0.5 + change(bars)


def shuffled_and_sorted_again(bars):
    mixed = bars.sample(frac=1.0, random_state=1)
    return np.log(mixed["high"] / mixed["low"]).sort_index()


# Caches

_KEPT = {}


def kept_by_window(bars):
    close, kept = bars["close"].to_numpy(), _KEPT.setdefault("windows", {})
    found = np.full(len(close), np.nan)
    for bar in range(9, len(close)):
        window = close[bar - 9 : bar + 1]
        key = window.tobytes()
        if key not in kept:
            kept[key] = float(np.median(window))
        found[bar] = close[bar] / kept[key]
    return found


def kept_by_frame(bars):
    key = hashlib.sha256(bars["close"].to_numpy().tobytes()).digest()
    return _KEPT.setdefault(key, bars["close"].pct_change(7))


@functools.lru_cache(maxsize=64)
def _weights(count):
    return np.exp(-np.arange(count) / 5.0)


def kept_weights(bars):
    return np.convolve(change(bars), _weights(12))[: len(bars)]


@functools.cache
def _hour(stamp):
    return pd.Timestamp(stamp, unit="us").hour


def kept_hours(bars):
    return [1.0 if _hour(stamp) in (13, 14, 15) else 0.0 for stamp in bars["opened_us"]]


def kept_where_the_price_is_the_same(bars):
    """What was known at a bar is kept by its stamp and price."""
    kept, mean = _KEPT.setdefault("means", {}), bars["close"].ewm(span=9).mean()
    keys = zip(bars["opened_us"], bars["close"], bars["close"].shift(1, fill_value=0.0), mean, strict=True)
    return [kept.setdefault(key, key[1] / key[3] - 1.0) for key in keys]


# State that is rebuilt in each call


class Trader:
    def __init__(self):
        self.position, self.since, self.window = 0, 0, deque(maxlen=30)

    def step(self, price):
        self.window.append(price)
        self.since += 1
        if self.since > 5 and price in (max(self.window), min(self.window)):
            self.position, self.since = (1 if price == max(self.window) else -1), 0
        return self.position


def trader(bars):
    one = Trader()
    return [one.step(price) for price in bars["close"]]


def coroutine(bars):
    def average():
        mean, value = None, (yield)
        while True:
            mean = value if mean is None else 0.9 * mean + 0.1 * value
            value = yield mean

    machine = average()
    next(machine)
    return [price / machine.send(price) - 1.0 for price in bars["close"]]


def accumulated(bars):
    return list(itertools.accumulate(change(bars).tolist(), lambda score, value: max(0.0, score + value - 0.001)))


_SEEN = []


def list_cleared_at_the_start(bars):
    """Prices are kept in the module, but each call starts with an empty list."""
    _SEEN.clear()
    found = []
    for price in bars["close"]:
        _SEEN.append(price)
        found.append(price / max(_SEEN[-15:]))
    return found


def cool_down(bars, rest=10):
    wait, found = 0, []
    for value in change(bars).tolist():
        wait = rest if abs(value) > 0.02 else max(0, wait - 1)
        found.append(0.0 if wait else 1.0)
    return found


def columns_added_to_a_copy(bars):
    work = bars.copy()
    work["fast"], work["slow"] = work["close"].ewm(span=8).mean(), work["close"].ewm(span=21).mean()
    work.loc[work["fast"] > work["slow"], "side"] = 1.0
    return work["side"].fillna(-1.0)


# Texts, when they are known


def words_once_known(bars):
    words = bars["body"].fillna("").str.count("word").astype(float)
    texts = pd.DataFrame({"at": bars["body_known_us"], "words": words})
    known = texts[bars["body"].notna()].sort_values("at", kind="stable").astype({"at": "int64"})
    closed = pd.DataFrame({"at": (bars["opened_us"] + STEP_US).to_numpy()})
    return pd.merge_asof(closed, known, on="at")["words"].fillna(0.0).to_numpy()


def bodies_known_so_far(bars):
    known = np.sort(bars["body_known_us"][bars["headline"].notna()].to_numpy())
    return np.searchsorted(known, (bars["opened_us"] + STEP_US).to_numpy(), side="right").astype(float)


def rating_when_known(bars):
    """At each bar the newest of the last six ratings whose instant has come."""
    rating, known = bars["rating"].to_numpy(), bars["rating_known_us"].to_numpy()
    closed, found = (bars["opened_us"] + STEP_US).to_numpy(), np.zeros(len(bars))
    for bar in range(len(closed)):
        for earlier in range(bar, max(-1, bar - 6), -1):
            if known[earlier] <= closed[bar]:
                found[bar] = rating[earlier]
                break
    return found


def rating_only_if_at_once(bars):
    return bars["rating"].where(bars["rating_known_us"] <= bars["opened_us"] + STEP_US)


def length_of_headlines(bars):
    return bars["headline"].fillna("").str.len().astype(float).rolling(24).mean()


# Strict about what they are given


def refuses_odd_bars(bars):
    """Bars that cannot be are an error, as in a live system."""
    if not ((bars["low"] <= bars["close"]) & (bars["close"] <= bars["high"]) & (bars["low"] > 0.0)).all():
        raise ValueError("bars are not in order")
    return bars["close"].pct_change(3)


def refuses_large_moves(bars):
    if (returns(bars).abs() > 0.2).any():
        raise ValueError("a move of more than 20 %: check the data")
    return bars["close"].pct_change(3)


def wants_thirty_bars(bars):
    if len(bars) < 30:
        raise ValueError("give at least 30 bars")
    return bars["close"].rolling(30, min_periods=1).mean() - bars["close"]


def step_of_the_index(bars):
    step = (bars.index[1] - bars.index[0]) / pd.Timedelta("1h")
    return returns(bars) / np.sqrt(step)


KINDS = {
    "online learning": {
        "least_mean_squares": least_mean_squares,
        "recursive_least_squares": recursive_least_squares,
        "experts_weighted_by_what_they_earned": experts_weighted_by_what_they_earned,
        "perceptron": perceptron,
        "bandit": bandit,
        "walk_forward_ridge": lambda bars: walk_forward(Ridge(1e-3), bars, 50),
        "walk_forward_least_squares": lambda bars: walk_forward(LinearRegression(), bars, 40, lags=2),
        "walk_forward_tree": lambda bars: walk_forward(DecisionTreeRegressor(max_depth=3, random_state=0), bars, 96),
        "gradient_steps_by_blocks": gradient_steps_by_blocks,
        "bayes_by_blocks": bayes_by_blocks,
        "outcome_of_the_hour_so_far": outcome_of_the_hour_so_far,
        "labels_once_they_have_ended": labels_once_they_have_ended,
        "best_lookback_so_far": best_lookback_so_far,
    },
    "fitted on the first bars": {
        "groups_of_the_first_bars": groups_of_the_first_bars,
        "scaler_of_the_first_bars": scaler_of_the_first_bars,
        "forest_of_the_first_bars": forest_of_the_first_bars,
    },
    "chance with a seed": {
        "noise_added": noise_added,
        "left_out_by_a_hash": left_out_by_a_hash,
        "random_projection": random_projection,
        "global_seed": global_seed,
        "shuffled_and_sorted_again": shuffled_and_sorted_again,
    },
    "cache": {
        "kept_by_window": kept_by_window,
        "kept_by_frame": kept_by_frame,
        "kept_weights": kept_weights,
        "kept_hours": kept_hours,
        "kept_where_the_price_is_the_same": kept_where_the_price_is_the_same,
    },
    "rebuilt state": {
        "trader": trader,
        "coroutine": coroutine,
        "accumulated": accumulated,
        "list_cleared_at_the_start": list_cleared_at_the_start,
        "cool_down": cool_down,
        "columns_added_to_a_copy": columns_added_to_a_copy,
    },
    "text in time": {
        "words_once_known": words_once_known,
        "bodies_known_so_far": bodies_known_so_far,
        "rating_when_known": rating_when_known,
        "rating_only_if_at_once": rating_only_if_at_once,
        "length_of_headlines": length_of_headlines,
    },
    "strict": {
        "refuses_odd_bars": refuses_odd_bars,
        "refuses_large_moves": refuses_large_moves,
        "wants_thirty_bars": wants_thirty_bars,
        "step_of_the_index": step_of_the_index,
    },
}
