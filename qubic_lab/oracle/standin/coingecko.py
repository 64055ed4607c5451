"""The stand-in's answers in the shapes of CoinGecko's API v3 (docs.coingecko.com)."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np

from qubic_lab.oracle.model.coins import COINS
from qubic_lab.oracle.model.timestamps import SECOND_US
from qubic_lab.oracle.standin.answer import Answer, Ask, Desk, json_answer, read_time
from qubic_lab.oracle.standin.data import BARS_PER_HOUR, CELL_S, Floats, Ints, Quotes
from qubic_lab.oracle.standin.ledger import Given

DAY_S = 86_400
REACH_DAYS = 365
"""How far back public users may look."""
_BAR_S = ((2, 1_800), (30, 14_400), (365, 345_600))
"""Longest time in days, and the bars' length for it."""
_OHLC_DAYS = ("1", "7", "14", "30", "90", "180", "365")


def answer(ask: Ask, desk: Desk) -> Answer:
    """Answer one request; a key is needed, as for the demo plan."""
    shown = ask.headers.get("x-cg-demo-api-key") or ask.query.get("x_cg_demo_api_key")
    if not shown:
        return _nested_error(ask, 401, 10002, "API Key Missing. Please make sure you're using the right authentication")
    if shown != desk.keys["coingecko"]:
        return json_answer(401, _error(ask, 10002, "Incorrect API Key"))
    if ask.path == "ping":
        return json_answer(200, {"gecko_says": "(V3) To the Moon!"})
    if ask.path == "simple/price":
        return _simple_price(ask, desk)
    found = re.fullmatch(r"coins/([^/]+)/(market_chart|market_chart/range|ohlc)", ask.path)
    if not found:
        return json_answer(404, _error(ask, 404, "not found"))
    coin, what = found.groups()
    if coin not in COINS:
        return json_answer(404, {"error": "coin not found"})
    if ask.query.get("vs_currency") != "usd":
        return json_answer(400, {"error": "invalid vs_currency"})
    routes: dict[str, Callable[[Ask, Desk, str], Answer]] = {
        "market_chart": _market_chart,
        "market_chart/range": _market_chart_range,
        "ohlc": _ohlc,
    }
    return routes[what](ask, desk, coin)


def rate_limited(ask: Ask, retry_after_s: int) -> Answer:
    """Return the answer of a source that is asked too often."""
    text = "You've exceeded the Rate Limit. Please visit https://www.coingecko.com/en/api/pricing to subscribe"
    return json_answer(429, _error(ask, 429, text), headers={"retry-after": str(retry_after_s)})


def _simple_price(ask: Ask, desk: Desk) -> Answer:
    if ask.query.get("vs_currencies") != "usd":
        return json_answer(422, {"error": "Missing parameter vs_currencies"})
    wanted = ask.query.get("ids", "").split(",")
    round_price = _rounding(ask, 2)
    prices: dict[str, dict[str, float | int | None]] = {}
    given: list[Given] = []
    for coin in desk.spoil(ask.number, [each for each in wanted if each in COINS]):
        quote = desk.world.latest(coin, ask.now_s)
        price = round_price(float(quote.price[0]))
        told: dict[str, float | int | None] = {"usd": price}
        if ask.query.get("include_market_cap") == "true":
            told["usd_market_cap"] = _or_null(quote.market_cap[0])
        if ask.query.get("include_24hr_vol") == "true":
            told["usd_24h_vol"] = float(quote.volume_24h[0])
        if ask.query.get("include_24hr_change") == "true":
            before = desk.world.price(coin, quote.stamp_s - DAY_S)
            told["usd_24h_change"] = float(100.0 * (quote.price[0] / before[0] - 1.0))
        if ask.query.get("include_last_updated_at") == "true":
            told["last_updated_at"] = int(quote.stamp_s[0])
        prices[coin] = told
        given.append(Given("price", coin, 0, int(quote.stamp_s[0]) * SECOND_US, price))
    return json_answer(200, prices, tuple(given))


def _market_chart(ask: Ask, desk: Desk, coin: str) -> Answer:
    days = ask.query.get("days", "")
    if days != "max" and not re.fullmatch(r"\d+(\.\d+)?", days):
        return json_answer(422, {"error": "Missing parameter days"})
    span = REACH_DAYS if days == "max" else float(days)
    if span > REACH_DAYS:
        return _too_far(ask)
    return _chart(ask, desk, coin, ask.now_s - int(span * DAY_S), ask.now_s)


