"""What the collector asks for, where and how often: each limit, quota and address is a setting with a default.

Its jobs follow from the settings and from the keys that are set.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr

from qubic_lab.checked_yaml import STRICT
from qubic_lab.errors import InputError, check_choice
from qubic_lab.oracle.ingest.http_rules import PERIODS, Period, is_web_address
from qubic_lab.oracle.model.coins import coin_ids
from qubic_lab.oracle.model.records import TextKind
from qubic_lab.oracle.model.timestamps import REAL, Clock, read_iso
from qubic_lab.settings import settings

DataKind = Literal["prices", "history", "news", "social"]
JobKind = Literal["prices", "bars", "history", "texts", "feed"]
KeySetting = Literal["coingecko_key", "newsapi_key"]

PACKAGED = "packaged"
"""The source of prices that come with packages, which are of one coin."""
PACKAGED_COIN = "bitcoin"
BARS_S = 12 * 3_600.0
"""How often a day's bars are requested."""
DEFAULT_COINS = ("qubic-network", "bitcoin", "ethereum", "solana", "ripple", "binancecoin", "dogecoin", "cardano")
_MAY_BE_0 = ("delay_s", "wait_s", "most_wait_s", "most_retry_after_s")
"""Settings of a source that may be 0; all other numbers must be above it."""


def _check_url(what: str, url: str) -> None:
    if not is_web_address(url):
        raise InputError(f"{what} is {url!r}: give http://HOST/PATH or https://HOST/PATH")
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise InputError(f"{what} contains a user or a password: set keys in the environment")


@dataclass(frozen=True)
class Feed:
    """An RSS or Atom feed; its name is the source of its texts."""

    __pydantic_config__ = STRICT

    name: str
    url: str
    kind: TextKind = "news"

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 64 or self.name in (*DEFAULT_SOURCES, PACKAGED):
            raise InputError(f"feed {self.name!r}: give it a name of its own of up to 64 characters")
        _check_url(f"feed {self.name!r}", self.url)


@dataclass(frozen=True)
class SourceConfig:
    """How one source is asked.

    Attributes:
        key_setting: the field of `Settings` that holds its key, set as QUBIC_LAB_<FIELD>.
        key_header: the header that carries the key; `key_needed`: requests without it are refused.
        rate: requests that the source allows in any window of `window_s` seconds, of which only `share` is used, as
            requests may bunch up on their way; `burst` may follow each other without a pause.
        monthly_quota: requests allowed in a calendar month of UTC; None: any number. The same for days and half days.
        period_s: how often it is polled; a quota may make that rarer.
        delay_s: how long after publication an item appears there.
        most_items: of an answer with more texts, or more prices of a series, the first ones are stored.
        timeout_s: an attempt that takes longer fails; `deadline_s`: a request with all its attempts.
        wait_s: the wait before the second attempt; it doubles up to `most_wait_s`, with random jitter.
        most_retry_after_s: if the source asks for a longer wait, the request fails.
        breaker_failures: failed attempts in a row that open the circuit breaker, for `breaker_open_s`.
    """

    __pydantic_config__ = STRICT

    base_url: str
    key_setting: KeySetting | None = None
    key_header: str | None = None
    key_needed: bool = False
    enabled: bool = True
    rate: int = 60
    window_s: float = 60.0
    rate_without_key: int | None = None
    share: float = 0.9
    burst: int = 1
    monthly_quota: int | None = None
    daily_quota: int | None = None
    half_daily_quota: int | None = None
    period_s: float = 300.0
    delay_s: float = 0.0
    timeout_s: float = 20.0
    deadline_s: float = 120.0
    most_body_bytes: int = 16 * 1024 * 1024
    most_items: int = 10_000
    attempts: int = 4
    wait_s: float = 1.0
    most_wait_s: float = 30.0
    most_retry_after_s: float = 120.0
    breaker_failures: int = 5
    breaker_open_s: float = 60.0

    def __post_init__(self) -> None:
        if self.base_url:
            _check_url("base_url", self.base_url)
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not (0 <= value < math.inf and (value or name in _MAY_BE_0)):
                raise InputError(f"{name} is {value}: it must be {'0 or more' if name in _MAY_BE_0 else 'above 0'}")
        if self.share > 1:
            raise InputError(f"share is {self.share}: it must be at most 1, the full rate")
        for rate in (self.rate, self.rate_without_key):
            if rate is not None and self.burst >= self.share * rate:
                raise InputError(
                    f"burst is {self.burst} at a rate of {rate} and a share of {self.share:g}: "
                    f"it must be below {self.share * rate:g}"
                )

    def quotas(self) -> dict[Period, int]:
        """Return the quotas that are set, by period."""
        quotas = zip(PERIODS, (self.half_daily_quota, self.daily_quota, self.monthly_quota), strict=True)
        return {period: quota for period, quota in quotas if quota is not None}


