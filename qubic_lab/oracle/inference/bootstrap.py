"""The stationary bootstrap of series with memory: block lengths from the data, and weights of resampled rows."""

import math
import warnings
from collections.abc import Iterator

import numpy as np

from qubic_lab.errors import check_at_least
from qubic_lab.oracle.model.bars import Floats, is_constant

RESAMPLES = 1000
_CELLS = 4_000_000
"""Size of a part of the weights: 32 MB."""
_LONGEST, _MOST_COLUMNS = 20_000, 50
"""The search for a block length reads this many rows and evenly spaced columns; more change it little and cost much."""


def block_length(series: Floats, least: float = 1.0) -> float:
    """Return the optimal mean block length for the stationary bootstrap of a series' mean, up to a tenth of the rows.

    For [rows, columns] it is the median over columns that vary. `least` is the smallest length, such as the number of
    bars that overlapping returns share.

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
