"""Made-up bars for the signals of this folder: one coin with texts every 15 minutes, and a panel of assets by day."""

import numpy as np
import pandas as pd

START_US = 1_632_700_800_000_000  # 2021-09-27T00:00:00Z, a Monday
STEP_US = 900_000_000
ASSETS = tuple(f"a{number}" for number in range(8))


def bars(count: int = 480, seed: int = 0) -> pd.DataFrame:
    """Return bars of 15 minutes, indexed by their close; some cells are missing, some become known late.

    `body` and `rating` become known at `body_known_us` and `rating_known_us`, up to five bars after their own bar;
    `other_close` is the price of a second coin, which does not trade in every bar.
    """
    draw = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(draw.normal(0.0, 0.01, count)))
    open_ = np.append(100.0, close[:-1])
    spread = np.exp(np.abs(draw.normal(0.0, 0.004, count)))
    opened = START_US + STEP_US * np.arange(count)
    closed = opened + STEP_US
    volume = draw.lognormal(3.0, 0.5, count)
    volume[draw.random(count) < 0.05] = np.nan
    sentiment = draw.normal(0.0, 1.0, count)
    sentiment[draw.random(count) < 0.4] = np.nan
    headline = [f"headline {number}" if draw.random() < 0.3 else None for number in range(count)]
    body = [None if text is None else text + " word" * int(draw.integers(1, 30)) for text in headline]
    late = closed + STEP_US * draw.integers(0, 6, count)
    other = 40.0 * (close / 100.0) ** 0.8 * np.exp(np.cumsum(draw.normal(0.0, 0.005, count)))
    other[draw.random(count) < 0.1] = np.nan
    columns = {"opened_us": opened, "open": open_, "high": np.maximum(open_, close) * spread}
    columns |= {"low": np.minimum(open_, close) / spread, "close": close, "volume": volume, "sentiment": sentiment}
    columns |= {"headline": headline, "body": body, "body_known_us": late, "other_close": other}
    columns |= {"rating": draw.normal(0.0, 1.0, count)}
    columns |= {"rating_known_us": closed + STEP_US * draw.integers(0, 6, count)}
    index = pd.DatetimeIndex(closed.astype("datetime64[us]"), name="closed").tz_localize("UTC")
    return pd.DataFrame(columns, index=index)


def panel(count: int = 400, seed: int = 0) -> pd.DataFrame:
    """Return daily `close` and `volume` of eight assets, columns (field, asset).

    Two assets are listed later than the first day, two end before the last.
    """
    draw = np.random.default_rng((seed, 1))
    market = draw.normal(0.0, 0.01, count)
    moves = market[:, None] + draw.normal(0.0, 0.02, (count, len(ASSETS)))
    close = 50.0 * np.exp(np.cumsum(moves, axis=0))
    volume = draw.lognormal(5.0, 0.6, close.shape) * draw.lognormal(0.0, 0.5, len(ASSETS))
    for asset, (first, last) in {1: (90, count), 3: (0, 300), 4: (170, count), 6: (0, 210)}.items():
        for values in (close, volume):
            values[:first, asset] = values[last:, asset] = np.nan
    days = pd.date_range("2021-01-01", periods=count, freq="D", tz="UTC", name="closed")
    fields = {"close": pd.DataFrame(close, days, list(ASSETS)), "volume": pd.DataFrame(volume, days, list(ASSETS))}
    return pd.concat(fields, axis=1)
