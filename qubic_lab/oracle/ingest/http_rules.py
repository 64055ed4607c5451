"""Rules of asking a source over HTTP: is a response good, how long to wait, when to stop, and what quotas allow.

All but the quotas are pure functions; quotas are counted in the database for all processes, and planned ahead.
"""

import ipaddress
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal
from urllib.parse import quote_plus, urlsplit

from pydantic import Field
from sqlalchemy import Engine, and_, select

from qubic_lab import __version__
from qubic_lab.database import storable
from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.oracle.model.response import Instant, Part
from qubic_lab.oracle.model.timestamps import DAY_US, SECOND_US, from_us, iso, now_us, to_us
from qubic_lab.oracle.store.tables import QUOTAS
from qubic_lab.oracle.store.transactions import upsert

FaultKind = Literal["refused", "quota", "unavailable", "malformed"]
"""The source says no and would again; a quota is used up; there is no response; the response cannot be read."""
Form = Literal["json", "bytes", "page"]
"""What a response should be: JSON, bytes that are no HTML, or any bytes."""
Params = Mapping[str, str | int | float]
CircuitState = Literal["closed", "open", "half-open"]
Period = Literal["half-day", "day", "month"]

PERIODS: tuple[Period, ...] = ("half-day", "day", "month")
NO_LIMIT = 1_000_000_000
"""Requests left without a quota."""
FINAL_CODES = frozenset(("rateLimited", "apiKeyExhausted"))
"""Codes beside status 429 when a quota is used up: another attempt would only be counted too."""
USER_AGENT = f"qubic-lab/{__version__}"
LIBRARY_LOGS = ("httpx2", *(f"httpcore2.{part}" for part in ("connection", "http11", "http2", "proxy", "socks")))
_MOST_RETRY_AFTER_S = 86_400.0
_LONGEST_VALIDATOR = 1024


