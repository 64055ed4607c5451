"""Do scores lead returns, or returns scores? Correlations at each lag, and Granger regressions in both directions."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from qubic_lab.oracle.inference.alignment import Aligned
from qubic_lab.oracle.inference.information import LEAST_PAIRS, STRETCHES, known_span
from qubic_lab.oracle.inference.performance import ALPHA, newey_west_lags
from qubic_lab.oracle.inference.resampling import LEAST_SHIFTS, circular_correlations, memory_bars
from qubic_lab.oracle.model.bars import Floats, Integers, is_constant
from qubic_lab.stats import holm_in_parts

LAGS = 24
OWN_LAGS = 4
"""Of both series in the regressions."""
LEAST_STRETCHES = 10
"""Stretches as long as the scores' memory; with fewer the spread of chance is not known."""
Lead = Literal["sentiment leads", "price leads", "both", "neither", "unknown"]


@dataclass(frozen=True)
class LeadSide:
    """One direction: the largest correlation, and whether lags predict what the other series' own lags do not.

    `p` is the probability that the largest of as many lags is as large by chance, `p_holm` that for both directions,
    and `wald_p` that of a HAC Wald test that the last lags of the leading series, and this lag, add nothing to the
    other series' own lags; None with too few bars.
    """

    lag: int
    correlation: float
    p: float
    p_holm: float
    wald_p: float | None

    @property
    def leads(self) -> bool:
        """Whether the correlation is beyond chance and own lags do not explain it."""
        return self.p_holm <= ALPHA and self.wald_p is not None and self.wald_p <= ALPHA


