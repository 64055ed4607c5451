"""What is told of one coin's prices: where they come from, how they changed, their range and their closed bars."""

import math
from collections.abc import Sequence

import numpy as np

from qubic_lab.oracle.model import bars as model
from qubic_lab.oracle.model.response import FRAME_S, Frame, VolumeUnit
from qubic_lab.oracle.model.timestamps import DAY_US, SECOND_US, iso
from qubic_lab.oracle.serving.responses import Bar, Bars, Change, DayRange, HistoricPrice, LastPrice, iso_or_none
from qubic_lab.oracle.store.freshness import PricedSeries
from qubic_lab.oracle.store.price_store import StoredPrice

BARS: dict[Frame, int] = {"1h": 48, "4h": 42, "1d": 30}
"""So many of the last closed bars are shown."""


def last_price(source: PricedSeries) -> LastPrice:
    """Return a series' last price for clients."""
    return LastPrice(
        source=source.series.source,
        interval_s=source.series.interval_s,
        price=source.last.close,
        currency=source.series.currency,
        at=iso(source.last.closed_us),
        known=iso(source.last.known_us),
        age_s=source.age_s,
        expected_every_s=source.frequency.every_s,
        stale=source.stale,
        flags=list(source.last.flags),
    )


def why_fallback(sources: Sequence[PricedSeries]) -> str | None:
    """Return why it is not a source on time, or which one is late where another has taken its place."""
    best, *others = sources
    if best.stale:
        return f"no source is on time: {best.series.source} has the newest price"
    late = [each.series.source for each in others if each.stale and each.series.source != best.series.source]
    return f"{best.series.source} in place of {', '.join(dict.fromkeys(late))}, which is late" if late else None


def change_from(before: StoredPrice | None, source: PricedSeries, name: str, over_us: int) -> Change:
    """Return how the price changed since the last price up to a time ago, unless that is too old."""
    until = source.last.closed_us - over_us
    if before is None or until - before.closed_us > source.tolerance_us:
        return Change(over=name, change_pct=None, from_price=None, from_at=None)
    return _change(name, before.close, before.closed_us, source)


def change_over(prices: model.Bars, source: PricedSeries, name: str, over_us: int) -> Change:
    """Return how the price changed over a time, by a name for clients."""
    row = row_before(prices, source.last.closed_us - over_us, source.tolerance_us)
    if row is None:
        return Change(over=name, change_pct=None, from_price=None, from_at=None)
    return _change(name, float(prices.close[row]), int(prices.closed_us[row]), source)


def _change(name: str, before: float, at_us: int, source: PricedSeries) -> Change:
    pct = change_pct(before, source.last.close)
    return Change(over=name, change_pct=pct, from_price=before, from_at=iso(at_us))


def day_range(prices: model.Bars, source: PricedSeries, flags: dict[str, int]) -> DayRange:
    """Return the range of the 24 hours that end with the last price; `flags` counts those of its prices."""
    end = source.last.closed_us
    day = prices.after(end - DAY_US)
    volume, unit = volume_24h(day, source)
    return DayRange(
        high=float(day.high.max()) if len(day) else None,
        low=float(day.low.min()) if len(day) else None,
        volume=volume,
        volume_unit=unit,
        completeness=completeness(day, end - DAY_US, end, source.step_us),
        flags=flags,
    )


def row_before(prices: model.Bars, at_us: int, tolerance_us: int) -> int | None:
    """Return the row of the last price up to `at_us`, or None where that is older than the tolerance."""
    row = int(np.searchsorted(prices.closed_us, at_us, side="right")) - 1
    if row < 0 or at_us - int(prices.closed_us[row]) > tolerance_us:
        return None
    return row


def completeness(prices: model.Bars, start_us: int, end_us: int, step_us: int) -> float:
    """Return the share of the steps after `start_us` up to `end_us` that have a price, at most 1."""
    inside = prices.after(start_us).until(end_us)
    expected = max(1, (end_us - start_us) // step_us)
    return min(1.0, len(np.unique((inside.closed_us - 1) // step_us)) / expected)


def change_pct(before: float, now: float) -> float:
    """Return the change of a price in percent."""
    return 100.0 * (now / before - 1.0)


def volume_24h(prices: model.Bars, source: PricedSeries) -> tuple[float | None, VolumeUnit | None]:
    """Return what was traded in the 24 hours up to the last price, and in what: of bars the sum, where all have it."""
    if not source.series.interval_s:
        volume = source.last.volume_24h
        return (None, None) if volume is None else (volume, "currency")
    total = float(prices.after(source.last.closed_us - DAY_US).volume.sum())
    return (None, None) if math.isnan(total) else (total, "coin")


def closed_bars(found: model.Bars, source: PricedSeries, frame: Frame) -> Bars:
    """Return the last closed bars of a frame, each made from all of its prices."""
    expected = max(1, FRAME_S[frame] * SECOND_US // source.step_us)
    first = max(0, len(found) - BARS[frame])
    bars = [
        Bar(
            opened=iso(int(found.opened_us[n])),
            closed=iso(int(found.closed_us[n])),
            open=float(found.open[n]),
            high=float(found.high[n]),
            low=float(found.low[n]),
            close=float(found.close[n]),
            volume=None if math.isnan(found.volume[n]) else float(found.volume[n]),
            prices=int(found.points[n]),
            completeness=min(1.0, int(found.slots[n]) / expected),
            flagged=int(found.flagged[n]),
        )
        for n in range(first, len(found))
    ]
    return Bars(source=source.series.source, interval_s=source.series.interval_s, bars=bars)


def historic_price(price: StoredPrice) -> HistoricPrice:
    """Return a price of a history for clients."""
    return HistoricPrice(
        opened=iso(price.opened_us),
        closed=iso(price.closed_us),
        published=iso_or_none(price.published_us),
        known=iso(price.known_us),
        open=price.open,
        high=price.high,
        low=price.low,
        close=price.close,
        volume=price.volume,
        volume_24h=price.volume_24h,
        market_cap=price.market_cap,
        flags=list(price.flags),
    )
