"""Texts as a backtest may use them: each from the instant at which it could have been read here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.model.bars import Bars, Floats
from qubic_lab.oracle.model.timestamps import iso


@dataclass(frozen=True)
class AvailableText:
    """A text that decisions may use from `available_us` on.

    Attributes:
        published_us, fetched_us: when it appeared, and when it was fetched; `available_texts` refuses None.
        coins: ids of the coins that it is about.
        scores: by model, in −1..1.
        latency_us: time to read and score it.
    """

    id: str
    title: str
    published_us: int | None
    fetched_us: int | None
    body: str = ""
    coins: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    latency_us: int = 0

    @property
    def available_us(self) -> int:
        """The later one of publication and fetching, plus the latency."""
        assert self.published_us is not None and self.fetched_us is not None, self.id
        return max(self.published_us, self.fetched_us) + self.latency_us


def available_texts(texts: Iterable[AvailableText], latency_us: int = 0) -> tuple[AvailableText, ...]:
    """Return texts with a latency in the order in which they become available.

    Raises:
        InputError: texts without a time of publication or fetching, or a latency below 0.
    """
    check_at_least("latency_us", latency_us, 0)
    found = [replace(text, latency_us=latency_us) for text in texts]
    refused = [text for text in found if text.published_us is None or text.fetched_us is None]
    if refused:
        what = "published" if refused[0].published_us is None else "fetched"
        raise InputError(
            f"{len(refused)} texts cannot be used, the first is {refused[0].id!r}: it does not say when it was {what}, "
            "so it may be used before it existed; leave such texts out"
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
