"""One client for every source by HTTP: never above its limits, patient with its faults, and silent about its key.

What is decided (whether an answer is good, how long to wait, whether to leave a source alone) are pure functions; the
client only waits, counts and sends.
"""

import asyncio
import hashlib
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Literal
from urllib.parse import quote_plus

import httpx2
from aiolimiter import AsyncLimiter
from pydantic import SecretStr
from sqlalchemy import Engine, select
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from qubic_lab import __version__
from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.oracle.ingest.circuit import Circuit
from qubic_lab.oracle.ingest.collector_config import SourceConfig, is_loopback
from qubic_lab.oracle.ingest.quotas import QuotaError, Quotas
from qubic_lab.oracle.model.records import Price, Series, Text
from qubic_lab.oracle.model.timestamps import SECOND_US, iso, now_us, to_us
from qubic_lab.oracle.store.tables import VALIDATORS

_log = logging.getLogger(__name__)

ErrorKind = Literal["refused", "quota", "unavailable", "malformed"]
"""The source says no, and would again; an allowance is used up; it does not answer; its answer cannot be read."""
Form = Literal["json", "bytes"]
Params = Mapping[str, str | int | float]

USER_AGENT = f"qubic-lab/{__version__}"
FINAL_CODES = frozenset(("rateLimited", "apiKeyExhausted"))
"""Codes that come with status 429 when a quota is used up: another attempt would only be counted too."""
_MOST_HOPS = 5
_LONGEST_SHOWN, _LONGEST_CODE = 300, 64
_LONGEST_VALIDATOR = 1024
_MOST_RETRY_AFTER_S = 86_400.0
CIRCUIT_OPEN, QUOTA_SPENT = "circuit-open", "quota-spent"
"""Codes of our own: nothing was sent."""


class SourceError(QubicLabError):
    """A source gave nothing that can be used; the message has no key.

    Attributes:
        kind: whether another attempt may help, and when.
        source: its name.
        request: as the audit shows it.
        status: of the last answer, where there was one.
        code: what the source calls it, such as maximumResultsReached; circuit-open: it was not asked.
        attempts: sent.
        seconds: from the first attempt.
        started_us: when.
        retry_after_s: so much later it may be asked again, where that is known.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: ErrorKind,
        source: str,
        status: int | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.source = source
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s
        self.request = ""
        self.attempts = 0
        self.seconds = 0.0
        self.started_us = 0


@dataclass(frozen=True)
class Validators:
    """What a source gave to ask with whether something has changed; the hash is of the request without its key."""

    request_hash: str
    etag: str | None
    last_modified: str | None


@dataclass(frozen=True)
class Fetched:
    """A good answer.

    Attributes:
        source: the client's name.
        request: as the audit shows it, without a key.
        status: 200 or 304.
        body: parsed JSON, or bytes; None where nothing has changed.
        not_modified: the source says that nothing has changed.
        attempts: sent, this one included.
        seconds: from the first attempt to the answer's end.
        started_us: when the first attempt began.
        size: bytes of the body.
        validators: for the next time; remembered only by `SourceClient.keep`.
        headers: content-type and location of the content, for what cannot be read without.
    """

    source: str
    request: str
    status: int
    body: Any
    not_modified: bool
    attempts: int
    seconds: float
    started_us: int
    size: int
    validators: Validators | None = None
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Batch:
    """What one request gave.

    Attributes:
        fetched: the answer that it came in.
        prices: by series, sorted by time.
        texts: in the source's order.
        faults: entries that were left out, and why, a line each.
        until_us: all that was asked for before this instant has been given, this batch included.
    """

    fetched: Fetched
    prices: tuple[tuple[Series, tuple[Price, ...]], ...] = ()
    texts: tuple[Text, ...] = ()
    faults: tuple[str, ...] = ()
    until_us: int | None = None


@dataclass(frozen=True)
class Answer:
    """What came back, whatever it is; names of headers are in small letters."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    url: str


@dataclass(frozen=True)
class Fault:
    """Why an attempt gave nothing; `again`: another one may; `wait_s`: how long the source asks to wait before it."""

    kind: ErrorKind
    what: str
    again: bool
    status: int | None = None
    code: str | None = None
    wait_s: float | None = None


