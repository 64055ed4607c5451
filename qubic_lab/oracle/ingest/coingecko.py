"""CoinGecko, version 3 of its API: present prices of all coins at once, their history, and bars.

History comes as quotes with stamps off any grid, every 5 minutes or hour. Their volume is that of the 24 hours before.
Bars are stamped with their close and have no volume. Without a good response there is a SourceError.
"""

import math
from collections.abc import Sequence
from typing import Any

from qubic_lab.oracle.ingest.http_rules import Params
from qubic_lab.oracle.ingest.http_source import Batch, SourceClient, malformed
from qubic_lab.oracle.model.records import Price, Series
from qubic_lab.oracle.model.timestamps import DAY_US, SECOND_US, iso

BAR_S = 1800
"""The length of the bars of the last day."""
_MS_US = 1000
_FORMING = 0.9
"""A last point that follows the one before by less than this share of a step is the present price."""
_CURRENCY = "usd"


def step_s(start_us: int, end_us: int, now_us: int) -> int:
    """Return how many seconds lie between the points of a range of up to 90 days; within the last day they are few."""
    return 300 if end_us - start_us <= DAY_US and now_us - start_us <= DAY_US else 3600


def parse_prices(body: dict[str, Any], coins: Sequence[str]) -> tuple[dict[str, Price], tuple[str, ...]]:
    """Return the present price of each coin that has one in a body of simple/price, and a line for each other one."""
    prices, faults = {}, []
    for coin in coins:
        entry = body.get(coin)
        if not isinstance(entry, dict):
            faults.append(f"{coin}: no price was given")
            continue
        at_s, price = _number(entry.get("last_updated_at")), _number(entry.get(_CURRENCY))
        if at_s is None or price is None or price <= 0.0:
            faults.append(f"{coin}: price {entry.get(_CURRENCY)!r} at {entry.get('last_updated_at')!r} is no price")
            continue
        at_us = round(at_s * SECOND_US)
        prices[coin] = Price(
            opened_us=at_us,
            closed_us=at_us,
            close=price,
            volume_24h=_number(entry.get(f"{_CURRENCY}_24h_vol")),
            market_cap=_cap(entry.get(f"{_CURRENCY}_market_cap")),
            published_us=at_us,
        )
    return prices, tuple(faults)


def parse_history(body: dict[str, Any]) -> tuple[tuple[Price, ...], tuple[str, ...]]:
    """Return the quotes of a market chart, sorted by time and each instant once, and a line for each one left out.

    The last value of an instant counts. Market caps and volumes are joined by their stamps.
    """
    faults: list[str] = []
    prices = _points("prices", body.get("prices"), faults)
    caps = _points("market_caps", body.get("market_caps"), faults)
    volumes = _points("total_volumes", body.get("total_volumes"), faults)
    quotes = []
    for at_ms in sorted(prices):
        price = _number(prices[at_ms])
        if price is None or price <= 0.0:
            faults.append(f"prices: {prices[at_ms]!r} at {iso(at_ms * _MS_US)} is no price")
            continue
        quotes.append(
            Price(
                opened_us=at_ms * _MS_US,
                closed_us=at_ms * _MS_US,
                close=price,
                volume_24h=_number(volumes.get(at_ms)),
                market_cap=_cap(caps.get(at_ms)),
            )
        )
    return tuple(quotes), tuple(faults)


def without_forming(quotes: tuple[Price, ...], step_s: int, now_us: int) -> tuple[Price, ...]:
    """Return quotes without the last one if it is the present price, which the source appends to each history."""
    if not quotes or now_us - quotes[-1].closed_us >= step_s * SECOND_US:
        return quotes
    if len(quotes) > 1 and quotes[-1].closed_us - quotes[-2].closed_us >= _FORMING * step_s * SECOND_US:
        return quotes
    return quotes[:-1]


