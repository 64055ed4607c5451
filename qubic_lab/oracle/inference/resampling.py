"""Resampling of series with memory: the stationary bootstrap, and permutation tests by circular shifts.

A circular shift moves scores along the bars, too far to know the returns beside them. It keeps the memory and the gaps
of both series and removes only what binds them. All series of scores are shifted together, so that correlated tests
stay correlated.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.inference.performance import ALPHA, NORMAL, POWER
from qubic_lab.oracle.model.bars import Floats, Integers, is_constant

RESAMPLES = 1000
_CELLS = 4_000_000
"""Size of a part of the weights: 32 MB."""
_LONGEST, _MOST_COLUMNS = 20_000, 50
"""The search for a block length reads this many rows and evenly spaced columns; more change it little and cost much."""
_MOST_PHI = 0.97
LEAST_SHIFTS = 99
"""Fewer cannot show a p-value of 0.05."""
MOST_SHIFTS = 20_000
"""Of more shifts, evenly spaced ones are used."""
_LEAST_PAIRS = 20


def block_length(series: Floats, least: float = 1.0) -> float:
    """Return the optimal mean block length for the stationary bootstrap of a series' mean, up to a tenth of the rows.

    For [rows, columns] it is the median over columns that vary. `least` is the smallest length, such as the number of
    bars that overlapping returns share.
    """
    columns = series.reshape(len(series), -1)[-_LONGEST:]
    columns = columns[:, [not is_constant(column) for column in columns.T]]
    columns = columns[:, :: math.ceil(max(1, columns.shape[1]) / _MOST_COLUMNS)]
    most = max(1.0, len(series) / 10)
    if len(columns) < 8 or not columns.shape[1]:
        return min(max(1.0, least), most)
    return min(max(1.0, least, float(np.median(_block_lengths(columns)))), most)


def _block_lengths(columns: Floats) -> Floats:
    """Return the optimal mean block length of each column, [columns].

    Source: D. N. Politis and H. White, "Automatic block-length selection for the dependent bootstrap", Econometric
    Reviews 23 (2004), 53-70, with the correction of A. Patton, D. N. Politis and H. White (2009). The tests compare it
    with `arch.bootstrap.optimal_block_length`, which takes one column at a time.
    """
    rows = len(columns)
    quiet = max(5, int(math.log10(rows)))
    most = min(rows - 1, math.ceil(math.sqrt(rows)) + quiet)
    spectrum = np.fft.rfft(columns - columns.mean(axis=0), 2 * rows, axis=0)
    covariances = np.fft.irfft(np.abs(spectrum) ** 2, 2 * rows, axis=0)[: most + 1] / rows
    small = np.abs(covariances[1:]) < 2.0 * math.sqrt(math.log10(rows) / rows) * covariances[0]
    begins = sliding_window_view(small, min(quiet, most), axis=0).all(axis=-1)  # of as many small ones in a row
    memory = np.where(begins.any(axis=0), begins.argmax(axis=0) + 1, most)
    lags = np.arange(1, most + 1)[:, None]
    weighted = 2.0 * np.clip(2.0 - 2.0 * lags / np.minimum(2 * memory, most), 0.0, 1.0) * covariances[1:]
    spread = covariances[0] + weighted.sum(axis=0)
    share = np.divide((lags * weighted).sum(axis=0), spread, out=np.zeros_like(spread), where=spread != 0.0)
    longest = math.ceil(min(3.0 * math.sqrt(rows), rows / 3.0))
    return np.asarray(np.minimum(np.cbrt(share**2 * rows), longest))


def prewhitened(columns: Floats) -> Floats:
    """Return columns without the memory of an autoregression of order 1, [rows − 1, columns].

    Each is (x(t) − φ x(t − 1)) / (1 − φ): it keeps the mean and the long-run variance, which short blocks miss in the
    column itself, and has hardly any memory left to resample. φ is found by least squares, corrected for its bias,
    drawn towards the mean of all columns as far as they differ by chance, and the mean towards 0: errors of φ would
    make the largest of many statistics larger. Columns that do not vary stay as they are.

    Source: D. W. K. Andrews and J. C. Monahan, Econometrica 60 (1992), 953-966, with their limit to φ; the bias:
    M. G. Kendall, Biometrika 41 (1954), 403-404; the mean: B. Efron and C. Morris, JASA 70 (1975), 311-319.
    """
    before, now = columns[:-1], columns[1:]
    around = before - before.mean(axis=0)
    variance = (around**2).sum(axis=0)
    vary = variance > 0.0
    slopes = (around * now).sum(axis=0)[vary] / variance[vary]
    phi = np.zeros(columns.shape[1])
    phi[vary] = np.clip(_drawn_together(slopes + (1.0 + 3.0 * slopes) / len(now), len(now)), -_MOST_PHI, _MOST_PHI)
    return np.asarray((now - phi * before) / (1.0 - phi))


def _drawn_together(phis: Floats, rows: int) -> Floats:
    """Return autoregressions drawn towards their mean, and that towards 0, by the share that is chance, [columns]."""
    count = len(phis)
    if not count:
        return phis
    mean = float(phis.mean())
    around, error = phis - mean, (1.0 - mean**2) / rows
    if count > 3:
        around = around * _not_chance((count - 3) * error, float(around @ around))
    return np.asarray(mean * _not_chance(error / count, mean**2) + around)


def _not_chance(chance: float, square: float) -> float:
    """Return the share of an estimate that is kept: its square less what chance adds to it, over its square."""
    return max(0.0, 1.0 - chance / square) if square > 0.0 else 0.0


def resampled_weights(rows: int, block: float, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[Floats]:
    """Yield how often the stationary bootstrap draws each row, in parts of [some resamples, rows].

    The means of resamples are weights @ columns / rows: one matrix product for all columns and resamples of a part.
    `block` is the mean length of the blocks; 1 draws single rows.

    Source: D. N. Politis and J. P. Romano, "The stationary bootstrap", Journal of the American Statistical Association
    89 (1994), 1303-1313.

    Raises:
        InputError: no resamples.
    """
    check_at_least("resamples", resamples, 1)
    draw = np.random.default_rng(seed)
    place = np.arange(rows)
    at_once = max(1, _CELLS // rows)
    for done in range(0, resamples, at_once):
        count = min(at_once, resamples - done)
        starts = draw.integers(0, rows, (count, rows))
        if block > 1.0:
            begins = draw.random((count, rows)) < 1.0 / block
            begins[:, 0] = True
            last = np.maximum.accumulate(np.where(begins, place, 0), axis=1)
            starts = (np.take_along_axis(starts, last, axis=1) + place - last) % rows
        starts += rows * np.arange(count)[:, None]
        yield np.bincount(starts.ravel(), minlength=count * rows).reshape(count, rows).astype(np.float64)


def long_run_variance(columns: Floats, block: float) -> Floats:
    """Return the variance of √rows × the mean of each column, as the stationary bootstrap estimates it, [columns].

    Source: Politis and Romano (1994), lemma 1, as used by P. R. Hansen, Journal of Business & Economic Statistics 23
    (2005), 365-380. Lags with a weight below 1e-6 are left out.
    """
    rows = len(columns)
    centred = columns - columns.mean(axis=0)
    variance = np.asarray((centred**2).sum(axis=0) / rows)
    if block <= 1.0:
        return variance
    stay, lags = 1.0 - 1.0 / block, np.arange(1, rows)
    share = lags / rows
    # Blocks that reach the end continue at the beginning, so the longest lags weigh as much as the shortest.
    kernel = (1.0 - share) * stay**lags + share * stay ** (rows - lags)
    for lag in lags[kernel >= 1e-6].tolist():
        variance += 2.0 * kernel[lag - 1] * np.einsum("ij,ij->j", centred[:-lag], centred[lag:]) / rows
    return variance


@dataclass(frozen=True, eq=False)
class ShiftTest:
    """Rank correlations of each test, times the root of its pairs, so that gaps have the right weight.

    `drawn` are those at each shift in bars, [shifts, tests]; `observed` are those without a shift, [tests], NaN where
    one of the two series does not vary.
    """

    shifts: Integers
    observed: Floats
    drawn: Floats

    @property
    def spread(self) -> Floats:
        """Standard deviation of the shifted correlations, [tests]; NaN where there is no test."""
        return np.asarray(np.sqrt(np.mean(self.drawn**2, axis=0)))

    @property
    def p(self) -> Floats:
        """Two-sided p-value of each test alone, [tests]."""
        return self._p((np.abs(self.drawn) >= np.abs(self.observed)).sum(axis=0))

    @property
    def largest(self) -> Floats:
        """The largest of all tests at each shift, in units of the tests' spreads, [shifts]."""
        usable = ~np.isnan(self.observed)
        if not usable.any():
            return np.zeros(len(self.shifts))
        return np.asarray((np.abs(self.drawn[:, usable]) / self.spread[usable]).max(axis=1))

    @property
    def p_corrected(self) -> Floats:
        """P-values corrected for the number of tests: the share of shifts whose largest test is as large, [tests].

        Source: P. H. Westfall and S. S. Young, "Resampling-based multiple testing" (1993), the single-step maximum.
        """
        return self._p((self.largest[:, None] >= np.abs(self.observed) / self.spread).sum(axis=0))

    def _p(self, reached: Integers) -> Floats:
        return np.where(np.isnan(self.observed), np.nan, (1 + reached) / (1 + len(self.shifts)))

    @property
    def band(self) -> Floats:
        """The correlation, times the root of pairs, that chance reaches among all tests in 5 of 100 cases, [tests]."""
        return self._critical * self.spread

    @property
    def detectable(self) -> Floats:
        """The correlation, times the root of pairs, that is found among all tests with a power of 80 %, [tests]."""
        return (self._critical + NORMAL.inv_cdf(POWER)) * self.spread

    @property
    def _critical(self) -> float:
        """The critical value of the largest test, in spreads."""
        return float(np.quantile(self.largest, 1.0 - ALPHA, method="higher"))


