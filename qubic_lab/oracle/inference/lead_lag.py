"""Which comes first: do scores lead returns, or returns scores? Correlations at each lag, and regressions both ways."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from qubic_lab.oracle.inference.alignment import Aligned
from qubic_lab.oracle.inference.bootstrap import is_constant
from qubic_lab.oracle.inference.information import ALPHA, LEAST_PAIRS, STRETCHES, known_span
from qubic_lab.oracle.inference.performance import newey_west_lags
from qubic_lab.oracle.inference.permutation import LEAST_SHIFTS, circular_statistics, dependence, holm_of
from qubic_lab.oracle.model.bars import Floats, Integers

LAGS = 24
OWN_LAGS = 4
"""Of both series in the regressions."""
LEAST_STRETCHES = 10
"""Stretches as long as the scores' memory; fewer do not tell the spread of chance."""
Lead = Literal["sentiment leads", "price leads", "both", "neither", "unknown"]


@dataclass(frozen=True)
class Side:
    """One direction: how far its largest correlation is from chance, and whether lags foretell what own lags do not.

    Attributes:
        lag: of the largest correlation, in bars.
        correlation: there.
        p: probability that the largest of as many lags is as large by chance; `p_holm`: both directions counted.
        wald_p: that the leading series' last lags, and this one, add nothing to the other's own lags, by a HAC Wald
            test; None where there are too few bars.
    """

    lag: int
    correlation: float
    p: float
    p_holm: float
    wald_p: float | None

    @property
    def leads(self) -> bool:
        """Whether both say so: a correlation beyond chance that own lags do not explain."""
        return self.p_holm <= ALPHA and self.wald_p is not None and self.wald_p <= ALPHA


@dataclass(frozen=True, eq=False)
class LeadLag:
    """Rank correlations of scores with one-bar returns at each lag, and the verdict.

    Attributes:
        lags: 1 is the bar from the next open on, 0 the one in which the texts came, below 0 earlier ones, [lags].
        correlation: at each, [lags].
        band: of chance: in 95 of 100 cases or more none of all lags is beyond it.
        ahead: scores with later returns; `before`: with earlier ones. The bar itself is in neither.
        shifts: that the spread of chance is known from.
        bars: with a score.
    """

    lags: Integers
    correlation: Floats
    band: float | None
    ahead: Side | None
    before: Side | None
    shifts: int
    bars: int
    absent: str = ""

    @property
    def verdict(self) -> Lead:
        """Return which leads."""
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