def parse_bars(body: list[Any], now_us: int) -> tuple[tuple[Price, ...], tuple[str, ...]]:
    """Return the bars of ohlc that have closed, sorted and each once, and a line for each one left out.

    Stamps are those of the close. The last bar is left out, without a line, while it forms: if it closes later than
    now, or less than an interval after the one before.
    """
    faults: list[str] = []
    rows: dict[int, list[float]] = {}
    for entry in body:
        values = [_number(value) for value in entry] if isinstance(entry, list) else []
        numbers = [value for value in values if value is not None and value > 0.0]
        if len(values) == len(numbers) == 5:
            rows[int(numbers[0])] = numbers[1:]
        else:
            faults.append(f"{repr(entry)[:80]} is no bar")
    bars: list[Price] = []
    interval_us = BAR_S * SECOND_US
    for number, at_ms in enumerate(sorted(rows), 1):
        closed_us = at_ms * _MS_US
        overlaps = bool(bars) and closed_us - bars[-1].closed_us < interval_us
        if closed_us > now_us or (overlaps and number == len(rows)):
            break
        if overlaps:
            faults.append(f"bar that closes at {iso(closed_us)} follows the one before by less than {BAR_S} s")
            continue
        open, high, low, close = rows[at_ms]
        bars.append(Price(closed_us - interval_us, closed_us, close, open=open, high=high, low=low))
    return tuple(bars), tuple(faults)


async def fetch_prices(client: SourceClient, coins: Sequence[str]) -> Batch:
    """Return the present price of each coin, in one request for all of them."""
    params: Params = {
        "ids": ",".join(coins),
        "vs_currencies": _CURRENCY,
        "include_market_cap": "true",
        "include_24hr_vol": "true",
        "include_last_updated_at": "true",
        "precision": "full",
    }
    fetched = await client.get("/simple/price", params, conditional=False)
    if not isinstance(fetched.body, dict):
        raise malformed(fetched)
    prices, faults = parse_prices(fetched.body, coins)
    return Batch(fetched, tuple((Series(coin, client.name), (price,)) for coin, price in prices.items()), faults=faults)


async def fetch_history(client: SourceClient, coin: str, start_us: int, end_us: int, *, now_us: int) -> Batch:
    """Return a coin's quotes from `start_us` until before `end_us`.

    If the range reaches the present, it is complete only up to the last point: more may come late.
    """
    params: Params = {
        "vs_currency": _CURRENCY,
        "from": start_us // SECOND_US,
        "to": -(-end_us // SECOND_US),
        "precision": "full",
    }
    fetched = await client.get(f"/coins/{coin}/market_chart/range", params, conditional=False)
    step = step_s(start_us, end_us, now_us)
    is_over = end_us <= now_us - step * SECOND_US
    if not (isinstance(fetched.body, dict) and isinstance(fetched.body.get("prices"), list)):
        raise malformed(fetched)
    every, faults = parse_history(fetched.body)
    whole = without_forming(every, step, now_us)
    quotes = tuple(quote for quote in whole if start_us <= quote.closed_us < end_us)
    until_us = end_us if is_over else quotes[-1].closed_us + 1 if quotes else start_us
    return Batch(fetched, ((Series(coin, client.name), quotes),) if quotes else (), faults=faults, until_us=until_us)


async def fetch_bars(client: SourceClient, coin: str, *, now_us: int) -> Batch:
    """Return a coin's bars of the last day that have closed."""
    params: Params = {"vs_currency": _CURRENCY, "days": 1, "precision": "full"}
    fetched = await client.get(f"/coins/{coin}/ohlc", params, conditional=False)
    if not isinstance(fetched.body, list):
        raise malformed(fetched)
    bars, faults = parse_bars(fetched.body, now_us)
    return Batch(fetched, ((Series(coin, client.name, BAR_S), bars),) if bars else (), faults=faults)


def _points(name: str, entries: Any, faults: list[str]) -> dict[int, Any]:
    """Return values by their stamps in milliseconds, and append a line to `faults` for each entry without one."""
    points = {}
    for entry in entries if isinstance(entries, list) else ():
        at_ms = _number(entry[0]) if isinstance(entry, list) and len(entry) == 2 else None
        if at_ms is None:
            faults.append(f"{name}: {repr(entry)[:80]} is no point")
        else:
            points[int(at_ms)] = entry[1]
    return points


def _number(value: Any) -> float | None:
    """Return a finite number as a double, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _cap(value: Any) -> float | None:
    """Return a market cap; the source gives 0 if it does not know a coin's supply."""
    return _number(value) or None
