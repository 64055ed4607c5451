"""The client of all sources: limits, patience, quotas, circuit, conditional requests, and a key that never shows."""

import asyncio
import gzip
import json
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import Engine, select
from virtual import run_virtually

from qubic_lab.errors import InputError
from qubic_lab.oracle.ingest.collector_config import SourceConfig
from qubic_lab.oracle.ingest.http_rules import (
    CircuitBreaker,
    Quotas,
    RawResponse,
    backoff_s,
    clock_fault,
    error_in,
    judge,
    retry_after_s,
    shown_request,
)
from qubic_lab.oracle.ingest.http_source import Fetched, SourceClient, SourceError
from qubic_lab.oracle.model.timestamps import DAY_US, SECOND_US, from_us, read_iso
from qubic_lab.oracle.store.tables import VALIDATORS

NOON = read_iso("2026-11-24T12:00:00Z")
CONFIG = SourceConfig("https://prices.example/v3", rate=30, window_s=60.0)
KEY = "CG-5eCr3tKeyThatNobodyMaySee"


class Server:
    """A source in virtual time that gives some answers, the last one for ever, and records when it was asked.

    `requests` are copies made when it was asked, `originals` what the client leaves of them.
    """

    def __init__(self, *answers: httpx2.Response | Exception, delay_s: float = 0.0) -> None:
        self.answers = list(answers)
        self.delay_s = delay_s
        self.asked_s: list[float] = []
        self.requests: list[httpx2.Request] = []
        self.originals: list[httpx2.Request] = []

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked_s.append(asyncio.get_running_loop().time())
        self.requests.append(httpx2.Request(request.method, request.url, headers=request.headers))
        self.originals.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await asyncio.sleep(self.delay_s)
        if isinstance(answer, Exception):
            raise answer
        return httpx2.Response(answer.status_code, headers=answer.headers, content=answer.content)

    def client(self, engine: Engine, config: SourceConfig = CONFIG, **options: Any) -> SourceClient:
        options["transport"] = httpx2.MockTransport(self)
        options["clock"] = lambda: NOON + int(asyncio.get_running_loop().time() * SECOND_US)
        return SourceClient("prices", config, engine, **options)


def good(body: Any = None, **headers: str) -> httpx2.Response:
    return httpx2.Response(200, json={"price": 1} if body is None else body, headers=headers)


def ask(
    server: Server, engine: Engine, config: SourceConfig = CONFIG, times: int = 1, **options: Any
) -> list[Fetched | SourceError]:
    """Return what a client got or raised, asking one time after the other in virtual time."""

    async def asking() -> list[Fetched | SourceError]:
        got: list[Fetched | SourceError] = []
        async with server.client(engine, config, **options) as client:
            for _ in range(times):
                try:
                    got.append(await client.get("/simple/price", {"ids": "bitcoin,qubic-network"}))
                except SourceError as error:
                    got.append(error)
        return got

    outcome: list[Fetched | SourceError] = run_virtually(asking())
    return outcome


def fetched(outcome: Fetched | SourceError) -> Fetched:
    assert isinstance(outcome, Fetched), outcome
    return outcome


def failed(outcome: Fetched | SourceError) -> SourceError:
    assert isinstance(outcome, SourceError)
    return outcome


def most_in_a_window(times: list[float], window_s: float) -> int:
    """Return how many of some instants lie in the fullest half-open window of that length."""
    return max(sum(last - window_s + 1e-9 < at <= last for at in times) for last in times)


# Answers


def test_an_answer_says_how_it_came_about(sqlite: Engine) -> None:
    server = Server(good({"bitcoin": {"usd": 1e-06}}))
    answer = fetched(*ask(server, sqlite))
    assert answer.body == {"bitcoin": {"usd": 1e-06}}
    assert (answer.status, answer.attempts, answer.not_modified, answer.started_us) == (200, 1, False, NOON)
    assert answer.request == "GET https://prices.example/v3/simple/price?ids=bitcoin,qubic-network"
    assert server.requests[0].headers["user-agent"].startswith("qubic-lab/")