def lead_lag(aligned: Aligned, most: int = LAGS, own_lags: int = OWN_LAGS) -> LeadLag:
    """Return whether scores lead returns, returns scores, both or neither.

    A side leads where its largest rank correlation is beyond chance over as many lags, both sides counted, and the last
    `own_lags` of the leading series, with that one, add to the other one's own lags: the first keeps its promise in
    small samples, the second tells a lead from the memory of what is led.

    The spread of chance is that of scores shifted in a circle. Its tail is Student's t with as many degrees of freedom
    as the shifts hold stretches of the scores' memory, times the lags (Bonferroni). The share of shifts that reach the
    largest of many lags would not do: shifts that are closer than these lags show the same largest one, so 600 bars and
    24 lags are only 20 different cases.

    Args:
        aligned: scores and returns.
        most: lags in each direction, in bars; fewer where there are few bars.
        own_lags: of the regressions. Bars without a score count with the mean score there: no text, no news.

    Source: C. W. J. Granger, Econometrica 37 (1969), 424-438, with the errors of Newey and West.
    """
    first, last = known_span({"": aligned})
    score = aligned.score[first:last]
    memory = dependence(score)
    most = max(own_lags, min(most, len(score) // STRETCHES - memory))
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
    drawn = circular_statistics([score], [singles[most + 1]])[0][least_shift : least_shift + shifts]
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) < least_shifts or any(np.isnan(found[side]).all() for side in (lags > 0, lags < 0)):
        reason = "scores and returns are known together at too few bars, or do not vary there"
        return LeadLag(lags, nothing, None, None, None, len(drawn), known, reason)
    chance = _Chance(math.sqrt(float(np.mean(drawn**2))), len(drawn) // memory)
    p_values, places = [], []
    for side in (lags > 0, lags < 0):
        places.append(int(np.flatnonzero(side)[np.nanargmax(np.abs(found[side]))]))
        own = abs(found[places[-1]]) * math.sqrt(pairs[places[-1]])
        p_values.append(chance.p(own, int((~np.isnan(found[side])).sum())))
    filled = np.where(np.isnan(score), np.nanmean(score), score)
    pairs_of = ((singles[most], filled), (filled, singles[most]))
    walds = [
        _adds(led, leading, own_lags, abs(int(lags[at]))) for (led, leading), at in zip(pairs_of, places, strict=True)
    ]
    ahead, before = (
        Side(int(lags[place]), float(found[place]), p, together, wald)
        for place, p, together, wald in zip(places, p_values, holm_of(p_values), walds, strict=True)
    )
    band = chance.critical(len(lags)) / math.sqrt(float(pairs[most + 1]))
    return LeadLag(lags, found, band, ahead, before, len(drawn), known)


@dataclass(frozen=True)
class _Chance:
    """What correlations × √pairs are without any effect: Student's t of a spread, known from so many stretches."""

    spread: float
    stretches: int

    def p(self, largest: float, lags: int) -> float:
        """Return how probable it is at most that the largest of some lags is as large."""
        from scipy.stats import t

        return min(1.0, 2.0 * lags * float(t.sf(largest / self.spread, self.stretches)))

    def critical(self, lags: int) -> float:
        """Return what the largest of some lags reaches in at most 5 of 100 cases."""
        from scipy.stats import t

        return self.spread * float(t.isf(ALPHA / (2.0 * lags), self.stretches))


def corrected(studies: Sequence[LeadLag]) -> tuple[LeadLag, ...]:
    """Return studies with the p-values of both sides of all of them corrected together by Holm."""
    sides = [side for each in studies for side in (each.ahead, each.before) if side is not None]
    together = iter(holm_of([side.p for side in sides]))

    def of(side: Side | None) -> Side | None:
        return None if side is None else replace(side, p_holm=next(together))

    return tuple(replace(each, ahead=of(each.ahead), before=of(each.before)) for each in studies)


def _unfit(score: Floats, single: Floats, known: int, least_shift: int, least_shifts: int) -> str:
    if known < LEAST_PAIRS:
        return f"{known} bars with a score: fewer than {LEAST_PAIRS} say nothing"
    for what, values in (("score", score), ("return", single)):
        values = values[~np.isnan(values)]
        if is_constant(values):
            return f"every {what} is {values[0]:.3g}" if len(values) else f"no {what} is known"
    if len(score) < (least := 2 * least_shift + least_shifts - 1):
        return f"{len(score)} bars are too few for shifts of {least_shift} or more: it takes {least}"
    return ""


def _correlations(score: Floats, singles: list[Floats]) -> tuple[Floats, Floats]:
    """Return the rank correlation with each one-bar return without a circle, and the pairs of each."""
    ends = [circle[0] for circle in circular_statistics([score], singles)]
    pairs = np.array([float((~(np.isnan(score) | np.isnan(single))).sum()) for single in singles])
    return np.array(ends) / np.sqrt(np.maximum(pairs, 1.0)), pairs


def _adds(led: Floats, leading: Floats, own_lags: int, lag: int) -> float | None:
    """Return the p-value that the leading series' last lags, and one further lag, add nothing to the led one's own."""
    from statsmodels.regression.linear_model import OLS

    own = range(1, own_lags + 1)
    first = max(own_lags, lag)
    rows = len(led) - first
    columns = [led[first - back : first - back + rows] for back in own]
    columns += [leading[first - back : first - back + rows] for back in sorted({*own, lag})]
    design, outcome = np.column_stack([np.ones(rows), *columns]), led[first:]
    whole = ~(np.isnan(design).any(axis=1) | np.isnan(outcome))
    if whole.sum() < LEAST_PAIRS or np.linalg.matrix_rank(design[whole]) < design.shape[1]:
        return None
    options = {"maxlags": newey_west_lags(int(whole.sum())), "use_correction": True}
    fitted = OLS(outcome[whole], design[whole]).fit(cov_type="HAC", cov_kwds=options, use_t=True)
    return float(fitted.f_test(np.eye(design.shape[1])[1 + own_lags :]).pvalue)
