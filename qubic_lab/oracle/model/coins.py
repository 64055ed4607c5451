"""The coins that the oracle knows, by CoinGecko's ids, and how texts mention them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qubic_lab.errors import NotFoundError, did_you_mean


@dataclass(frozen=True)
class Coin:
    """A coin; its id is CoinGecko's, its symbol in capitals.

    Attributes:
        terms: names that mean this coin and little else, in any case; sources are searched for the first one.
        only_with_dollar: the symbol also has other meanings, and counts only as $SYMBOL.
    """

    id: str
    symbol: str
    name: str
    terms: tuple[str, ...]
    only_with_dollar: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """How answers name it, as the fields of `AboutCoin`."""
        return {"coin": self.id, "symbol": self.symbol, "name": self.name}


_ALL = (
    Coin("qubic-network", "QUBIC", "Qubic", ("Qubic",)),
    Coin("bitcoin", "BTC", "Bitcoin", ("Bitcoin",)),
    Coin("ethereum", "ETH", "Ethereum", ("Ethereum",)),
    Coin("tether", "USDT", "Tether", ("Tether USD", "USD Tether", "Tether stablecoin")),
    Coin("ripple", "XRP", "XRP", ("XRP Ledger", "Ripple Labs")),
    Coin("binancecoin", "BNB", "BNB", ("BNB Chain", "Binance Coin")),
    Coin("solana", "SOL", "Solana", ("Solana",)),
    Coin("usd-coin", "USDC", "USDC", ("USD Coin",)),
    Coin("dogecoin", "DOGE", "Dogecoin", ("Dogecoin",), only_with_dollar=True),  # a department
    Coin("cardano", "ADA", "Cardano", ("Cardano",), only_with_dollar=True),  # an act, a language
    Coin("tron", "TRX", "TRON", ("TRON blockchain", "TRON network", "TRONIX")),
    Coin("avalanche-2", "AVAX", "Avalanche", ("Avalanche blockchain", "Avalanche network", "Ava Labs")),
    Coin("shiba-inu", "SHIB", "Shiba Inu", ("Shiba Inu coin", "Shiba Inu token")),
    Coin("the-open-network", "TON", "Toncoin", ("Toncoin", "The Open Network"), only_with_dollar=True),  # a weight
    Coin("polkadot", "DOT", "Polkadot", ("Polkadot",), only_with_dollar=True),  # a department
    Coin("chainlink", "LINK", "Chainlink", ("Chainlink",)),
    Coin("bitcoin-cash", "BCH", "Bitcoin Cash", ("Bitcoin Cash",)),
    Coin("near", "NEAR", "NEAR Protocol", ("NEAR Protocol",)),
    Coin("litecoin", "LTC", "Litecoin", ("Litecoin",)),
    Coin("uniswap", "UNI", "Uniswap", ("Uniswap",), only_with_dollar=True),  # a university
    Coin("ethereum-classic", "ETC", "Ethereum Classic", ("Ethereum Classic",), only_with_dollar=True),  # and so on
    Coin("monero", "XMR", "Monero", ("Monero",)),
    Coin("stellar", "XLM", "Stellar", ("Stellar Lumens", "Stellar network")),
    Coin("cosmos", "ATOM", "Cosmos Hub", ("Cosmos Hub",), only_with_dollar=True),  # a feed's format
    Coin("kaspa", "KAS", "Kaspa", ("Kaspa",)),
    Coin("bittensor", "TAO", "Bittensor", ("Bittensor",)),
    Coin("matic-network", "MATIC", "Polygon", ("Polygon network", "Polygon blockchain", "Polygon Labs")),
    Coin("aave", "AAVE", "Aave", ("Aave",)),
    Coin("algorand", "ALGO", "Algorand", ("Algorand",), only_with_dollar=True),  # trading by algorithms
    Coin("aptos", "APT", "Aptos", ("Aptos",), only_with_dollar=True),  # attackers
    Coin("arbitrum", "ARB", "Arbitrum", ("Arbitrum",), only_with_dollar=True),  # arbitrage
    Coin("axie-infinity", "AXS", "Axie Infinity", ("Axie Infinity",)),
    Coin("celestia", "TIA", "Celestia", ("Celestia network",), only_with_dollar=True),  # a mini-stroke
    Coin("chiliz", "CHZ", "Chiliz", ("Chiliz",)),
    Coin("dai", "DAI", "Dai", ("Dai stablecoin",)),
    Coin("decentraland", "MANA", "Decentraland", ("Decentraland",)),
    Coin("fantom", "FTM", "Fantom", ("Fantom network", "Fantom blockchain")),
    Coin("filecoin", "FIL", "Filecoin", ("Filecoin",), only_with_dollar=True),  # Filipino
    Coin("ftx-token", "FTT", "FTX Token", ("FTX Token",)),
    Coin("gmx", "GMX", "GMX", ("GMX token", "GMX exchange"), only_with_dollar=True),  # a mail service
    Coin("hedera-hashgraph", "HBAR", "Hedera", ("Hedera",), only_with_dollar=True),  # a wine shop
    Coin("helium", "HNT", "Helium", ("Helium Network", "Helium token")),
    Coin("hyperliquid", "HYPE", "Hyperliquid", ("Hyperliquid",), only_with_dollar=True),  # what there is too much of
    Coin("injective-protocol", "INJ", "Injective", ("Injective Protocol",)),
    Coin("internet-computer", "ICP", "Internet Computer", ("Internet Computer",), only_with_dollar=True),  # a method
    Coin("iota", "IOTA", "IOTA", ("IOTA Foundation",)),
    Coin("lido-dao", "LDO", "Lido DAO", ("Lido DAO", "Lido Finance")),
    Coin("lisk", "LSK", "Lisk", ("Lisk",)),
    Coin("maker", "MKR", "Maker", ("MakerDAO",)),
    Coin("optimism", "OP", "Optimism", ("Optimism network", "OP Mainnet"), only_with_dollar=True),  # an operation
    Coin("pepe", "PEPE", "Pepe", ("Pepe coin", "Pepe token")),
    Coin("sui", "SUI", "Sui", ("Sui network", "Sui blockchain")),
    Coin("terra-luna", "LUNC", "Terra Luna Classic", ("Luna Classic", "Terra Classic")),
    Coin("tezos", "XTZ", "Tezos", ("Tezos",)),
    Coin("vechain", "VET", "VeChain", ("VeChain",), only_with_dollar=True),  # a doctor
    Coin("worldcoin-wld", "WLD", "Worldcoin", ("Worldcoin",)),
    Coin("zcash", "ZEC", "Zcash", ("Zcash",)),
)
COINS: dict[str, Coin] = {coin.id: coin for coin in _ALL}
"""All known coins by id."""

_OTHERS = ("Bitcoin SV", "Bitcoin Gold", "Bitcoin Diamond", "EthereumPoW", "Ethereum Name Service")
"""Names of other things that contain the name of a known coin."""
_SHOUTED = 0.7
"""A text with a larger share of capitals is written in capitals, so its words in capitals are no symbols."""
_LEAST_LETTERS = 12
"""A text with fewer letters beside its symbols, such as "BTC/USDT, ETH-USD", is not judged by its capitals."""
_BY_SYMBOL = {coin.symbol: coin.id for coin in _ALL}
_BY_NAME = {term.lower(): coin.id for coin in _ALL for term in (*coin.terms, f"{coin.terms[0]}s")}
_BY_NAME |= {other.lower(): "" for other in _OTHERS}
"""The id of each name in lower case; "" for coins that are not known."""
_LINK = re.compile(r"https?://\S+")
_NAMES = "|".join(r"\s+".join(map(re.escape, name.split())) for name in sorted(_BY_NAME, key=len, reverse=True))
_NAME = re.compile(rf"(?<![A-Za-z0-9_])(?:{_NAMES})(?![A-Za-z0-9_])", re.IGNORECASE | re.ASCII)
_WRITTEN = {coin.symbol: coin.id for coin in _ALL if not coin.only_with_dollar} | {"Ether": "ethereum"}
"""Ids of what counts as it is written here; small, "ether" is also a chemical."""
_SYMBOL = re.compile(rf"(?<![A-Za-z0-9_$])(?:{'|'.join(_WRITTEN)})(?![A-Za-z0-9_])")
_CASHTAG = re.compile(rf"(?<![A-Za-z0-9_$])\$({'|'.join(_BY_SYMBOL)})(?![A-Za-z0-9_])", re.IGNORECASE | re.ASCII)
_GENERAL = re.compile(
    r"\b(?:crypto|cryptos|cryptocurrenc\w+|block ?chains?|(?:stable|alt|meme)coins?|NFTs?|DeFi|web3|"
    r"digital (?:asset|currenc)\w*)\b",
    re.IGNORECASE,
)


def find_coin(text: str) -> Coin:
    """Return the coin with an id, a symbol or a name, in any case.

    Raises:
        NotFoundError: there is none; with the closest id or symbol.
    """
    wanted = text.strip().lower()
    for coin in _ALL:
        if wanted in (coin.id, coin.symbol.lower(), coin.name.lower()):
            return coin
    known = [name for coin in _ALL for name in (coin.id, coin.symbol)]
    raise NotFoundError(f"unknown coin {text!r}: {did_you_mean(text, known)}")


def coin_ids(names: Iterable[str]) -> tuple[str, ...]:
    """Return the ids of coins given by id or symbol, each once; a NotFoundError if a coin is not known."""
    return tuple(dict.fromkeys(find_coin(name).id for name in names))


def mentioned(text: str) -> tuple[str, ...]:
    """Return the ids of the coins that a text is about, in the order of `COINS`.

    A name counts in any case, a symbol in capitals or after a dollar sign, at word boundaries: "$sol" and "SOL" are
    Solana, "sol" is not; "Bitcoin Cash" is not Bitcoin. "Ether" is Ethereum. Addresses of pages are ignored.
    """
    text = _LINK.sub(" ", text)
    found = {_BY_NAME[" ".join(match.group().lower().split())] for match in _NAME.finditer(text)}
    found |= {_BY_SYMBOL[match.group(1).upper()] for match in _CASHTAG.finditer(text)}
    if not _is_shouted(_SYMBOL.sub(" ", text)):
        found |= {_WRITTEN[match.group()] for match in _SYMBOL.finditer(text)}
    return tuple(id for id in COINS if id in found)


def mentions_crypto(text: str) -> bool:
    """Return whether a text speaks of digital assets in general, such as "crypto" or "blockchain"."""
    return _GENERAL.search(text) is not None


def _is_shouted(text: str) -> bool:
    letters = [character for character in text if character.isalpha()]
    return len(letters) >= _LEAST_LETTERS and sum(map(str.isupper, letters)) > _SHOUTED * len(letters)
