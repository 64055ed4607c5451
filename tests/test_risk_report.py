"""The risk report of a coin equals the measures, gives a reason for each missing value, and does not look ahead."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bar_series import joined
from clocks import StandingClock
from sqlalchemy import Engine

from qubic_lab.cli.main import run
from qubic_lab.database import open_database
from qubic_lab.errors import NotFoundError
from qubic_lab.oracle.model.bars import Bars
from qubic_lab.oracle.model.records import Price, Series, Text
from qubic_lab.oracle.model.response import Missing, to_json, to_plain
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, MINUTE_US, SECOND_US, iso, read_iso
from qubic_lab.oracle.risk.inputs import RiskMarket, closes_at, read_risk_market, sentiment_at
from qubic_lab.oracle.risk.measures import MEASURES, MeasureValues, RiskInputs
from qubic_lab.oracle.risk.models import drawdown, garch_forecast, historical, realised_volatility, simulate_garch
from qubic_lab.oracle.risk.report import REFIT_BARS, RiskReport, current_level, current_measure, current_rule, read_risk
from qubic_lab.oracle.risk.rules import RiskRule, RuleLevels, assess, fit_rules, read_rules
from qubic_lab.oracle.risk.warning_scores import compare_warnings, evaluate_warnings, find_falls, record_text
from qubic_lab.oracle.sentiment.index import WEIGHTING, ScoredText
from qubic_lab.oracle.store.snapshot import MarketStore
from qubic_lab.oracle.store.text_store import Score

NOON = read_iso("2025-06-01T12:00:00Z")
NOW = NOON + MINUTE_US
BARS = 1_300
BITCOIN, ETHEREUM = (Series(coin, "exchange", 3_600) for coin in ("bitcoin", "ethereum"))


def hourly(seed: int, count: int = BARS, end_us: int = NOON, volume: bool = True) -> list[Price]:
    """Bars of an hour of a market whose volatility comes in clusters."""
    returns = simulate_garch(count, 4e-6, 0.15, 0.83, 5.0, seed=seed)[0]
    volumes = np.exp(np.random.default_rng(seed).normal(7.0, 0.5, count)).tolist() if volume else [None] * count
    bars = joined(100.0 * np.exp(returns.cumsum()))
    columns = (column.tolist() for column in (bars.close, bars.open, bars.high, bars.low))
    ends = range(end_us - (count - 1) * HOUR_US, end_us + 1, HOUR_US)
    return [Price(end - HOUR_US, end, *row) for end, *row in zip(ends, *columns, volumes, strict=True)]


def flat(end_us: int, volume: float) -> list[Price]:
    return [Price(end - HOUR_US, end, *[5.0] * 4, volume) for end in range(end_us - 699 * HOUR_US, end_us + 1, HOUR_US)]


def text(number: int, at_us: int) -> Text:
    words = " ".join(f"word{number}x{n}" for n in range(30))
    url = f"https://example.org/{number}"
    return Text("newsapi", str(number), "news", f"Title {number}", words, url, "Example", at_us, ("bitcoin",))


def add_scored_texts(store: MarketStore, published_us: dict[int, int]) -> None:
    store.texts.add([text(number, at_us) for number, at_us in published_us.items()])
    stored = store.texts.read("bitcoin", 0, NOON)
    store.texts.add_scores([Score(each.id, "default@1", math.sin(each.id)) for each in stored])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MarketStore]:
    """Two coins with bars and volumes, one with scored texts."""
    engine = open_database(f"sqlite:///{tmp_path_factory.mktemp('risk') / 'lab.db'}")
    clock = StandingClock(NOON - BARS * HOUR_US)
    store = MarketStore(engine, clock)
    # All texts are known before they appear, so each counts from when it does.
    add_scored_texts(store, {day: NOON - BARS * HOUR_US + day * DAY_US for day in range(1, BARS // 24, 2)})
    clock.us = NOON
    store.prices.add(BITCOIN, hourly(3))
    store.prices.add(ETHEREUM, hourly(4))
    clock.us = NOW
    yield store
    engine.dispose()


@pytest.fixture(scope="module")
def found(store: MarketStore) -> RiskReport:
    return read_risk(store.snapshot(), "BTC")


@pytest.fixture(scope="module")
def market(store: MarketStore) -> RiskMarket:
    read = read_risk_market(store.snapshot(), "bitcoin", "1h", WEIGHTING)
    assert isinstance(read, RiskMarket)
    return read


@pytest.fixture
def empty(sqlite: Engine) -> MarketStore:
    return MarketStore(sqlite, StandingClock(NOW))


def test_bars_level_rules_and_measures_are_those_of_the_market(found: RiskReport, market: RiskMarket) -> None:
    bars = found.analysed
    assert (bars.bars, bars.missing, bars.last_us, bars.age_s, bars.stale) == (BARS, 0, NOON, 60.0, False)
    assert (bars.source, bars.other, bars.sentiment) == ("exchange", "ethereum from exchange", "default@1")
    assert bars.volume
    assessment = assess(market.inputs, read_rules())
    assert found.level == current_level(assessment, stale=False)
    assert found.rules == {each.rule.name: current_rule(each) for each in assessment.rules}
    assert {rule.name for rule in read_rules()} == set(found.rules)
    rule = RiskRule("v", "volatility_ratio", 1.0, 2.0, 3.0, {"bars": 5})
    assert fit_rules([rule], DAY_US)[0].parameters == {"bars": 5, "usual_bars": 120}, "its own and those of its bars"
    assert fit_rules([rule], HOUR_US) == (rule,)
    assert set(found.measures) == set(MEASURES)
    assert not any(isinstance(each, Missing) for each in (*found.rules.values(), *found.measures.values()))


def test_volatility_losses_and_drawdown_are_those_of_the_bars(found: RiskReport, market: RiskMarket) -> None:
    bars, returns = market.bars, market.bars.log_returns
    sigma = 100 * garch_forecast(returns, REFIT_BARS).sigma[-1]
    assert found.volatility.forecast.bar_pct == pytest.approx(sigma)
    assert found.volatility.forecast.year_pct == pytest.approx(sigma * math.sqrt(365 * 24))
    parkinson = found.volatility.realised["parkinson"].bar_pct
    assert parkinson == pytest.approx(100 * realised_volatility(bars, 24, "parkinson")[-1])
    tails = {(each.model, each.probability): each for each in found.tails}
    assert set(tails) == {(m, p) for m in ("GARCH-t", "filtered historical", "historical") for p in (0.01, 0.05)}
    plain = historical(returns, 0.01)
    assert tails["historical", 0.01].value_at_risk_pct == pytest.approx(100 * plain.var[-1])
    assert tails["historical", 0.01].shortfall_pct == pytest.approx(100 * plain.es[-1])
    for each in found.tails:
        assert each.shortfall_pct >= each.value_at_risk_pct > 0
        assert each.tested == BARS - 1 - 751 and each.not_tested == ""
        names = ("kupiec", "independence", "christoffersen", "shortfall")
        p_values = {name: getattr(each, f"{name}_p") for name in names}
        assert set(each.rejected_by) == {name for name, p in p_values.items() if p is not None and p < 0.05}
    assert found.drawdown.drawdown_pct == pytest.approx(100 * drawdown(bars.close)[-1])
    assert found.drawdown.highest == bars.close.max()


def test_the_record_is_what_warnings_were_worth(found: RiskReport, market: RiskMarket) -> None:
    record = found.record
    assert (record.level, record.horizon_h, record.drop_pct) == ("warning", 24.0, 4.0)
    raised = [each.at_us for each in assess(market.inputs, read_rules()).warnings("warning")]
    falls = market.bars.closed_us[find_falls(market.bars, 24, 0.04)]
    score = evaluate_warnings(raised, falls, record.start_us, NOON, DAY_US)
    assert record.end_us == NOON and score.falls > 3
    assert record.ours == score
    assert record.naive.recall_by_chance == pytest.approx(score.recall_by_chance, abs=0.1)
    assert f"{score.found} of {score.falls} falls of 4 % within 24 h were found" in record.text
    assert [each.at_us for each in found.warnings] == raised[:-6:-1]
    assert all(each.level in ("warning", "alarm") and each.evidence for each in found.warnings)
    assert json.loads(to_json(found)) == json.loads(json.dumps(to_plain(found), allow_nan=False)), "no infinities"


def test_what_is_missing_has_a_reason(empty: MarketStore) -> None:
    with pytest.raises(NotFoundError, match="no price of bitcoin in usd is known"):
        read_risk(empty.snapshot(), "bitcoin")
    empty.prices.add(BITCOIN, hourly(1, 40, volume=False))
    few = read_risk(empty.snapshot(), "bitcoin")
    assert "no rule has a value: 40 bars: it needs " in few.level.reason == few.warnings.reason == few.record.reason
    assert "40 bars: a model needs 501" in few.tails.reason
    assert isinstance(few.volatility.forecast, Missing) and not few.analysed.volume
    missing = {"no volume is known", "no sentiment is known", "no other asset is known"}
    assert missing <= {each.reason for each in few.rules.values()}
    assert "no such bars of ethereum" in few.analysed.other.reason
    assert read_risk(empty.snapshot(), "bitcoin", "1d").analysed.bars < 3
    empty.prices.add(Series("ethereum", "odd", 2_400), [Price(NOON - 2_400 * SECOND_US, NOON, 1.0, 1.0, 1.0, 1.0)])
    none = read_risk(empty.snapshot(), "ethereum")
    assert none.analysed.reason == none.level.reason and none.level.reason.startswith("no bars of 1h can be made")
    assert none.rules == {} == none.measures


def test_a_constant_price(empty: MarketStore, found: RiskReport) -> None:
    empty.prices.add(BITCOIN, flat(NOON - 40 * DAY_US, 0.0))
    old = read_risk(empty.snapshot(), "bitcoin")
    assert old.analysed.stale and isinstance(old.volatility.forecast, Missing)
    assert "prices do not vary" in old.rules["volatility"].reason
    assert old.tails and b"-0.0" not in to_json(old)
    empty.prices.add(BITCOIN, flat(NOON, 9.0))
    level = read_risk(empty.snapshot(), "bitcoin").level
    assert level.level == "calm"
    assert level.text.endswith(": no rule has reached its first level (6 of 7 rules have no value here).")
    assert "no value" not in found.level.text


def test_of_two_sources_that_are_on_time_the_longer_history_is_analysed(empty: MarketStore) -> None:
    empty.prices.add(Series("bitcoin", "long", 3_600), hourly(1, 90, NOON))
    empty.prices.add(Series("bitcoin", "quick", 900), [Price(NOON - 900 * SECOND_US, NOON, 100.0, 99.0, 100.0, 99.0)])
    empty.prices.add(Series("bitcoin", "longest", 3_600), hourly(2, 200, NOON - DAY_US))
    found = read_risk(empty.snapshot(), "bitcoin")
    assert (found.analysed.source, found.analysed.bars) == ("long", 90)


def test_no_later_row_changes_the_report_of_an_earlier_instant(empty: MarketStore) -> None:
    clock = StandingClock(NOON - 30 * DAY_US)
    store = MarketStore(empty.engine, clock)
    add_scored_texts(store, {number: NOON - number * DAY_US for number in range(2, 27)})
    clock.us = NOON - DAY_US
    store.prices.add(BITCOIN, hourly(3, 640, NOON - DAY_US))
    store.prices.add(ETHEREUM, hourly(4, 640, NOON - DAY_US))
    clock.us += HOUR_US
    as_of = clock.us - 2 * SECOND_US
    before = read_risk(store.snapshot(as_of), "bitcoin")
    assert not any(isinstance(each, Missing) for each in before.rules.values()), "each rule has a value"
    clock.us = NOON
    store.prices.add(BITCOIN, hourly(10, 24 + 60))  # 24 later bars, and corrections of 60
    store.prices.add(ETHEREUM, hourly(11, 24 + 60))
    add_scored_texts(store, {2: NOON - 3 * DAY_US, 99: NOON - 5 * DAY_US})
    store.texts.add_scores([Score(each.id, "default@1", -0.9) for each in store.texts.read("bitcoin", 0, NOON)])
    clock.us += DAY_US
    for reader in (store, MarketStore(empty.engine, clock)):
        assert read_risk(reader.snapshot(as_of), "bitcoin") == before
    assert read_risk(store.snapshot(), "bitcoin") != before


EVERY_4, A_DAY_LATER = range(0, 90, 4), range(1, 91, 4)


@pytest.mark.parametrize(
    ("ours", "naive", "falls", "said"),
    [
        ([], [], [], "Nothing is known of such warnings: in 3.3 months there were none, and no falls of 4 %"),
        ([], [9], [10], "0 of 1 falls of 4 % within 24 h were found (0 to 79 %) with 0 % of the time under warning; "),
        (EVERY_4, [], A_DAY_LATER, " were right (86 to 100 %), 23 % would be by chance. This is more than what"),
        ([], EVERY_4, A_DAY_LATER, "This is fewer than what a rule on volatility alone finds (23, with "),
        (EVERY_4, EVERY_4, A_DAY_LATER, "This is not shown to differ from what a rule on "),
    ],
)
def test_a_sentence_says_what_warnings_were_worth(ours: Any, naive: Any, falls: Any, said: str) -> None:
    def at(days: Any) -> np.ndarray:
        return NOON + DAY_US * np.array(days, np.int64)

    comparison = compare_warnings(at(ours), at(naive), at(falls) - HOUR_US, NOON - 1, NOON + 99 * DAY_US, DAY_US)
    assert said in record_text(comparison, 0.04, 24.0)


def test_inputs_are_what_was_known_at_each_close() -> None:
    other = Bars.of(NOON + HOUR_US * np.array([1, 2, 4], np.int64), [5.0, 6.0, 7.0], frame_us=HOUR_US)
    wanted = NOON + HOUR_US * np.arange(6, dtype=np.int64)
    np.testing.assert_array_equal(closes_at(wanted, other), [np.nan, 5.0, 6.0, np.nan, 7.0, np.nan])
    assert np.isnan(closes_at(wanted, other.slice(0, 0))).all()
    # A text counts from the close at which it and its score were known.
    closed = NOON + HOUR_US * np.arange(100, dtype=np.int64)
    late = ScoredText(1, NOON, NOON + 2 * HOUR_US + 1, 0.5)
    found = sentiment_at(closed, [late], WEIGHTING)
    assert np.isnan(found[:3]).all() and found[3] == 0.5 == found[71]
    assert np.isnan(found[72:]).all(), "it no longer counts after three days"
    assert np.isnan(sentiment_at(closed, [], WEIGHTING)).all()


@pytest.mark.parametrize(
    ("level", "value", "expected"),
    [
        (0, 0.25, ("watch", 0.75, None)),
        (2, 1.75, ("alarm", 2.25, 1.6)),
        (3, 9.0, (None, None, 3.2)),
        (1, math.nan, ("warning", None, 0.8)),
    ],
)
def test_how_far_the_next_level_is_and_where_this_one_is_left(level: int, value: float, expected: Any) -> None:
    rule = RiskRule("fall", "volatility_ratio", 1.0, 2.0, 4.0, clear=0.8)
    found = current_rule(RuleLevels(rule, MeasureValues(np.array([value]), 0), np.array([level], np.int8)))
    assert (found.next_level, found.to_next, found.clears_below) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [([np.nan, 3.0, 1.0, 2.0, 2.0], (2.0, 2 / 3, 3)), ([1.0, np.nan], (None, None, 1)), ([1.0], (1.0, None, 0))],
)
def test_a_value_is_ranked_among_earlier_ones_alone(values: list[float], expected: Any) -> None:
    found = current_measure("volume_ratio", MeasureValues(np.array(values), 0))
    assert (found.value, found.percentile, found.bars) == expected


def test_since_when_a_level_stands(market: RiskMarket) -> None:
    bars = market.bars
    assessment = assess(RiskInputs(bars), read_rules())
    changes = np.flatnonzero(np.diff(assessment.levels)) + 1
    first, second = (int(each) for each in changes[changes > assessment.warm_up][:2])
    found = current_level(assess(RiskInputs(bars.slice(0, second)), read_rules()), stale=False)
    assert (found.since_us, found.bars) == (int(bars.closed_us[first]), second - 1 - first)
    never = current_level(assess(RiskInputs(bars.slice(0, first)), read_rules()), stale=False)
    assert never.before is None and never.since_us == int(bars.closed_us[assessment.warm_up])


def test_the_commands_show_the_same(
    store: MarketStore,
    found: RiskReport,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUBIC_LAB_DATABASE_URL", str(store.engine.url))
    as_of = iso(NOW)
    assert run(["oracle", "risk", "BTC", "--as-of", as_of, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert (plain["as_of"], plain["level"]) == (as_of, to_plain(found.level))
    assert run(["oracle", "risk", "bitcoin", "--as-of", as_of]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Bitcoin, {found.level.text}\n{BARS} bars of 1h from exchange, ")
    assert found.record.text in shown and "| volatility alone |" in shown and "| GARCH-t " in shown
    assert run(["oracle", "alerts"]) == 0
    assert "there are no alerts" in capsys.readouterr().err
    assert run(["oracle", "alerts", "--check", "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)["check"]
    assert "no fresh prices" in checked["unknown"]["bitcoin"] and checked["told"] == checked["sent"] == 2