def answer(status: int, content: bytes = b"{}", **headers: str) -> RawResponse:
    return RawResponse(status, {name.replace("_", "-"): value for name, value in headers.items()}, content, "")


@pytest.mark.parametrize(
    ("given_answer", "kind", "again"),
    [
        (answer(200, b"<!DOCTYPE html><html>Just a moment...</html>"), "malformed", True),
        (answer(200, b'{"prices": [[1711843200000, 69702.3], [17118'), "malformed", True),
        (answer(200, b'{"price": NaN}'), "malformed", True),
        (answer(200, b"[" * 100_000), "malformed", True),
        (answer(200, b"\xff\xfe"), "malformed", True),
        (answer(200, b""), "malformed", True),
        (answer(500, b"<html>Internal Server Error</html>"), "unavailable", True),
        (answer(408), "unavailable", True),
        (answer(429), "quota", True),
        (answer(400), "refused", False),
        (answer(401), "refused", False),
        (answer(403, b"<html>Access denied | error code: 1020</html>"), "refused", False),
        (answer(301, b"", location="https://elsewhere.example/"), "refused", False),
        (answer(204, b""), "refused", False),
        (answer(200, b'{"status": {"error_code": 429, "error_message": "slow"}}'), "quota", True),
        (answer(200, b'{"status": "error", "code": "wrong", "message": "q"}'), "refused", False),
    ],
)
def test_faults_that_pass_are_tried_again_and_refusals_are_not(
    given_answer: RawResponse, kind: str, again: bool
) -> None:
    _, found = judge(given_answer, "json", NOON)
    assert found is not None and (found.kind, found.again) == (kind, again)


def test_texts_that_no_database_takes_are_mended_where_they_come_in() -> None:
    body, found = judge(answer(200, b'{"a\\u0000": ["b\\ud800c", "\\u00e9", 1.5, null]}'), "json", NOON)
    assert (body, found) == ({"a": ["b?c", "é", 1.5, None]}, None)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"status": {"error_code": 429, "error_message": "Rate Limit"}}, ("429", "Rate Limit")),
        ({"error": {"status": {"error_code": 10002, "error_message": "No key"}}}, ("10002", "No key")),
        ({"error": "coin not found"}, ("", "coin not found")),
        ({"status": "error", "code": "apiKeyInvalid", "message": "Invalid"}, ("apiKeyInvalid", "Invalid")),
        ({"message": "invalid numeric filter", "status": 400}, ("400", "invalid numeric filter")),
        ({"status": "ok", "articles": []}, None),
        ({"bitcoin": {"usd": 1.0}}, None),
        ([[1, 2]], None),
    ],
)
def test_errors_are_found_in_every_shape(body: Any, error: tuple[str, str] | None) -> None:
    assert error_in(body) == error


def test_a_page_or_nothing_in_place_of_a_feed_is_malformed() -> None:
    for content in (b"<!doctype html><title>Sorry</title>", b"  "):
        _, found = judge(answer(200, content), "bytes", NOON)
        assert found is not None and (found.kind, found.again) == ("malformed", True)
    assert judge(answer(200, b"<rss/>"), "bytes", NOON) == (b"<rss/>", None)


# Waiting


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        ("30", 30.0),
        (" 0 ", 0.0),
        (format_datetime(from_us(NOON + 90 * SECOND_US), usegmt=True), 90.0),
        ("Tue, 24 Nov 2026 11:00:00 GMT", 0.0),
        ("9" * 400, 86_400.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86_400.0),
        ("-5", None),
        ("soon", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, wait_s: float | None) -> None:
    assert retry_after_s(header, NOON) == wait_s