@dataclass(frozen=True)
class RawResponse:
    """A response of any status; names of headers are in small letters."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    url: str


@dataclass(frozen=True)
class FetchFault:
    """Why an attempt gave nothing; `again`: another one may; `wait_s`: how long the source asks to wait before it."""

    kind: FaultKind
    what: str
    again: bool
    status: int | None = None
    code: str | None = None
    wait_s: float | None = None


def judge(response: RawResponse, form: Form, now_us: int) -> tuple[Any, FetchFault | None]:
    """Return the body of a good response (parsed JSON or bytes; None: nothing has changed), or why it is not good.

    Servers that fail, are too busy or send something else than they should are asked again; refusals are final.
    """
    if response.status == HTTPStatus.NOT_MODIFIED:
        return None, None
    body: Any = response.content
    damage = ""
    if form != "page" and response.content[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        damage = f"sent HTML instead of {'JSON' if form == 'json' else 'the content'}"
    elif form == "json":
        try:
            body = _read_json(response.content)
        except ValueError:
            damage = "sent JSON that is cut or damaged"
    elif form == "bytes" and not response.content.strip():
        damage = "sent an empty body"
    error = None if damage or form != "json" else error_in(body)
    if response.status != HTTPStatus.OK or error is not None:
        return None, _refusal(response, *(error or ("", "")), now_us=now_us)
    return body, FetchFault("malformed", damage, again=True, status=200) if damage else None


def _refusal(response: RawResponse, code: str, message: str, *, now_us: int) -> FetchFault:
    status = response.status
    if status == HTTPStatus.OK and code.isdigit() and 400 <= int(code) <= 599:
        status = int(code)
    details = ", ".join(part for part in (f"HTTP {response.status}", code, message) if part)
    wait_s = retry_after_s(response.headers.get("retry-after"), now_us)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        final = code in FINAL_CODES and wait_s is None
        return FetchFault("quota", f"was asked too often ({details})", not final, status, code or None, wait_s)
    if status >= 500 or status == HTTPStatus.REQUEST_TIMEOUT:
        return FetchFault("unavailable", f"failed ({details})", True, status, code or None, wait_s)
    details += ", moved" * (300 <= status < 400)
    return FetchFault("refused", f"refused the request ({details})", False, status, code or None)


def error_in(body: Any) -> tuple[str, str] | None:
    """Return code and message of an error in a JSON body, in any of the sources' shapes; None: there is none.

    CoinGecko: {"status": {"error_code", "error_message"}}, {"error": {"status": {…}}} and {"error": "…"}; NewsAPI:
    {"status": "error", "code", "message"}; Algolia: {"message", "status": 400}.
    """
    if not isinstance(body, dict):
        return None
    error, status = body.get("error"), body.get("status")
    if isinstance(error, dict):
        status = error.get("status", error)
    if isinstance(status, dict) and ("error_code" in status or "error_message" in status):
        return str(status.get("error_code", "")), str(status.get("error_message", ""))
    if status == "error" or (isinstance(status, int) and status >= 400):
        return str(body.get("code", status)), str(body.get("message", ""))
    return ("", error) if isinstance(error, str) else None


def _read_json(content: bytes) -> Any:
    def refuse(name: str) -> float:
        raise ValueError(f"{name} is no number of JSON")  # NaN and infinities

    try:
        return storable(json.loads(content, parse_constant=refuse))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def is_web_address(url: str) -> bool:
    """Return whether a text is an HTTP or HTTPS address with a host and, if it names a port, a valid one."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def is_loopback(url: str) -> bool:
    """Return whether a URL points to this host."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def clock_fault(response: RawResponse, clock_us: int, now_us: int) -> FetchFault | None:
    """Return the fault of a clock that differs by more than a day from a source's: what it stamps would be wrong.

    A trial's clock, which is not this machine's `now_us`, may differ.
    """
    with suppress(InputError, TypeError, ValueError, OverflowError):
        at_us = to_us(parsedate_to_datetime(response.headers.get("date", "")))
        if abs(clock_us - now_us) < SECOND_US < DAY_US < abs(at_us - now_us):
            what = f"says that it is {iso(at_us)}, and this machine's clock {iso(now_us)}: set the clock"
            return FetchFault("refused", what, again=False)
    return None


def shown_request(base_url: str, path: str, params: Params | None) -> str:
    """Return a request as logs and records show it; keys travel in headers and are not part of it."""
    query = "&".join(f"{name}={quote_plus(str(value), safe=',:()<>=')}" for name, value in (params or {}).items())
    return f"GET {base_url}{path}" + (f"?{query}" if query else "")


def sendable(validator: str | None) -> str | None:
    """Return an ETag or a date if a header can carry it back to the source."""
    if not validator or len(validator) > _LONGEST_VALIDATOR:
        return None
    return validator if validator.isascii() and validator.isprintable() else None


def retry_after_s(header: str | None, now_us: int) -> float | None:
    """Return the wait of a Retry-After header, in seconds or until a date, at most a day; None: it has none."""
    if header is None:
        return None
    try:
        if header.strip().isdecimal():
            wait_s = float(header.strip()[:10])
        else:
            wait_s = (to_us(parsedate_to_datetime(header)) - now_us) / SECOND_US
    except (InputError, ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, wait_s), _MOST_RETRY_AFTER_S)


def backoff_s(attempt: int, first_s: float, most_s: float, jitter: float) -> float:
    """Return the wait after a failed attempt, the first being 1: it doubles; `jitter`, 0 to 1, spreads its half."""
    return min(most_s, first_s * 2.0 ** (attempt - 1)) * (0.5 + 0.5 * jitter)


def bucket(rate: float, window_s: float, share: float, burst: int) -> tuple[float, float]:
    """Return a leaky bucket's capacity and the seconds that it takes to run empty.

    Capacity B that leaks r a second lets B + r·W through in the worst window of W seconds: here `share` of the rate.
    """
    return float(burst), burst * window_s / (share * rate - burst)


def starting_level(rate: float, share: float, burst: int) -> float:
    """Return how full the bucket is at the start, as an earlier process may have sent share × rate just before."""
    return min(float(burst), max(0.0, share * rate + burst - rate))


@dataclass(frozen=True)
class CircuitBreaker:
    """Whether a source that keeps failing is asked, at one instant of a clock that only goes forward.

    Closed: requests are sent. After `most_failures` in a row it opens: none is sent for `open_s`. Then it is half-open:
    one request is a trial, which may take `open_s`; its success closes the circuit, its failure opens it again.
    """

    most_failures: int
    open_s: float
    state: CircuitState = "closed"
    failures: int = 0
    until_s: float = 0.0

    def wait_s(self, now_s: float) -> float:
        """Return how long from now until it admits a request."""
        return 0.0 if self.state == "closed" else max(0.0, self.until_s - now_s)

    def sent(self, now_s: float) -> "CircuitBreaker":
        """Return the circuit after a request that it admits was sent."""
        if self.state == "closed":
            return self
        return replace(self, state="half-open", until_s=now_s + self.open_s)

    def succeeded(self) -> "CircuitBreaker":
        """Return the circuit after a response, refusals included."""
        return CircuitBreaker(self.most_failures, self.open_s)

    def failed(self, now_s: float) -> "CircuitBreaker":
        """Return the circuit after a request without a response, or with one that cannot be read."""
        if self.state == "open":  # it was sent before that
            return self
        failures = self.failures + 1
        if self.state == "half-open" or failures >= self.most_failures:
            return replace(self, state="open", failures=failures, until_s=now_s + self.open_s)
        return replace(self, failures=failures)


class QuotaError(QubicLabError):
    """A source's quota is used up; `retry_after_s`: when the next period begins."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class QuotaState(Part):
    """How much of a source's allowance is used in the running period."""

    source: Annotated[str, Field(description="the source's name")]
    period: Annotated[str, Field(description="such as day")]
    started_us: Instant
    ends_us: Instant
    used: Annotated[int, Field(description="requests so far")]
    limit: Annotated[int | None, Field(description="null: not set here")]

    @property
    def left(self) -> int:
        """How many requests are left."""
        return NO_LIMIT if self.limit is None else max(0, self.limit - self.used)