DEFAULT_SOURCES: Mapping[str, SourceConfig] = {
    "coingecko": SourceConfig(
        base_url="https://api.coingecko.com/api/v3",
        key_setting="coingecko_key",
        key_header="x-cg-demo-api-key",
        rate=30,
        rate_without_key=5,
        monthly_quota=10_000,
        period_s=300.0,
    ),
    "newsapi": SourceConfig(
        base_url="https://newsapi.org/v2",
        key_setting="newsapi_key",
        key_header="X-Api-Key",
        key_needed=True,
        rate=10,
        daily_quota=100,
        half_daily_quota=50,
        period_s=3600.0,
        delay_s=86_400.0,
        attempts=2,
    ),
    "hacker-news": SourceConfig(
        base_url="https://hn.algolia.com/api/v1", rate=10_000, window_s=3600.0, burst=5, period_s=600.0
    ),
    "feeds": SourceConfig(base_url="", rate=30, burst=2, period_s=900.0, attempts=3, most_items=1_000),
}
"""The sources that are asked over HTTP. CoinGecko documents 5 to 100 requests a minute; this is its free plan."""
DEFAULT_FEEDS = (
    Feed("coindesk", "https://www.coindesk.com/arc/outboundfeeds/rss/"),
    Feed("cointelegraph", "https://cointelegraph.com/rss"),
    Feed("decrypt", "https://decrypt.co/feed"),
)
DEFAULT_ORDER: dict[DataKind, tuple[str, ...]] = {
    "prices": ("coingecko",),
    "history": ("coingecko", PACKAGED),
    "news": ("newsapi", "feeds"),
    "social": ("hacker-news", "feeds"),
}
"""All sources of each kind of data; `feeds` stands for all feeds."""


@dataclass(frozen=True)
class CollectorConfig:
    """What the collector does.

    Attributes:
        sources: the settings of each HTTP source; those of `feeds` apply to every feed.
        order: for each kind of data the sources that provide it, the first choice first.
        time_scale: multiplies every wait but limits and time-outs, so that a trial is short.
        time_origin: the instant, in ISO 8601, from which a trial's clock runs 1 / `time_scale` times as fast as real
            time, in every process with this setting; None: real time.
        backfill_days: how far back the history goes.
    """

    __pydantic_config__ = STRICT

    coins: Annotated[tuple[str, ...], AfterValidator(coin_ids)] = DEFAULT_COINS
    sources: Mapping[str, SourceConfig] = field(default_factory=lambda: dict(DEFAULT_SOURCES))
    feeds: tuple[Feed, ...] = DEFAULT_FEEDS
    order: Mapping[DataKind, tuple[str, ...]] = field(default_factory=lambda: dict(DEFAULT_ORDER))
    time_scale: float = 1.0
    time_origin: str | None = None
    backfill_days: int = 365

    @property
    def clock(self) -> Clock:
        """The clock of the schedule: real time, or a trial's."""
        if self.time_origin is None:
            return REAL
        return Clock(read_iso(self.time_origin), 1.0 / self.time_scale)

    def __post_init__(self) -> None:
        if not self.coins:
            raise InputError("coins is empty: name at least one, such as bitcoin")
        for name in self.sources:
            check_choice("source", name, DEFAULT_SOURCES)
        if not 0 < self.time_scale <= 1:
            raise InputError(f"time_scale is {self.time_scale}: it must be above 0 and at most 1")
        if self.time_origin is not None:
            read_iso(self.time_origin)
        elif self.time_scale != 1:
            raise InputError(f"time_scale is {self.time_scale}: it needs a time_origin, the instant it counts from")
        if self.backfill_days < 0:
            raise InputError(f"backfill_days is {self.backfill_days}: it must be 0 or more")
        names = [feed.name for feed in self.feeds]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"feeds names {name!r} twice: keep one of them")
        for kind, sources in self.order.items():
            for source in sources:
                check_choice(f"source of {kind}", source, DEFAULT_ORDER[kind])