class _Retry(Exception):
    """Tells the retrying loop of a fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.what)
        self.fault = fault


@dataclass
class _Progress:
    """How far a request has come."""

    started_us: int
    started_s: float
    attempts: int = 0


@dataclass(frozen=True)
class _Request:
    shown: str
    path: str
    params: Params | None
    cost: int
    form: Form
    conditions: Mapping[str, str]


class _KeyHeader(httpx2.Auth):
    """Puts the key onto a request while it is sent, and takes it off again: no header that is kept or shown has it."""

    def __init__(self, header: str, key: SecretStr) -> None:
        self._header = header
        self._key = key

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        request.headers[self._header] = self._key.get_secret_value()
        try:
            yield request
        finally:
            del request.headers[self._header]


class WithoutKey(logging.Filter):
    """Takes the key out of what libraries log: at their finest levels they show what a server sent, echoes included."""

    def __init__(self, key: SecretStr) -> None:
        super().__init__()
        self._key = key

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record, without the key."""
        message = record.getMessage()
        if self._key.get_secret_value() in message:
            record.msg, record.args = message.replace(self._key.get_secret_value(), "***"), ()
        return True


LIBRARY_LOGS = ("httpx2", *(f"httpcore2.{part}" for part in ("connection", "http11", "http2", "proxy", "socks")))


def bucket(rate: float, window_s: float, share: float, burst: int) -> tuple[float, float]:
    """Return a leaky bucket's capacity and the seconds that it takes to run empty.

    A bucket of capacity B that leaks r a second lets B + r·W through in an unlucky window of W seconds: here that is
    `share` of the rate, and not, as with r = rate / W, nearly twice of it.
    """
    per_second = (share * rate - burst) / window_s
    return float(burst), burst / per_second


def starting_level(rate: float, window_s: float, share: float, burst: int) -> float:
    """Return how full the bucket is at the start: an earlier process may have used a whole window just before.

    Within one window that one sent share × rate at most, and this one's first burst comes on top.
    """
    return min(float(burst), max(0.0, share * rate + burst - rate))


def retry_after_s(header: str | None, now_us: int) -> float | None:
    """Return how long a Retry-After header asks to wait, given as seconds or as a date; None where it says nothing.

    At most a day.
    """
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


def error_in(body: Any) -> tuple[str, str] | None:
    """Return code and message of an error that a JSON body tells, in any of the sources' shapes; None: it tells none.

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


def read_json(content: bytes) -> Any:
    """Return the value that JSON text holds.

    Raises:
        ValueError: it is none, or holds NaN or infinities, which JSON does not have.
    """
    try:
        return json.loads(content, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def shown_request(base_url: str, path: str, params: Params | None) -> str:
    """Return a request as the audit shows it: sources' keys travel in headers and are not in it."""
    query = "&".join(f"{name}={quote_plus(str(value), safe=',:()<>=')}" for name, value in (params or {}).items())
    return f"GET {base_url}{path}" + (f"?{query}" if query else "")


def backoff_s(attempt: int, first_s: float, most_s: float, chance: float) -> float:
    """Return the wait after a failed attempt, the first being 1: twice as long each time, and spread over its half."""
    return min(most_s, first_s * 2.0 ** (attempt - 1)) * (0.5 + 0.5 * chance)


@dataclass(frozen=True)
class Good:
    """An answer that can be used; `body` is parsed JSON or bytes, None where nothing has changed."""

    body: Any


def judge(answer: Answer, form: Form, now_us: int) -> Good | Fault:
    """Decide whether an answer is good, and if not, why and whether another attempt may help.

    Servers that fail, are too busy or send something else than they should are asked again; those that refuse are not.
    """
    if answer.status == httpx2.codes.NOT_MODIFIED:
        return Good(None)
    looks_like_page = answer.content[:256].lstrip().lower().startswith((b"<!doctype html", b"<html"))
    body: Any = answer.content
    damage = ""
    if looks_like_page:
        damage = f"gave HTML in place of {'JSON' if form == 'json' else 'what was asked for'}"
    elif form == "json":
        try:
            body = read_json(answer.content)
        except ValueError:
            damage = "gave JSON that is cut or damaged"
    elif not answer.content.strip():
        damage = "gave nothing"
    told = None if damage or form == "bytes" else error_in(body)
    if answer.status == httpx2.codes.OK and told is None:
        return Fault("malformed", damage, again=True, status=200) if damage else Good(body)
    return _refusal(answer, told, now_us)


