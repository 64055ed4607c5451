"""Replies in the shapes of CoinGecko's API v3 (docs.coingecko.com), as far as the collector uses it."""

import re
from typing import Any

import numpy as np

from fake_source.ledger import Given
from fake_source.reply import KEYS, Ask, Desk, Reply, json_reply, read_time, utc_time
from fake_source.world import CELL_S, CELLS_PER_HOUR, Quotes
from qubic_lab.oracle.model.coins import COINS
from qubic_lab.oracle.model.timestamps import SECOND_US

DAY_S = 86_400
REACH_DAYS = 365
"""How far back public users may look."""
_BAR_S = {1: 1_800, 7: 14_400, 14: 14_400, 30: 14_400, 90: 345_600, 180: 345_600, 365: 345_600}
"""Days of bars that may be asked for, and the bars' length."""


def reply(ask: Ask, desk: Desk) -> Reply:
    """Answer one request; a key is needed, as for the demo plan."""
    key = ask.headers.get("x-cg-demo-api-key") or ask.query.get("x_cg_demo_api_key")
    if not key:
        return _nested_error(ask, 10002, "API Key Missing. Please make sure you're using the right authentication")
    if key != KEYS["coingecko"]:
        return json_reply(401, _error(ask, 10002, "Incorrect API Key"))
    if ask.path == "simple/price":
        return _simple_price(ask, desk)
    found = re.fullmatch(r"coins/([^/]+)/(market_chart/range|ohlc)", ask.path)
    if not found:
        return json_reply(404, _error(ask, 404, "not found"))
    coin, what = found.groups()
    if coin not in COINS:
        return json_reply(404, {"error": "coin not found"})
    if ask.query.get("vs_currency") != "usd":
        return json_reply(400, {"error": "invalid vs_currency"})
    return _ohlc(ask, desk, coin) if what == "ohlc" else _market_chart_range(ask, desk, coin)


def rate_limited(ask: Ask, retry_after_s: int) -> Reply:
    """Return the reply to a request above the limit."""
    text = "You've exceeded the Rate Limit. Please visit https://www.coingecko.com/en/api/pricing to subscribe"
    return json_reply(429, _error(ask, 429, text), headers={"retry-after": str(retry_after_s)})


def _simple_price(ask: Ask, desk: Desk) -> Reply:
    if ask.query.get("vs_currencies") != "usd":
        return json_reply(422, {"error": "Missing parameter vs_currencies"})
    wanted = ask.query.get("ids", "").split(",")
    prices: dict[str, dict[str, float | int | None]] = {}
    given: list[Given] = []
    for coin in desk.spoil(ask.number, [each for each in wanted if each in COINS]):
        quote = desk.world.latest(coin, ask.now_s)
        price, stamp_s = float(quote.price[0]), int(quote.stamp_s[0])
        prices[coin] = {
            "usd": price,
            "usd_market_cap": _or_null(quote.market_cap[0]),
            "usd_24h_vol": float(quote.volume_24h[0]),
            "last_updated_at": stamp_s,
        }
        given.append(Given("price", coin, 0, stamp_s * SECOND_US, price))
    return json_reply(200, prices, tuple(given))


def _market_chart_range(ask: Ask, desk: Desk, coin: str) -> Reply:
    """Return the quotes of each cell within the last day, of each hour up to 90 days, else of each midnight."""
    start_s, end_s = read_time(ask.query.get("from", "")), read_time(ask.query.get("to", ""))
    if start_s is None or end_s is None:
        return json_reply(422, {"error": "Missing parameter from or to"})
    if start_s < ask.now_s - REACH_DAYS * DAY_S:
        text = "Your request exceeds the allowed time range. Public API users are limited to the past 365 days."
        return _nested_error(ask, 10012, text)
    span_s = end_s - start_s
    if span_s > 90 * DAY_S:
        quotes = _midnights(desk, coin, start_s, min(end_s, ask.now_s), ask.now_s)
    else:
        step = 1 if span_s <= DAY_S and start_s >= ask.now_s - DAY_S else CELLS_PER_HOUR
        first = start_s // (CELL_S * step) * step
        quotes = desk.world.quotes(coin, np.arange(first, end_s // CELL_S + 1, step, dtype=np.int64), ask.now_s)
    inside = np.flatnonzero((quotes.stamp_s >= start_s) & (quotes.stamp_s <= end_s))
    order = desk.spoil(ask.number, list(inside))
    stamps = [int(quotes.stamp_s[place]) for place in order]
    prices = [float(quotes.price[place]) for place in order]
    values = {
        "prices": prices,
        "market_caps": [_or_null(quotes.market_cap[place]) for place in order],
        "total_volumes": [float(quotes.volume_24h[place]) for place in order],
    }
    content = {
        name: [[1000 * stamp, value] for stamp, value in zip(stamps, column, strict=True)]
        for name, column in values.items()
    }
    given = (Given("price", coin, 0, stamp * SECOND_US, price) for stamp, price in zip(stamps, prices, strict=True))
    return json_reply(200, content, tuple(given))


def _midnights(desk: Desk, coin: str, start_s: int, end_s: int, now_s: int) -> Quotes:
    """Return a quote of each midnight."""
    stamps = np.arange(-(-start_s // DAY_S), end_s // DAY_S + 1, dtype=np.int64) * DAY_S
    cells = desk.world.quotes(coin, stamps // CELL_S - 1, now_s)
    return Quotes(stamps, desk.world.price(coin, stamps), cells.market_cap, cells.volume_24h)


def _ohlc(ask: Ask, desk: Desk, coin: str) -> Reply:
    """Return bars that have closed, stamped with their close."""
    days = ask.query.get("days", "")
    if not days.isdecimal() or int(days) not in _BAR_S:
        return json_reply(422, {"error": "Invalid days parameter"})
    bar_s = _BAR_S[int(days)]
    last = ask.now_s // bar_s
    rows, given = [], []
    for number in desk.spoil(ask.number, list(range(last - int(days) * DAY_S // bar_s, last))):
        walk = desk.world.price(coin, np.linspace(number * bar_s, (number + 1) * bar_s, 13, dtype=np.int64))
        bar = [float(each) for each in (walk[0], walk.max(), walk.min(), walk[-1])]
        end_s = (number + 1) * bar_s
        rows.append([1000 * end_s, *bar])
        given.append(Given("price", coin, bar_s, end_s * SECOND_US, bar[3]))
    return json_reply(200, rows, tuple(given))


def _or_null(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def _error(ask: Ask, code: int, message: str) -> dict[str, Any]:
    return {"status": {"timestamp": utc_time(ask.now_s), "error_code": code, "error_message": message}}


def _nested_error(ask: Ask, code: int, message: str) -> Reply:
    return json_reply(401, {"error": _error(ask, code, message)})