def test_attempts_follow_after_longer_and_longer_waits(sqlite: Engine) -> None:
    server = Server(httpx2.Response(500), httpx2.ConnectError("no"), httpx2.Response(200, text="<html>"), good())
    config = replace(CONFIG, rate=6000)
    answer = fetched(*ask(server, sqlite, config, jitter=lambda: 1.0))
    assert answer.attempts == 4
    waits = [later - earlier for earlier, later in zip(server.asked_s, server.asked_s[1:], strict=False)]
    assert waits == pytest.approx([1.0, 2.0, 4.0], abs=0.02)
    assert [backoff_s(attempt, 1.0, 30.0, 0.0) for attempt in (1, 3, 60)] == [0.5, 2.0, 15.0]


def test_after_the_last_attempt_its_fault_is_told(sqlite: Engine) -> None:
    server = Server(httpx2.Response(502), httpx2.Response(503, json={"error": "maintenance"}))
    error = failed(*ask(server, sqlite))
    assert (error.kind, error.fetch.status, error.fetch.attempts) == ("unavailable", 503, 4)
    assert str(error) == "prices failed (HTTP 503, maintenance)"
    nobody = failed(*ask(Server(httpx2.ConnectError("no")), sqlite))
    assert str(nobody) == "prices could not be reached, or broke off (ConnectError)"


@pytest.mark.parametrize("header", ["45", "Tue, 24 Nov 2026 12:00:45 GMT"])
def test_a_wish_to_wait_is_heard_by_every_request(sqlite: Engine, header: str) -> None:
    server = Server(httpx2.Response(429, headers={"Retry-After": header}), good(), delay_s=0.5)

    async def two_at_once() -> None:
        async with server.client(sqlite) as client:
            await asyncio.gather(client.get("/a"), client.get("/b"))  # the second one waits for its turn already

    run_virtually(two_at_once())
    first, *others = server.asked_s
    assert len(others) == 2
    assert min(others) >= first + 45.0 - 0.01


def test_a_wait_that_is_too_long_is_told_and_kept_to(sqlite: Engine) -> None:
    server = Server(httpx2.Response(429, headers={"Retry-After": "3600"}), good())
    first, second = map(failed, ask(server, sqlite, times=2))
    assert len(server.requests) == 1
    assert (first.kind, first.fetch.status, first.retry_after_s) == ("quota", 429, 3600.0)
    assert second.kind == "quota" and second.retry_after_s == pytest.approx(3600.0, abs=5.0)
    assert (second.fetch.attempts, str(second)) == (0, "prices asks for no requests until 2026-11-24T13:00:00Z")


@pytest.mark.parametrize(("status", "kind", "code"), [(401, "refused", "apiKeyInvalid"), (429, "quota", "rateLimited")])
def test_final_refusals_are_not_asked_again(sqlite: Engine, status: int, kind: str, code: str) -> None:
    server = Server(httpx2.Response(status, json={"status": "error", "code": code, "message": "No."}))
    error = failed(*ask(server, sqlite, replace(CONFIG, key_setting="coingecko_key", key_header="x-key")))
    assert (len(server.requests), error.kind, error.fetch.status, error.code) == (1, kind, status, code)
    assert str(error).endswith("check QUBIC_LAB_COINGECKO_KEY") == (status == 401)


def test_there_is_an_end_to_trying(sqlite: Engine) -> None:
    server = Server(httpx2.Response(500))
    config = replace(CONFIG, attempts=1000, breaker_failures=10_000, deadline_s=100.0, rate=6000)
    error = failed(*ask(server, sqlite, config))
    assert error.kind == "unavailable" and "in 100 s" in str(error)
    assert server.asked_s[-1] <= 100.5


def test_an_answer_that_is_too_long_is_not_read_on(sqlite: Engine) -> None:
    server = Server(good("x" * 5000))
    error = failed(*ask(server, sqlite, replace(CONFIG, most_body_bytes=1000)))
    assert (error.kind, error.fetch.attempts) == ("malformed", 1)
    server = Server(httpx2.Response(200, content=gzip.compress(b" " * 3_000_000)))
    server.answers[0].headers["content-encoding"] = "gzip"
    assert failed(*ask(server, sqlite, replace(CONFIG, most_body_bytes=1_000_000))).kind == "malformed"


