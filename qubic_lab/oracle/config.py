"""What is collected, from where and how often: every limit, quota and address is a setting, read from YAML."""

import dataclasses
import ipaddress
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import SecretStr

from qubic_lab.errors import InputError, check_choice, did_you_mean
from qubic_lab.oracle.alerts.config import RISK, RiskConfig
from qubic_lab.oracle.ingest.quotas import Period
from qubic_lab.oracle.model.clock import REAL, Clock
from qubic_lab.oracle.model.coins import find_coin
from qubic_lab.oracle.model.records import TextKind
from qubic_lab.oracle.model.timestamps import read_iso
from qubic_lab.oracle.risk.rules import read_rules
from qubic_lab.oracle.sentiment.index import WEIGHTING, Weighting
from qubic_lab.settings import settings

DataKind = Literal["prices", "history", "news", "social"]

SERVES: dict[str, tuple[DataKind, ...]] = {
    "coingecko": ("prices", "history"),
    "packaged": ("history",),
    "newsapi": ("news",),
    "feeds": ("news", "social"),
    "hacker-news": ("social",),
}
"""What each source has; `feeds` stands for all feeds, `packaged` for prices that come with packages."""
DEFAULT_COINS = ("qubic-network", "bitcoin", "ethereum", "solana", "ripple", "binancecoin", "dogecoin", "cardano")
_KEYS = ("coins", "sources", "feeds", "order", "time_scale", "time_origin", "backfill_days", "sentiment", "risk")


def is_web_address(url: str) -> bool:
    """Whether a text is the address of something that speaks HTTP: with a host, and with a port if any."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def _check_url(what: str, url: str) -> None:
    if not is_web_address(url):
        raise InputError(f"{what} is {url!r}: give http://HOST/PATH or https://HOST/PATH")
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise InputError(f"{what} names a user or a password: keys belong into the environment")


@dataclass(frozen=True)
class Feed:
    """An RSS or Atom feed; its name is the source that its texts name."""

    name: str
    url: str
    kind: TextKind = "news"

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 64 or self.name in SERVES:
            raise InputError(f"feed {self.name!r}: give it a name of its own of up to 64 characters")
        _check_url(f"feed {self.name!r}", self.url)
        check_choice(f"feed {self.name!r}: kind", self.kind, ("news", "social"))


@dataclass(frozen=True)
class SourceConfig:
    """How one source is asked.

    Attributes:
        base_url: where its paths begin.
        key_setting: the field of the settings that has its key, set as QUBIC_LAB_<FIELD>.
        key_header: the header that carries it.
        key_needed: whether nothing comes without a key.
        enabled: whether it is used at all.
        rate: so many requests does it allow in any window of `window_s` seconds.
        rate_without_key: the same where there is no key; None: as with one.
        share: of the rate that is used, for requests may bunch up on their way.
        burst: so many requests may follow each other at once.
        monthly_quota: requests it allows in a calendar month of UTC; None: any number. So for days and half days.
        period_s: how often it is polled; a quota may make it longer.
        delay_s: what is published appears there so much later.
        most_results: so many results of one search does it show; None: all.
        timeout_s: an attempt fails that takes longer.
        deadline_s: a request fails that takes longer with all its attempts.
        most_body_bytes: an answer fails that is longer.
        attempts: so often is a request sent, at most.
        wait_s: the wait before the second attempt; it doubles with each, and is spread by chance.
        most_wait_s: the longest such wait.
        most_retry_after_s: a source that asks for a longer wait is not waited for.
        breaker_failures: so many attempts that fail in a row, and it is left alone for a while.
        breaker_open_s: the while.
    """

    base_url: str
    key_setting: str | None = None
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
    most_results: int | None = None
    timeout_s: float = 20.0
    deadline_s: float = 120.0
    most_body_bytes: int = 16 * 1024 * 1024
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
            if not (0 <= value < math.inf and (value or name in _FROM_0)):
                raise InputError(f"{name} is {value}: it must be {'0 or more' if name in _FROM_0 else 'above 0'}")
        if self.share > 1:
            raise InputError(f"share is {self.share}: it must be at most 1, all of the rate")
        for rate in (self.rate, self.rate_without_key):
            if rate is not None and self.burst >= self.share * rate:
                raise InputError(
                    f"burst is {self.burst} at a rate of {rate} and a share of {self.share:g}: "
                    f"it must be below {self.share * rate:g}"
                )

    def quotas(self) -> dict[Period, int]:
        """Return the quotas that there are, by period."""
        all_quotas: dict[Period, int | None] = {
            "half-day": self.half_daily_quota,
            "day": self.daily_quota,
            "month": self.monthly_quota,
        }
        return {period: quota for period, quota in all_quotas.items() if quota is not None}


_FROM_0 = ("delay_s", "wait_s", "most_wait_s", "most_retry_after_s")
"""Numbers that may be 0; all others must be above it."""

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
        most_results=100,
        attempts=2,
    ),
    "hacker-news": SourceConfig(
        base_url="https://hn.algolia.com/api/v1", rate=10_000, window_s=3600.0, burst=5, period_s=600.0
    ),
    "feeds": SourceConfig(base_url="", rate=30, burst=2, period_s=900.0, attempts=3),
}
"""The sources by HTTP. CoinGecko's documents name rates from 5 to 100 a minute; these are of its free plans."""
DEFAULT_FEEDS = (
    Feed("coindesk", "https://www.coindesk.com/arc/outboundfeeds/rss/"),
    Feed("cointelegraph", "https://cointelegraph.com/rss"),
    Feed("decrypt", "https://decrypt.co/feed"),
)
DEFAULT_ORDER: Mapping[DataKind, tuple[str, ...]] = {
    "prices": ("coingecko",),
    "history": ("coingecko", "packaged"),
    "news": ("newsapi", "feeds"),
    "social": ("hacker-news", "feeds"),
}


