"""The oracle's benchmark: what it sums up, the market that it makes, its client, and a small run of all of it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from qubic_lab.bench import oracle_data
from qubic_lab.bench.lean_http import LeanConnection
from qubic_lab.bench.oracle import ROUTES, OracleExchange, OracleRequest, bench_oracle, sum_up
from qubic_lab.bench.oracle_data import GeneratedMarket, make_market
from qubic_lab.database import open_database
from qubic_lab.oracle.model.timestamps import DAY_US
from qubic_lab.oracle.serving.overview import sentiment
from qubic_lab.oracle.serving.prices import price_analysis
from qubic_lab.oracle.store.snapshot import MarketStore
from qubic_lab.oracle.store.tables import MARKET_DATA, NEWS_DATA, SENTIMENT_SCORES

ROWS, TEXTS = 100_000, 500


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One cache folder for all tests here, so that the market is made once."""
    folder = tmp_path_factory.getbasetemp() / "oracle-bench-cache"
    monkeypatch.setenv("QUBIC_LAB_CACHE", str(folder))
    return folder


def quietly(text: str, done: int, total: int) -> None:
    assert 0 <= done <= total, text


def test_a_market_is_made_once_and_is_one_that_the_oracle_reads(cache: Path) -> None:
    market = make_market(ROWS, TEXTS, 10, quietly)
    files = list((cache / "oracle-bench").iterdir())
    made = files[0].stat().st_mtime_ns
    assert make_market(ROWS, TEXTS, 10, quietly) == market
    assert (files[0].stat().st_mtime_ns, len(files)) == (made, 1)
    engine = open_database(market.url)
    store = MarketStore(engine)
    with engine.connect() as connection:
        counts = [connection.execute(select(func.count()).select_from(table)).scalar() for table in _TABLES]
        repeats = connection.execute(select(func.count(NEWS_DATA.c.duplicate_of))).scalar()
    assert counts == [market.price_rows, market.texts, market.scores] == [ROWS, TEXTS, 2 * TEXTS]
    assert repeats
    as_of = market.end_us - DAY_US
    price = price_analysis(store.snapshot(as_of), "bitcoin", "1d")
    assert (len(price.bars.bars), price.last.stale, price.day.completeness) == (30, False, 1.0)
    assert all(each.change_pct is not None for each in price.changes)
    assert sentiment(store.snapshot(as_of), "bitcoin", "7d").texts > 0
    engine.dispose()


_TABLES = (MARKET_DATA, NEWS_DATA, SENTIMENT_SCORES)


def test_limits_are_of_right_answers_and_an_error_breaks_them() -> None:
    right = [OracleExchange(float(ms), 100, "") for ms in range(1, 21)]
    cached = sum_up("sentiment", "cached", right, 2.0, 0.01)
    assert cached.times_ms is not None
    assert (cached.requests_per_s, cached.server_cpu_ms, cached.mean_bytes, cached.limit_ms) == (10.0, 0.5, 100.0, 20.0)
    assert (cached.within_limit, cached.errors) == (True, 0)
    assert not sum_up(
        "sentiment", "cached", [OracleExchange(2 * each.ms, 1, "") for each in right], 2.0, 0.01
    ).within_limit
    cold = [sum_up(route, "cold", right, 2.0, 0.01) for route in ROUTES]
    assert [each.limit_ms for each in cold] == [2_000.0, 1_000.0, 3_000.0, None]
    wrong = sum_up("sentiment", "cached", [*right, OracleExchange(0.0, 0, "status 500")], 2.0, 0.01)
    assert (wrong.within_limit, wrong.errors, wrong.first_error) == (False, 1, "status 500")
    nothing = sum_up("sentiment", "cold", [OracleExchange(0.0, 0, "status 0")], 2.0, 0.01)
    assert (nothing.times_ms, nothing.within_limit, nothing.mean_bytes) == (None, False, 0.0)


def test_the_lean_client_reads_whole_responses_in_any_pieces() -> None:
    answers = [
        [b"HTTP/1.1 200 OK\r\ncontent-le", b"ngth: 5\r\n\r\nhe", b"llo"],
        [b"HTTP/1.1 429 Too Many\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"],
    ]
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for pieces in answers:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)
        await reader.read()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        connection = await LeanConnection.open(f"http://127.0.0.1:{port}")
        replies = [await connection.get(OracleRequest.of("a", coin="x y").path) for _ in answers]
        assert replies == [(200, b"hello", ""), (429, b"", "2"), (0, b"", "")]
        assert await connection.get("/again") == (0, b"", "")
        assert asked[0] == f"GET /api/oracle/a?coin=x+y HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
        server.close()

    asyncio.run(main())


@pytest.mark.slow
def test_a_small_run_is_right_and_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    result = bench_oracle(ROWS, TEXTS, clients=4, requests=12, cached_requests=60, progress=quietly)
    assert [(each.route, each.kind) for each in (*result.cold, *result.cached)] == [
        *((route, "cold") for route in ROUTES),
        *((route, "cached") for route in ROUTES),
    ]
    assert [each.first_error for each in (*result.cold, *result.cached)] == [""] * 8
    once = result.at_once
    assert (once.requests, once.processes, once.errors, once.computations) == (200, 2, 0, 1)
    assert once.outcomes["miss"] == 1
    content: dict[str, Any] = result.to_dict()
    assert (content["price_rows"], content["texts"], content["clients"]) == (ROWS, TEXTS, 4)
    assert content["hit_rates"]["sentiment"] > 0
    assert content["machine"] and content["commit"]


def test_a_market_that_is_cut_short_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(text: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_market(20_000, 10, 2, stop)
    assert not [each for each in (cache / "oracle-bench").iterdir() if each.name.startswith("20000-")]
    assert isinstance(make_market(20_000, 10, 2, quietly), GeneratedMarket)
    assert oracle_data.END_US % DAY_US == 0