# Limits


@pytest.mark.parametrize(("rate", "share", "burst"), [(5, 0.9, 1), (30, 0.9, 1), (30, 0.9, 20), (40, 0.6, 10)])
def test_the_source_never_sees_more_than_its_limit_even_from_processes_that_start_again(
    sqlite: Engine, rate: int, share: float, burst: int
) -> None:
    server, config = Server(good()), replace(CONFIG, rate=rate, share=share, burst=burst)

    async def two_processes() -> None:
        for _ in range(2):
            async with server.client(sqlite, config) as client:
                await asyncio.gather(*(client.get(f"/{number}") for number in range(2 * rate)))

    run_virtually(two_processes())
    assert len(server.asked_s) == 4 * rate
    assert most_in_a_window(server.asked_s, 60.0) <= rate
    assert most_in_a_window(server.asked_s[: 2 * rate], 60.0) <= share * rate
    assert server.asked_s[-1] <= 4 * rate * 60.0 / (share * rate - burst) + 60.0  # and is no slower than it must be


def test_attempts_and_moves_keep_to_the_limit_too(sqlite: Engine) -> None:
    moved = httpx2.Response(302, headers={"Location": "https://prices.example/v3/elsewhere"})
    server = Server(*[httpx2.Response(500), moved] * 30, good())
    config = replace(CONFIG, wait_s=0.0, attempts=100, breaker_failures=1000, deadline_s=10_000.0)
    answer = fetched(*ask(server, sqlite, config))
    assert (answer.status, len(server.asked_s)) == (200, 61)
    assert most_in_a_window(server.asked_s, 60.0) <= 27
    assert Quotas(sqlite, lambda: NOON).report({"prices": {}})[2].used == 61


def test_without_a_key_the_lower_limit_holds(sqlite: Engine) -> None:
    for key, most in ((None, 5), (SecretStr(KEY), 30)):
        server = Server(good())
        config = replace(CONFIG, rate_without_key=5, key_header="x-key")
        ask(server, sqlite, config, times=60, key=key)
        assert 0.8 * most <= most_in_a_window(server.asked_s, 60.0) <= most


# Quotas and circuit


def test_each_attempt_counts_before_it_is_sent_and_none_is_sent_without_room(sqlite: Engine) -> None:
    server = Server(httpx2.ConnectError("no"), httpx2.Response(500), good())
    config = replace(CONFIG, daily_quota=4)
    outcomes = ask(server, sqlite, config, times=3)
    assert [fetched(outcomes[0]).attempts, fetched(outcomes[1]).attempts] == [3, 1]
    error = failed(outcomes[2])
    assert (error.kind, error.code, error.fetch.attempts) == ("quota", "quota-spent", 0)
    assert error.retry_after_s == pytest.approx(12 * 3600.0, abs=60.0)
    assert len(server.requests) == 4
    amid = failed(*ask(Server(httpx2.Response(500)), sqlite, replace(CONFIG, monthly_quota=6)))
    assert (amid.kind, amid.fetch.attempts) == ("quota", 2), "it ends amid attempts"


def test_a_source_that_fails_is_left_alone_and_tried_once_later(sqlite: Engine) -> None:
    server = Server(*[httpx2.Response(500)] * 6, good())
    config = replace(CONFIG, rate=6000, attempts=4, breaker_failures=5, breaker_open_s=60.0, wait_s=0.1)

    async def asking() -> list[tuple[float, str]]:
        seen = []
        async with server.client(sqlite, config) as client:
            for _ in range(140):
                try:
                    await client.get("/x")
                    outcome = "good"
                except SourceError as error:
                    outcome = error.code or error.kind
                    if error.code == "circuit-open":
                        assert error.fetch.attempts == 0 and error.retry_after_s is not None
                seen.append((asyncio.get_running_loop().time(), f"{outcome} {client.circuit.state}"))
                await asyncio.sleep(1.0)
        return seen

    seen = run_virtually(asking())
    states = list(dict.fromkeys(state for _, state in seen))
    assert states == ["unavailable closed", "unavailable open", "circuit-open open", "good closed"]
    assert len([at for at in server.asked_s if at < 60.0]) == 5  # four attempts, and one more that opened it
    assert len([at for at in server.asked_s if 60.0 <= at < 120.0]) == 1  # the trial that failed