def _market_chart_range(ask: Ask, desk: Desk, coin: str) -> Answer:
    start, end = read_time(ask.query.get("from", "")), read_time(ask.query.get("to", ""))
    if start is None or end is None:
        return json_answer(422, {"error": "Missing parameter from or to"})
    if start < ask.now_s - REACH_DAYS * DAY_S:
        return _too_far(ask)
    return _chart(ask, desk, coin, start, end)


def _chart(ask: Ask, desk: Desk, coin: str, start_s: int, end_s: int) -> Answer:
    """Return quotes of a range: of each cell within the last day, of each hour up to 90 days, else of each midnight."""
    span_s, now_s = end_s - start_s, ask.now_s
    if ask.query.get("interval") == "daily" or span_s > 90 * DAY_S:
        quotes = _midnights(desk, coin, start_s, min(end_s, now_s), now_s)
    else:
        step = 1 if span_s <= DAY_S and start_s >= now_s - DAY_S else BARS_PER_HOUR
        first = start_s // (CELL_S * step) * step
        cells = np.arange(first, end_s // CELL_S + 1, step, dtype=np.int64)
        quotes = desk.world.quotes(coin, cells, now_s)
    inside = (quotes.stamp_s >= start_s) & (quotes.stamp_s <= end_s)
    order = desk.spoil(ask.number, list(np.flatnonzero(inside)))
    round_price = _rounding(ask, None)
    stamps = [int(quotes.stamp_s[place]) for place in order]
    prices = [round_price(float(quotes.price[place])) for place in order]

    def pairs(values: list[Any]) -> list[list[Any]]:
        return [[1000 * stamp, value] for stamp, value in zip(stamps, values, strict=True)]

    content = {
        "prices": pairs(prices),
        "market_caps": pairs([_or_null(quotes.market_cap[place]) for place in order]),
        "total_volumes": pairs([float(quotes.volume_24h[place]) for place in order]),
    }
    given = [Given("price", coin, 0, stamp * SECOND_US, price) for stamp, price in zip(stamps, prices, strict=True)]
    return json_answer(200, content, tuple(given))


def _midnights(desk: Desk, coin: str, start_s: int, end_s: int, now_s: int) -> Quotes:
    """Return a quote of each midnight; these have all that quotes of cells have."""
    stamps = np.arange(-(-start_s // DAY_S), end_s // DAY_S + 1, dtype=np.int64) * DAY_S
    cells = desk.world.quotes(coin, stamps // CELL_S - 1, now_s)
    return Quotes(stamps, desk.world.price(coin, stamps), cells.market_cap, cells.volume_24h)


def _ohlc(ask: Ask, desk: Desk, coin: str) -> Answer:
    """Return bars that have closed, stamped with their close."""
    days = ask.query.get("days", "")
    if days not in _OHLC_DAYS:
        return json_answer(422, {"error": "Invalid days parameter"})
    bar_s = next(bar_s for longest, bar_s in _BAR_S if int(days) <= longest)
    last = ask.now_s // bar_s
    numbers = np.arange(last - int(days) * DAY_S // bar_s, last, dtype=np.int64)
    round_price = _rounding(ask, None)
    rows, given = [], []
    for number in desk.spoil(ask.number, [int(each) for each in numbers]):
        inner: Ints = np.linspace(number * bar_s, (number + 1) * bar_s, 13, dtype=np.int64)
        walk: Floats = desk.world.price(coin, inner)
        bar = [round_price(float(each)) for each in (walk[0], walk.max(), walk.min(), walk[-1])]
        end_s = (number + 1) * bar_s
        rows.append([1000 * end_s, *bar])
        given.append(Given("price", coin, bar_s, end_s * SECOND_US, bar[3]))
    return json_answer(200, rows, tuple(given))


def _rounding(ask: Ask, default: int | None) -> Callable[[float], float]:
    """Return how `precision` rounds prices; by default to so many places, more for prices below 1."""
    wanted = ask.query.get("precision")
    if wanted == "full" or (wanted is None and default is None):
        return lambda price: price
    if wanted is not None and wanted.isdecimal():
        return lambda price: round(price, int(wanted))
    return lambda price: round(price, 2 if price >= 1.0 else 8)


def _or_null(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def _error(ask: Ask, code: int, message: str) -> dict[str, Any]:
    return {"status": {"timestamp": _time(ask), "error_code": code, "error_message": message}}


def _nested_error(ask: Ask, status: int, code: int, message: str) -> Answer:
    return json_answer(status, {"error": _error(ask, code, message)})


def _too_far(ask: Ask) -> Answer:
    text = "Your request exceeds the allowed time range. Public API users are limited to the past 365 days."
    return _nested_error(ask, 401, 10012, text)


def _time(ask: Ask) -> str:
    return datetime.fromtimestamp(ask.now_s, UTC).isoformat(timespec="milliseconds")
