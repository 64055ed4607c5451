"""Unusual returns and volumes, jumps, and shapes that manipulation leaves: each score uses past bars alone.

The functions need the bars of their warm-up in `SCORES`, which gives NaN for fewer.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import talib

from qubic_lab.oracle.analysis.indicators import Indicator, by_name, scaled_prices
from qubic_lab.oracle.analysis.results import HintKind, JumpTest, ManipulationHint
from qubic_lab.oracle.analysis.trend_and_levels import spread
from qubic_lab.oracle.model.bars import Bars, Flags, Floats, Integers, exact_logs
from qubic_lab.oracle.model.records import RULE
from qubic_lab.oracle.model.timestamps import DAY_US

MAD_TO_DEVIATION = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation."""
OUTLIER_WINDOW = RULE.window + 1
OUTLIER_THRESHOLD = RULE.threshold
JUMP_WINDOW = 240
"""Returns that estimate the volatility without jumps."""
BIPOWER_WINDOW = 96
"""Returns that are tested together."""
_ROOT = math.sqrt(2.0 * math.log(1_000))
JUMP_THRESHOLD = (
    _ROOT - (math.log(math.pi) + math.log(math.log(1_000))) / (2.0 * _ROOT) - math.log(-math.log1p(-0.01)) / _ROOT
)
"""The largest score of 1,000 returns without jumps exceeds this with a chance of 1 %: the limit law of the largest
absolute normal value (Gumbel), Lee and Mykland (2008), equation 13."""
NO_SPREAD = 1e-6
"""A price that moves by less than this per bar stands still."""
DAYS = 15
"""Earlier bars at the same time of day whose median is the usual volume."""
VOLUME_WINDOW = 97
"""Earlier bars that give the deviation of volumes, and the usual volume if there are too few days."""
VOLUME_WARM_UP = 2 * VOLUME_WINDOW
VOLUME_FLOOR = 0.05
"""The least deviation of log volume."""
VOLUME_THRESHOLD = 5.0
PUMP_BARS = 12
"""Bars that contain both the rise and the fall of a pump and dump."""
CALM_BARS = 48
"""Bars before the rise that give the usual spread."""
PUMP_RISE, PUMP_VOLUME, PUMP_GIVEN_BACK = 5.0, 4.0, 0.6
WASH_VOLUME, WASH_RANGE = 4.0, 0.5
NOT_VISIBLE = (
    "spoofing and layering cannot be seen in bars, since orders that are withdrawn leave no trade: that needs the "
    "order book; wash trading is certain only with the accounts on both sides"
)
_HALF_PI = math.pi / 2.0


def medians_before(values: Floats, window: int) -> Floats:
    """Return the median of the `window` values before each; NaN if there are fewer.

    `window` must be odd: then the median is one of the values, whatever the order of summation.
    """
    assert window % 2 == 1 and window > 1
    found = np.full(len(values), np.nan)
    if len(values) > window:
        found[window:] = talib.PERCENTILE(values, window, 50.0)[window - 1 : -1]
    return found


def robust_scores(values: Floats, middle: Floats, window: int, floor: float) -> Floats:
    """Return the distance of each value from its usual middle, in robust standard deviations of the `window` before.

    Args:
        values: in order of time.
        middle: the usual value for each, from values before it; NaN if it is not known, and so is the score.
        window: odd; the deviation is the median of this many earlier distances, each from its own middle.
        floor: the least deviation.
    """
    scores = np.full(len(values), np.nan)
    known = np.flatnonzero(~np.isnan(middle))
    away = values[known] - middle[known]
    deviation = np.maximum(floor, MAD_TO_DEVIATION * medians_before(np.abs(away), window))
    scores[known] = away / deviation
    return scores


def outlier_scores(bars: Bars) -> Floats:
    """Return each return over √steps, less the median of those before, in robust standard deviations, [bars].

    This is Hampel's identifier over 96 past returns, with the window, threshold and floor of the cleaning. But each
    past return's distance is from the median at its own time, which takes a thousandth of the time, so a few flags
    differ. The flags of the cleaning itself come with the bars.
    """
    values = np.full(len(bars), np.nan)
    returns = bars.step_returns[1:]
    values[1:] = robust_scores(returns, medians_before(returns, OUTLIER_WINDOW), OUTLIER_WINDOW, RULE.floor)
    return values