def circular_shift_test(scores: Sequence[Floats], moves: Sequence[Floats], least_shift: int) -> ShiftTest:
    """Return the correlations of each score with each return, at every shift of the scores; tests by scores first.

    Both are [bars], NaN where unknown. Values are ranked among all known values of their series; the pairs of a shift
    are the bars at which both are known. `least_shift` is the smallest shift in bars, in both directions.

    Source: K. D. Harris, "Nonsense correlations in neuroscience", bioRxiv 2020.11.29.402719.

    Raises:
        InputError: too few bars for enough shifts.
    """
    bars = len(scores[0])
    allowed = np.arange(max(1, least_shift), bars - max(1, least_shift) + 1)
    if len(allowed) < LEAST_SHIFTS:
        raise InputError(
            f"{bars} bars are too few for {LEAST_SHIFTS} shifts of at least {least_shift} bars: give at least "
            f"{2 * least_shift + LEAST_SHIFTS - 1} bars, or shorter horizons"
        )
    allowed = allowed[:: math.ceil(len(allowed) / MOST_SHIFTS)]
    found = np.stack(circular_correlations(scores, moves), axis=1)
    drawn = np.nan_to_num(found[allowed])  # a shift with too few pairs finds nothing
    return ShiftTest(allowed, found[0], drawn)