def _refusal(answer: Answer, told: tuple[str, str] | None, now_us: int) -> Fault:
    """Return what a status that is no success, or an error within a success, means."""
    code, message = told or ("", "")
    status = answer.status
    if status == httpx2.codes.OK and code.isdigit() and 400 <= int(code) <= 599:
        status = int(code)
    inner = ", ".join(part for part in (f"HTTP {answer.status}", code, message) if part)
    if status == httpx2.codes.TOO_MANY_REQUESTS:
        wait_s = retry_after_s(answer.headers.get("retry-after"), now_us)
        final = code in FINAL_CODES and wait_s is None
        return Fault("quota", f"was asked too often ({inner})", not final, status, code or None, wait_s)
    if status >= 500 or status == httpx2.codes.REQUEST_TIMEOUT:
        wait_s = retry_after_s(answer.headers.get("retry-after"), now_us)
        return Fault("unavailable", f"failed ({inner})", True, status, code or None, wait_s)
    if 300 <= status < 400:
        inner += ", moved"
    return Fault("refused", f"refused the request ({inner})", False, status, code or None)


def validators_of(request_hash: str, answer: Answer) -> Validators | None:
    """Return what an answer can be asked for again with; None where nothing has changed."""
    if answer.status == httpx2.codes.NOT_MODIFIED:
        return None
    etag, last_modified = (_sendable(answer.headers.get(name)) for name in ("etag", "last-modified"))
    return Validators(request_hash, etag, last_modified)


def _sendable(value: str | None) -> str | None:
    return value if value and value.isascii() and value.isprintable() and len(value) <= _LONGEST_VALIDATOR else None


def malformed(fetched: Fetched, what: str) -> SourceError:
    """Return the error for a good answer whose content is not what the source's interface says."""
    error = SourceError(f"{fetched.source} {what}", kind="malformed", source=fetched.source, status=fetched.status)
    error.request, error.attempts = fetched.request, fetched.attempts
    error.seconds, error.started_us = fetched.seconds, fetched.started_us
    return error


def fetched_of(error: SourceError) -> Fetched:
    """Return a refusal that is expected, and no error, as an answer without a body."""
    return Fetched(
        source=error.source,
        request=error.request,
        status=error.status or 0,
        body=None,
        not_modified=False,
        attempts=error.attempts,
        seconds=error.seconds,
        started_us=error.started_us,
        size=0,
    )


