"""Signals over several assets that do not look ahead: ranks within a day, universes and weights of what is known."""

import numpy as np

FRAME = "panel"


def returns(panel):
    return panel["close"].pct_change(fill_method=None)


def momentum(panel):
    return panel["close"].pct_change(20, fill_method=None)


def month(panel):
    return panel.index.tz_localize(None).to_period("M")


def most_traded_so_far(panel):
    traded = panel["volume"].rolling(30, min_periods=10).mean().rank(axis=1, ascending=False)
    return momentum(panel).where(traded <= 3, 0.0)


def last_month_decides(panel):
    """The three best assets of the month before are held for a month."""
    months = panel["close"].ffill().groupby(month(panel)).last().pct_change(fill_method=None).shift(1)
    chosen = (months.rank(axis=1, ascending=False) <= 3).astype(float)
    return chosen.reindex(month(panel)).set_axis(panel.index)


def least_variance_of_the_past(panel, every=21):
    moves, found = returns(panel).fillna(0.0).to_numpy(), np.full((len(panel), 8), 0.125)
    for bar in range(63, len(moves), every):
        spread = np.cov(moves[bar - 60 : bar].T) + 1e-4 * np.eye(8)
        weights = np.linalg.solve(spread, np.ones(8))
        found[bar : bar + every] = weights / weights.sum()
    return found


def residual_beside_the_index(panel):
    index = returns(panel).mean(axis=1)
    beta = returns(panel).rolling(60, min_periods=20).cov(index).div(index.rolling(60, min_periods=20).var(), axis=0)
    return returns(panel) - beta.mul(index, axis=0)


def best_so_far(panel):
    """Later winners are not known: those that rose most since their first day are."""
    first = panel["close"].bfill().iloc[0]  # the first price of assets that are listed later is not used before
    return (panel["close"] / first).rank(axis=1, pct=True)


def winners_named_before(panel):
    return momentum(panel)[["a0", "a2", "a5"]].reindex(columns=panel["close"].columns, fill_value=0.0)


def days_since_listing(panel):
    return panel["close"].notna().cumsum().clip(upper=250).astype(float)


def held_until_three_days_after_the_end(panel):
    known = panel["close"].ffill(limit=3)
    return np.sign(known.pct_change(10, fill_method=None)).fillna(0.0)


def equal_weights_of_the_listed(panel):
    listed = panel["close"].notna().astype(float)
    return listed.div(listed.sum(axis=1), axis=0)


def leader_of_yesterday(panel):
    lead = returns(panel).iloc[:, 0].shift(1).fillna(0.0).to_numpy()
    return returns(panel).rolling(10).mean().fillna(0.0) + 0.1 * lead[:, None]


def long_table_and_back(panel):
    table = panel["close"].T.unstack()
    moved = table / table.groupby(level=1).shift(5) - 1.0
    return moved.unstack().reindex(columns=panel["close"].columns)


KINDS = {
    "across assets": {
        "rank_of_the_day": lambda panel: momentum(panel).rank(axis=1, pct=True),
        "away_from_the_mean_of_the_day": lambda panel: returns(panel).sub(returns(panel).mean(axis=1), axis=0),
        "softmax_of_the_day": lambda panel: (
            np.exp(momentum(panel)).div(np.exp(momentum(panel)).sum(axis=1), axis=0).fillna(0.0)
        ),
        "scaled_across_assets": lambda panel: (
            momentum(panel).sub(momentum(panel).mean(axis=1), axis=0).div(momentum(panel).std(axis=1), axis=0)
        ),
        "inverse_volatility_of_the_past": lambda panel: 1.0 / returns(panel).rolling(30).std(),
        "leader_of_yesterday": leader_of_yesterday,
        "long_table_and_back": long_table_and_back,
        "residual_beside_the_index": residual_beside_the_index,
        "least_variance_of_the_past": least_variance_of_the_past,
    },
    "universe of the day": {
        "most_traded_so_far": most_traded_so_far,
        "last_month_decides": last_month_decides,
        "best_so_far": best_so_far,
        "winners_named_before": winners_named_before,
        "days_since_listing": days_since_listing,
        "held_until_three_days_after_the_end": held_until_three_days_after_the_end,
        "equal_weights_of_the_listed": equal_weights_of_the_listed,
        "share_of_volume": lambda panel: panel["volume"].div(panel["volume"].sum(axis=1), axis=0),
        "listed_for_a_quarter": lambda panel: momentum(panel).where(panel["close"].notna().cumsum() > 90, 0.0),
    },
}
