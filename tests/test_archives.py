"""Archives: when their rows count as known is an assumption, which is told and lets nothing of later through."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clocks import StandingClock
from commands import Run

from qubic_lab.database import open_database
from qubic_lab.errors import InputError
from qubic_lab.oracle.backtest.costs import Costs
from qubic_lab.oracle.backtest.ledger import open_ledger
from qubic_lab.oracle.ingest.bar_files import BarOptions, import_bars
from qubic_lab.oracle.ingest.text_files import TextOptions, import_texts
from qubic_lab.oracle.model.known import known_text, read_known
from qubic_lab.oracle.model.response import Missing
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, MINUTE_US, SECOND_US, iso
from qubic_lab.oracle.serving.overview import sentiment
from qubic_lab.oracle.serving.prices import price_analysis
from qubic_lab.oracle.store.snapshot import MarketStore, Snapshot
from qubic_lab.oracle.store.text_store import Score
from qubic_lab.studies import collected_signals
from qubic_lab.studies import oracle_backtest as study
from qubic_lab.studies.market_bars import load_bars

START_US = 19_500 * DAY_US
NOW_US = 20_700 * DAY_US
HOURS = 400


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MarketStore]:
    engine = open_database(f"sqlite:///{tmp_path}/archive.db")
    yield MarketStore(engine, StandingClock(NOW_US))
    engine.dispose()


def bars_file(folder: Path, hours: int = HOURS, seed: int = 0) -> Path:
    close = 100.0 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0.0, 0.01, hours)))
    rows = [
        f"{iso(START_US + n * HOUR_US)},{c:.4f},{c * 1.01:.4f},{c * 0.99:.4f},{c:.4f},5" for n, c in enumerate(close)
    ]
    path = folder / "bars.csv"
    path.write_text("\n".join(["Open time,Open,High,Low,Close,Volume", *rows]) + "\n")
    return path


def texts_file(folder: Path, hours: int = HOURS, later: str = "") -> Path:
    """A text in the middle of each hour; `later` words are in those of the second half."""
    rows = [
        {"id": f"t{n}", "published": iso(START_US + n * HOUR_US + HOUR_US // 2), "coins": ["bitcoin"]}
        | {"title": " ".join(f"w{n}x{k}" for k in range(8)) + (later if n >= hours // 2 else "")}
        for n in range(hours)
    ]
    path = folder / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def scored(store: MarketStore, value: float = 0.5) -> None:
    texts = store.texts.read("bitcoin", 0, 1 << 61)
    store.texts.add_scores(Score(text.id, "good@1", value if n % 2 else -value / 2) for n, text in enumerate(texts))


def imported(store: MarketStore, folder: Path, known: str, later: str = "", seed: int = 0) -> None:
    import_bars(store.prices, bars_file(folder, seed=seed), BarOptions("bitcoin", known=known), store.clock)
    import_texts(store.texts, texts_file(folder, later=later), TextOptions(known=known), store.clock)
    scored(store)


@pytest.mark.parametrize(
    ("given", "delay_us", "said"),
    [
        ("now", None, "known when recorded here"),
        ("published", 0, "known when published (assumed)"),
        ("+30min", 30 * MINUTE_US, "known 30 min after publication (assumed)"),
        ("+1d", DAY_US, "known 1 d after publication (assumed)"),
        ("+90s", 90 * SECOND_US, "known 90 s after publication (assumed)"),
    ],
)
def test_when_rows_count_as_known(given: str, delay_us: int | None, said: str) -> None:
    assert read_known(given) == delay_us
    assert known_text(delay_us) == said
    for wrong in ("yesterday", "-30min", "+30", "30min"):
        with pytest.raises(InputError, match="give now, published, or a time after it such as"):
            read_known(wrong)


def test_what_an_archive_is_assumed_to_have_told_is_seen_only_by_who_asks(store: MarketStore, tmp_path: Path) -> None:
    imported(store, tmp_path, "published")
    at_us = START_US + 200 * HOUR_US
    assert sentiment(store.snapshot(at_us), "bitcoin").texts == 0
    found = sentiment(store.snapshot(at_us, assumed=True), "bitcoin")
    assert (found.texts, found.assumption) == (24, "24 of 24 texts: known when published (assumed)")
    assert not isinstance(found.index, Missing) and found.index.texts == 24
    assert not isinstance(found.index.shares, type(None))
    prices = price_analysis(store.snapshot(at_us, assumed=True), "bitcoin")
    assert (prices.last.at_us, prices.last.assumption) == (at_us, "known when published (assumed)")
    assert not isinstance(prices.anomalies, Missing)
    now = sentiment(store.snapshot(), "bitcoin")
    assert now.assumption is None


def test_assumed_times_are_kept_to_the_minute_and_may_be_given_later(store: MarketStore, tmp_path: Path) -> None:
    imported(store, tmp_path, "now")
    at_us = START_US + 200 * HOUR_US

    def texts() -> int:
        return sentiment(store.snapshot(at_us, assumed=True), "bitcoin").texts

    assert texts() == 0
    imported(store, tmp_path, "published")
    assert texts() == 24
    imported(store, tmp_path, "+30min")
    assert (
        texts() == 24 and price_analysis(store.snapshot(at_us, assumed=True), "bitcoin").last.at_us == at_us - HOUR_US
    )
    imported(store, tmp_path, "+31min")
    assert texts() == 23
    imported(store, tmp_path, "now")
    assert texts() == 0


def later_archive(store: MarketStore, folder: Path, at_us: int) -> tuple[str, str]:
    """Return all that is said of an instant with what is assumed."""
    snapshot = store.snapshot(at_us, assumed=True)
    return repr(sentiment(snapshot, "bitcoin")), repr(price_analysis(snapshot, "bitcoin"))


@pytest.mark.parametrize("known", [pytest.param("published", marks=pytest.mark.slow), "+30min"])
def test_nothing_later_in_an_archive_changes_what_it_says_of_an_instant(tmp_path: Path, known: str) -> None:
    at_us, said = START_US + HOURS // 2 * HOUR_US, []
    for number, (hours, later) in enumerate(((HOURS // 2, ""), (HOURS, ""), (HOURS, " crash"))):
        engine = open_database(f"sqlite:///{tmp_path}/{number}.db")
        store = MarketStore(engine, StandingClock(NOW_US))
        file = bars_file(tmp_path)
        lines = file.read_text().splitlines()[: hours + 1]
        if later:  # other prices from the middle on
            lines[HOURS // 2 + 1 :] = [f"{line.split(',')[0]},7,9,5,8,99" for line in lines[HOURS // 2 + 1 :]]
        file.write_text("\n".join(lines) + "\n")
        import_bars(store.prices, file, BarOptions("bitcoin", known=known), store.clock)
        texts = texts_file(tmp_path, later=later)
        texts.write_text("\n".join(texts.read_text().splitlines()[:hours]) + "\n")
        import_texts(store.texts, texts, TextOptions(known=known), store.clock)
        scored(store)
        said.append(later_archive(store, tmp_path, at_us))
        engine.dispose()
    assert said[0] == said[1] == said[2]


def test_collected_rows_keep_their_own_times(store: MarketStore, tmp_path: Path) -> None:
    imported(store, tmp_path, "now")
    with store.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO fetches VALUES (1,'s','j','r',0,0,1,200,'ok',NULL,1,1)")
        connection.exec_driver_sql("UPDATE news_data SET fetch_id = 1")
        connection.exec_driver_sql("UPDATE market_data SET fetch_id = 1")
    imported(store, tmp_path, "published")
    assert sentiment(store.snapshot(START_US + 200 * HOUR_US, assumed=True), "bitcoin").texts == 0


@pytest.mark.usefixtures("quick_audits")
def test_a_study_of_an_archive_tells_what_it_assumes(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/archive.db"
    store = MarketStore(open_database(url))
    imported(store, tmp_path, "now")
    with pytest.raises(InputError, match="bars in the time of its texts"):
        collected_signals.load_collected(url)
    imported(store, tmp_path, "+30min")
    found = collected_signals.load_collected(url, models=["good"])
    assert found.usage[0]["assumed"] == HOURS and found.bars.lag == 2
    told = f"{HOURS} of {HOURS} texts: known 30 min after publication (assumed); if they were known later, this looks"
    told += " ahead"
    assert told in found.notes()
    assert "were recorded more than a bar after their close: known 30 min after publication (assumed)" in " ".join(
        found.bars.caveats
    )
    assert all(text.available_us >= text.published_us + 30 * MINUTE_US for text in found.by_source["all sources"])
    with open_ledger("sqlite://") as ledger:
        family = study.study_family(found.bars, ledger, Costs(), scored=found.scored, draws=3, resamples=50)
    assert all(told in made.lookahead.notes and made.account.lag == 2 for made in family.tried)
    assert family.forward.lag == 2


def test_a_file_of_prices_says_that_their_times_are_assumed(tmp_path: Path, oracle: Run) -> None:
    file = bars_file(tmp_path)
    assert any("prices of the file: known when published (assumed)" in line for line in load_bars(str(file))[0].caveats)
    late = load_bars(str(file), reading={"known": "+90min"})[0]
    assert late.lag == 3 and "known 90 min after publication (assumed)" in " ".join(late.caveats)
    (tmp_path / "signal_of_archive.py").write_text("def rise(frame):\n    return frame['close'].diff()\n")
    said = oracle(f"audit signal_of_archive:rise --data {file} --cuts 4 --json")
    assert "bars of the file: known when published (assumed)" in " ".join(said.json["notes"])
    first = oracle(f"import {file} --coin BTC --known published")
    assert "are new in the database, 0 of them correct others; known when published (assumed)" in first.out
    assert "known is 'soon'" in oracle(f"import {file} --coin BTC --known soon").failed(2)
    texts = oracle(f"import-texts {texts_file(tmp_path)} --known +1h --json").json
    assert texts["known"] == "known 1 h after publication (assumed)"


def chart(folder: Path, days: int = 30, step_us: int = HOUR_US) -> Path:
    """What CoinGecko gives for some days: stamps off the grid, and rolling volumes."""
    rng = np.random.default_rng(4)
    first = NOW_US - days * DAY_US
    times = [
        (first + n * step_us + int(rng.integers(0, 240)) * SECOND_US) // 1_000 for n in range(days * DAY_US // step_us)
    ]
    prices = (60_000.0 * np.exp(np.cumsum(rng.normal(0.0, 0.004, len(times))))).tolist()
    volumes = [3e10 + 1e6 * n for n in range(len(times))]
    content = {"prices": list(zip(times, prices, strict=True)), "market_caps": [[at, None] for at in times]}
    content |= {"total_volumes": list(zip(times, volumes, strict=True))}
    path = folder / "market_chart.json"
    path.write_text(json.dumps(content))
    return path


def test_a_month_of_hourly_prices_of_coingecko_gives_changes_and_volumes(store: MarketStore, tmp_path: Path) -> None:
    done = import_bars(store.prices, chart(tmp_path), BarOptions("bitcoin", source="coingecko"), store.clock)
    assert (done.rows, done.series.interval_s, done.gaps) == (720, 0, 0)
    assert "no volume alerts" in " ".join(done.notes)
    stored = store.prices.prices(done.series, 0, NOW_US)
    last = stored[-1]
    found = price_analysis(store.snapshot(), "bitcoin")
    assert [each.over for each in found.changes] == ["1h", "24h", "7d"]
    for each, hours in zip(found.changes, (1, 24, 168), strict=True):
        then = stored[-1 - hours]
        assert each.from_price == then.close and each.change_pct == pytest.approx(100 * (last.close / then.close - 1))
        assert then.volume_24h and each.volume_24h_pct == pytest.approx(100 * (last.volume_24h / then.volume_24h - 1))
    assert (found.day.volume, found.day.volume_unit) == (last.volume_24h, "currency")
    assert not isinstance(found.anomalies, Missing) and isinstance(found.anomalies.volumes, Missing)
    assert found.anomalies.volumes.reason.startswith("no volume is known: coingecko gives none of a bar")


def test_a_change_is_not_known_across_a_gap_or_before_the_series(store: MarketStore, tmp_path: Path) -> None:
    file = chart(tmp_path, days=5)
    content = json.loads(file.read_text())
    content["prices"] = [pair for n, pair in enumerate(content["prices"]) if not 85 < n < 105]
    file.write_text(json.dumps(content))
    import_bars(store.prices, file, BarOptions("bitcoin"), store.clock)
    changes = {each.over: each.change_pct for each in price_analysis(store.snapshot(), "bitcoin").changes}
    assert changes["1h"] is not None and changes["24h"] is None and changes["7d"] is None


def test_later_prices_do_not_change_how_often_a_file_has_one(store: MarketStore, tmp_path: Path) -> None:
    import_bars(store.prices, chart(tmp_path), BarOptions("bitcoin", known="published"), store.clock)
    at_us = NOW_US - 10 * DAY_US
    before = repr(price_analysis(store.snapshot(at_us, assumed=True), "bitcoin"))
    finer = chart(tmp_path, days=5, step_us=5 * MINUTE_US)
    import_bars(store.prices, finer, BarOptions("bitcoin", known="published"), store.clock)
    assert repr(price_analysis(store.snapshot(at_us, assumed=True), "bitcoin")) == before


def test_volumes_are_analysed_where_a_source_has_them(store: MarketStore, tmp_path: Path) -> None:
    fresh = chart(tmp_path, days=10, step_us=5 * MINUTE_US)
    import_bars(store.prices, fresh, BarOptions("bitcoin", source="coingecko"), store.clock)
    import_bars(store.prices, bars_file(tmp_path), BarOptions("bitcoin", source="klines"), store.clock)
    stale = price_analysis(store.snapshot(), "bitcoin")
    assert not isinstance(stale.analysed, Missing) and stale.analysed.source == "coingecko"
    lines = bars_file(tmp_path).read_text().splitlines()
    late = [f"{iso(NOW_US - (HOURS - n) * HOUR_US)},{line.partition(',')[2]}" for n, line in enumerate(lines[1:])]
    (tmp_path / "bars.csv").write_text("\n".join([lines[0], *late]) + "\n")
    import_bars(store.prices, tmp_path / "bars.csv", BarOptions("bitcoin", source="klines"), store.clock)
    found = price_analysis(store.snapshot(), "bitcoin")
    assert not isinstance(found.analysed, Missing) and found.analysed.source == "klines"
    assert not isinstance(found.anomalies, Missing)
    for part in (found.anomalies.volumes, found.anomalies.manipulation, found.patterns):
        assert not isinstance(part, Missing)


def test_a_snapshot_without_the_assumption_is_as_before(store: MarketStore, tmp_path: Path) -> None:
    imported(store, tmp_path, "published")
    assert Snapshot(store, NOW_US, START_US + HOUR_US).texts.read("bitcoin", 0, NOW_US) == []
