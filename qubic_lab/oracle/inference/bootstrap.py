"""The stationary bootstrap of series that remember: block lengths from the data, and resampled moments by matrices."""

import math
import warnings
from collections.abc import Iterator

import numpy as np

from qubic_lab.errors import check_at_least
from qubic_lab.oracle.model.bars import Floats

RESAMPLES = 1000
_CELLS = 4_000_000
"""Resampled rows that are held at once: 32 MB of weights."""
_LONGEST = 20_000
"""Rows that the search for a block length looks at; more change it little and cost much."""
_MOST_COLUMNS = 50
"""Likewise columns, evenly chosen."""


def is_constant(values: Floats) -> bool:
    """Tell whether values do not vary, but for rounding."""
    if not values.size:
        return True
    return float(np.ptp(values)) <= 1e-13 * float(np.abs(values).max())


def block_length(series: Floats, least: float = 1.0) -> float:
    """Return the mean block length that suits the stationary bootstrap of a series' mean.

    Args:
        series: [rows] or [rows, columns]; of columns the median of their lengths counts, constant ones apart.
        least: never fewer rows than that, such as the bars that overlapping returns share.

    Returns:
        At least 1 and at most a tenth of the rows.

    Source: D. N. Politis and H. White, "Automatic block-length selection for the dependent bootstrap", Econometric
    Reviews 23 (2004), 53-70, with the correction of A. Patton, D. N. Politis and H. White (2009); by `arch`.
    """
    from arch.bootstrap import optimal_block_length  # it takes a second to import

    columns = series.reshape(len(series), -1)[-_LONGEST:]
    columns = columns[:, [not is_constant(column) for column in columns.T]]
    columns = columns[:, :: math.ceil(max(1, columns.shape[1]) / _MOST_COLUMNS)]
    most = max(1.0, len(series) / 10)
    if len(columns) < 8 or not columns.shape[1]:
        return min(max(1.0, least), most)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = optimal_block_length(columns - columns.mean(axis=0))["stationary"].to_numpy(np.float64)
    known = found[np.isfinite(found)]
    return min(max(1.0, least, float(np.median(known)) if known.size else 1.0), most)


def resampled_weights(rows: int, block: float, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[Floats]:
    """Yield how often each row is drawn by the stationary bootstrap, in parts of [some resamples, rows].

    Means of a resample are weights @ columns / rows: one product of matrices for all columns and resamples of a part.

    Args:
        rows: of the series.
        block: mean length of the blocks; 1 draws rows by themselves.
        resamples: in all parts together.
        seed: equal seeds give equal draws.

    Source: D. N. Politis and J. P. Romano, "The stationary bootstrap", Journal of the American Statistical Association
    89 (1994), 1303-1313.

    Raises:
        InputError: no rows or no resamples.
    """
    check_at_least("rows", rows, 1)
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


def resampled_means(columns: Floats, block: float, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return the means of columns [rows, columns] in each resample, [resamples, columns]."""
    weights = resampled_weights(len(columns), block, resamples, seed)
    return np.concatenate([part @ columns / len(columns) for part in weights])


def long_run_variance(columns: Floats, block: float) -> Floats:
    """Return what the stationary bootstrap takes for the variance of √rows × mean of each column, [columns].

    Source: Politis and Romano (1994), lemma 1, as P. R. Hansen, Journal of Business & Economic Statistics 23 (2005),
    365-380, uses it. Lags that weigh less than 1e-6 are left out.
    """
    rows = len(columns)
    centred = columns - columns.mean(axis=0)
    variance = np.asarray((centred**2).sum(axis=0) / rows)
    if block <= 1.0:
        return variance
    stay, lags = 1.0 - 1.0 / block, np.arange(1, rows)
    share = lags / rows
    # Blocks that reach the end go on at the beginning, so that the longest lags weigh as much as the shortest.
    kernel = (1.0 - share) * stay**lags + share * stay ** (rows - lags)
    for lag in lags[kernel >= 1e-6].tolist():
        variance += 2.0 * kernel[lag - 1] * np.einsum("ij,ij->j", centred[:-lag], centred[lag:]) / rows
    return variance