@dataclass(frozen=True)
class CollectorConfig:
    """What the collector does.

    Attributes:
        coins: their ids.
        sources: settings of each source by HTTP; those of `feeds` hold for every feed.
        feeds: the feeds that are read.
        order: for each kind of data the sources that have it, the first choice first.
        time_scale: multiplies every wait (between polls and attempts, of Retry-After and of the breaker), so that a
            trial is short; never limits or time-outs.
        time_origin: the instant, in ISO 8601, from which a trial's time runs 1 / `time_scale` as fast as real time, the
            same in each process that is told so; None: real time.
        backfill_days: so far back does the history go.
        sentiment: how much a text counts in an index.
        risk: by which rules its level is found, and what of it is told.
    """

    coins: tuple[str, ...] = DEFAULT_COINS
    sources: Mapping[str, SourceConfig] = field(default_factory=lambda: dict(DEFAULT_SOURCES))
    feeds: tuple[Feed, ...] = DEFAULT_FEEDS
    order: Mapping[DataKind, tuple[str, ...]] = field(default_factory=lambda: dict(DEFAULT_ORDER))
    time_scale: float = 1.0
    time_origin: str | None = None
    backfill_days: int = 365
    sentiment: Weighting = WEIGHTING
    risk: RiskConfig = RISK

    @property
    def clock(self) -> Clock:
        """The time that the schedule goes by: real, or a trial's."""
        if self.time_origin is None:
            return REAL
        return Clock(read_iso(self.time_origin), 1.0 / self.time_scale)

    def __post_init__(self) -> None:
        if not self.coins:
            raise InputError("coins is empty: name at least one, such as bitcoin")
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
                _check_serves(kind, source)


@dataclass(frozen=True)
class Usable:
    """The sources that can be asked, by name (each feed by its own), and a line on each one that cannot."""

    clients: Mapping[str, SourceConfig]
    left_out: tuple[str, ...]


