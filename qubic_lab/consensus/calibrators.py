"""Curves from signals to probabilities, fitted to N observations of S signals with outcomes 0 or 1.

scikit-learn has the same curves but needs SciPy, about 190 MB in all; tests compare with its results.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Self

import numpy as np
from pydantic import ConfigDict, Field

from qubic_lab.errors import InputError
from qubic_lab.stats import Floats

HISTOGRAM_BINS = 10
PRIOR_OBSERVATIONS = 4.0
"""Observations of the overall share that a histogram bin starts with."""
RIDGE = 1.0
NEWTON_STEPS = 50

Numbers = tuple[float, ...]
Probability = Annotated[float, Field(gt=0.0, lt=1.0)]
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""How curves are read from files (see `checked_yaml`)."""


@dataclass(frozen=True)
class BaseRate:
    """The share of right outcomes, without any signal."""

    __pydantic_config__ = _STRICT
    probability: Probability

    signals = 0

    @classmethod
    def fit(cls, signals_NS: Floats, right_N: Floats) -> Self:
        """Return (right + 1) / (N + 2), which is never 0 or 1."""
        return cls(_overall(right_N))

    def __call__(self, signals_NS: Floats) -> Floats:
        """Return the probability of each row of signals."""
        return np.full(len(signals_NS), self.probability)


@dataclass(frozen=True)
class Histogram:
    """The share of right outcomes in bins of about equal mass of one signal; `ends` are all upper ends but the last."""

    __pydantic_config__ = _STRICT
    ends: Numbers
    probabilities: tuple[Probability, ...]

    signals = 1

    def __post_init__(self) -> None:
        _check_rising(self.ends, len(self.probabilities) - 1)

    @classmethod
    def fit(cls, signals_NS: Floats, right_N: Floats) -> Self:
        """Return beta-binomial posterior means; the prior is PRIOR_OBSERVATIONS of the overall share."""
        values = signals_NS[:, 0]
        cuts = np.arange(1, HISTOGRAM_BINS) / HISTOGRAM_BINS
        ends = np.unique(np.quantile(values, cuts, method="inverted_cdf"))
        ends = ends[ends < values.max()]  # no empty bin above
        bin_N = np.searchsorted(ends, values, side="left")
        counts = np.bincount(bin_N, minlength=len(ends) + 1)
        right = np.bincount(bin_N, right_N, minlength=len(ends) + 1)
        share = (right + PRIOR_OBSERVATIONS * _overall(right_N)) / (counts + PRIOR_OBSERVATIONS)
        return cls(_numbers(ends), _numbers(share))

    def __call__(self, signals_NS: Floats) -> Floats:
        """Return the probability of each row of signals."""
        return np.asarray(self.probabilities)[np.searchsorted(self.ends, signals_NS[:, 0], side="left")]


@dataclass(frozen=True)
class Isotonic:
    """A monotone curve of one signal: linear between `values`, constant beyond them."""

    __pydantic_config__ = _STRICT
    values: Numbers
    probabilities: tuple[Probability, ...]

    signals = 1

    def __post_init__(self) -> None:
        _check_rising(self.values, len(self.probabilities) or 1)

    @classmethod
    def fit(cls, signals_NS: Floats, right_N: Floats) -> Self:
        """Return the monotone curve with the least squared error, by pooling adjacent violators.

        It decreases if signal and outcome correlate negatively, and stays 1 / (N + 2) away from 0 and 1.

        Source: M. Ayer et al., Annals of Mathematical Statistics 26 (1955), 641-647; for calibration B. Zadrozny and C.
        Elkan, KDD 2002, 694-699.
        """
        values, which = np.unique(signals_NS[:, 0], return_inverse=True)
        counts, right = (np.bincount(which, each).astype(np.float64) for each in (np.ones_like(right_N), right_N))
        falls = float((signals_NS[:, 0] - signals_NS[:, 0].mean()) @ right_N) < 0
        order = slice(None, None, -1 if falls else 1)
        share = _pool(right[order], counts[order])[order]
        least = 1 / (len(right_N) + 2)
        return cls(_numbers(values), _numbers(np.clip(share, least, 1 - least)))

    def __call__(self, signals_NS: Floats) -> Floats:
        """Return the probability of each row of signals."""
        return np.interp(signals_NS[:, 0], self.values, self.probabilities)


