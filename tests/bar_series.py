"""Series of bars that tests of the price analysis share: random ones, and some written out by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qubic_lab.oracle.model.bars import Bars, Floats
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, iso, read_iso

START = read_iso("2026-01-01T00:00:00Z")


def bars_of(
    close: Sequence[float] | Floats,
    open: Sequence[float] | Floats | None = None,
    high: Sequence[float] | Floats | None = None,
    low: Sequence[float] | Floats | None = None,
    volume: Sequence[float] | Floats | float = np.nan,
    frame_us: int = HOUR_US,
    places: Sequence[int] | None = None,
) -> Bars:
    """Return bars that follow each other unless their places are given; a missing open, high or low is the close."""
    where = np.arange(len(close)) if places is None else np.asarray(places)
    columns: dict[str, Any] = {"open": open, "high": high, "low": low, "volume": np.broadcast_to(volume, len(close))}
    return Bars.of(START + (where + 1) * frame_us, close, **columns, frame_us=frame_us)


def walk(
    count: int, seed: int = 0, step: float = 0.004, first: float = 100.0, frame_us: int = HOUR_US, volume: float = 20.0
) -> Bars:
    """Return a random walk whose bars open where the one before closed, with ranges and lognormal volumes."""
    chance = np.random.default_rng(seed)
    close = first * np.exp(np.cumsum(chance.standard_normal(count) * step))
    start = np.concatenate([[first], close[:-1]])
    reach = np.abs(chance.standard_normal((2, count))) * step / 2
    high, low = np.maximum(start, close) * (1 + reach[0]), np.minimum(start, close) / (1 + reach[1])
    return bars_of(close, start, high, low, volume * np.exp(0.5 * chance.standard_normal(count)), frame_us)


def joined(
    close: Sequence[float] | Floats,
    spread: Floats | float = 1.0,
    volume: Sequence[float] | Floats | float = np.nan,
    frame_us: int = HOUR_US,
) -> Bars:
    """Return bars that open where the one before closed, with ranges of `spread` times that and more."""
    close = np.asarray(close, np.float64)
    start = np.append(close[:1], close[:-1])
    return bars_of(close, start, np.maximum(start, close) * spread, np.minimum(start, close) / spread, volume, frame_us)


def of_logs(logs: Floats, frame_us: int = HOUR_US) -> Bars:
    """Return bars that have closes alone, from their logarithms."""
    return bars_of(np.exp(logs), frame_us=frame_us)


def write_closes(
    path: Path,
    close: Sequence[float] | Floats,
    step_us: int = DAY_US,
    header: str = "date,open,high,low,close",
    first_us: int = 19_000 * DAY_US,
) -> str:
    """Write bars that begin where the last one ended, from an instant on."""
    start = np.append(close[:1], close[:-1])
    lines = [header]
    for number, (first, last) in enumerate(zip(start, close, strict=True)):
        high, low = max(first, last), min(first, last)
        lines.append(f"{iso(first_us + number * step_us)},{first:.6f},{high:.6f},{low:.6f},{last:.6f}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)
