"""Claims about where a price goes, by forecasts and by signals, and what came of them."""

import math

import numpy as np

from qubic_lab.oracle.model.bars import Bars
from qubic_lab.oracle.model.records import Series
from qubic_lab.oracle.model.response import Frame, Missing
from qubic_lab.oracle.model.timestamps import HOUR_US
from qubic_lab.oracle.store.claims import Claim, ClaimOutcome


def forecast_claims(bars: Bars, series: Series, frame: Frame) -> list[Claim]:
    """Return what the forecasts at the last bar claim: whether the price will be above that bar's close."""
    from qubic_lab.oracle.analysis.forecast import forecasts

    last, at_us, found = float(bars.close[-1]), int(bars.closed_us[-1]), []
    for each in forecasts(bars).values():
        if isinstance(each, Missing):
            continue
        family = f"price of {series.coin} in {each.hours} h, bars of {frame}"
        details = {"last": last, "price": each.price, "low": each.low, "high": each.high, "coverage": each.coverage}
        due_us = at_us + each.hours * HOUR_US
        found.append(Claim(family, each.price > last, at_us, due_us, series, bars.frame_us, details))
    return found


def signal_claim(family: str, bars: Bars, target: float, series: Series) -> Claim | None:
    """Return what a signal's weight at the last bar claims of the next bar's close; None: it is out of the market."""
    if not target or not math.isfinite(target):
        return None
    at_us = int(bars.closed_us[-1])
    details = {"last": float(bars.close[-1]), "weight": target}
    return Claim(family, target > 0.0, at_us, at_us + bars.frame_us, series, bars.frame_us, details)


def price_outcome(claim: Claim, bars: Bars) -> ClaimOutcome | None:
    """Return what came of a claim, by the bar that closes nearest to its time; None: no such bar can be there yet.

    The event is a close above the last one of the claim. The bar closes within half a bar of the time; it is missing,
    and the outcome cannot be known, once a later bar is there.
    """
    half = claim.frame_us // 2
    row = int(np.searchsorted(bars.closed_us, claim.due_us + half, side="right")) - 1
    if row < 0 or bars.closed_us[row] < claim.due_us - half:
        return ClaimOutcome(None) if row + 1 < len(bars) else None
    price, details = float(bars.close[row]), claim.details
    held = details["low"] <= price <= details["high"] if "low" in details else None
    return ClaimOutcome(price > details["last"], price, held)