def bounds(period: Period, at_us: int) -> tuple[int, int]:
    """Return the first instant of the period of UTC that `at_us` lies in, and of the next one."""
    at = from_us(at_us)
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "month":
        first = midnight.replace(day=1)
        return to_us(first), to_us((first + timedelta(days=32)).replace(day=1))
    hours = 24 if period == "day" else 12
    started = midnight + timedelta(hours=at.hour // hours * hours)
    return to_us(started), to_us(started + timedelta(hours=hours))


def spread(left: int, ends_us: int, now_us: int, wanted_s: float, cost: int = 1) -> float:
    """Return the seconds between polls of `cost` requests, `wanted_s` or more, so that those left last to the end."""
    remaining_s = max(0.0, (ends_us - now_us) / SECOND_US)
    polls = left // cost
    return max(wanted_s, remaining_s / polls if polls > 0 else remaining_s)


class Quotas:
    """The counts in a database that `open_database` opened; periods are of UTC."""

    def __init__(self, engine: Engine, clock: Callable[[], int] = now_us) -> None:
        self._engine = engine
        self._clock = clock

    def use(self, source: str, limits: Mapping[Period, int], cost: int = 1) -> None:
        """Count `cost` requests before they are sent: in all periods, or in none and a QuotaError if one is used up."""
        now = self._clock()
        with self._engine.connect() as connection:
            for period in PERIODS:  # always in this order, so that two processes cannot wait for each other
                started, ends = bounds(period, now)
                limit = limits.get(period, NO_LIMIT)
                row = upsert(self._engine, QUOTAS).values(source=source, period=period, started_us=started, used=cost)
                count = row.on_conflict_do_update(
                    index_elements=[QUOTAS.c.source, QUOTAS.c.period, QUOTAS.c.started_us],
                    set_={"used": QUOTAS.c.used + cost},
                    where=QUOTAS.c.used + cost <= limit,
                )
                if cost > limit or connection.execute(count.returning(QUOTAS.c.used)).first() is None:
                    connection.rollback()
                    raise QuotaError(
                        f"{source}'s quota of {limit} requests a {period} is used up: more from {iso(ends)}",
                        (ends - now) / SECOND_US,
                    )
            connection.commit()

    def report(self, limits: Mapping[str, Mapping[Period, int]]) -> tuple[QuotaState, ...]:
        """Return what each source has used in the present periods, those without a quota included."""
        return tuple(
            self._state(source, period, each.get(period)) for source, each in limits.items() for period in PERIODS
        )

    def plan(self, source: str, limits: Mapping[Period, int], wanted_s: float, cost: int = 1) -> float:
        """Return how many seconds to leave between polls of `cost` requests so that no quota is used up early."""
        now, states = self._clock(), (self._state(source, period, limit) for period, limit in limits.items())
        return max([wanted_s, *(spread(each.left, each.ends_us, now, wanted_s, cost) for each in states)])

    def spare(self, source: str, limits: Mapping[Period, int], period_s: float) -> int:
        """Return how many requests a backfill may use now: those that polling each `period_s` will not need."""
        now, spare = self._clock(), NO_LIMIT
        for period, limit in limits.items():
            state = self._state(source, period, limit)
            polls = int((state.ends_us - now) / SECOND_US / period_s) + 1
            spare = min(spare, state.left - polls)
        return max(0, spare)

    def _state(self, source: str, period: Period, limit: int | None) -> QuotaState:
        started, ends = bounds(period, self._clock())
        row = and_(QUOTAS.c.source == source, QUOTAS.c.period == period, QUOTAS.c.started_us == started)
        with self._engine.connect() as connection:
            used = connection.execute(select(QUOTAS.c.used).where(row)).scalar() or 0
        return QuotaState(source, period, started, ends, used, limit)