@given(st.lists(st.tuples(st.sampled_from("sfx"), st.floats(0.0, 5.0)), max_size=60))
def test_a_circuit_opens_only_after_so_many_failures_in_a_row(events: list[tuple[str, float]]) -> None:
    circuit, now_s, in_a_row = CircuitBreaker(3, 8.0), 0.0, 0
    for event, gap_s in events:
        now_s += gap_s
        if circuit.wait_s(now_s):
            assert in_a_row >= 3 and circuit.wait_s(now_s) <= 8.0 + 1e-9
            continue
        circuit = circuit.sent(now_s)
        if event == "s":
            circuit, in_a_row = circuit.succeeded(), 0
            assert circuit.state == "closed"
        elif event == "f":
            circuit, in_a_row = circuit.failed(now_s), in_a_row + 1
            assert (circuit.state == "open") == (in_a_row >= 3)
        elif in_a_row >= 3:  # the trial never came back: the next one waits as long
            assert circuit.state == "half-open" and circuit.wait_s(now_s) == pytest.approx(8.0)


# Conditional requests


def test_only_what_was_kept_is_asked_for_conditionally(sqlite: Engine) -> None:
    tagged = good(ETag='W/"abc"', **{"Last-Modified": "Tue, 24 Nov 2026 11:00:00 GMT"})
    server = Server(tagged, tagged, httpx2.Response(304), httpx2.Response(304), good())

    async def asking() -> None:
        async with server.client(sqlite) as client:
            await client.get("/x")  # a crash before its rows were stored would lose them if it were remembered now
            assert "if-none-match" not in server.requests[-1].headers
            second = await client.get("/x")
            assert "if-none-match" not in server.requests[-1].headers
            await client.keep(second)
            third = await client.get("/x")
            assert server.requests[-1].headers["if-none-match"] == 'W/"abc"'
            assert server.requests[-1].headers["if-modified-since"] == "Tue, 24 Nov 2026 11:00:00 GMT"
            assert (third.not_modified, third.body, third.status) == (True, None, 304)
            await client.keep(third)
            assert (await client.get("/x")).not_modified  # as before
            await client.keep(await client.get("/x"))  # an answer without validators
            await client.get("/x")
            assert "if-none-match" not in server.requests[-1].headers
            await client.keep(second)
            await client.get("/x", {"page": 2})
            await client.get("/x", conditional=False)
            assert all("if-none-match" not in request.headers for request in server.requests[-2:])

    run_virtually(asking())


def test_an_etag_that_could_not_be_sent_back_is_not_kept(sqlite: Engine) -> None:
    server = Server(httpx2.Response(200, json={}, headers=[(b"ETag", '"é"'.encode()), (b"Last-Modified", b"x" * 5000)]))

    async def asking() -> None:
        async with server.client(sqlite) as client:
            await client.keep(await client.get("/x"))
            await client.get("/x")

    run_virtually(asking())
    with sqlite.connect() as connection:
        assert [tuple(row)[1:] for row in connection.execute(select(VALIDATORS))] == [(None, None)]


# The key


def test_a_key_leaves_this_host_neither_in_clear_text_nor_to_where_a_source_sends_it(sqlite: Engine) -> None:
    with pytest.raises(InputError, match="in clear text") as caught:
        SourceClient("x", SourceConfig("http://prices.example"), sqlite, key=SecretStr(KEY))
    assert KEY not in str(caught.value)
    SourceClient("x", SourceConfig("http://127.0.0.1:8000/v3"), sqlite, key=SecretStr(KEY))
    server = Server(httpx2.Response(302, headers={"Location": "https://thief.example/"}), good())
    error = failed(*ask(server, sqlite, replace(CONFIG, key_header="x-key"), key=SecretStr(KEY)))
    assert (error.kind, len(server.requests)) == ("refused", 1)


