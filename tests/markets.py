"""Markets for tests of backtests."""

import numpy as np

from qubic_lab.oracle.backtest.market import Floats, Market
from qubic_lab.oracle.model.timestamps import DAY_US, read_iso

START_US = read_iso("2024-01-01T00:00:00Z")


def market_of(open: list[float], close: list[float], volume: float = 1_000.0, step_us: int = DAY_US) -> Market:
    """A market of one asset whose bars follow each other, with the highs and lows that opens and closes make."""
    opens, closes = np.array(open).reshape(-1, 1), np.array(close).reshape(-1, 1)
    return _market(opens, closes, np.full(opens.shape, volume), step_us)


def random_market(bars: int, assets: int = 1, seed: int = 0, step_us: int = DAY_US, volatility: float = 0.02) -> Market:
    """A market whose prices walk at random, with gaps between closes and opens, and volumes that vary."""
    rng = np.random.default_rng(seed)
    closes = 100.0 * np.exp(np.cumsum(volatility * rng.standard_normal((bars, assets)), axis=0))
    opens = np.vstack([closes[:1], closes[:-1]]) * np.exp(0.1 * volatility * rng.standard_normal((bars, assets)))
    return _market(opens, closes, 1_000.0 * np.exp(rng.standard_normal((bars, assets))), step_us)


def with_holes(market: Market, share: float, seed: int = 0) -> Market:
    """The same market where assets miss bars at random; each has its first and last."""
    rng = np.random.default_rng(seed)
    gone = rng.random(market.close.shape) < share
    gone[0] = gone[-1] = False
    names = ("open", "high", "low", "close", "volume")
    values = [np.where(gone, np.nan, getattr(market, name)) for name in names]
    return Market(market.assets, market.opened_us, market.closed_us, *values)


def with_gaps(market: Market, share: float, seed: int = 0) -> Market:
    """The same market where bars are missing at random for all assets, so that time passes between bars."""
    kept = np.random.default_rng(seed).random(len(market)) >= share
    kept[:2] = kept[-1] = True
    names = ("opened_us", "closed_us", "open", "high", "low", "close", "volume")
    return Market(market.assets, *(getattr(market, name)[kept] for name in names))


def first_bars(market: Market, bars: int) -> Market:
    """The market as it was so many bars after its start."""
    names = ("opened_us", "closed_us", "open", "high", "low", "close", "volume")
    return Market(market.assets, *(getattr(market, name)[:bars] for name in names))


def random_weights(market: Market, seed: int = 0, held: float = 0.7, shorts: bool = True) -> Floats:
    """Weights that add up to 1 at most, signs aside, and stay as they are with a probability of `held`."""
    rng = np.random.default_rng(seed)
    shape = market.close.shape
    weights = rng.choice([-1.0, -0.5, 0.0, 0.3, 1.0] if shorts else [0.0, 0.3, 1.0], shape) / shape[1]
    weights[rng.random(len(market)) < held] = np.nan
    return weights


def _market(opens: Floats, closes: Floats, volume: Floats, step_us: int) -> Market:
    opened = START_US + step_us * np.arange(len(opens), dtype=np.int64)
    high, low = np.maximum(opens, closes), np.minimum(opens, closes)
    names = tuple(f"asset{place}" for place in range(opens.shape[1]))
    return Market(names, opened, opened + step_us, opens, high, low, closes, volume)
