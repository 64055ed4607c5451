"""Signals that look ahead by what they are fitted on: scalers, models, labels, shuffled splits."""

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestRegressor
from sklearn.feature_selection import SelectKBest, f_regression
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import KFold, cross_val_predict, train_test_split
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, QuantileTransformer, RobustScaler, StandardScaler
from sklearn.tree import DecisionTreeRegressor


def returns(bars):
    return bars["close"].pct_change()


def ahead(bars):
    return returns(bars).shift(-1).fillna(0.0).to_numpy()


def past(bars, lags=4):
    return np.stack([returns(bars).shift(lag).fillna(0.0) for lag in range(lags)], axis=1)


def scaled(scaler, values):
    return scaler.fit_transform(np.asarray(values, float).reshape(len(values), -1))[:, 0]


def pipeline_scaled_on_all(bars):
    """Coefficients come from the first 100 bars, but the scaler before them has seen all rows."""
    rows, first = StandardScaler().fit_transform(past(bars)), min(len(bars), 100)
    return Ridge().fit(rows[: first - 1], ahead(bars)[: first - 1]).predict(rows)


# The target


def target_among_the_features(bars):
    rows = np.column_stack([past(bars), ahead(bars)])
    return Ridge(1e-6).fit(rows, ahead(bars)).predict(rows)


def triple_barrier(bars, move=0.01, most=10):
    """Which barrier the next ten closes reach first, used as a feature of the bar itself."""
    close, found = bars["close"].to_numpy(), np.zeros(len(bars))
    for bar in range(len(close)):
        for later in close[bar + 1 : bar + 1 + most] / close[bar] - 1.0:
            if abs(later) > move:
                found[bar] = np.sign(later)
                break
    return found


def mean_outcome_of_the_hour(bars):
    outcome = pd.Series(ahead(bars), bars.index)
    return outcome.groupby(bars.index.hour).transform("mean")


def momentum_where_it_will_work(bars):
    momentum = np.sign(bars["close"].pct_change(5).fillna(0.0)).to_numpy()
    return momentum * (momentum == np.sign(ahead(bars)))


def volatility_of_the_next_hours(bars):
    return returns(bars).rolling(12).std().shift(-12).ffill() / returns(bars).rolling(12).std()


# Splits that mix past and future


def shuffled_split(bars):
    rows, up = past(bars), ahead(bars) > 0.0
    seen, _, known, _ = train_test_split(rows, up, test_size=0.3, shuffle=True, random_state=0)
    return LogisticRegression().fit(seen, known).predict_proba(rows)[:, 1]


def cross_validated(bars):
    return cross_val_predict(LinearRegression(), past(bars), ahead(bars), cv=KFold(5))


def cross_validated_in_random_order(bars):
    folds = KFold(4, shuffle=True, random_state=3)
    return cross_val_predict(Ridge(), past(bars), ahead(bars), cv=folds)


def out_of_bag(bars):
    forest = RandomForestRegressor(5, bootstrap=True, max_depth=3, random_state=0)
    return forest.fit(past(bars), ahead(bars)).predict(past(bars))


def tested_on_the_first_part(bars):
    """It is trained on the last two thirds, and used on all bars."""
    rows, third = past(bars), len(bars) // 3
    return DecisionTreeRegressor(max_depth=3, random_state=0).fit(rows[third:], ahead(bars)[third:]).predict(rows)


# Walks forward that are not quite


def walk_forward_without_a_purge(bars, every=60):
    """At each refit the last row's outcome is the return of the bar after the decision."""
    rows, outcome, found = past(bars), ahead(bars), np.zeros(len(bars))
    for bar in range(every, len(bars), every):
        fit = LinearRegression().fit(rows[: bar + 1], outcome[: bar + 1])
        found[bar : bar + every] = rows[bar : bar + every] @ fit.coef_ + fit.intercept_
    return found


def walk_forward_with_labels_of_five_bars(bars, every=40):
    outcome = bars["close"].pct_change(5).shift(-5).fillna(0.0).to_numpy()
    rows, found = past(bars), np.zeros(len(bars))
    for bar in range(every, len(bars), every):
        fit = Ridge().fit(rows[:bar], outcome[:bar])
        found[bar : bar + every] = rows[bar : bar + every] @ fit.coef_
    return found


