"""What is told of risk: each number by its own measure, what is missing by its reason, and nothing of later data."""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine

from qubic_lab.cli.main import run
from qubic_lab.database import open_database
from qubic_lab.errors import NotFoundError
from qubic_lab.oracle.model.bars import Bars
from qubic_lab.oracle.model.records import Price, Series, Text
from qubic_lab.oracle.model.response import Missing, to_json, to_plain
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, MINUTE_US, SECOND_US, iso, read_iso
from qubic_lab.oracle.risk.inputs import closes_at, read_risk_market, sentiment_at
from qubic_lab.oracle.risk.measures import MEASURES, MeasureValues, RiskInputs, compute_measure
from qubic_lab.oracle.risk.report import (
    REFIT_BARS,
    CurrentMeasure,
    CurrentRule,
    RiskBars,
    RiskLevel,
    RiskReport,
    RiskVolatility,
    TailRisk,
    current_level,
    current_measure,
    current_rule,
)
from qubic_lab.oracle.risk.rolling import drawdown, log_returns
from qubic_lab.oracle.risk.rules import LEVELS, RiskRule, RuleLevels, assess, fit_rules, read_rules
from qubic_lab.oracle.risk.value_at_risk import historical
from qubic_lab.oracle.risk.volatility import garch_forecast, realised_volatility, simulate_garch
from qubic_lab.oracle.risk.warning_scores import (
    MatchedWarnings,
    RiskRecord,
    compare_warnings,
    evaluate_warnings,
    find_falls,
    record_text,
)
from qubic_lab.oracle.sentiment.index import WEIGHTING, ScoredText
from qubic_lab.oracle.serving.queries import risk
from qubic_lab.oracle.store.snapshot import MarketStore
from qubic_lab.oracle.store.text_store import Score
from qubic_lab.settings import settings

NOON = read_iso("2025-06-01T12:00:00Z")
NOW = NOON + MINUTE_US
BARS = 1_300


class Time:
    """A clock that stands until it is moved."""

    def __init__(self, us: int = NOW) -> None:
        self.us = us

    def __call__(self) -> int:
        return self.us


def hourly(seed: int, count: int = BARS, end_us: int = NOON, volume: bool = True) -> list[Price]:
    """Bars of an hour of a market whose volatility comes in clusters."""
    returns = simulate_garch(count, 4e-6, 0.15, 0.83, 5.0, seed=seed)[0]
    close = 100.0 * np.exp(returns.cumsum())
    volumes = np.exp(np.random.default_rng(seed).normal(7.0, 0.5, count))
    opens = np.append(close[:1], close[:-1])
    return [
        Price(
            *(end_us - (count - n) * HOUR_US, end_us - (count - 1 - n) * HOUR_US, float(close[n]), float(opens[n])),
            *(float(max(opens[n], close[n])), float(min(opens[n], close[n])), float(volumes[n]) if volume else None),
        )
        for n in range(count)
    ]


