"""Texts as a backtest may use them: each from the instant at which it could have been read here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.model.bars import Bars, Floats
from qubic_lab.oracle.model.timestamps import iso

if TYPE_CHECKING:
    from qubic_lab.oracle.store.text_reader import StoredText


@dataclass(frozen=True)
class SourceText:
    """A text and its times, as a source or a file gives them.

    Attributes:
        coins: ids of the coins that it is about.
        published_us, fetched_us: when it appeared, and when it was fetched; None: not known.
        scores: by model, in −1..1.
    """

    id: str
    title: str
    published_us: int | None
    fetched_us: int | None
    body: str = ""
    coins: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, text: "StoredText", scores: Mapping[str, float] | None = None) -> "SourceText":
        """Return a text of the store; its transaction time is when it was fetched."""
        name = f"{text.source} {text.external_id}"
        return cls(name, text.title, text.published_us, text.known_us, text.body, text.coins, scores or {})


@dataclass(frozen=True)
class AvailableText:
    """A text that decisions may use from `available_us` on."""

    id: str
    title: str
    body: str
    coins: tuple[str, ...]
    scores: Mapping[str, float]
    published_us: int
    available_us: int


def available_texts(texts: Iterable[SourceText], latency_us: int = 0) -> tuple[AvailableText, ...]:
    """Return texts in the order in which they became available: at max(published, fetched) + latency.

    Args:
        texts: in any order.
        latency_us: time to read and score a text.

    Raises:
        InputError: texts without a time of publication or fetching, or a latency below 0.
    """
    check_at_least("latency_us", latency_us, 0)
    found: list[AvailableText] = []
    refused: list[tuple[str, str]] = []
    for text in texts:
        published, fetched = text.published_us, text.fetched_us
        if published is None or fetched is None:
            refused.append((text.id, "published" if published is None else "fetched"))
            continue
        at = max(published, fetched) + latency_us
        found.append(AvailableText(text.id, text.title, text.body, text.coins, text.scores, published, at))
    if refused:
        raise InputError(
            f"{len(refused)} texts cannot be used, the first is {refused[0][0]!r}: it does not say when it was "
            f"{refused[0][1]}, so it may be used before it existed; leave such texts out"
        )
    return tuple(sorted(found, key=lambda each: (each.available_us, each.id)))


def text_columns(market: Bars, texts: Sequence[AvailableText]) -> dict[str, Floats]:
    """Return columns of the texts that became available in each bar, up to its close, [bars, assets] each.

    "texts": their number; "score NAME": their mean score by that model, NaN without texts. With one asset all texts
    count, with several only those about each asset.
    """
    shape = market.close_BA.shape
    names = sorted({name for text in texts for name in text.scores})
    counts, sums = np.zeros(shape), {name: np.zeros(shape) for name in names}
    scored = {name: np.zeros(shape) for name in names}
    bars = np.searchsorted(market.closed_us, [text.available_us for text in texts], side="left")
    for text, bar in zip(texts, bars.tolist(), strict=True):
        if bar == len(market) or text.available_us <= market.opened_us[0]:
            continue
        for place, asset in enumerate(market.assets):
            if len(market.assets) == 1 or asset in text.coins:
                counts[bar, place] += 1.0
                for name, score in text.scores.items():
                    if not np.isfinite(score):
                        raise InputError(
                            f"score of text {text.id!r} ({iso(text.available_us)}) is {score}: it must be a number"
                        )
                    sums[name][bar, place] += score
                    scored[name][bar, place] += 1.0
    means = {}
    for name in names:
        means[f"score {name}"] = np.full(shape, np.nan)
        np.divide(sums[name], scored[name], out=means[f"score {name}"], where=scored[name] > 0.0)
    return {"texts": counts, **means}
