"""Simulated markets with a known truth: returns of several processes, signals without skill, and what those earn."""

import math

import numpy as np

from qubic_lab.oracle.inference.performance import NORMAL
from qubic_lab.oracle.model.bars import Bars, Floats, Integers
from qubic_lab.oracle.model.timestamps import DAY_US
from qubic_lab.oracle.risk.models import simulate_garch

PROCESSES = ("gaussian", "garch-t", "t3", "regimes", "day-of-week", "ar0.3", "ar-0.3")
SIGNALS = 20
BARS = 750
GARCH = (1e-6, 0.1, 0.88, 5.0)
"""omega, alpha, beta and degrees of freedom of the simulated process."""
DEVIATION = math.sqrt(GARCH[0] / (1.0 - GARCH[1] - GARCH[2]))
"""The true deviation of the returns of every process."""
PERSISTENCES = (0.9, 0.98)
"""Autocorrelations of the processes whose signs are simulated signals; positions last about 7 and 16 bars."""
LONG_SHARE = 0.8
"""The share of bars in which a signal that is mostly long holds."""
REGIME_STAY, REGIME_DRIFTS, REGIME_DEVIATIONS = 0.98, (0.05, -0.05), (0.6, 1.6)
"""A calm market that rises and a turbulent one that falls, 50 bars each on average; in deviations of a shock."""
DAY_DRIFTS = (0.3, 0.1, 0.0, -0.1, -0.3, 0.1, -0.1)
DAY_DEVIATIONS = (1.1, 1.0, 1.0, 1.2, 1.1, 0.7, 0.6)
"""By day of the week; drifts add up to 0."""
_SETTLE = 100


def draw(process: str, seed: tuple[int, ...], bars: int = BARS, signals: int = SIGNALS) -> tuple[Floats, Floats]:
    """Return returns without drift [bars], and independent signals [bars, signals].

    Signals of even number are long or short, ±1; those of odd number are mostly long, 1 or 0, so that they share what
    the market does. Two quick ones and two slow ones take turns.
    """
    from scipy.signal import lfilter

    rng = np.random.default_rng(seed)
    returns = DEVIATION * _shocks(process, rng, bars)
    shocks = rng.standard_normal((bars + _SETTLE, signals))
    quick, slow = (lfilter([math.sqrt(1.0 - phi**2)], [1.0, -phi], shocks, axis=0)[_SETTLE:] for phi in PERSISTENCES)
    walks = np.where(np.arange(signals) // 2 % 2 == 0, quick, slow)
    sides = np.sign(walks)
    sides[:, 1::2] = walks[:, 1::2] > NORMAL.inv_cdf(1.0 - LONG_SHARE)
    return returns, sides


def _shocks(process: str, rng: np.random.Generator, bars: int) -> Floats:
    """Return a process of mean 0 and variance 1."""
    from scipy.signal import lfilter

    if process == "garch-t":
        return np.asarray(simulate_garch(bars, *GARCH, int(rng.integers(1 << 31)))[0] / DEVIATION)
    if process == "t3":
        return rng.standard_t(3.0, bars) / math.sqrt(3.0)
    shocks = rng.standard_normal(bars + _SETTLE)
    if process in ("ar0.3", "ar-0.3"):
        phi = float(process.removeprefix("ar"))
        return np.asarray(lfilter([math.sqrt(1.0 - phi**2)], [1.0, -phi], shocks)[_SETTLE:])
    shocks = shocks[:bars]
    if process == "regimes":
        place = (np.cumsum(rng.random(bars) > REGIME_STAY) + rng.integers(2)) % 2
        return _scaled(shocks, REGIME_DRIFTS, REGIME_DEVIATIONS, place)
    if process == "day-of-week":
        return _scaled(shocks, DAY_DRIFTS, DAY_DEVIATIONS, (np.arange(bars) + rng.integers(7)) % 7)
    return shocks


def _scaled(shocks: Floats, drifts: tuple[float, ...], deviations: tuple[float, ...], place: Integers) -> Floats:
    """Return shocks with the drift and the deviation of their place, all places being as frequent, of variance 1."""
    means, spreads = np.array(drifts), np.array(deviations)
    return np.asarray((means[place] + spreads[place] * shocks) / np.sqrt(np.mean(means**2 + spreads**2)))


def simulated_market(returns: Floats, bar_us: int = DAY_US) -> Bars:
    """Return bars with these returns from open to close; each bar opens at the previous close."""
    close = np.asarray(100.0 * np.cumprod(1.0 + returns), np.float64)
    before = np.append(100.0, close[:-1])
    opened = np.arange(len(close), dtype=np.int64) * bar_us
    high, low = np.maximum(before, close), np.minimum(before, close)
    prices = {"open": before, "high": high, "low": low, "volume": np.ones(len(close))}
    return Bars.of(opened + bar_us, close, **prices, frame_us=bar_us, assets=("simulated",))


def trial_returns(returns: Floats, signals: Floats) -> Floats:
    """Return the net returns of each signal's account without costs, rebalanced at every open, [bars, signals]."""
    trials = np.zeros_like(signals)
    trials[1:] = signals[:-1] * returns[1:, None]
    return trials