def test_a_clock_that_differs_from_the_sources_by_a_day_is_told_unless_it_is_a_trials() -> None:
    dated = RawResponse(200, {"date": format_datetime(from_us(NOON))}, b"{}", "https://prices.example")
    assert clock_fault(dated, NOON, NOON) is None
    for off_us in (2 * DAY_US, -2 * DAY_US):
        fault = clock_fault(dated, NOON + off_us, NOON + off_us)
        assert fault is not None and "2026-11-24T12:00:00Z" in fault.what and "set the clock" in fault.what
        assert clock_fault(dated, NOON, NOON + off_us) is None
    for odd in ("", "soon", "Tue, 24 Nov 2026 12:00:00 -0000"):
        assert clock_fault(replace(dated, headers={"date": odd}), 0, 0) is None


@pytest.mark.parametrize(
    "host", ["127.0.0.1:6379", "localhost", "[::1]", "169.254.169.254", "10.0.0.2", "0x7f000001", "[::ffff:7f00:1]"]
)
def test_a_redirect_into_this_host_or_its_network_is_not_followed(host: str, sqlite: Engine) -> None:
    server = Server(httpx2.Response(302, headers={"Location": f"http://{host}/secrets"}), good())
    error = failed(*ask(server, sqlite))
    assert (error.kind, len(server.requests)) == ("refused", 1)
    assert f"leads to {httpx2.URL(f'http://{host}').host}, which is " in str(error)


def test_a_request_has_the_key_only_while_it_is_sent(sqlite: Engine) -> None:
    server = Server(httpx2.ReadError("broken"), good())
    ask(server, sqlite, replace(CONFIG, key_header="x-key"), key=SecretStr(KEY))
    assert [request.headers["x-key"] for request in server.requests] == [KEY, KEY]
    assert all("x-key" not in request.headers for request in server.originals)


