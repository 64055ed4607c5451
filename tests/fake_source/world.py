"""Synthetic prices and texts: a pure function of seed and time, so equal questions get equal replies."""

import hashlib
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qubic_lab.oracle.model.coins import COINS

CELL_S = 300
"""Each coin has one quote in each cell of time, at a second of its own."""
CELLS_PER_HOUR = 3_600 // CELL_S
_OCTAVES = 17
_FINEST = 0.0015
_KNOWN = {"bitcoin": (60_000.0, 2e7), "ethereum": (3_000.0, 1.2e8), "qubic-network": (1e-6, 1.2e14)}
"""Price and supply; every other coin's come from its name."""
_CORRECTED_AFTER_S = 1_800

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Quotes:
    """Quotes of one coin, by time: `stamp_s` since 1970, `price`, `market_cap` (NaN: none) and `volume_24h` in USD."""

    stamp_s: Ints
    price: Floats
    market_cap: Floats
    volume_24h: Floats


@dataclass(frozen=True)
class Item:
    """A synthetic text; `number` is its place among its source's, `published_s` since 1970."""

    number: int
    published_s: int
    title: str
    body: str


@dataclass(frozen=True)
class World:
    """All that the fake serves; with `corrections` some quotes and titles change after half an hour."""

    seed: int = 0
    null_caps: bool = False
    corrections: bool = False

    def price(self, coin: str, at_s: Ints) -> Floats:
        """Return a walk's value at instants: noise of doubling periods, each √2 as high as the one before."""
        log_price = np.full(len(at_s), np.log(_base(coin)[0]))
        for octave in range(_OCTAVES):
            cell, within = np.divmod(at_s, CELL_S << octave)
            share = within / (CELL_S << octave)
            key = self._key("walk", coin, str(octave))
            low, high = _noise(key, cell), _noise(key, cell + 1)
            log_price += _FINEST * 2 ** (octave / 2) * (low + share * (high - low))
        walk: Floats = np.exp(log_price)
        return walk

    def quotes(self, coin: str, cells: Ints, now_s: int) -> Quotes:
        """Return the quotes of cells as served at `now_s`, without later ones."""
        cells = cells[self.stamps(coin, cells) <= now_s]
        stamps = self.stamps(coin, cells)
        price = self.price(coin, stamps)
        if self.corrections:
            wrong = _bits(self._key("correction", coin), cells) % 40 == 0
            corrected = wrong & (stamps + _CORRECTED_AFTER_S <= now_s)
            price = np.where(corrected, price * 1.001, price)
        cap = price * _base(coin)[1]
        if self.null_caps:
            cap = np.where(_bits(self._key("null", coin), cells) % 10 == 0, np.nan, cap)
        volume = _base(coin)[0] * _base(coin)[1] * 0.02 * np.exp(0.3 * _noise(self._key("volume", coin), cells))
        return Quotes(stamps, price, cap, volume)

    def stamps(self, coin: str, cells: Ints) -> Ints:
        """Return when each cell's quote was made, in seconds since 1970: off the grid, as real ones are."""
        return cells * CELL_S + (_bits(self._key("stamp", coin), cells) % (CELL_S - 60)).astype(np.int64)

    def items(self, source: str, every_s: int, start_s: int, end_s: int, now_s: int) -> list[Item]:
        """Return the texts of a source published in `start_s` ≤ t < `end_s` and by `now_s`: one in each `every_s`."""
        numbers = range(start_s // every_s, min(end_s, now_s + 1) // every_s + 1)
        made = (self._item(source, number, every_s, now_s) for number in numbers)
        return [item for item in made if start_s <= item.published_s < end_s and item.published_s <= now_s]

    def _item(self, source: str, number: int, every_s: int, now_s: int) -> Item:
        draw = random.Random(self._key(source, str(number)))
        published, corrected = number * every_s + draw.randrange(every_s), draw.randrange(30) == 0
        coin = COINS[draw.choice(WRITTEN_OF)]
        said = f"{coin.name} {draw.choice(_SUBJECTS)} {draw.choice(_VERBS)} {draw.choice(_CAUSES)}"
        title = f"Synthetic: {said} ({number})"
        if self.corrections and corrected and now_s >= published + _CORRECTED_AFTER_S:
            title += " [corrected]"
        body = f"This text is synthetic. {said}, and that is all. {coin.name} is number {number} here."
        return Item(number, published, title, body)

    def _key(self, *names: str) -> int:
        return _number(str(self.seed), *names)


WRITTEN_OF = ("qubic-network", "bitcoin", "ethereum", "solana", "cardano", "chainlink")
_SUBJECTS = ("fees", "wallets", "trading volume", "the developers' call", "mining & staking", "a new release")
_VERBS = ("rise", "fall", "stand still", "surprise", "disappoint", "move")
_CAUSES = ("after the upgrade", "before the vote", "as reserves change", "amid thin trading", "on a quiet day")
PUBLISHER = "The Synthetic Times"


def _base(coin: str) -> tuple[float, float]:
    """Return a coin's usual price and its supply."""
    if coin in _KNOWN:
        return _KNOWN[coin]
    draw = _number("base", coin)
    return 10.0 ** (draw % 6000 / 1000 - 3), 10.0 ** (draw // 6000 % 4000 / 1000 + 7)


def _number(*names: str) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(names).encode(), digest_size=8).digest())


def _bits(key: int, index: Ints) -> NDArray[np.uint64]:
    """Return 64 random bits of each index: SplitMix64's output function (Steele, Lea, Flood 2014)."""
    mixed = index.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _noise(key: int, index: Ints) -> Floats:
    """Return a number in -1..1 of each index."""
    return _bits(key, index).astype(np.float64) / 2**63 - 1.0