def text(number: int, at_us: int) -> Text:
    words = " ".join(f"word{number}x{n}" for n in range(30))
    url = f"https://example.org/{number}"
    return Text("newsapi", str(number), "news", f"Title {number}", words, url, "Example", at_us, ("bitcoin",))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Two coins with bars and volumes, one with scored texts."""
    engine = open_database(f"sqlite:///{tmp_path_factory.mktemp('risk') / 'lab.db'}")
    clock = Time(NOON - BARS * HOUR_US)
    store = MarketStore(engine, clock)
    days = range(1, BARS // 24, 2)  # all are known before they appear, so each counts from when it does
    store.texts.add([text(day, NOON - BARS * HOUR_US + day * DAY_US) for day in days])
    stored = store.texts.read("bitcoin", 0, NOON)
    store.texts.add_scores([Score(each.id, "default@1", math.sin(each.id)) for each in stored])
    clock.us = NOON
    for seed, coin in enumerate(("bitcoin", "ethereum"), 3):
        store.prices.add(Series(coin, "exchange", 3_600), hourly(seed))
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def found(engine: Engine) -> RiskReport:
    return risk(MarketStore(engine, Time()).snapshot(), "BTC")


@pytest.fixture(scope="module")
def bars() -> Bars:
    return Bars.of_prices(hourly(3), frame_us=HOUR_US)


def test_the_bars_and_what_is_beside_them_are_told(found: RiskReport) -> None:
    bars = found.analysed
    assert isinstance(bars, RiskBars)
    assert (bars.bars, bars.missing, bars.last_us, bars.age_s, bars.stale) == (BARS, 0, NOON, 60.0, False)
    assert (bars.source, bars.other, bars.sentiment) == ("exchange", "ethereum from exchange", "default@1")
    assert bars.volume


def test_level_rules_and_measures_are_those_of_the_bars(engine: Engine, found: RiskReport, bars: Bars) -> None:
    market = read_risk_market(MarketStore(engine, Time()).snapshot(), "bitcoin", "1h", WEIGHTING)
    assert not isinstance(market, Missing)
    assessment = assess(market.inputs)
    last = assessment.at(-1)
    assert isinstance(found.level, RiskLevel)
    assert found.level.level == last.level
    assert found.level.evidence == last.evidence
    since = int(np.searchsorted(assessment.closed_us, found.level.since_us))
    assert found.level.bars == BARS - 1 - since
    assert set(assessment.levels[since:].tolist()) == {LEVELS.index(found.level.level)}
    assert found.level.before == LEVELS[int(assessment.levels[since - 1])] != found.level.level
    assert set(found.rules) == {rule.name for rule in read_rules()}
    for track in assessment.rules:
        rule = found.rules[track.rule.name]
        assert isinstance(rule, CurrentRule), "nothing is missing here"
        assert rule.level == LEVELS[int(track.levels[-1])]
        assert rule.value == pytest.approx(float(track.measured.values[-1]), nan_ok=True)
        if rule.next_level is not None and rule.to_next is not None:
            assert rule.value + rule.to_next == pytest.approx(getattr(rule, rule.next_level))
    assert set(found.measures) == set(MEASURES)
    volatility = found.measures["volatility_ratio"]
    assert isinstance(volatility, CurrentMeasure) and volatility.value is not None
    values = compute_measure("volatility_ratio", RiskInputs(bars)).values
    earlier = values[:-1][~np.isnan(values[:-1])]
    assert volatility.value == values[-1] and volatility.bars == len(earlier)
    assert volatility.percentile == pytest.approx(np.mean(earlier <= values[-1]))


def test_volatility_losses_and_drawdown_are_those_of_the_bars(found: RiskReport, bars: Bars) -> None:
    returns = log_returns(bars)
    told = found.volatility
    assert isinstance(told, RiskVolatility) and not isinstance(told.forecast, Missing)
    sigma = garch_forecast(returns, REFIT_BARS).sigma[-1]
    assert told.forecast.bar_pct == pytest.approx(100 * sigma)
    assert told.forecast.year_pct == pytest.approx(100 * sigma * math.sqrt(365 * 24))
    realised = told.realised["parkinson"]
    assert not isinstance(realised, Missing)
    assert realised.bar_pct == pytest.approx(100 * realised_volatility(bars, 24, "parkinson")[-1])
    assert isinstance(found.tails, tuple)
    tails = {(each.model, each.probability): each for each in found.tails}
    assert set(tails) == {(m, p) for m in ("GARCH-t", "filtered historical", "historical") for p in (0.01, 0.05)}
    plain = historical(returns, 0.01)
    assert tails["historical", 0.01].value_at_risk_pct == pytest.approx(100 * plain.var[-1])
    assert tails["historical", 0.01].shortfall_pct == pytest.approx(100 * plain.es[-1])
    for each in found.tails:
        assert each.shortfall_pct >= each.value_at_risk_pct > 0
        assert each.tested == BARS - 1 - 751 and each.not_tested == ""
        small = {name for name in ("kupiec", "independence", "christoffersen", "shortfall") if _p(each, name) < 0.05}
        assert set(each.rejected_by) == small
    assert not isinstance(found.drawdown, Missing)
    assert found.drawdown.drawdown_pct == pytest.approx(100 * drawdown(bars.close)[-1])
    assert found.drawdown.highest == bars.close.max()


def _p(tail: TailRisk, name: str) -> float:
    value = getattr(tail, f"{name}_p")
    return 1.0 if value is None else float(value)


def test_the_record_is_what_warnings_were_worth_beside_a_rule_with_as_much_time(
    engine: Engine, found: RiskReport
) -> None:
    record = found.record
    assert isinstance(record, RiskRecord)
    assert (record.level, record.horizon_h, record.drop_pct) == ("warning", 24.0, 4.0)
    market = read_risk_market(MarketStore(engine, Time()).snapshot(), "bitcoin", "1h", WEIGHTING)
    assert not isinstance(market, Missing)
    assessment = assess(market.inputs)
    raised = [each.at_us for each in assessment.warnings("warning")]
    falls = market.bars.closed_us[find_falls(market.bars, 24, 0.04)]
    score = evaluate_warnings(raised, falls, record.start_us, NOON, DAY_US)
    assert record.end_us == NOON and score.falls > 3
    assert record.ours == score
    assert record.naive.recall_by_chance == pytest.approx(record.ours.recall_by_chance, abs=0.1)
    assert f"{score.found} of {score.falls} falls of 4 % within 24 h were found" in record.text
    assert "what a rule on volatility alone finds" in record.text
    assert isinstance(found.warnings, tuple)
    assert [each.at_us for each in found.warnings] == raised[:-6:-1]
    assert all(each.level in ("warning", "alarm") and each.evidence for each in found.warnings)


def test_the_response_is_json_without_infinities(found: RiskReport) -> None:
    assert json.loads(to_json(found)) == json.loads(json.dumps(to_plain(found), allow_nan=False))


@pytest.fixture
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MarketStore]:
    engine = open_database(f"sqlite:///{tmp_path_factory.mktemp('empty') / 'lab.db'}")
    yield MarketStore(engine, Time())
    engine.dispose()


def test_what_is_not_known_is_absent_with_the_reason(empty: MarketStore) -> None:
    series = Series("bitcoin", "exchange", 3_600)
    with pytest.raises(NotFoundError, match="no price of bitcoin in usd is known"):
        risk(empty.snapshot(), "bitcoin")
    empty.prices.add(series, hourly(1, 40, volume=False))
    few = risk(empty.snapshot(), "bitcoin")
    assert isinstance(few.level, Missing) and "no rule has a value: 40 bars: it needs " in few.level.reason
    assert isinstance(few.record, Missing) and isinstance(few.warnings, Missing)
    assert isinstance(few.tails, Missing) and "40 bars: a model needs 501" in few.tails.reason
    assert isinstance(few.volatility, RiskVolatility) and isinstance(few.volatility.forecast, Missing)
    assert {each.reason for each in few.rules.values() if isinstance(each, Missing)} >= {
        *("no volume is known", "no sentiment is known", "no other asset is known"),
    }
    assert isinstance(few.analysed, RiskBars) and not few.analysed.volume
    assert isinstance(few.analysed.other, Missing) and "no such bars of ethereum" in few.analysed.other.reason
    only_days = risk(empty.snapshot(), "bitcoin", "1d")
    assert isinstance(only_days.analysed, RiskBars) and only_days.analysed.bars < 3
    empty.prices.add(Series("ethereum", "odd", 2_400), [Price(NOON - 2_400 * SECOND_US, NOON, 1.0, 1.0, 1.0, 1.0)])
    none = risk(empty.snapshot(), "ethereum")
    assert isinstance(none.analysed, Missing) and none.analysed.reason.startswith("no bars of 1h can be made")
    assert isinstance(none.level, Missing) and none.rules == {} == none.measures


def test_a_price_that_stands_still_and_one_that_is_old(empty: MarketStore) -> None:
    ends = [NOON - 40 * DAY_US - n * HOUR_US for n in reversed(range(700))]
    flat = [Price(end - HOUR_US, end, 5.0, 5.0, 5.0, 5.0, 0.0) for end in ends]
    empty.prices.add(Series("bitcoin", "exchange", 3_600), flat)
    found = risk(empty.snapshot(), "bitcoin")
    assert isinstance(found.analysed, RiskBars) and found.analysed.stale
    assert not isinstance(found.volatility, Missing) and isinstance(found.volatility.forecast, Missing)
    assert "prices do not vary" in str(found.rules["volatility"])
    assert isinstance(found.tails, tuple) and b"-0.0" not in to_json(found)
    json.dumps(to_plain(found), allow_nan=False)


def test_a_level_says_how_many_rules_it_does_not_rest_on(empty: MarketStore, found: RiskReport) -> None:
    ends = [NOON - n * HOUR_US for n in reversed(range(700))]
    flat = [Price(end - HOUR_US, end, 5.0, 5.0, 5.0, 5.0, 9.0) for end in ends]
    empty.prices.add(Series("bitcoin", "exchange", 3_600), flat)
    level = risk(empty.snapshot(), "bitcoin").level
    assert isinstance(level, RiskLevel) and level.level == "calm"
    assert level.text.endswith(": no rule has reached its first level (6 of 7 rules have no value here).")
    assert isinstance(found.level, RiskLevel) and "no value" not in found.level.text


def test_of_two_sources_that_are_on_time_the_longer_history_is_looked_at(empty: MarketStore) -> None:
    empty.prices.add(Series("bitcoin", "long", 3_600), hourly(1, 90, NOON))
    empty.prices.add(Series("bitcoin", "quick", 900), [Price(NOON - 900 * SECOND_US, NOON, 100.0, 99.0, 100.0, 99.0)])
    empty.prices.add(Series("bitcoin", "longest", 3_600), hourly(2, 200, NOON - DAY_US))
    found = risk(empty.snapshot(), "bitcoin")
    assert isinstance(found.analysed, RiskBars)
    assert (found.analysed.source, found.analysed.bars) == ("long", 90)


def test_no_later_row_changes_what_is_told_of_an_earlier_instant(empty: MarketStore) -> None:
    clock = Time(NOON - 30 * DAY_US)
    store = MarketStore(empty.engine, clock)
    store.texts.add([text(number, NOON - number * DAY_US) for number in range(2, 27)])
    stored = store.texts.read("bitcoin", 0, NOON)
    store.texts.add_scores([Score(each.id, "default@1", math.cos(each.id)) for each in stored])
    clock.us = NOON - DAY_US
    for seed, coin in ((3, "bitcoin"), (4, "ethereum")):
        store.prices.add(Series(coin, "exchange", 3_600), hourly(seed, 640, NOON - DAY_US))
    clock.us += HOUR_US
    as_of = clock.us - 2 * SECOND_US
    before = risk(store.snapshot(as_of), "bitcoin", "1h")
    assert all(isinstance(each, CurrentRule) for each in before.rules.values()), "all of them look at something"
    clock.us = NOON
    for seed, coin in ((3, "bitcoin"), (4, "ethereum")):
        more = hourly(seed + 7, 24 + 60, NOON)  # 24 later bars, and corrections of 60
        store.prices.add(Series(coin, "exchange", 3_600), more)
    store.texts.add([text(2, NOON - 3 * DAY_US), text(99, NOON - 5 * DAY_US)])
    store.texts.add_scores([Score(each.id, "default@1", -0.9) for each in store.texts.read("bitcoin", 0, NOON)])
    clock.us += DAY_US
    assert (
        risk(store.snapshot(as_of), "bitcoin", "1h")
        == before
        == risk(MarketStore(empty.engine, clock).snapshot(as_of), "bitcoin", "1h")
    )
    assert risk(store.snapshot(), "bitcoin") != before


@pytest.mark.parametrize(
    ("ours", "naive", "falls", "said"),
    [
        (
            [],
            [],
            [],
            "Nothing is known of such warnings: in 3.3 months there were none, and no falls of 4 %",
        ),
        ([10], [], [], "In 3.3 months there were no falls of 4 % within 24 h, so none of the warnings (1) was right."),
        (
            [],
            [9],
            [10],
            "0 of 1 falls of 4 % within 24 h were found (0 to 79 %) with 1 % of the time under warning; none was ",
        ),
        (
            range(0, 90, 4),
            [],
            range(1, 91, 4),
            " were right (86 to 100 %), 23 % would be by chance. This is more than what",
        ),
        ([], range(0, 90, 4), range(1, 91, 4), "This is fewer than what a rule on volatility alone finds (23, with "),
        (range(0, 90, 4), range(0, 90, 4), range(1, 91, 4), "This is not shown to differ from what a rule on "),
    ],
)
def test_what_warnings_were_worth_is_said_in_a_sentence(ours: Any, naive: Any, falls: Any, said: str) -> None:
    def at(days: Any) -> np.ndarray:
        return NOON + (np.array(list(days), np.float64) * DAY_US).astype(np.int64)

    comparison = compare_warnings(at(ours), at(naive), at(falls) - HOUR_US, NOON - 1, NOON + 99 * DAY_US, DAY_US)
    matched = MatchedWarnings(np.array([], np.intp), comparison=comparison, ours_share=0.01, naive_share=0.02)
    assert said in record_text(matched, 0.04, 24.0)


def test_closes_of_another_asset_are_those_of_the_same_instants() -> None:
    ends = NOON + HOUR_US * np.array([1, 2, 4], np.int64)
    other = Bars.of(ends, [5.0, 6.0, 7.0], frame_us=HOUR_US)
    wanted = NOON + HOUR_US * np.arange(6, dtype=np.int64)
    np.testing.assert_array_equal(closes_at(wanted, other), [np.nan, 5.0, 6.0, np.nan, 7.0, np.nan])
    assert np.isnan(closes_at(wanted, other.slice(0, 0))).all()


def test_a_text_counts_from_the_close_at_which_it_and_its_score_were_known() -> None:
    closed = NOON + HOUR_US * np.arange(100, dtype=np.int64)
    late = ScoredText(1, "1", "newsapi", "", NOON, NOON + 2 * HOUR_US + 1, 0.5)
    found = sentiment_at(closed, [late], WEIGHTING)
    assert np.isnan(found[:3]).all() and found[3] == 0.5 == found[71]
    assert np.isnan(found[72:]).all(), "after three days it counts no more"
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
    assert isinstance(found, CurrentRule)
    assert (found.next_level, found.to_next, found.clears_below) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([np.nan, 3.0, 1.0, 2.0, 2.0], (2.0, 2 / 3, 3)),
        ([1.0, np.nan], (None, None, 1)),
        ([1.0], (1.0, None, 0)),
    ],
)
def test_a_value_is_ranked_among_earlier_ones_alone(values: list[float], expected: Any) -> None:
    found = current_measure("volume_ratio", MeasureValues(np.array(values), 0))
    assert isinstance(found, CurrentMeasure)
    assert (found.value, found.percentile, found.bars) == expected


def test_since_when_a_level_stands(bars: Bars) -> None:
    assessment = assess(RiskInputs(bars))
    changes = np.flatnonzero(np.diff(assessment.levels)) + 1
    first, second = (int(each) for each in changes[changes > assessment.warm_up][:2])
    found = current_level(assess(RiskInputs(bars.slice(0, second))), stale=False)
    assert (found.since_us, found.bars) == (int(bars.closed_us[first]), second - 1 - first)
    never = current_level(assess(RiskInputs(bars.slice(0, first))), stale=False)
    assert never.before is None and never.since_us == int(bars.closed_us[assessment.warm_up])


def test_rules_get_the_windows_of_their_bars_unless_they_say_their_own() -> None:
    rule = RiskRule("v", "volatility_ratio", 1.0, 2.0, 3.0, {"bars": 5})
    (days,) = fit_rules([rule], DAY_US)
    assert days.parameters == {"bars": 5, "usual_bars": 120}
    assert fit_rules([rule], HOUR_US) == (rule,)


@pytest.fixture
def at_command_line(engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("command"))
    monkeypatch.setenv("QUBIC_LAB_DATABASE_URL", str(engine.url))
    settings.cache_clear()


@pytest.mark.usefixtures("at_command_line")
def test_the_commands_say_the_same(found: RiskReport, capsys: pytest.CaptureFixture[str]) -> None:
    as_of = iso(NOW)
    assert run(["oracle", "risk", "BTC", "--as-of", as_of, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["as_of"], told["level"]) == (as_of, to_plain(found.level))
    assert run(["oracle", "risk", "bitcoin", "--as-of", as_of]) == 0
    shown = capsys.readouterr().out
    assert isinstance(found.level, RiskLevel) and isinstance(found.record, RiskRecord)
    assert shown.startswith(f"Bitcoin, {found.level.text}\n{BARS} bars of 1h from exchange, ")
    assert found.record.text in shown and "| volatility alone |" in shown and "| GARCH-t " in shown
    assert run(["oracle", "alerts"]) == 0
    assert "there are no alerts" in capsys.readouterr().err
    assert run(["oracle", "alerts", "--check", "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)["check"]
    assert "no fresh prices" in checked["unknown"]["bitcoin"] and checked["told"] == checked["sent"] == 2
    settings.cache_clear()
