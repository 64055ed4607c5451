"""One client for every HTTP source: never above its limits, patient with its faults, and silent about its key."""

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn
from urllib.parse import urlsplit

import httpx2
from aiolimiter import AsyncLimiter
from pydantic import SecretStr
from sqlalchemy import Engine, select

from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.oracle.ingest.collector_config import SourceConfig
from qubic_lab.oracle.ingest.http_rules import (
    LIBRARY_LOGS,
    USER_AGENT,
    CircuitBreaker,
    FaultKind,
    FetchFault,
    Form,
    Params,
    QuotaError,
    Quotas,
    RawResponse,
    backoff_s,
    bucket,
    clock_fault,
    is_loopback,
    judge,
    sendable,
    shown_request,
    starting_level,
)
from qubic_lab.oracle.ingest.reach import InsideError, Reach
from qubic_lab.oracle.model.records import Price, Series, Text
from qubic_lab.oracle.model.timestamps import SECOND_US, iso, now_us
from qubic_lab.oracle.store.fetch_log import Fetch
from qubic_lab.oracle.store.tables import VALIDATORS
from qubic_lab.oracle.store.transactions import upsert

_log = logging.getLogger(__name__)

_MOST_HOPS = 5
_LONGEST_SHOWN, _LONGEST_CODE = 300, 64


class SourceError(QubicLabError):
    """A source gave nothing that can be used; the message does not contain the key.

    `code` is the source's name for the error, such as rateLimited; circuit-open, quota-spent: it was not asked.
    `retry_after_s`: how much later it may be asked again, if that is known.
    """

    def __init__(
        self, message: str, kind: FaultKind, fetch: Fetch, code: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.fetch = replace(fetch, outcome="failed", error=message)
        self.code = code
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, kw_only=True)
class Fetched(Fetch):
    """A good response: parsed JSON or bytes, None if nothing has changed.

    `validators` are a row of their table, stored only by `SourceClient.keep`; `headers` content-type, x-robots-tag and
    content-location.
    """

    body: Any
    validators: Mapping[str, str | None] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def not_modified(self) -> bool:
        """Whether the source says that nothing has changed."""
        return self.outcome == "not_modified"


@dataclass(frozen=True)
class Batch:
    """The items of one response: prices sorted by time, texts in the source's order.

    `faults`: a line for each entry that was left out, with the reason. `until_us`, of a history: all before has been
    given.
    """

    fetched: Fetched
    prices: tuple[tuple[Series, tuple[Price, ...]], ...] = ()
    texts: tuple[Text, ...] = ()
    faults: tuple[str, ...] = ()
    until_us: int | None = None

    def at_most(self, items: int) -> "Batch":
        """Return the first items of each kind, and a line on what was left out."""
        given = max(len(self.texts), *(len(prices) for _, prices in self.prices), 0)
        if given <= items:
            return self
        prices = tuple((series, each[:items]) for series, each in self.prices)
        line = f"it has more than most_items, {items:,}: the others are left out"
        return replace(self, prices=prices, texts=self.texts[:items], faults=(line, *self.faults))


def malformed(fetched: Fetched) -> SourceError:
    """Return the error for a good response whose content is not what the source's interface documents."""
    return SourceError(f"{fetched.source} sent content of another shape than documented", "malformed", fetched)


