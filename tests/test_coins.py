"""Coins: found by id, symbol or name; and which of them a text is about."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.coins import COINS, Coin, find_coin, mentioned, mentions_crypto


def test_coins_are_told_apart() -> None:
    assert len({coin.symbol for coin in COINS.values()}) == len(COINS)
    assert all(id == coin.id and coin.symbol == coin.symbol.upper() for id, coin in COINS.items())
    assert all(coin.terms and all(coin.terms) for coin in COINS.values())
    names = [term.lower() for coin in COINS.values() for term in coin.terms]
    assert len(set(names)) == len(names)


def test_a_coin_is_found_by_id_symbol_or_name() -> None:
    ids = [find_coin(text).id for text in ("bitcoin", " btc ", "Qubic", "QUBIC")]
    assert ids == ["bitcoin", "bitcoin", "qubic-network", "qubic-network"]
    with pytest.raises(InputError, match="unknown coin 'bitcoinn': did you mean 'bitcoin'"):
        find_coin("bitcoinn")


@pytest.mark.parametrize("coin", COINS.values(), ids=lambda coin: coin.id)
def test_every_coin_is_found_in_a_text_by_name_and_symbol(coin: Coin) -> None:
    for term in coin.terms:
        assert mentioned(f"What {term} did today") == (coin.id,)
        assert mentioned(f"what {term.lower()} did today") == (coin.id,)
    assert mentioned(f"Why ${coin.symbol} is up") == (coin.id,)
    assert mentioned(f"why ${coin.symbol.lower()} is up") == (coin.id,)
    assert mentioned(f"Why {coin.symbol} is up") == (() if coin.only_with_dollar else (coin.id,))


@pytest.mark.parametrize(
    "text",
    [
        "El sol y la luna",
        "Follow the link near the end",
        "Click LINKS and LINKED lists",
        "Solar power: SOLAR stocks rise",
        "ADA compliance, a DOT fine, 40 TON of steel and the UNI of Bonn",
        "A stellar start, an avalanche in the Alps and tron the film",
        "CLICK THE LINK NEAR THE TOP OF THIS PAGE",
        "Ripple effects of a rate cut; tether your phone",
        "MetaETHereal", "bitcoinist's", "XBTC", "BTCX", "my_BTC_file",
        "Bitcoin SV and Bitcoin Gold split",
        "see https://example.com/bitcoin/BTC-price",
        "",
        "$5 and $BTCUSD",
        "Diethyl ether, ethers and the ethereal",
        "An APT attack, an OP, the VET and optimism of a sui generis kind",
    ],
)  # fmt: skip
def test_false_friends_are_no_coins(text: str) -> None:
    assert mentioned(text) == ()


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("BTC/USDT and ETH-USD", ("bitcoin", "ethereum", "tether")),
        ("Bitcoin's fall, (Ethereum) and #Solana", ("bitcoin", "ethereum", "solana")),
        ("Bitcoins were sold", ("bitcoin",)),
        ("Bitcoin Cash rises", ("bitcoin-cash",)),
        ("bitcoin \n cash rises", ("bitcoin-cash",)),
        ("Bitcoin and Bitcoin Cash rise", ("bitcoin", "bitcoin-cash")),
        ("Ethereum Classic", ("ethereum-classic",)),
        ("比特币BTC今天Bitcoin价格", ("bitcoin",)),
        ("BITCOIN CRASHES AS ETH AND LINK FOLLOW", ("bitcoin",)),
        ("$ETH TO THE MOON EVERYONE", ("ethereum",)),
        ("BTC ETH SOL", ("bitcoin", "ethereum", "solana")),
        ("Qubic beats Monero", ("qubic-network", "monero")),
        ("The price of NEAR", ("near",)),
        ("Ether could end the week higher", ("ethereum",)),
        ("Polygon's MATIC and Axie Infinity", ("matic-network", "axie-infinity")),
    ],
)
def test_coins_are_found_at_the_edges_of_words(text: str, ids: tuple[str, ...]) -> None:
    assert mentioned(text) == ids


def test_texts_on_crypto_in_general_are_told_from_others() -> None:
    on_crypto = ("Crypto winter", "cryptocurrencies fell", "a Blockchain summit", "digital assets", "DeFi and NFTs")
    others = ("Cryptic words", "a defiant token of love", "digital cameras", "a chain of shops")
    assert all(map(mentions_crypto, on_crypto)) and not any(map(mentions_crypto, others))


@given(st.text(max_size=200))
def test_any_text_can_be_looked_through(text: str) -> None:
    assert set(mentioned(text)) <= set(COINS)
    assert mentioned(f"{text}\n. Bitcoin .")  # whatever stands before