def usable_sources(config: CollectorConfig) -> tuple[dict[str, SourceConfig], tuple[str, ...]]:
    """Return the sources that can be asked, by name (each feed by its own), and a line for each other one with why."""
    clients: dict[str, SourceConfig] = {}
    left_out = []
    for name, source in config.sources.items():
        if not source.enabled:
            left_out.append(f"{name} is left out: it is not enabled")
        elif source.key_needed and key_of(source) is None:
            left_out.append(f"{name} is left out: it needs a key; set QUBIC_LAB_{str(source.key_setting).upper()}")
        elif name == "feeds":
            clients |= {feed.name: replace(source, base_url=feed.url) for feed in config.feeds}
        else:
            clients[name] = source
    return clients, tuple(left_out)


def key_of(source: SourceConfig) -> SecretStr | None:
    """Return a source's key from the settings; an InputError, which does not show it, if no header can carry it."""
    key: SecretStr | None = getattr(settings(), source.key_setting) if source.key_setting else None
    if key is None or not key.get_secret_value().strip():
        return None
    value = key.get_secret_value().strip()
    if not (value.isascii() and value.isprintable() and " " not in value):
        raise InputError(f"QUBIC_LAB_{str(source.key_setting).upper()} has characters that no key has: copy it again")
    return SecretStr(value)


@dataclass(frozen=True)
class Job:
    """A recurring task of some sources, the first choice first.

    `period_s`: between runs, if quotas allow; 0: as fast as limits allow, until it is done.
    """

    name: str
    kind: JobKind
    sources: tuple[str, ...]
    period_s: float


def plan_jobs(
    config: CollectorConfig, clients: Mapping[str, SourceConfig], *, packaged: bool = False
) -> tuple[Job, ...]:
    """Return the jobs that usable sources and, if so, packaged prices allow; an InputError if there are none."""
    feeds = [feed.name for feed in config.feeds]
    jobs: list[Job] = []
    if prices := tuple(name for name in config.order["prices"] if name in clients):
        jobs.append(Job("prices", "prices", prices, clients[prices[0]].period_s))
    usable = [*clients, *([PACKAGED] if packaged and PACKAGED_COIN in config.coins else [])]
    history = tuple(name for name in config.order["history"] if name in usable)
    if history and config.backfill_days:
        jobs.append(Job("history", "history", history, 0.0))
    if bars := tuple(name for name in history if name != PACKAGED):
        jobs.append(Job("bars", "bars", bars, BARS_S))
    for name in (*_text_sources(config, "news"), *_text_sources(config, "social")):
        if name in clients:
            kind: JobKind = "feed" if name in feeds else "texts"
            jobs.append(Job(name, kind, (name,), clients[name].period_s))
    if not jobs:
        raise InputError("no source can be asked: set a key or enable a source (see qubic-lab oracle status)")
    return tuple(jobs)


def choose_sources(
    clients: Mapping[str, SourceConfig], config: CollectorConfig, wanted: Sequence[str]
) -> dict[str, SourceConfig]:
    """Return the clients with the given names (`feeds`: all feeds), or all; an InputError if a name is not known."""
    feeds = [feed.name for feed in config.feeds if feed.name in clients]
    names = [each for name in wanted for each in (feeds if name == "feeds" else [name])]
    return {check_choice("or unusable source", name, clients): clients[name] for name in (names if wanted else clients)}


def fallbacks(config: CollectorConfig, name: str) -> list[str]:
    """Return the sources that come after one in the order of its kind of texts, each feed by its own name."""
    orders = (_text_sources(config, kind) for kind in ("news", "social"))
    return next((order[order.index(name) + 1 :] for order in orders if name in order), [])


def _text_sources(config: CollectorConfig, kind: TextKind) -> list[str]:
    feeds = [feed.name for feed in config.feeds if feed.kind == kind]
    return [each for name in config.order[kind] for each in (feeds if name == "feeds" else [name])]