async def search_back(
    ask: Callable[[str, int], Awaitable[tuple[Batch, int | None]]], queries: Sequence[str], start_us: int, end_us: int
) -> AsyncGenerator[Batch, None]:
    """Yield what queries find, each text once: as sources show only the newest texts, they are asked again for older.

    `ask` returns a query's newest texts until the end of an instant's second, and the instant of the oldest one of
    them, or None if the source has shown all.

    Raises:
        SourceError: there is no good response; the batches until then are good.
    """
    seen: set[str] = set()
    for query in queries:
        last_us: int | None = end_us - 1
        while last_us is not None and last_us // SECOND_US >= start_us // SECOND_US:
            batch, oldest_us = await ask(query, last_us)
            faults = batch.faults
            if oldest_us is not None and oldest_us // SECOND_US > last_us // SECOND_US:
                raise malformed(batch.fetched)  # not the range that was asked for
            if oldest_us is not None and oldest_us // SECOND_US == last_us // SECOND_US:
                at = iso(last_us // SECOND_US * SECOND_US)
                faults = (*faults, f"more texts at {at} than the source shows: others are left out")
                oldest_us = last_us - SECOND_US
            last_us = oldest_us
            new = {text.external_id: text for text in batch.texts if text.external_id not in seen}
            seen |= set(new)
            yield replace(batch, texts=tuple(new.values()), faults=faults)


def _without_key(key: SecretStr) -> Callable[[logging.LogRecord], bool]:
    """Return a filter of logs: at their finest levels libraries show what a server sent, echoes of the key included."""

    def keep(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if key.get_secret_value() in message:
            record.msg, record.args = message.replace(key.get_secret_value(), "***"), ()
        return True

    return keep


class _Failed(Exception):
    """Carries a fault to the retrying loop."""

    def __init__(self, fault: FetchFault) -> None:
        super().__init__(fault.what)
        self.fault = fault


@dataclass
class _Asking:
    """One request and how far it has come."""

    path: str
    params: Params | None
    form: Form
    conditions: Mapping[str, str]
    started_us: int
    started_s: float
    attempts: int = 0


class SourceClient:
    """Asks one source, in sequence or concurrently; open it with `async with`.

    Limits and time-outs are in real seconds; other waits go by `clock` and `sleep`, which a trial may make faster.
    """

    def __init__(
        self,
        name: str,
        config: SourceConfig,
        engine: Engine,
        *,
        key: SecretStr | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
        clock: Callable[[], int] = now_us,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Open nothing yet; `transport` replaces the network, `jitter` is between 0 and 1 and spreads waits.

        Raises:
            InputError: the key would travel in clear text beyond this host.
        """
        if key is not None and not config.base_url.startswith("https:") and not is_loopback(config.base_url):
            raise InputError(f"{name}: {config.base_url} would send the key in clear text: give https://…")
        self.name = name
        self.config = config
        self.circuit = CircuitBreaker(config.breaker_failures, config.breaker_open_s)
        self._engine = engine
        self._key = key
        self._transport = transport
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._quotas = Quotas(engine, clock)
        self._log_filter = None if key is None else _without_key(key)
        self._not_before_us = 0
        self._reach = Reach(urlsplit(config.base_url).hostname or "")

    async def __aenter__(self) -> "SourceClient":
        config, rate = self.config, self.config.rate
        if self._key is None and config.rate_without_key is not None:
            rate = config.rate_without_key
        if self._log_filter:
            for name in LIBRARY_LOGS:
                logging.getLogger(name).addFilter(self._log_filter)
        self._limiter = AsyncLimiter(*bucket(rate, config.window_s, config.share, config.burst))
        await self._limiter.acquire(starting_level(rate, config.share, config.burst))
        self._http = httpx2.AsyncClient(
            headers={"User-Agent": USER_AGENT},
            timeout=config.timeout_s,
            transport=self._transport,
            trust_env=not is_loopback(config.base_url),  # a proxy set for the web does not lead to this host
        )
        if self._transport is None:
            self._reach.guard(self._http)
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._http.aclose()
        if self._log_filter:
            for name in LIBRARY_LOGS:
                logging.getLogger(name).removeFilter(self._log_filter)

    async def get(
        self, path: str = "", params: Params | None = None, *, conditional: bool = True, form: Form = "json"
    ) -> Fetched:
        """Return the response to a request, sent as many times as needed and the settings allow.

        `conditional`: ask only for what has changed since the response that was kept last.

        Raises:
            SourceError: there is no good response.
        """
        shown = shown_request(self.config.base_url, path, params)
        request_hash = hashlib.sha256(f"{self.name}\n{shown}".encode()).hexdigest()
        conditions = await asyncio.to_thread(self._conditions, request_hash) if conditional else {}
        asking = _Asking(path, params, form, conditions, self._clock(), time.perf_counter())
        outcome = await self._outcome(asking)
        seconds = time.perf_counter() - asking.started_s
        status = outcome.status if isinstance(outcome, FetchFault) else outcome[0].status
        fetch = Fetch(self.name, "", shown, asking.started_us, seconds, asking.attempts, status, "ok")
        if isinstance(outcome, FetchFault):
            what = outcome.what if outcome.what.startswith(self.name) else f"{self.name} {outcome.what}"
            if status in (401, 403) and self.config.key_setting:
                what += f": check QUBIC_LAB_{self.config.key_setting.upper()}"
            raise SourceError(what, outcome.kind, fetch, outcome.code, outcome.wait_s)
        response, body = outcome
        validators = None
        if status == httpx2.codes.NOT_MODIFIED:
            fetch = replace(fetch, outcome="not_modified")
        elif conditional:
            sent = {name: response.headers.get(name.replace("_", "-")) for name in ("etag", "last_modified")}
            validators = {"request_hash": request_hash, **{name: sendable(value) for name, value in sent.items()}}
        headers = {name: response.headers.get(name, "") for name in ("content-type", "x-robots-tag")}
        headers["content-location"] = response.url
        return Fetched(**vars(fetch), body=body, validators=validators, headers=headers)

    async def keep(self, fetched: Fetched) -> None:
        """Remember a response's validators, so that the same request is answered only when something has changed.

        Call it after the items are stored: before that, a crash would lose them for good.
        """
        if fetched.validators is not None:
            await asyncio.to_thread(self._remember, fetched.validators)

    async def _outcome(self, asking: _Asking) -> tuple[RawResponse, Any] | FetchFault:
        """Send a request until it is answered; faults are values here, so that no traceback carries what was sent."""
        try:
            self._check_circuit()
            await self._turn()
            asking.started_us, asking.started_s = self._clock(), time.perf_counter()
            async with asyncio.timeout(self.config.deadline_s):
                return await self._persist(asking)
        except _Failed as last:
            return last.fault
        except TimeoutError:
            return FetchFault("unavailable", f"gave no good response in {self.config.deadline_s:g} s", again=False)

    async def _persist(self, asking: _Asking) -> tuple[RawResponse, Any]:
        """Attempt a request again and again, as long as that may help; a wait that the source asks for is a turn's."""
        while True:
            try:
                return await self._attempt(asking)
            except _Failed as failed:
                fault = failed.fault
                _log.info("%s, attempt %d: %s", self.name, asking.attempts, fault.what)
                is_last = asking.attempts >= self.config.attempts or self.circuit.wait_s(self._now_s()) > 0
                if is_last or not fault.again:
                    raise
            if fault.wait_s is None:
                await self._sleep(
                    backoff_s(asking.attempts, self.config.wait_s, self.config.most_wait_s, self._jitter())
                )
            await self._turn()

    async def _turn(self) -> None:
        """Wait until the limits and the source's Retry-After allow a request."""
        while True:
            while (wait_s := (self._not_before_us - self._clock()) / SECOND_US) > 0:
                if wait_s > self.config.most_retry_after_s:
                    what = f"asks for no requests until {iso(self._not_before_us)}"
                    raise _Failed(FetchFault("quota", what, again=False, status=429, wait_s=wait_s))
                await self._sleep(wait_s)
            await self._limiter.acquire()
            if self._clock() >= self._not_before_us:
                return

    def _check_circuit(self) -> None:
        wait_s = self.circuit.wait_s(self._now_s())
        if wait_s > 0:
            what = f"failed {self.circuit.failures} times in a row and is not asked for {wait_s:.0f} s"
            raise _Failed(FetchFault("unavailable", what, again=False, code="circuit-open", wait_s=wait_s))

    async def _count(self) -> None:
        """Count a request before it is sent: a crash may count too many, never too few."""
        try:
            await asyncio.to_thread(self._quotas.use, self.name, self.config.quotas())
        except QuotaError as error:
            fault = FetchFault("quota", str(error), again=False, code="quota-spent", wait_s=error.retry_after_s)
            raise _Failed(fault) from None

    async def _attempt(self, asking: _Asking) -> tuple[RawResponse, Any]:
        """Return a good response and its body."""
        self._check_circuit()
        await self._count()
        asking.attempts += 1
        self.circuit = self.circuit.sent(self._now_s())
        response = await self._send(asking)
        if isinstance(response, FetchFault):
            self._fail(response)
        body, fault = judge(response, asking.form, self._clock())
        fault = fault or clock_fault(response, self._clock(), now_us())
        if fault is not None:
            self._fail(fault)
        self.circuit = self.circuit.succeeded()
        return response, body

    def _fail(self, fault: FetchFault) -> NoReturn:
        failed = fault.kind in ("unavailable", "malformed")
        self.circuit = self.circuit.failed(self._now_s()) if failed else self.circuit.succeeded()
        if fault.wait_s is not None:
            self._not_before_us = self._clock() + int(fault.wait_s * SECOND_US)
        soon = (fault.wait_s or 0.0) <= self.config.most_retry_after_s
        raise _Failed(replace(self._redacted(fault), again=fault.again and soon))

    async def _send(self, asking: _Asking) -> RawResponse | FetchFault:
        """Send a request once; without a key, follow redirects, at the pace of other requests."""
        url = f"{self.config.base_url}{asking.path}"
        sending = self._http.build_request("GET", url, params=asking.params, headers=asking.conditions)
        for hop in range(_MOST_HOPS):
            if hop:
                await self._turn()
                await self._count()
            answer = await self._exchange(sending)
            if not isinstance(answer, httpx2.Request):
                return answer
            try:
                with suppress(OSError):  # a proxy resolves names that this machine cannot
                    await self._reach.checked(answer.url.host)
            except InsideError as error:
                return FetchFault("refused", str(error), again=False)
            sending = answer
        return FetchFault("refused", f"redirects {_MOST_HOPS} times or more", again=False)

    async def _exchange(self, sending: httpx2.Request) -> RawResponse | httpx2.Request | FetchFault:
        """Return the response, or the request that it redirects to; the request has the key only while it is sent."""
        header = self.config.key_header or ""
        if self._key is not None and header:
            sending.headers[header] = self._key.get_secret_value()
        try:
            async with asyncio.timeout(self.config.timeout_s):
                response = await self._http.send(sending, stream=True, follow_redirects=False)
                try:
                    if response.next_request is not None and self._key is None:
                        return response.next_request
                    return await self._read(response)
                finally:
                    await response.aclose()
        except InsideError as error:
            return FetchFault("refused", str(error), again=False)
        except (TimeoutError, httpx2.TimeoutException):
            what = f"gave no complete response in {self.config.timeout_s:g} s"
        except httpx2.RequestError as error:
            what = f"could not be reached, or broke off ({type(error).__name__})"
        finally:
            sending.headers.pop(header, None)
        return FetchFault("unavailable", what, again=True)

    async def _read(self, response: httpx2.Response) -> RawResponse | FetchFault:
        content = bytearray()
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > self.config.most_body_bytes:
                what = f"sent more than most_body_bytes, {self.config.most_body_bytes}"
                return FetchFault("malformed", what, again=False, status=response.status_code)
        headers = {name.lower(): value for name, value in response.headers.items()}
        return RawResponse(response.status_code, headers, bytes(content), str(response.url))

    def _redacted(self, fault: FetchFault) -> FetchFault:
        """Return a fault as it may be shown: in one line, not too long, and without the key if the server echoes it."""
        what, code = fault.what, fault.code or ""
        if self._key is not None:  # before anything is cut off, else a part of it might be left
            what, code = (text.replace(self._key.get_secret_value(), "***") for text in (what, code))
        what, code = (" ".join(text.split()) for text in (what, code))
        if len(what) > _LONGEST_SHOWN:
            what = f"{what[:_LONGEST_SHOWN]}…"
        return replace(fault, what=what, code=code[:_LONGEST_CODE] or None)

    def _now_s(self) -> float:
        return self._clock() / SECOND_US

    def _conditions(self, request_hash: str) -> dict[str, str]:
        """Return the headers that ask for what has changed since the response that was kept."""
        query = select(VALIDATORS.c.etag, VALIDATORS.c.last_modified).where(VALIDATORS.c.request_hash == request_hash)
        with self._engine.connect() as connection:
            etag, last_modified = connection.execute(query).first() or (None, None)
        headers = {"If-None-Match": etag, "If-Modified-Since": last_modified}
        return {name: value for name, value in headers.items() if value is not None}

    def _remember(self, validators: Mapping[str, str | None]) -> None:
        row = upsert(self._engine, VALIDATORS).values(**validators)
        with self._engine.begin() as connection:
            connection.execute(row.on_conflict_do_update(index_elements=["request_hash"], set_=dict(validators)))