def circular_correlations(scores: Sequence[Floats], moves: Sequence[Floats]) -> list[Floats]:
    """Return for each score and move their rank correlation × √pairs with the score s bars earlier, [bars] by s."""
    bars = len(scores[0])
    first, second = [_spectra(each) for each in scores], [_spectra(each) for each in moves]

    def product(one: Floats, other: Floats) -> Floats:
        return np.asarray(np.fft.irfft(np.conj(one) * other, bars))

    found = []
    for x, xx, here in first:
        for y, yy, there in second:
            pairs = np.rint(product(here, there))
            enough = pairs >= _LEAST_PAIRS
            count = np.where(enough, pairs, 1.0)
            mean_x, mean_y = product(x, there) / count, product(here, y) / count
            covariance = product(x, y) / count - mean_x * mean_y
            variance = (product(xx, there) / count - mean_x**2) * (product(here, yy) / count - mean_y**2)
            usable = enough & (variance > 1e-9)
            root = np.sqrt(np.where(usable, variance, 1.0))
            found.append(np.divide(covariance * np.sqrt(count), root, out=np.full(bars, np.nan), where=usable))
    return found


def _spectra(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the Fourier transforms of standardised ranks, of their squares, and of where they are known."""
    known = ~np.isnan(values)
    ranks = np.zeros(len(values))
    ranks[known] = standard_ranks(values[known])
    return tuple(np.fft.rfft(each) for each in (ranks, ranks**2, known.astype(np.float64)))  # type: ignore[return-value]


def standard_ranks(values: Floats) -> Floats:
    """Return ranks with mean 0 and variance 1, ties in the middle; zeros if values do not vary."""
    from scipy.stats import rankdata

    if is_constant(values):
        return np.zeros(len(values))
    ranks = rankdata(values)
    return np.asarray((ranks - ranks.mean()) / ranks.std())


def memory_bars(values: Floats) -> int:
    """Return the first lag at which a series' rank autocorrelation is within two errors of 0, at most a tenth of bars.

    Source of the errors: M. S. Bartlett, Journal of the Royal Statistical Society, Supplement 8 (1946), 27-41, for a
    series with the autocorrelations of the smaller lags.
    """
    most = max(1, len(values) // 10)
    found = circular_correlations([values], [values])[0][: most + 1]
    squares = np.nan_to_num(found / found[0]) ** 2
    errors = np.sqrt(1.0 + 2.0 * (np.cumsum(squares[1:]) - squares[1:]))
    quiet = np.flatnonzero(~(np.abs(found[1:]) > 2.0 * errors))
    return int(quiet[0]) + 1 if quiet.size else most
