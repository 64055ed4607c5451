"""The market in plain sentences, made from the numbers by rules; they say nothing that no number says."""

from collections.abc import Sequence

from qubic_lab.oracle.analysis.rating import MarketRating, Rating
from qubic_lab.oracle.model.response import Missing
from qubic_lab.oracle.model.timestamps import age_text
from qubic_lab.oracle.sentiment.index_report import SentimentSummary
from qubic_lab.oracle.serving.responses import CoinOverview, LastPrice

_UNITS = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"))
_FLAT_PCT = 0.05
"""Smaller changes round to 0.0 %."""
_FLAT = 0.005


def summarize(coins: Sequence[CoinOverview], currency: str, rating: MarketRating | Missing) -> list[str]:
    """Return a sentence about all coins if several have prices, one about each coin, and one about the rating."""
    moved = [each for each in coins if each.change_24h_pct is not None and _on_time(each)]
    sentences = [_market(moved, len(coins))] if len(moved) > 1 else []
    sentences += [_coin(each, currency) for each in coins]
    return sentences if isinstance(rating, Missing) else [*sentences, _rating(rating)]


def money(value: float) -> str:
    """Return an amount with two decimals, or with four significant digits below 1."""
    if value >= 1e6:
        for size, name in _UNITS:
            if value >= size:
                return f"{value / size:.2f} {name}"
    if value >= 1:
        return f"{value:,.2f}"
    decimals = next((n for n in range(16) if round(value, n) >= 10 ** (3 - n)), 16)
    return f"{value:.{decimals}f}"


def _on_time(coin: CoinOverview) -> bool:
    return isinstance(coin.last, LastPrice) and not coin.last.stale


def _market(moved: Sequence[CoinOverview], all_coins: int) -> str:
    changes = {each.name: each.change_24h_pct or 0.0 for each in moved}
    rose = sum(change >= _FLAT_PCT for change in changes.values())
    fell = sum(change <= -_FLAT_PCT for change in changes.values())
    best, worst = max(changes, key=changes.__getitem__), min(changes, key=changes.__getitem__)
    known = "" if len(moved) == all_coins else f", of {all_coins} in all"
    return (
        f"Of {len(moved)} coins with prices on time{known}, {rose} rose and {fell} fell in 24 h: from "
        f"{_signed(changes[worst])} ({worst}) to {_signed(changes[best])} ({best})."
    )


def _coin(coin: CoinOverview, currency: str) -> str:
    texts = f"{coin.texts_24h} text{'' if coin.texts_24h == 1 else 's'} in 24 h"
    if isinstance(coin.last, Missing):
        return f"{coin.name}: no price is known; {texts}."
    unit = currency.upper()
    span = "in the 24 h up to that" if coin.last.stale else "in 24 h"
    change = f"change {span} not known" if coin.change_24h_pct is None else f"{_signed(coin.change_24h_pct)} {span}"
    parts = [f"{coin.name} {money(coin.last.price)} {unit}", change]
    if coin.market_cap is not None:
        parts.append(f"market cap {money(coin.market_cap)} {unit}")
    stale = ", which is stale" if coin.last.stale else ""
    if isinstance(coin.sentiment, SentimentSummary):
        texts += f" with an index of {_decimal(coin.sentiment.index)} (confidence {coin.sentiment.confidence:.1f})"
    rated = f"; rated {coin.rating.rating}" if isinstance(coin.rating, Rating) else ""
    return f"{', '.join(parts)}; {texts}{rated}; price {age_text(coin.last.age_s)} old from {coin.last.source}{stale}."


def _rating(rating: MarketRating) -> str:
    without = f"; {len(rating.without)} have no rating" if rating.without else ""
    return (
        f"By simple rules, which are no advice, the market is rated {rating.rating}: mean vote "
        f"{_decimal(rating.score)} of {rating.coins} coins{without}."
    )


def _decimal(value: float) -> str:
    """Return a number between -1 and 1 with its sign, a true minus and two decimals."""
    if abs(value) < _FLAT:
        return "±0.00"
    return f"{'+' if value > 0 else '−'}{abs(value):.2f}"


def _signed(pct: float) -> str:
    """Return a change with its sign, a true minus and one decimal."""
    if abs(pct) < _FLAT_PCT:
        return "±0.0 %"
    return f"{'+' if pct > 0 else '−'}{abs(pct):,.1f} %"
