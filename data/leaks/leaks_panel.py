"""Signals over several assets that look ahead: survivors, later winners, weights and groups fitted on all days."""

import numpy as np
import pandas as pd

FRAME = "panel"


def returns(panel):
    return panel["close"].pct_change(fill_method=None)


def momentum(panel):
    return panel["close"].pct_change(20, fill_method=None)


def among(panel, chosen):
    """Momentum of the chosen assets, nothing for the others."""
    return momentum(panel).fillna(0.0) * [1.0 * (asset in set(chosen)) for asset in panel["close"].columns]


def best(values, count=3):
    return values.nlargest(count).index


def total_return(panel):
    close = panel["close"].ffill().bfill()
    return close.iloc[-1] / close.iloc[0]


def least_variance(panel):
    spread = returns(panel).cov().fillna(0.0).to_numpy() + 1e-4 * np.eye(8)
    weights = np.linalg.solve(spread, np.ones(8))
    return momentum(panel).fillna(0.0) * (weights / weights.sum())


def first_factor(panel):
    moves = returns(panel).fillna(0.0).to_numpy()
    return moves @ np.linalg.svd(moves - moves.mean(axis=0), full_matrices=False)[2][0]


def month_by_its_own_result(panel):
    """Assets are ranked by the month to which the day belongs."""
    month = panel.index.tz_localize(None).to_period("M")
    last = panel["close"].ffill().groupby(month).transform("last")
    return (last / panel["close"].ffill().groupby(month).transform("first")).rank(axis=1)


def quarter_of_the_most_traded(panel):
    quarter = panel.index.tz_localize(None).to_period("Q")
    traded = panel["volume"].fillna(0.0).groupby(quarter).transform("sum")
    return momentum(panel).where(traded.rank(axis=1, ascending=False) <= 3, 0.0)


def closest_pair(panel):
    near = returns(panel).corr(min_periods=10).fillna(0.0).to_numpy() - 2.0 * np.eye(8)
    first, second = divmod(int(np.argmax(near)), 8)
    close = np.log(panel["close"].ffill())
    return (close.iloc[:, first] - close.iloc[:, second]).fillna(0.0)


def delisting_seen_ten_days_before(panel):
    gone = panel["close"][::-1].notna().rolling(10).min()[::-1].shift(-1)
    return momentum(panel).where(gone.fillna(1.0) > 0.0, -1.0)


def leader_by_the_next_day(panel):
    """The asset whose moves come first is right, but its move is taken a day early."""
    lead = returns(panel).iloc[:, 0].shift(-1).fillna(0.0).to_numpy()
    return returns(panel).rolling(10).mean().fillna(0.0) + 0.1 * lead[:, None]


def filled_by_the_average_of_all_days(panel):
    return momentum(panel).fillna(momentum(panel).mean())


KINDS = {
    "survivorship": {
        "without_gaps": lambda panel: panel["close"].dropna(axis=1).pct_change(5).mean(axis=1).fillna(0.0),
        "alive_at_the_end": lambda panel: among(panel, panel["close"].columns[panel["close"].iloc[-1].notna()]),
        "three_hundred_days_of_history": lambda panel: among(panel, best(panel["close"].count(), 5)),
        "delisting_seen_ten_days_before": delisting_seen_ten_days_before,
        "index_of_those_that_stayed": lambda panel: (
            panel["close"].loc[:, panel["close"].iloc[-5:].notna().all()].mean(axis=1).pct_change()
        ),
    },
    "later universe": {
        "later_winners": lambda panel: among(panel, best(total_return(panel))),
        "most_traded_of_all_days": lambda panel: among(panel, best(panel["volume"].mean())),
        "calmest_of_all_days": lambda panel: among(panel, best(-returns(panel).std())),
        "best_ratio_of_all_days": lambda panel: among(panel, best(returns(panel).mean() / returns(panel).std(), 2)),
        "month_by_its_own_result": month_by_its_own_result,
        "quarter_of_the_most_traded": quarter_of_the_most_traded,
        "without_the_worst": lambda panel: among(panel, total_return(panel).nlargest(7).index),
    },
    "weights of all days": {
        "inverse_volatility": lambda panel: momentum(panel).fillna(0.0) / returns(panel).std(),
        "least_variance": least_variance,
        "first_factor": first_factor,
        "closest_pair": closest_pair,
        "filled_by_the_average_of_all_days": filled_by_the_average_of_all_days,
        "ranked_over_assets_and_days": lambda panel: (
            momentum(panel).stack().rank(pct=True).unstack().reindex(index=panel.index, columns=panel["close"].columns)
        ),
    },
    "assets at other times": {
        "leader_by_the_next_day": leader_by_the_next_day,
        "rank_of_the_next_day": lambda panel: returns(panel).shift(-1).rank(axis=1),
        "shifted_inside_a_long_table": lambda panel: (
            returns(panel).T.unstack().groupby(level=1).shift(-1).unstack().reindex(columns=panel["close"].columns)
        ),
        "mean_of_tomorrow_and_today": lambda panel: pd.DataFrame(
            np.convolve(returns(panel).mean(axis=1).fillna(0.0), [0.5, 0.5])[1 : len(panel) + 1], panel.index
        ),
    },
}