class SourceClient:
    """Asks one source, one request after the other or several at once; open it with `async with`.

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
        """Open nothing yet.

        Args:
            name: the source as records and logs name it.
            config: its settings.
            engine: of a database that `open_database` opened.
            key: sent in the header that the settings name.
            transport: in place of the network.
            clock: the present, in microseconds.
            sleep: waits for some seconds of that clock.
            jitter: a chance between 0 and 1 that spreads waits.

        Raises:
            InputError: the key would travel in clear text beyond this host.
        """
        if key is not None and not config.base_url.startswith("https:") and not is_loopback(config.base_url):
            raise InputError(f"{name}: {config.base_url} would send the key in clear text: give https://…")
        self.name = name
        self.config = config
        self.circuit = Circuit(config.breaker_failures, config.breaker_open_s)
        self._engine = engine
        self._key = key
        self._transport = transport
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._quotas = Quotas(engine, clock)
        self._log_filter = WithoutKey(key) if key is not None else None
        self._not_before_us = 0

    async def __aenter__(self) -> "SourceClient":
        rate = self.config.rate
        if self._key is None and self.config.rate_without_key is not None:
            rate = self.config.rate_without_key
        if self._log_filter is not None:
            for name in LIBRARY_LOGS:
                logging.getLogger(name).addFilter(self._log_filter)
        limits = rate, self.config.window_s, self.config.share, self.config.burst
        self._limiter = AsyncLimiter(*bucket(*limits))
        await self._limiter.acquire(starting_level(*limits))
        self._http = httpx2.AsyncClient(
            headers={"User-Agent": USER_AGENT},
            auth=_KeyHeader(self.config.key_header, self._key) if self._key and self.config.key_header else None,
            timeout=self.config.timeout_s,
            transport=self._transport,
            trust_env=not is_loopback(self.config.base_url),  # a proxy set for the web does not lead to this host
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()
        if self._log_filter is not None:
            for name in LIBRARY_LOGS:
                logging.getLogger(name).removeFilter(self._log_filter)

    def __repr__(self) -> str:
        return f"SourceClient({self.name!r}, {self.config.base_url!r}, {self.circuit.state})"

    async def get(
        self,
        path: str = "",
        params: Params | None = None,
        *,
        cost: int = 1,
        conditional: bool = True,
        form: Form = "json",
    ) -> Fetched:
        """Return the answer to one request, sent as often as it takes and the settings allow.

        Args:
            path: begins where `base_url` ends.
            params: of the query.
            cost: requests that the source counts it as.
            conditional: ask only for what has changed since the answer that was kept last.
            form: what the body is.

        Raises:
            SourceError: there is no such answer.
        """
        shown = shown_request(self.config.base_url, path, params)
        conditions = await asyncio.to_thread(self._conditions, shown) if conditional else {}
        request = _Request(shown, path, params, cost, form, conditions)
        progress = _Progress(self._clock(), time.perf_counter())
        outcome = await self._outcome(request, progress)
        seconds = time.perf_counter() - progress.started_s
        if isinstance(outcome, Fetched):
            return replace(
                outcome, attempts=progress.attempts, seconds=seconds, started_us=progress.started_us, request=shown
            )
        outcome.request, outcome.attempts = shown, progress.attempts
        outcome.seconds, outcome.started_us = seconds, progress.started_us
        raise outcome

    async def keep(self, fetched: Fetched) -> None:
        """Remember an answer's validators, so that the same request is answered only when something has changed.

        To be called once what the answer gave is in the store: before that, a crash would lose it for good.
        """
        if fetched.validators is not None:
            await asyncio.to_thread(self._remember, fetched.validators)

    async def _outcome(self, request: _Request, progress: _Progress) -> Fetched | SourceError:
        """Send a request until it is answered; errors are values here, for none may carry what was sent along."""
        try:
            self._check_circuit()
            await self._turn(request.cost)
            progress.started_us, progress.started_s = self._clock(), time.perf_counter()
            async with asyncio.timeout(self.config.deadline_s):
                async for attempt in self._attempts():
                    with attempt:
                        if progress.attempts:
                            await self._turn(request.cost)
                        return await self._attempt(request, progress)
        except TimeoutError:
            fault = Fault("unavailable", f"gave no good answer in {self.config.deadline_s:g} s of trying", again=False)
        except _Retry as last:
            fault = last.fault
        except SourceError as error:
            return error.with_traceback(None)
        return self._error(fault)

    def _attempts(self) -> AsyncRetrying:
        return AsyncRetrying(
            sleep=self._sleep,
            stop=stop_after_attempt(self.config.attempts),
            wait=self._wait_s,
            retry=retry_if_exception(lambda error: isinstance(error, _Retry) and self.circuit.admits(self._now_s())),
            reraise=True,
        )

    def _wait_s(self, state: RetryCallState) -> float:
        """Return the wait before the next attempt; where the source has named one, `_turn` waits for it."""
        failure = state.outcome.exception() if state.outcome else None
        if isinstance(failure, _Retry):
            _log.info("%s, attempt %d: %s", self.name, state.attempt_number, failure.fault.what)
            if failure.fault.wait_s is not None:
                return 0.0
        return backoff_s(state.attempt_number, self.config.wait_s, self.config.most_wait_s, self._jitter())

    async def _turn(self, cost: int) -> None:
        """Wait until the limits and the source's own wish allow a request."""
        while True:
            while (wait_s := (self._not_before_us - self._clock()) / SECOND_US) > 0:
                if wait_s > self.config.most_retry_after_s:
                    until = iso(self._not_before_us)
                    raise self._error(Fault("quota", f"asks to be left alone until {until}", False, 429, wait_s=wait_s))
                await self._sleep(wait_s)
            for _ in range(cost):
                await self._limiter.acquire()
            if self._clock() >= self._not_before_us:
                return

    def _check_circuit(self) -> None:
        wait_s = self.circuit.wait_s(self._now_s())
        if wait_s > 0:
            what = f"failed {self.circuit.failures} times in a row and is left alone for {wait_s:.0f} s"
            raise self._error(Fault("unavailable", what, again=False, code=CIRCUIT_OPEN, wait_s=wait_s))

    async def _count(self, cost: int) -> None:
        """Count requests that are about to be sent: a crash may count too many, never too few."""
        try:
            await asyncio.to_thread(self._quotas.use, self.name, self.config.quotas(), cost)
        except QuotaError as error:
            fault = Fault("quota", str(error), again=False, code=QUOTA_SPENT, wait_s=error.retry_after_s)
        else:
            return
        raise self._error(fault)

    async def _attempt(self, request: _Request, progress: _Progress) -> Fetched:
        self._check_circuit()
        await self._count(request.cost)
        progress.attempts += 1
        self.circuit = self.circuit.sent(self._now_s())
        answer = await self._send(request)
        verdict = answer if isinstance(answer, Fault) else judge(answer, request.form, self._clock())
        if isinstance(verdict, Fault):
            verdict = self._shown(verdict)
            failed = verdict.kind in ("unavailable", "malformed")
            self.circuit = self.circuit.failed(self._now_s()) if failed else self.circuit.succeeded()
            if verdict.wait_s is not None:
                self._not_before_us = self._clock() + int(verdict.wait_s * SECOND_US)
            if verdict.again and (verdict.wait_s or 0.0) <= self.config.most_retry_after_s:
                raise _Retry(verdict)
            raise self._error(verdict)
        assert isinstance(answer, Answer)
        self.circuit = self.circuit.succeeded()
        return Fetched(
            source=self.name,
            request=request.shown,
            status=answer.status,
            body=verdict.body,
            not_modified=answer.status == httpx2.codes.NOT_MODIFIED,
            attempts=progress.attempts,
            seconds=0.0,
            started_us=progress.started_us,
            size=len(answer.content),
            validators=validators_of(self._hash(request.shown), answer),
            headers={
                "content-type": answer.headers.get("content-type", ""),
                "content-location": answer.url,
            },
        )

    async def _send(self, request: _Request) -> Answer | Fault:
        """Send a request once; where there is no key, follow to where it has moved, at the pace of other requests."""
        sending = self._http.build_request(
            "GET", f"{self.config.base_url}{request.path}", params=request.params, headers=request.conditions
        )
        for hop in range(_MOST_HOPS):
            if hop:
                await self._turn(1)
                await self._count(1)
            answer = await self._exchange(sending)
            if not isinstance(answer, httpx2.Request):
                return answer
            sending = answer
        return Fault("refused", f"sends from page to page, {_MOST_HOPS} times and more", again=False)

    async def _exchange(self, sending: httpx2.Request) -> Answer | httpx2.Request | Fault:
        """Return the answer, or the request that it asks for instead."""
        try:
            async with asyncio.timeout(self.config.timeout_s):
                response = await self._http.send(sending, stream=True, follow_redirects=False)
                try:
                    if response.next_request is not None and self._key is None:
                        return response.next_request
                    return await self._read(response)
                finally:
                    await response.aclose()
        except (TimeoutError, httpx2.TimeoutException):
            what = f"gave no whole answer in {self.config.timeout_s:g} s"
        except httpx2.RequestError as error:
            what = f"could not be reached, or broke off ({type(error).__name__})"
        return Fault("unavailable", what, again=True)

    async def _read(self, response: httpx2.Response) -> Answer | Fault:
        content = bytearray()
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > self.config.most_body_bytes:
                what = f"gave more than most_body_bytes, {self.config.most_body_bytes}"
                return Fault("malformed", what, again=False, status=response.status_code)
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status_code, headers, bytes(content), str(response.url))

    def _shown(self, fault: Fault) -> Fault:
        """Return a fault as it may be shown: in one line, not too long, and without the key if the server says it."""
        key = self._key.get_secret_value() if self._key is not None else None
        what, code = fault.what, fault.code or ""
        if key is not None:  # before anything is cut off, else a part of it might be left
            what, code = what.replace(key, "***"), code.replace(key, "***")
        what, code = (" ".join(text.split()) for text in (what, code))
        if len(what) > _LONGEST_SHOWN:
            what = f"{what[:_LONGEST_SHOWN]}…"
        return replace(fault, what=what, code=code[:_LONGEST_CODE] or None)

    def _error(self, fault: Fault) -> SourceError:
        what = fault.what
        if fault.status in (401, 403) and self.config.key_setting:
            what += f": check QUBIC_LAB_{self.config.key_setting.upper()}"
        return SourceError(
            what if what.startswith(self.name) else f"{self.name} {what}",
            kind=fault.kind,
            source=self.name,
            status=fault.status,
            code=fault.code,
            retry_after_s=fault.wait_s,
        )

    def _now_s(self) -> float:
        return self._clock() / SECOND_US

    def _hash(self, shown: str) -> str:
        return hashlib.sha256(f"{self.name}\n{shown}".encode()).hexdigest()

    def _conditions(self, shown: str) -> dict[str, str]:
        """Return the headers that ask for what has changed since the answer that was kept."""
        row = VALIDATORS.c.request_hash == self._hash(shown)
        with self._engine.connect() as connection:
            found = connection.execute(select(VALIDATORS.c.etag, VALIDATORS.c.last_modified).where(row)).first()
        etag, last_modified = found or (None, None)
        headers = {"If-None-Match": etag, "If-Modified-Since": last_modified}
        return {name: value for name, value in headers.items() if value is not None}

    def _remember(self, validators: Validators) -> None:
        insert = insert_postgresql if self._engine.dialect.name == "postgresql" else insert_sqlite
        values = {"etag": validators.etag, "last_modified": validators.last_modified}
        row = insert(VALIDATORS).values(request_hash=validators.request_hash, **values)
        with self._engine.begin() as connection:
            connection.execute(row.on_conflict_do_update(index_elements=[VALIDATORS.c.request_hash], set_=values))