@dataclass(frozen=True, eq=False)
class LeadLag:
    """Rank correlations of scores with one-bar returns at each lag, and the verdict.

    Lag 1 is the bar from the next open on, 0 the bar in which the texts came; lags and correlations are [lags].

    Attributes:
        band: with a probability of at least 95 % chance keeps all lags within it.
        ahead: scores with later returns; `before`: with earlier ones. Lag 0 is in neither.
        shifts: number of circular shifts behind the spread of chance; `bars`: number of bars with a score.
    """

    lags: Integers
    correlation: Floats
    band: float | None
    ahead: LeadSide | None
    before: LeadSide | None
    shifts: int
    bars: int
    absent: str = ""

    @property
    def verdict(self) -> Lead:
        """Which of the two leads."""
        if self.ahead is None or self.before is None:
            return "unknown"
        if self.ahead.leads:
            return "both" if self.before.leads else "sentiment leads"
        return "price leads" if self.before.leads else "neither"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON, without the correlations."""
        sides = {name: getattr(self, name) for name in ("ahead", "before")}
        told = {name: None if side is None else asdict(side) for name, side in sides.items()}
        return {"verdict": self.verdict, "bars": self.bars, "shifts": self.shifts, "band": self.band, **told}


def lead_lag(aligned: Aligned) -> LeadLag:
    """Return whether scores lead returns, returns lead scores, both or neither.

    A side leads if its largest rank correlation is beyond chance, corrected for all lags and both sides, and if the
    last `OWN_LAGS` lags of the leading series, with that lag, add to the other series' own lags. The first keeps its
    level in small samples; the second separates a lead from the memory of the series that is led. Few bars have fewer
    lags, and in the regressions bars without a score have the mean score.

    The spread of chance is that of circularly shifted scores. Its tail is Student's t with one degree of freedom for
    each stretch of the scores' memory within the shifts, times the number of lags (Bonferroni). The share of shifts
    that reach the largest of many lags would not do: shifts closer than these lags have the same largest lag, so 600
    bars and 24 lags are only 20 different cases.

    Source: C. W. J. Granger, Econometrica 37 (1969), 424-438, with the errors of Newey and West.
    """
    from scipy.stats import t

    first, last = known_span({"": aligned})
    score = aligned.score[first:last]
    memory = memory_bars(score)
    most = max(OWN_LAGS, min(LAGS, len(score) // STRETCHES - memory))
    lags = np.arange(-most, most + 1, dtype=np.int64)
    singles = [aligned.ahead(1, int(lag) - 1)[first:last] for lag in lags]
    nothing = np.full(len(lags), np.nan)
    known = int((~np.isnan(score)).sum())
    least_shift = 2 * most + memory
    shifts = len(score) - 2 * least_shift + 1
    least_shifts = max(LEAST_SHIFTS, LEAST_STRETCHES * memory)
    if reason := _unfit(score, singles[most + 1], known, least_shift, least_shifts):
        return LeadLag(lags, nothing, None, None, None, max(0, shifts), known, reason)
    found, pairs = _correlations(score, singles)
    drawn = circular_correlations([score], [singles[most + 1]])[0][least_shift : least_shift + shifts]
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) < least_shifts or any(np.isnan(found[side]).all() for side in (lags > 0, lags < 0)):
        reason = "scores and returns are known together at too few bars, or do not vary there"
        return LeadLag(lags, nothing, None, None, None, len(drawn), known, reason)
    spread, stretches = math.sqrt(float(np.mean(drawn**2))), len(drawn) // memory
    p_values, places = [], []
    for side in (lags > 0, lags < 0):
        places.append(int(np.flatnonzero(side)[np.nanargmax(np.abs(found[side]))]))
        own, tried = abs(found[places[-1]]) * math.sqrt(pairs[places[-1]]), int((~np.isnan(found[side])).sum())
        p_values.append(min(1.0, 2.0 * tried * float(t.sf(own / spread, stretches))))
    filled = np.where(np.isnan(score), np.nanmean(score), score)
    pairs_of = ((singles[most], filled), (filled, singles[most]))
    walds = [_adds(led, leading, abs(int(lags[at]))) for (led, leading), at in zip(pairs_of, places, strict=True)]
    ahead, before = (
        LeadSide(int(lags[place]), float(found[place]), p, p, wald)
        for place, p, wald in zip(places, p_values, walds, strict=True)
    )
    band = spread * float(t.isf(ALPHA / (2.0 * len(lags)), stretches)) / math.sqrt(float(pairs[most + 1]))
    return holm_in_parts([LeadLag(lags, found, band, ahead, before, len(drawn), known)], "ahead", "before")[0]


def _unfit(score: Floats, single: Floats, known: int, least_shift: int, least_shifts: int) -> str:
    if known < LEAST_PAIRS:
        return f"{known} bars with a score: at least {LEAST_PAIRS} are needed"
    for what, values in (("score", score), ("return", single)):
        values = values[~np.isnan(values)]
        if is_constant(values):
            return f"every {what} is {values[0]:.3g}" if len(values) else f"no {what} is known"
    if len(score) < (least := 2 * least_shift + least_shifts - 1):
        return f"{len(score)} bars are too few for shifts of {least_shift} or more: at least {least} are needed"
    return ""


def _correlations(score: Floats, singles: list[Floats]) -> tuple[Floats, Floats]:
    """Return the unshifted rank correlation with each one-bar return, and the number of pairs."""
    ends = [circle[0] for circle in circular_correlations([score], singles)]
    pairs = np.array([float((~(np.isnan(score) | np.isnan(single))).sum()) for single in singles])
    return np.array(ends) / np.sqrt(np.maximum(pairs, 1.0)), pairs


def _adds(led: Floats, leading: Floats, lag: int) -> float | None:
    """Return the p-value of a test that the leading series' last lags, and `lag`, add nothing to the led one's own."""
    from statsmodels.regression.linear_model import OLS

    own = range(1, OWN_LAGS + 1)
    first = max(OWN_LAGS, lag)
    rows = len(led) - first
    columns = [led[first - back : first - back + rows] for back in own]
    columns += [leading[first - back : first - back + rows] for back in sorted({*own, lag})]
    design, outcome = np.column_stack([np.ones(rows), *columns]), led[first:]
    whole = ~(np.isnan(design).any(axis=1) | np.isnan(outcome))
    if whole.sum() < LEAST_PAIRS or np.linalg.matrix_rank(design[whole]) < design.shape[1]:
        return None
    options = {"maxlags": newey_west_lags(int(whole.sum())), "use_correction": True}
    fitted = OLS(outcome[whole], design[whole]).fit(cov_type="HAC", cov_kwds=options, use_t=True)
    return float(fitted.f_test(np.eye(design.shape[1])[1 + OWN_LAGS :]).pvalue)
