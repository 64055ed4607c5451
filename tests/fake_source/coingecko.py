"""Replies in the shapes of CoinGecko's API v3 (docs.coingecko.com), as far as the collector uses it."""

import re
from typing import Any

import numpy as np

from fake_source.ledger import Given
from fake_source.reply import KEYS, Ask, Desk, Reply, json_reply, utc_time
from fake_source.world import CELL_S, CELLS_PER_HOUR
from qubic_lab.oracle.model.coins import COINS
from qubic_lab.oracle.model.timestamps import SECOND_US

DAY_S = 86_400
RATE_LIMITED = {"status": {"error_code": 429, "error_message": "You've exceeded the Rate Limit."}}
REACH_DAYS = 365
"""How far back public users may look."""
_BAR_S = 1_800


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


def _simple_price(ask: Ask, desk: Desk) -> Reply:
    wanted = ask.query.get("ids", "").split(",")
    prices: dict[str, dict[str, float | int | None]] = {}
    given: list[Given] = []
    cell = ask.now_s // CELL_S
    for coin in desk.spoil(ask.number, [each for each in wanted if each in COINS]):
        quotes = desk.world.quotes(coin, np.array([cell - 1, cell]), ask.now_s)
        price, stamp_s = float(quotes.price[-1]), int(quotes.stamp_s[-1])
        prices[coin] = {
            "usd": price,
            "usd_market_cap": _or_null(quotes.market_cap[-1]),
            "usd_24h_vol": float(quotes.volume_24h[-1]),
            "last_updated_at": stamp_s,
        }
        given.append(Given("price", coin, 0, stamp_s * SECOND_US, price))
    return json_reply(200, prices, tuple(given))


def _market_chart_range(ask: Ask, desk: Desk, coin: str) -> Reply:
    """Return the quotes of each cell within the last day, else of each hour, for up to 90 days."""
    start_s, end_s = int(ask.query["from"]), int(ask.query["to"])
    if start_s < ask.now_s - REACH_DAYS * DAY_S:
        text = "Your request exceeds the allowed time range. Public API users are limited to the past 365 days."
        return _nested_error(ask, 10012, text)
    if end_s - start_s > 90 * DAY_S:
        return json_reply(422, {"error": "this fake has hours only"})
    step = 1 if end_s - start_s <= DAY_S and start_s >= ask.now_s - DAY_S else CELLS_PER_HOUR
    first = start_s // (CELL_S * step) * step
    quotes = desk.world.quotes(coin, np.arange(first, end_s // CELL_S + 1, step, dtype=np.int64), ask.now_s)
    inside = np.flatnonzero((quotes.stamp_s >= start_s) & (quotes.stamp_s <= end_s))
    order = desk.spoil(ask.number, list(inside))
    columns = {"prices": quotes.price, "market_caps": quotes.market_cap, "total_volumes": quotes.volume_24h}
    content = {
        name: [[1000 * int(quotes.stamp_s[place]), _or_null(column[place])] for place in order]
        for name, column in columns.items()
    }
    priced = ((int(quotes.stamp_s[place]) * SECOND_US, float(quotes.price[place])) for place in order)
    return json_reply(200, content, tuple(Given("price", coin, 0, at_us, price) for at_us, price in priced))


def _ohlc(ask: Ask, desk: Desk, coin: str) -> Reply:
    """Return the last day's bars that have closed, stamped with their close."""
    if ask.query.get("days") != "1":
        return json_reply(422, {"error": "Invalid days parameter"})
    last = ask.now_s // _BAR_S
    rows, given = [], []
    for number in desk.spoil(ask.number, list(range(last - DAY_S // _BAR_S, last))):
        walk = desk.world.price(coin, np.linspace(number * _BAR_S, (number + 1) * _BAR_S, 13, dtype=np.int64))
        bar = [float(each) for each in (walk[0], walk.max(), walk.min(), walk[-1])]
        end_s = (number + 1) * _BAR_S
        rows.append([1000 * end_s, *bar])
        given.append(Given("price", coin, _BAR_S, end_s * SECOND_US, bar[3]))
    return json_reply(200, rows, tuple(given))


def _or_null(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def _error(ask: Ask, code: int, message: str) -> dict[str, Any]:
    return {"status": {"timestamp": utc_time(ask.now_s), "error_code": code, "error_message": message}}


def _nested_error(ask: Ask, code: int, message: str) -> Reply:
    return json_reply(401, {"error": _error(ask, code, message)})