def jump_scores(bars: Bars) -> Floats:
    """Return each return over √steps in standard deviations without jumps, from the returns before it, [bars].

    The variance is the mean of |r(j)| |r(j−1)| times π/2 over the 240 returns before, which a jump changes little:
    L(i) of S. Lee and P. Mykland, "Jumps in financial markets", Review of Financial Studies 21 (2008), scaled to
    variance 1. When volatility itself changes quickly, large returns that are no jumps have high scores too.
    """
    scores = np.full(len(bars), np.nan)
    size = np.abs(bars.step_returns[1:])
    variance = _HALF_PI / JUMP_WINDOW * talib.SUM(size[1:] * size[:-1], JUMP_WINDOW)[JUMP_WINDOW - 1 : -1]
    deviation = np.sqrt(np.maximum(NO_SPREAD**2, variance))
    scores[JUMP_WINDOW + 2 :] = bars.step_returns[JUMP_WINDOW + 2 :] / deviation
    return scores


def jump_test(returns: Floats) -> JumpTest | None:
    """Return the test for jumps among at least 4 returns; None if nothing moved.

    The ratio test with variance by quad-power quarticity: O. Barndorff-Nielsen and N. Shephard, "Econometrics of
    testing for jumps in financial economics using bipower variation", Journal of Financial Econometrics 4 (2006),
    with their lower bound of the quarticity.
    """
    ratio, scale = _bipower(np.concatenate([np.zeros(1), returns]), len(returns))
    if math.isnan(ratio[-1]):
        return None
    statistic = float(ratio[-1] / scale[-1])
    p_value, share = 1.0 - NormalDist().cdf(statistic), max(0.0, float(ratio[-1]))
    return JumpTest(statistic=statistic, p_value=p_value, jump_share=share, returns=len(returns))


def bipower_scores(bars: Bars) -> Floats:
    """Return the statistic of `jump_test` over the 96 returns up to each bar, [bars]; NaN if nothing moved."""
    ratio, scale = _bipower(bars.step_returns, BIPOWER_WINDOW)
    return ratio / scale


def _bipower(returns: Floats, window: int) -> tuple[Floats, Floats]:
    """Return 1 − BV/RV over the `window` returns up to each, and its standard deviation without jumps.

    The first return does not count, because no bar was before it.
    """
    count = len(returns)
    ratio, scale = np.full(count, np.nan), np.full(count, np.nan)
    size = np.abs(returns[1:])
    pairs = size[1:] * size[:-1]
    quads = pairs[2:] * pairs[:-2]
    variance = _sums(size * size, window, 0)
    bipower = _HALF_PI * window / (window - 1) * _sums(pairs, window, 1)
    quarticity = _HALF_PI**2 * window**2 / (window - 3) * _sums(quads, window, 3)
    moved = (variance > window * NO_SPREAD**2) & (bipower > 1e-9 * variance)
    np.divide(bipower, variance, out=ratio[window:], where=moved)
    ratio[window:] = 1.0 - ratio[window:]
    relative = np.divide(quarticity, bipower * bipower, out=np.ones_like(bipower), where=moved)
    scale[window:] = np.sqrt((_HALF_PI**2 + math.pi - 5.0) / window * np.maximum(1.0, relative))
    return ratio, scale


def _sums(products: Floats, window: int, lost: int) -> Floats:
    """Return the sums of products of `lost` + 1 neighbours within each window of returns."""
    return np.asarray(talib.SUM(products, window - lost)[window - lost - 1 :])


@dataclass(frozen=True)
class VolumeBasis:
    """How unusual the volume of each bar is, [bars]; NaN if it is not known, 0, or has too few before it.

    Attributes:
        score: log volume less the usual one, in robust standard deviations.
        usual_log: natural logarithm of the usual volume.
        same_time: whether the usual volume is of the same time of day; otherwise it is of the bars just before.
    """

    score: Floats
    usual_log: Floats
    same_time: Flags

    def usual(self, place: int) -> float:
        """Return the usual volume at a bar; NaN if it is not known."""
        return math.exp(self.usual_log[place])


def volume_basis(bars: Bars) -> VolumeBasis:
    """Return how unusual volumes are; bars without trade or without a known volume do not count as usual.

    The usual log volume is the median of the last 15 bars at the same time of day, and the deviation is the median
    distance of the last 97 bars from what was usual for each. Until there are enough of them, and for bars of a day or
    more, the usual log volume is the median of the 97 bars before.
    """
    return bars.once("volume", _volume_basis)


