"""The collector's settings: defaults for everything, read from YAML, wrong names and values refused in one line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from qubic_lab.errors import InputError
from qubic_lab.oracle.config import OracleConfig, read_config
from qubic_lab.oracle.ingest.collector_config import (
    DEFAULT_SOURCES,
    CollectorConfig,
    Feed,
    key_of,
    usable_sources,
)
from qubic_lab.oracle.ingest.http_rules import is_loopback
from qubic_lab.oracle.sentiment.index import Weighting
from qubic_lab.settings import settings

KEYS = ("QUBIC_LAB_COINGECKO_KEY", "QUBIC_LAB_NEWSAPI_KEY")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Without keys in the environment or a .env file."""
    monkeypatch.chdir(tmp_path)
    for name in (*KEYS, "QUBIC_LAB_ORACLE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def read(tmp_path: Path, text: str) -> OracleConfig:
    file = tmp_path / "collect.yaml"
    file.write_text(text, encoding="utf-8")
    return read_config(file)


def test_without_a_file_everything_has_a_default(tmp_path: Path) -> None:
    config = read_config()
    assert config == OracleConfig() == read(tmp_path, "")
    assert "qubic-network" in config.coins
    assert (config.sources["coingecko"].rate, config.sources["coingecko"].quotas()) == (30, {"month": 10_000})
    assert config.sources["newsapi"].quotas() == {"half-day": 50, "day": 100}
    assert set(config.order) == {"prices", "history", "news", "social"}


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """
        coins: [btc, qubic-network, BTC]
        sources:
          coingecko: {base_url: "http://127.0.0.1:8000/v3", rate: 50, window_s: 1, monthly_quota: null}
          newsapi: {enabled: false}
        feeds:
          - {name: blog, url: "https://blog.example/rss"}
          - {name: forum, url: "https://forum.example/atom", kind: social}
        order: {history: [packaged, coingecko]}
        time_scale: 0.01
        time_origin: "2026-11-24T12:00:00Z"
        backfill_days: 30
        sentiment: {half_life: 1, source_weights: {coindesk: 2, hacker-news: 0.5}}
        """,
    )
    assert config.coins == ("bitcoin", "qubic-network")
    assert config.sentiment == Weighting(1.0, {"coindesk": 2.0, "hacker-news": 0.5})
    changed: dict[str, Any] = {
        "base_url": "http://127.0.0.1:8000/v3",
        "rate": 50,
        "window_s": 1.0,
        "monthly_quota": None,
    }
    assert config.sources["coingecko"] == replace(DEFAULT_SOURCES["coingecko"], **changed)
    assert isinstance(config.sources["coingecko"].window_s, float)
    assert config.sources["hacker-news"] == DEFAULT_SOURCES["hacker-news"]
    assert config.feeds == (
        Feed("blog", "https://blog.example/rss"),
        Feed("forum", "https://forum.example/atom", "social"),
    )
    assert config.order["history"] == ("packaged", "coingecko")
    assert config.order["prices"] == ("coingecko",)
    assert (config.time_scale, config.time_origin, config.backfill_days) == (0.01, "2026-11-24T12:00:00Z", 30)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("coin: [bitcoin]", "unknown name 'coin': did you mean 'coins'"),
        ("coins: [bitcoinn]", "did you mean 'bitcoin'"),
        ("coins: []", "coins is empty"),
        ("sources: {coingecko: {rates: 3}}", "sources: coingecko: unknown name 'rates': did you mean 'rate'"),
        ("sources: {coingecko: {rate: fast}}", "coingecko: rate is 'fast': it must be a whole number"),
        ("sources: {coingecko: {rate: 0}}", "rate is 0: it must be above 0"),
        ("sources: {coingecko: {timeout_s: .inf}}", "timeout_s is inf"),
        ("sources: {coingecko: {wait_s: -1}}", "wait_s is -1.0: it must be 0 or more"),
        ("sources: {coingecko: {share: 1.1}}", "share is 1.1"),
        ("sources: {coingecko: {burst: 30}}", "burst is 30 at a rate of 30 and a share of 0.9: it must be below 27"),
        ("sources: {coingecko: {base_url: api.coingecko.com}}", "give http://HOST/PATH"),
        ("sources: {coingecko: {base_url: 'https://me:pw@x.example'}}", "set keys in the environment"),
        ("sources: {coingecko: {key_setting: coingeko_key}}", "did you mean 'coingecko_key'"),
        ("feeds: [{name: x, url: 'ftp://x/y'}]", "give http://HOST/PATH"),
        ("feeds: [{name: newsapi, url: 'https://x.example'}]", "give it a name of its own"),
        ("feeds: [{name: x, url: 'https://x.example', kind: blog}]", "feeds: 'x': unknown kind 'blog'"),
        ("feeds: [{name: x, url: 'https://x.example'}, {name: x, url: 'https://y.example'}]", "names 'x' twice"),
        ("order: {prices: [coingeko]}", "unknown source of prices 'coingeko': did you mean 'coingecko'"),
        ("order: {prices: [newsapi]}", "unknown source of prices 'newsapi'"),
        ("sentiment: {half_lif: 1}", "sentiment: unknown name 'half_lif': did you mean 'half_life'"),
        ("sentiment: {half_life: 0}", "sentiment: half_life is 0.0: it must be above 0"),
        ("sentiment: {source_weights: {a: -1}}", "sentiment: weight of a is -1.0"),
        ("time_scale: 0", "time_scale is 0.0"),
        ("time_scale: 0.5", "it needs a time_origin"),
        ("time_origin: yesterday", "'yesterday' cannot be read"),
        ("backfill_days: -1", "backfill_days is -1"),
        ("coins: [", "is not valid YAML"),
    ],
)
def test_wrong_names_and_values_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    error = str(caught.value)
    assert message in error and "collect.yaml" in error and "\n" not in error


