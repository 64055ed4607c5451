"""The one way of prices into the database: checked, flagged with those before them in view, and kept."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import attrgetter

from qubic_lab.oracle.ingest.cleaning import context_of, flag_prices, with_flags
from qubic_lab.oracle.ingest.schemas import refused_prices
from qubic_lab.oracle.model.records import Price, Series
from qubic_lab.oracle.model.timestamps import DAY_US, iso
from qubic_lab.oracle.store.price_store import PriceStore
from qubic_lab.oracle.store.transactions import Added

_BEGINNING_US = -50 * 365 * DAY_US
_NUMBERS = ("open", "high", "low", "close", "volume", "volume_24h", "market_cap")
_Values = tuple[float | None, ...]
_read_values = attrgetter("opened_us", "closed_us", *_NUMBERS)


@dataclass(frozen=True)
class Kept:
    """Prices as they were flagged, by time; what became of them in the database; and which were refused, and why."""

    prices: tuple[Price, ...]
    added: Added
    refused: tuple[str, ...] = ()


def keep_prices(store: PriceStore, series: Series, prices: Iterable[Price], *, fetch_id: int | None = None) -> Kept:
    """Flag prices of one series and keep them; of several for one time the last counts, and what cannot be is left out.

    Flags depend on the prices before, of the batch and of the database: what comes later changes none. A price that is
    given again as it is stored keeps the flags that it got then, whatever has come before it meanwhile.
    """
    given = list(prices)
    wrong = refused_prices(given, bars=series.interval_s > 0)
    refused = tuple(f"{iso(given[number].closed_us)}: {why}" for number, why in wrong.items())
    latest = {price.closed_us: price for number, price in enumerate(given) if number not in wrong}
    ordered = [latest[at] for at in sorted(latest)]
    if not ordered:
        return Kept((), Added(len(given)), refused)
    history: list[Price] = []
    stored: dict[_Values, tuple[str, ...]] = {}
    if series in store.series(series.coin):
        first_us, last_us = ordered[0].closed_us, ordered[-1].closed_us
        history.extend(reversed(store.page(series, _BEGINNING_US, first_us, limit=context_of()).prices))
        stored = {_values(each): each.flags for each in store.prices(series, first_us, last_us + 1)}
    flagged = flag_prices(ordered, history)
    if stored:
        flagged = tuple(with_flags(price, stored.get(_values(price), price.flags)) for price in flagged)
    added = store.add(series, flagged, fetch_id=fetch_id)
    return Kept(flagged, replace(added, given=len(given)), refused)


def _values(price: Price) -> _Values:
    """Return what makes a version, but for its flags."""
    found: _Values = _read_values(price)
    return tuple(map(_number, found))


def _number(value: float | None) -> float | None:
    return None if value is None or value != value else value