def _pool(right: Floats, counts: Floats) -> Floats:
    """Return non-decreasing shares: adjacent violators are pooled."""
    blocks: list[tuple[float, float, int]] = []  # right, observations, values
    for happened, count in zip(right.tolist(), counts.tolist(), strict=True):
        block = (happened, count, 1)
        while blocks and blocks[-1][0] * block[1] >= block[0] * blocks[-1][1]:
            before = blocks.pop()
            block = (before[0] + block[0], before[1] + block[1], before[2] + block[2])
        blocks.append(block)
    return np.repeat([each[0] / each[1] for each in blocks], [each[2] for each in blocks])


@dataclass(frozen=True)
class Logistic:
    """A logistic curve of one or more standardized signals."""

    __pydantic_config__ = _STRICT
    means: Numbers
    scales: tuple[Annotated[float, Field(gt=0.0)], ...]
    weights: Numbers
    intercept: float

    @property
    def signals(self) -> int:
        """The number of signals."""
        return len(self.weights)

    def __post_init__(self) -> None:
        if not len(self.means) == len(self.scales) == len(self.weights) >= 1:
            raise InputError("a logistic curve needs as many means and scales as weights")

    @classmethod
    def fit(cls, signals_NS: Floats, right_N: Floats) -> Self:
        """Return the curve, fitted by Newton's method.

        A small ridge stabilizes the weights of correlated signals. Platt's rule moves outcomes away from 0 and 1, so
        that weights stay finite if all are right.

        Source: J. C. Platt, "Probabilistic outputs for support vector machines", Advances in Large Margin Classifiers
        (1999), 61-74.
        """
        means, deviations = signals_NS.mean(axis=0), signals_NS.std(axis=0)
        scales = np.where(deviations > 1e-9, deviations, 1.0)
        inputs = np.column_stack([(signals_NS - means) / scales, np.ones(len(signals_NS))])
        right = right_N.sum()
        target_N = np.where(right_N == 1, (right + 1) / (right + 2), 1 / (len(right_N) - right + 2))
        ridge = np.append(np.full(len(means), RIDGE), 0.0)  # none on the intercept
        weights = np.zeros(inputs.shape[1])

        def loss(at: Floats) -> float:
            logits_N = inputs @ at
            return float((np.logaddexp(0.0, logits_N) - target_N * logits_N).sum() + ridge @ at**2 / 2)

        for _ in range(NEWTON_STEPS):
            share_N = _sigmoid(inputs @ weights)
            slope = inputs.T @ (share_N - target_N) + ridge * weights
            curvature = (inputs * (share_N * (1 - share_N))[:, None]).T @ inputs + np.diag(ridge)
            step = np.linalg.solve(curvature, slope)
            while loss(weights - step) > loss(weights) and np.abs(step).max() > 1e-10:
                step = step / 2  # a whole step may go too far
            weights = weights - step
            if np.abs(step).max() <= 1e-10:
                break
        return cls(_numbers(means), _numbers(scales), _numbers(weights[:-1]), float(weights[-1]))

    def __call__(self, signals_NS: Floats) -> Floats:
        """Return the probability of each row of signals."""
        inputs = (signals_NS - np.asarray(self.means)) / np.asarray(self.scales)
        return _sigmoid(inputs @ np.asarray(self.weights) + self.intercept)


Curve = BaseRate | Histogram | Isotonic | Logistic

METHODS: dict[str, type[Curve]] = {
    "base-rate": BaseRate,
    "histogram": Histogram,
    "isotonic": Isotonic,
    "logistic": Logistic,
}


def _overall(right_N: Floats) -> float:
    return (float(right_N.sum()) + 1) / (len(right_N) + 2)


def _sigmoid(logits: Floats) -> Floats:
    share: Floats = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    return share


def _numbers(values: Iterable[float]) -> Numbers:
    return tuple(map(float, values))


def _check_rising(values: Numbers, count: int) -> None:
    if len(values) != count or any(high <= low for low, high in pairwise(values)):
        raise InputError(f"a curve has the values {list(values)}: it needs {count}, each above the one before")