def read_config(path: Path | None = None) -> CollectorConfig:
    """Return the collector's settings: the defaults, changed where a YAML file says so.

    The file is `path`, else that of QUBIC_LAB_ORACLE_CONFIG, if any is set.

    Raises:
        InputError: there is no such file, or a name or a value in it is not what it must be.
    """
    path = path or settings().oracle_config
    if path is None:
        return CollectorConfig()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return _config({} if content is None else content, path.parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def usable(config: CollectorConfig) -> Usable:
    """Return the sources that are on and have what they need, and why others are left out."""
    clients: dict[str, SourceConfig] = {}
    left_out = []
    for name, source in config.sources.items():
        if not source.enabled:
            left_out.append(f"{name} is left out: it is not enabled")
        elif source.key_needed and key_of(source) is None:
            left_out.append(f"{name} is left out: it needs a key; set QUBIC_LAB_{str(source.key_setting).upper()}")
        elif name == "feeds":
            clients |= {feed.name: dataclasses.replace(source, base_url=feed.url) for feed in config.feeds}
        else:
            clients[name] = source
    return Usable(clients, tuple(left_out))


def key_of(source: SourceConfig) -> SecretStr | None:
    """Return a source's key from the settings (environment or .env), None where none is set.

    Raises:
        InputError: it has characters that a header cannot carry; it is not shown.
    """
    key: SecretStr | None = getattr(settings(), source.key_setting) if source.key_setting else None
    if key is None or not key.get_secret_value().strip():
        return None
    value = key.get_secret_value().strip()
    if not (value.isascii() and value.isprintable() and " " not in value):
        raise InputError(f"QUBIC_LAB_{str(source.key_setting).upper()} has characters that no key has: copy it again")
    return SecretStr(value)


def is_loopback(url: str) -> bool:
    """Return whether a URL leads to this host alone."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_serves(kind: DataKind, source: str) -> None:
    check_choice(f"source of {kind}", source, SERVES)
    if kind not in SERVES[source]:
        fitting = ", ".join(name for name, kinds in SERVES.items() if kind in kinds)
        raise InputError(f"order: {source} has no {kind}: give some of {fitting}")


def _config(content: Any, folder: Path) -> CollectorConfig:
    content = _map("the file", content)
    _check_names("", content, _KEYS)
    values: dict[str, Any] = {}
    if "coins" in content:
        values["coins"] = tuple(dict.fromkeys(find_coin(name).id for name in _texts("coins", content["coins"])))
    if "sources" in content:
        changes = _map("sources", content["sources"])
        _check_names("sources: ", changes, DEFAULT_SOURCES)
        values["sources"] = {
            name: _source(f"sources: {name}", source, changes.get(name)) for name, source in DEFAULT_SOURCES.items()
        }
    if "feeds" in content:
        feeds = content["feeds"]
        if not isinstance(feeds, list):
            raise InputError(f"feeds is {feeds!r}: give a list of maps of name and url")
        values["feeds"] = tuple(_feed(feed) for feed in feeds)
    if "order" in content:
        order = _map("order", content["order"])
        _check_names("order: ", order, DEFAULT_ORDER)
        given = {kind: _texts(f"order: {kind}", names) for kind, names in order.items()}
        values["order"] = {**DEFAULT_ORDER, **given}
    if "time_scale" in content:
        values["time_scale"] = _value("time_scale", content["time_scale"], float)
    if content.get("time_origin") is not None:
        values["time_origin"] = _value("time_origin", content["time_origin"], str)
    if "backfill_days" in content:
        values["backfill_days"] = _value("backfill_days", content["backfill_days"], int)
    if "sentiment" in content:
        values["sentiment"] = _weighting(_map("sentiment", content["sentiment"]))
    if "risk" in content:
        values["risk"] = _risk(_map("risk", content["risk"]), folder)
    return CollectorConfig(**values)


def _weighting(content: Mapping[str, Any]) -> Weighting:
    _check_names("sentiment: ", content, [each.name for each in dataclasses.fields(Weighting)])
    values: dict[str, Any] = {}
    if "half_life" in content:
        values["half_life"] = _value("sentiment: half_life", content["half_life"], float)
    if "source_weights" in content:
        given = _map("sentiment: source_weights", content["source_weights"])
        values["source_weights"] = {
            name: _value(f"sentiment: source_weights: {name}", weight, float) for name, weight in given.items()
        }
    try:
        return Weighting(**values)
    except InputError as error:
        raise InputError(f"sentiment: {error}") from None


def _risk(content: Mapping[str, Any], folder: Path) -> RiskConfig:
    """Return the settings of risk; its file of rules is named from the folder of this one."""
    kinds: dict[str, type[Any]] = {"alerts": bool, "frame": str, "level": str, "cool_down": int, "no_prices": bool}
    _check_names("risk: ", content, (*kinds, "rules", "coins"))
    values: dict[str, Any] = {
        name: _value(f"risk: {name}", content[name], kind) for name, kind in kinds.items() if name in content
    }
    if content.get("rules") is not None:
        values["rules"] = read_rules(folder / _value("risk: rules", content["rules"], str))
    if "coins" in content:
        named = _texts("risk: coins", content["coins"])
        values["coins"] = tuple(dict.fromkeys(find_coin(name).id for name in named))
    try:
        return RiskConfig(**values)
    except InputError as error:
        raise InputError(f"risk: {error}") from None


_FIELDS: dict[str, Any] = {each.name: each.type for each in dataclasses.fields(SourceConfig)}


def _source(where: str, source: SourceConfig, changes: Any) -> SourceConfig:
    if changes is None:
        return source
    changes = _map(where, changes)
    _check_names(f"{where}: ", changes, _FIELDS)
    values = {name: _setting(f"{where}: {name}", value, _FIELDS[name]) for name, value in changes.items()}
    key_setting = values.get("key_setting")
    if key_setting is not None:
        known = [name for name in type(settings()).model_fields if name.endswith("_key")]
        check_choice(f"{where}: key_setting", key_setting, known)
    try:
        return dataclasses.replace(source, **values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _feed(content: Any) -> Feed:
    content = _map("feeds: entry", content)
    _check_names("feeds: ", content, ("name", "url", "kind"))
    for name in ("name", "url"):
        if name not in content:
            raise InputError(f"feeds: {content!r} has no {name!r}: add it")
    return Feed(**{name: _value(f"feeds: {name}", value, str) for name, value in content.items()})  # type: ignore[arg-type]


def _setting(what: str, value: Any, kind: Any) -> Any:
    """Return a value of a field of `SourceConfig`, whose type may allow None."""
    kinds = getattr(kind, "__args__", (kind,))
    if value is None and type(None) in kinds:
        return None
    return _value(what, value, kinds[0])


_NAMES: dict[type, str] = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}


_T = TypeVar("_T", str, bool, int, float)


def _value(what: str, value: Any, kind: type[_T]) -> _T:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{what} is {value!r}: it must be {_NAMES[kind]}")
    return value


def _texts(what: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise InputError(f"{what} is {values!r}: it must be a list of names")
    return tuple(_value(what, value, str) for value in values)


def _map(what: str, content: Any) -> Mapping[str, Any]:
    if not (isinstance(content, dict) and all(isinstance(name, str) for name in content)):
        raise InputError(f"{what} is {content!r}: it must be a map of names and values")
    return content


def _check_names(where: str, content: Mapping[str, Any], known: Any) -> None:
    for name in content:
        if name not in known:
            raise InputError(f"{where}unknown name {name!r}: {did_you_mean(name, known)}")