def test_a_source_that_needs_a_key_is_left_out_with_the_variable_to_set(environment: pytest.MonkeyPatch) -> None:
    clients, left_out = usable_sources(CollectorConfig())
    assert set(clients) == {"coingecko", "hacker-news", "coindesk", "cointelegraph", "decrypt"}
    assert left_out == ("newsapi is left out: it needs a key; set QUBIC_LAB_NEWSAPI_KEY",)
    environment.setenv("QUBIC_LAB_NEWSAPI_KEY", "  ")
    settings.cache_clear()
    assert key_of(DEFAULT_SOURCES["newsapi"]) is None, "an empty key is none"
    environment.setenv("QUBIC_LAB_NEWSAPI_KEY", " 0123456789abcdef ")
    settings.cache_clear()
    clients, left_out = usable_sources(CollectorConfig())
    assert "newsapi" in clients and left_out == ()
    assert key_of(DEFAULT_SOURCES["newsapi"]) == SecretStr("0123456789abcdef")
    assert key_of(DEFAULT_SOURCES["coingecko"]) is None
    assert key_of(DEFAULT_SOURCES["hacker-news"]) is None
    assert "0123456789abcdef" not in f"{settings()!r} {clients!r}"


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(environment: pytest.MonkeyPatch, key: str) -> None:
    environment.setenv("QUBIC_LAB_COINGECKO_KEY", key)
    with pytest.raises(InputError, match="QUBIC_LAB_COINGECKO_KEY has characters that no key has") as caught:
        key_of(DEFAULT_SOURCES["coingecko"])
    assert key not in str(caught.value)


def test_sources_that_are_off_are_told_and_feeds_are_clients_of_their_own() -> None:
    sources = {name: replace(source, enabled=name == "feeds") for name, source in DEFAULT_SOURCES.items()}
    config = CollectorConfig(sources=sources, feeds=(Feed("blog", "https://blog.example/rss"),))
    clients, left_out = usable_sources(config)
    assert clients == {"blog": replace(DEFAULT_SOURCES["feeds"], base_url="https://blog.example/rss")}
    assert "coingecko is left out: it is not enabled" in left_out


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://[::1]:8000", True),
        ("http://localhost/v3", True),
        ("http://127.0.0.1.example", False),
        ("http://10.0.0.1", False),
    ],
)
def test_this_host_is_known(url: str, here: bool) -> None:
    assert is_loopback(url) is here


def test_the_environment_names_the_file_for_all_processes(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    (tmp_path / "oracle.yaml").write_text("coins: [solana]")
    environment.setenv("QUBIC_LAB_ORACLE_CONFIG", str(tmp_path / "oracle.yaml"))
    assert read_config().coins == ("solana",)
    assert read(tmp_path, "coins: [bitcoin]").coins == ("bitcoin",), "a file that is named counts more"