def _volume_basis(bars: Bars) -> VolumeBasis:
    count = len(bars)
    score, usual_log, same_time = np.full(count, np.nan), np.full(count, np.nan), np.zeros(count, bool)
    traded = np.flatnonzero(bars.volume > 0.0)
    logs = exact_logs(bars.volume[traded])
    scores, middle = np.full(len(logs), np.nan), np.full(len(logs), np.nan)
    if bars.frame_us < DAY_US:
        middle = _medians_by_time(logs, (bars.closed_us[traded] - 1) % DAY_US // bars.frame_us)
        scores = robust_scores(logs, middle, VOLUME_WINDOW, VOLUME_FLOOR)
        same_time[traded] = ~np.isnan(scores)
    without = np.flatnonzero(np.isnan(scores))
    if without.size:  # usually the first ones; nothing is needed after the last of them
        until = np.s_[: int(without[-1]) + 1]
        lately = medians_before(logs[until], VOLUME_WINDOW)
        by_lately = robust_scores(logs[until], lately, VOLUME_WINDOW, VOLUME_FLOOR)
        scores[without], middle[without] = by_lately[without], lately[without]
    score[traded] = scores
    usual_log[traded] = np.where(np.isnan(scores), np.nan, middle)
    # Bars of several hours have enough days a little before the warm-up ends.
    score[:VOLUME_WARM_UP] = usual_log[:VOLUME_WARM_UP] = np.nan
    same_time[:VOLUME_WARM_UP] = False
    return VolumeBasis(score, usual_log, same_time)


def _medians_by_time(logs: Floats, slots: Integers) -> Floats:
    """Return the median of the last `DAYS` values of the same slot before each; NaN if there are fewer."""
    small = slots.astype(np.uint16) if slots.size and slots.max() < 1 << 16 else slots  # sorted ten times as fast
    order = np.argsort(small, kind="stable")
    medians = medians_before(logs[order], DAYS)
    firsts = np.flatnonzero(np.diff(small[order], prepend=small[order][:1])).tolist()
    for first in (0, *firsts):
        medians[first : first + DAYS] = np.nan  # the window reaches into another slot
    found = np.full(len(logs), np.nan)
    found[order] = medians
    return found


@dataclass(frozen=True)
class PumpParts:
    """The features of a pump and dump in the 12 bars up to each, [bars]; NaN if they are not known.

    Attributes:
        rise: log of the highest close over the close before the 12 bars, in standard deviations of a random walk over
            that time with the spread of the 48 bars before.
        volume: the largest volume score.
        given_back: the share of the rise that is lost again, 0 to 1; 0 without a rise.
        climbed: log of the highest close over the close before the 12 bars.
    """

    rise: Floats
    volume: Floats
    given_back: Floats
    climbed: Floats

    @property
    def score(self) -> Floats:
        """The lesser of rise and volume, times the share given back, [bars]."""
        return np.minimum(np.maximum(self.rise, 0.0), np.maximum(self.volume, 0.0)) * self.given_back


def pump_parts(bars: Bars) -> PumpParts:
    """Return the features of a pump and dump, bar by bar."""
    rise, volume, given_back, climbed = np.full((4, len(bars)), np.nan)
    late, start = np.s_[PUMP_BARS + CALM_BARS :], np.s_[CALM_BARS:-PUMP_BARS]
    peak = talib.MAX(bars.log_close, PUMP_BARS)[late]
    climbed[late] = climb = peak - bars.log_close[start]
    calm = np.maximum(NO_SPREAD, spread(bars, CALM_BARS)[start])
    time = np.cumsum(bars.steps)
    rise[late] = climb / (calm * np.sqrt(time[late] - time[start]))
    fallen = peak - bars.log_close[late]
    lost = np.divide(fallen, climb, out=np.zeros(len(climb)), where=climb > NO_SPREAD)
    given_back[late] = np.clip(lost, 0.0, 1.0)
    windows = np.lib.stride_tricks.sliding_window_view(volume_basis(bars).score, PUMP_BARS)
    volume[PUMP_BARS - 1 :] = np.fmax.reduce(windows, axis=1)
    return PumpParts(rise, volume, given_back, climbed)


def range_ratios(bars: Bars) -> Floats:
    """Return each bar's true range over the median of the 97 before it, [bars]; NaN if that is 0 or not known."""
    ratios = np.full(len(bars), np.nan)
    ranges = np.asarray(talib.TRANGE(*scaled_prices(bars)[1:]))[1:]
    usual = medians_before(ranges, VOLUME_WINDOW)
    np.divide(ranges, usual, out=ratios[1:], where=usual > 0.0)
    return ratios


def wash_scores(bars: Bars) -> Floats:
    """Return volume score × (1 − range ratio) if both are above 0, otherwise 0, [bars]: much traded, little moved."""
    return np.maximum(volume_basis(bars).score, 0.0) * np.maximum(0.0, 1.0 - range_ratios(bars))


def find_hints(bars: Bars, last: int) -> tuple[ManipulationHint, ...]:
    """Return the hints at manipulation in the last bars, by time; a shape that lasts is reported at its first bar."""
    found = [*_pumps(bars, last), *_washes(bars, last)]
    return tuple(sorted(found, key=lambda hint: (hint.at_us, hint.kind)))


def _pumps(bars: Bars, last: int) -> list[ManipulationHint]:
    parts = pump_parts(bars)
    shape = (parts.rise >= PUMP_RISE) & (parts.volume >= PUMP_VOLUME) & (parts.given_back >= PUMP_GIVEN_BACK)
    hints = []
    for place in _starts(shape, last):
        rise, volume, back = float(parts.rise[place]), float(parts.volume[place]), float(parts.given_back[place])
        pct = 100.0 * math.expm1(float(parts.climbed[place]))
        evidence = {"rise_deviations": rise, "rise_pct": pct, "volume_score": volume, "given_back_share": back}
        text = (
            f"rose by {pct:.2f} % ({rise:.1f} deviations of a random walk) and lost {100 * back:.0f} % of it again "
            f"within {PUMP_BARS} bars, with volume up to {volume:.1f} robust deviations above usual"
        )
        hints.append(_hint("pump-and-dump", bars, place, parts.score, evidence, text))
    return hints


def _washes(bars: Bars, last: int) -> list[ManipulationHint]:
    basis, ratios, scores = volume_basis(bars), range_ratios(bars), wash_scores(bars)
    hints = []
    for place in _starts((basis.score >= WASH_VOLUME) & (ratios <= WASH_RANGE), last):
        volume, ratio, usual = float(basis.score[place]), float(ratios[place]), basis.usual(place)
        traded = float(bars.volume[place])
        evidence = {"volume_score": volume, "volume": traded, "usual_volume": usual, "range_ratio": ratio}
        text = (
            f"volume {traded:.4g}, {traded / usual:.1f} times the usual {usual:.4g} ({volume:.1f} robust deviations), "
            f"while the price moved {ratio:.2f} times as far as usual"
        )
        hints.append(_hint("wash-trading", bars, place, scores, evidence, text))
    return hints


def _hint(
    kind: HintKind, bars: Bars, place: int, scores: Floats, evidence: dict[str, float], text: str
) -> ManipulationHint:
    at_us, score = int(bars.closed_us[place]), float(scores[place])
    return ManipulationHint(kind=kind, at_us=at_us, score=score, evidence=evidence, text=text)


def _starts(shape: Flags, last: int) -> list[int]:
    """Return the rows among the last bars at which a shape begins."""
    begins = shape.copy()
    begins[1:] &= ~shape[:-1]
    first = max(0, len(shape) - last)
    return [first + int(place) for place in np.flatnonzero(begins[first:])]


def _volume_scores(bars: Bars) -> Floats:
    return volume_basis(bars).score


def _pump_scores(bars: Bars) -> Floats:
    return pump_parts(bars).score


_OUTLIERS_FROM = 2 * OUTLIER_WINDOW + 1
SCORES = by_name(
    Indicator("outlier_score", outlier_scores, _OUTLIERS_FROM, "robust deviations", "a return against those before it"),
    Indicator("jump_score", jump_scores, JUMP_WINDOW + 2, "deviations", "a return against the bipower variation"),
    Indicator("bipower_score", bipower_scores, BIPOWER_WINDOW, "deviations", "jumps among 96 returns"),
    Indicator("volume_score", _volume_scores, VOLUME_WARM_UP, "robust deviations", "log volume against the usual one"),
    Indicator("pump_score", _pump_scores, VOLUME_WARM_UP, "deviations", "rise with volume, times the share lost again"),
    Indicator("wash_score", wash_scores, VOLUME_WARM_UP, "robust deviations", "volume without a move of the price"),
)
"""Scores of anomalies, bar by bar."""
