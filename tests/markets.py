"""Markets for tests of backtests."""

from dataclasses import replace

import numpy as np

from qubic_lab.oracle.model.bars import COLUMNS, Bars, Floats, join_bars
from qubic_lab.oracle.model.timestamps import DAY_US, read_iso

START_US = read_iso("2024-01-01T00:00:00Z")


def market_of(open: list[float], close: list[float], volume: float = 1_000.0, step_us: int = DAY_US) -> Bars:
    """A market of one asset whose bars follow each other, with the highs and lows that opens and closes make."""
    opens, closes = np.array(open).reshape(-1, 1), np.array(close).reshape(-1, 1)
    return _market(opens, closes, np.full(opens.shape, volume), step_us)


def random_market(bars: int, assets: int = 1, seed: int = 0, step_us: int = DAY_US, volatility: float = 0.02) -> Bars:
    """A market whose prices walk at random, with gaps between closes and opens, and volumes that vary."""
    rng = np.random.default_rng(seed)
    closes = 100.0 * np.exp(np.cumsum(volatility * rng.standard_normal((bars, assets)), axis=0))
    opens = np.vstack([closes[:1], closes[:-1]]) * np.exp(0.1 * volatility * rng.standard_normal((bars, assets)))
    return _market(opens, closes, 1_000.0 * np.exp(rng.standard_normal((bars, assets))), step_us)


def with_holes(market: Bars, share: float, seed: int = 0) -> Bars:
    """The same market where assets miss bars at random; each has its first and last."""
    rng = np.random.default_rng(seed)
    gone = rng.random(market.close_BA.shape) < share
    gone[0] = gone[-1] = False
    names = [f"{name}_BA" for name in COLUMNS]
    return replace(market, **{name: np.where(gone, np.nan, getattr(market, name)) for name in names})


def with_gaps(market: Bars, share: float, seed: int = 0) -> Bars:
    """The same market where bars are missing at random for all assets, so that time passes between bars."""
    kept = np.random.default_rng(seed).random(len(market)) >= share
    kept[:2] = kept[-1] = True
    return join_bars([market.slice(bar, bar + 1) for bar in np.flatnonzero(kept).tolist()])


def random_weights(market: Bars, seed: int = 0, held: float = 0.7, shorts: bool = True) -> Floats:
    """Weights that add up to 1 at most, signs aside, and stay as they are with a probability of `held`."""
    rng = np.random.default_rng(seed)
    shape = market.close_BA.shape
    weights = rng.choice([-1.0, -0.5, 0.0, 0.3, 1.0] if shorts else [0.0, 0.3, 1.0], shape) / shape[1]
    weights[rng.random(len(market)) < held] = np.nan
    return weights


def _market(opens: Floats, closes: Floats, volume: Floats, step_us: int) -> Bars:
    opened = START_US + step_us * np.arange(len(opens), dtype=np.int64)
    high, low = np.maximum(opens, closes), np.minimum(opens, closes)
    names = tuple(f"asset{place}" for place in range(opens.shape[1]))
    prices = {"open": opens, "high": high, "low": low, "volume": volume}
    return Bars.of(opened + step_us, closes, **prices, frame_us=step_us, assets=names)