def features_chosen_on_all(bars, every=80):
    """The model walks forward, but the two best of eight lags were chosen on all bars."""
    rows, outcome, found = past(bars, 8), ahead(bars), np.zeros(len(bars))
    rows = SelectKBest(f_regression, k=2).fit_transform(rows, outcome)
    for bar in range(every, len(bars), every):
        fit = LinearRegression().fit(rows[: bar - 1], outcome[: bar - 1])
        found[bar : bar + every] = rows[bar : bar + every] @ fit.coef_
    return found


def best_threshold_of_all(bars):
    change, outcome = returns(bars).fillna(0.0).to_numpy(), ahead(bars)
    gains = {limit: float((np.sign(change - limit) * outcome).sum()) for limit in np.linspace(-0.02, 0.02, 21)}
    return np.sign(change - max(gains, key=gains.__getitem__))


def sign_by_what_paid(bars):
    """Momentum, or its opposite if that earned more over all bars."""
    momentum = np.sign(bars["close"].pct_change(12).fillna(0.0)).to_numpy()
    return momentum * (1.0 if (momentum * ahead(bars)).sum() >= 0.0 else -1.0)


def regimes_of_all(bars):
    rows = np.column_stack([returns(bars).fillna(0.0) * 100.0, np.log(bars["high"] / bars["low"]) * 100.0])
    return KMeans(3, n_init=1, random_state=0).fit(rows).transform(rows)[:, 0]


def decay_that_fits_all(bars):
    """The decay of the variance is the one with the highest likelihood over all bars."""
    square = returns(bars).fillna(0.0) ** 2
    spreads = {decay: square.ewm(alpha=decay, adjust=False).mean().shift(1) for decay in (0.02, 0.05, 0.1, 0.2)}

    def loss(spread):
        known = spread[50:]
        return float((np.log(known) + square[50:] / known).sum())

    return spreads[min(spreads, key=lambda decay: loss(spreads[decay]))] if len(bars) > 60 else square


def hedged_by_the_ratio_of_all(bars):
    other = bars["other_close"].ffill().bfill()
    ratio = np.polyfit(np.log(other), np.log(bars["close"]), 1)
    return np.log(bars["close"]) - ratio[0] * np.log(other) - ratio[1]


KINDS = {
    "scaler on all": {
        "smallest_and_largest": lambda bars: scaled(MinMaxScaler(), bars["volume"].fillna(0.0)),
        "robust_scaler": lambda bars: scaled(RobustScaler(), returns(bars).fillna(0.0)),
        "quantiles_of_all": lambda bars: scaled(QuantileTransformer(n_quantiles=20), returns(bars).fillna(0.0)),
        "pipeline_scaled_on_all": pipeline_scaled_on_all,
        "whitened_components": lambda bars: PCA(2, whiten=True).fit_transform(past(bars))[:, 0],
        "imputed_with_the_mean": lambda bars: scaled(SimpleImputer(), bars["sentiment"]),
        "imputed_by_neighbours": lambda bars: KNNImputer(n_neighbors=3).fit_transform(
            np.column_stack([bars["volume"], returns(bars)])
        )[:, 0],
    },
    "target in features": {
        "target_among_the_features": target_among_the_features,
        "triple_barrier": triple_barrier,
        "mean_outcome_of_the_hour": mean_outcome_of_the_hour,
        "momentum_where_it_will_work": momentum_where_it_will_work,
        "volatility_of_the_next_hours": volatility_of_the_next_hours,
    },
    "shuffled split": {
        "shuffled_split": shuffled_split,
        "cross_validated": cross_validated,
        "cross_validated_in_random_order": cross_validated_in_random_order,
        "out_of_bag": out_of_bag,
        "tested_on_the_first_part": tested_on_the_first_part,
    },
    "fitted on all": {
        "best_threshold_of_all": best_threshold_of_all,
        "sign_by_what_paid": sign_by_what_paid,
        "regimes_of_all": regimes_of_all,
        "decay_that_fits_all": decay_that_fits_all,
        "hedged_by_the_ratio_of_all": hedged_by_the_ratio_of_all,
        "neighbours_of_all": lambda bars: KNeighborsRegressor(3).fit(past(bars), ahead(bars)).predict(past(bars)),
        "ridge_of_all": lambda bars: (
            make_pipeline(StandardScaler(), Ridge()).fit(past(bars), returns(bars).fillna(0.0)).predict(past(bars))
        ),
    },
    "no purge": {
        "walk_forward_without_a_purge": walk_forward_without_a_purge,
        "walk_forward_with_labels_of_five_bars": walk_forward_with_labels_of_five_bars,
        "features_chosen_on_all": features_chosen_on_all,
    },
}