@asynccontextmanager
async def serving(respond: Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """Yield the address of a real server; `respond` gets a request's head and writes what it likes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await respond(await reader.readuntil(b"\r\n\r\n"), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def raw(status: str, body: bytes, length: int | None = None, headers: bytes = b"") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\nConnection: close\r\n"
    return head.encode() + headers + b"\r\n" + body


def test_the_key_is_sent_and_never_shown(
    sqlite: Engine, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("httpx2", "httpcore2", "httpx", "httpcore", "asyncio", "sqlalchemy.engine"):
        caplog.set_level(logging.DEBUG, logger=name)
    heads: list[bytes] = []
    echo = f"Incorrect API Key {KEY}".encode()
    answers = [
        raw("401 Unauthorized", b'{"status": {"error_code": "%s", "error_message": "%s"}}' % (KEY.encode(), echo)),
        raw("200 OK", echo),
        raw("500 Oops", b'{"error": "%s"}' % echo, headers=b"X-Echo: " + KEY.encode() + b"\r\n"),
        raw("200 OK", b'{"cut": ', length=100),
        raw("429 Too Many Requests", b'{"status": "error", "code": "rateLimited", "message": "%s"}' % echo),
        b"nonsense " + echo + b"\r\n\r\n",
        raw("200 OK", b'{"fine": 1}', headers=b'ETag: "1"\r\n'),
    ]
    pieces: list[Any] = []

    async def respond(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        writer.write(answers[min(len(heads), len(answers)) - 1])
        await writer.drain()

    async def asking() -> None:
        async with serving(respond) as url:
            header: dict[str, Any] = {"key_header": "x-cg-demo-api-key", "key_setting": "coingecko_key"}
            config = SourceConfig(url, rate=100_000, attempts=1, daily_quota=7, **header)
            async with SourceClient("coingecko", config, sqlite, key=SecretStr(KEY)) as client:
                for _ in range(len(answers)):
                    try:
                        answer = await client.get("/simple/price", {"ids": "bitcoin"})
                        await client.keep(answer)
                        pieces.append(repr(answer))
                    except SourceError as error:
                        pieces.extend((str(error), repr(error), vars(error)))
                        pieces.extend(traceback.format_exception(error))
                        assert error.__traceback__ is not None  # this function's own frame knows the key
                        error.__traceback__ = error.__traceback__.tb_next
                        chain = traceback.TracebackException.from_exception(error, capture_locals=True)
                        pieces.extend(chain.format(chain=True))
                        assert error.__cause__ is None and error.__context__ is None
                pieces.extend((repr(client), repr(config), vars(client)))
            client.circuit = client.circuit.failed(0.0)
            pieces.append(repr(client))

    asyncio.run(asking())
    assert len(heads) == len(answers)
    assert all(f"x-cg-demo-api-key: {KEY}".encode() in head for head in heads)  # so there was something to show
    assert all(KEY.encode() not in head.split(b"\r\n")[0] for head in heads)
    assert any("fine" in str(piece) for piece in pieces)
    database = Path(str(sqlite.url.database))
    files = b"".join(path.read_bytes() for path in database.parent.iterdir())
    everything = [*map(str, pieces), caplog.text, *capfd.readouterr(), files.decode(errors="replace")]
    everything += [repr(vars(record)) for record in caplog.records]
    assert len(caplog.records) > len(answers)
    assert not [text[max(0, text.find(KEY) - 300) : text.find(KEY)] for text in everything if KEY in text]


def test_no_part_of_the_key_is_left_where_a_long_message_is_cut(sqlite: Engine) -> None:
    for filling in range(250, 330):
        server = Server(httpx2.Response(400, json={"error": "x" * filling + KEY + "\nmore"}))
        error = failed(*ask(server, sqlite, replace(CONFIG, key_header="x-key"), key=SecretStr(KEY)))
        assert "CG-" not in str(error) and "\n" not in str(error) and len(str(error)) < 320


# A real network


def test_cut_hanging_dripping_and_closed_answers_are_tried_again(sqlite: Engine) -> None:
    tries: list[str] = []

    async def respond(head: bytes, writer: asyncio.StreamWriter) -> None:
        tries.append("")
        match len(tries):
            case 1:  # hangs
                await asyncio.sleep(5.0)
            case 2:  # drips: each byte comes in time, the whole does not
                writer.write(raw("200 OK", b"", length=1000))
                for _ in range(50):
                    await asyncio.sleep(0.05)
                    writer.write(b" ")
                    await writer.drain()
            case 3:
                writer.write(raw("200 OK", b'{"prices": [', length=500))
            case 5:  # cut within its packing; the fourth is closed
                body = gzip.compress(json.dumps(list(range(1000))).encode())[:700]
                writer.write(raw("200 OK", body, headers=b"Content-Encoding: gzip\r\n"))
            case number if number > 5:
                writer.write(raw("200 OK", b"[1]"))
        await writer.drain()

    async def asking() -> Fetched:
        async with serving(respond) as url:
            config = SourceConfig(url, rate=100_000, attempts=60, breaker_failures=100, wait_s=0.0, timeout_s=0.2)
            async with SourceClient("x", config, sqlite) as client:
                return await client.get("/")

    answer = asyncio.run(asking())
    assert answer.body == [1] and answer.attempts >= 6  # a busy machine may answer late, too


def test_requests_are_shown_so_that_people_can_read_them() -> None:
    shown = shown_request("https://x.example", "/a", {"q": '"Bitcoin" OR x&y', "n": "t>=1,t<2"})
    assert shown == "GET https://x.example/a?q=%22Bitcoin%22+OR+x%26y&n=t>=1,t<2"
    assert shown_request("https://x.example/feed?format=rss", "", None) == "GET https://x.example/feed?format=rss"
