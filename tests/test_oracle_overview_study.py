"""The study of the market oracle: it finds what is planted, says what it found, and its pictures show it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bar_series import joined
from examples import example
from headlines import told
from matplotlib.figure import Figure

from qubic_lab.database import open_database
from qubic_lab.errors import InputError
from qubic_lab.oracle.analysis.indicators import Indicator
from qubic_lab.oracle.ingest.packaged import read_sample_texts
from qubic_lab.oracle.model.bars import Bars, Floats
from qubic_lab.oracle.model.coins import COINS
from qubic_lab.oracle.model.records import Text
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, iso
from qubic_lab.oracle.sentiment.index import ScoredText
from qubic_lab.oracle.sentiment.models import make_model
from qubic_lab.oracle.store.text_store import TextStore
from qubic_lab.studies import oracle_measures as measure
from qubic_lab.studies import oracle_overview as study
from qubic_lab.studies.market_bars import MarketData, load_market
from qubic_lab.studies.oracle_measures import News, PastRatings, SimulatedCoverage
from qubic_lab.studies.oracle_results import AnomalyCurve, ConfidenceRecord, RecordedEstimate

START = 400_000 * HOUR_US
TEXTS = tuple(ScoredText(id, START + id, START + id, score, "sample") for id, score in ((1, -0.5), (2, 0.0)))
NEWS = News(TEXTS, "crypto-lexicon@1", simulated=True)
INJECTED = [example(AnomalyCurve, kind="jump", size=2.0, auc=0.8, low=0.7, high=0.9)]
COVERAGE = [
    SimulatedCoverage(name, hours, 0.8, held, held - 0.01, held + 0.01)
    for name, held in (("random walk", 0.79), ("trend with noise", 0.81))
    for hours in (1, 2, 3, 4)
]
QUALITY = {"source": "file", "bars of": "1 h", "prices": 900, "complete_pct": 100.0, "gaps": 0, "outliers": 0}


def bars(close: Floats, seed: int = 0) -> Bars:
    """Hours that are a close, with ranges and volumes around it."""
    draw = np.random.default_rng(seed)
    spread = 1.0 + np.abs(draw.normal(0.0, 0.002, len(close)))
    return joined(close, spread, draw.lognormal(3.0, 0.3, len(close)))


def market(count: int = 900, drift: float = 0.0, seed: int = 0) -> MarketData:
    steps = np.random.default_rng(seed).normal(drift, 0.005, count)
    hours = bars(100.0 * np.exp(np.cumsum(steps)), seed)
    return MarketData("bitcoin", "file", hours, hours, (QUALITY,))


@pytest.fixture(scope="module")
def walk() -> MarketData:
    return market()


def test_a_file_of_bars_becomes_hours_with_their_quality(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    rows = [f"{iso(START + n * HOUR_US // 2)},{100 + n},{110 + n},{90 + n},{101 + n},2" for n in range(8) if n != 5]
    file.write_text("\n".join(["open_time,open,high,low,close,volume", *rows]))
    found = load_market(str(file), "ETH")
    assert (found.coin, found.source, len(found.hours)) == ("ethereum", "file", 4)
    assert found.hours.close.tolist() == [102.0, 104.0, 105.0, 108.0]
    assert found.hours.volume.tolist() == [4.0, 4.0, 2.0, 4.0]
    [quality] = found.quality
    assert (quality["prices"], quality["gaps"], quality["bars of"]) == (7, 1, "30 min")
    assert quality["complete_pct"] == pytest.approx(100 * 7 / 8)
    days = [f"2026-01-{day:02}T00:00:00Z,{day},{day},{day},{day}" for day in range(1, 5)]
    for header, said in (
        ("open_time,open,high,low,close", "make no hours"),
        ("time,close,a,b,c", "more than 1 h apart"),
    ):
        daily = tmp_path / "daily.csv"
        daily.write_text("\n".join([header, *days]))
        with pytest.raises(InputError, match=said):
            load_market(str(daily))
    with pytest.raises(InputError, match="forecasts of 1 h cannot be judged: 386 bars of 1 h are needed, 4 are known"):
        measure.past_forecasts(found.hours)
    with pytest.raises(InputError, match="too few to put anomalies in"):
        measure.injected(found, [4.0])
    with pytest.raises(InputError, match="too few to judge ratings"):
        measure.past_ratings(found)


def test_packaged_prices_have_hours_and_days_with_volumes() -> None:
    found = load_market()
    assert len(found.hours) > 2_000
    assert np.isnan(found.hours.volume).all()
    assert found.with_volume.frame_us == DAY_US
    assert np.isfinite(found.with_volume.volume).all()
    assert [each["bars of"] for each in found.quality] == ["15 min", "1 day"]


def test_a_figure_that_looks_ahead_is_named(walk: MarketData, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure.looks_ahead(walk.hours, cuts=2) == []

    def peek(bars: Bars) -> Floats:
        return np.append(bars.close[1:], np.nan)

    def centred(bars: Bars) -> Floats:
        return bars.close - bars.close.mean()

    planted = {each.__name__: Indicator(each.__name__, each, 0, "price", each.__name__) for each in (peek, centred)}
    monkeypatch.setattr(measure, "CAUSAL", measure.CAUSAL | planted)
    assert measure.looks_ahead(walk.hours, cuts=2) == ["centred", "peek"]


def test_forecasts_win_on_a_steady_trend_and_not_on_a_random_walk(walk: MarketData) -> None:
    on_walk = measure.past_forecasts(walk.hours)
    assert [each.hours for each in on_walk.horizons] == [1, 2, 3, 4]
    assert all(each.stays.error_ratio.value > 1.0 for each in on_walk.horizons)
    assert all(abs(each.interval.held.value - 0.8) < 0.06 for each in on_walk.horizons)
    trend = measure.past_forecasts(market(drift=0.01, seed=1).hours)
    assert all(each.stays.error_ratio.high < 1.0 for each in trend.horizons)
    assert all(each.accuracy.direction.correct.low > 0.9 for each in trend.horizons)
    sure = example(ConfidenceRecord)
    text = found_in(ratings(0.3, 0.1, 0.5), sure)
    assert text[0].startswith("9 past ratings over 3 weeks show a relation to the price 24 h later (correlation +0.30)")
    rating, _, areas, texts, *_, coverages = found_in(ratings(0.1, -0.2, 0.4), sure)
    assert "79 to 81 % of prices" in coverages
    assert areas.endswith("the area under the ROC curve is: jump 0.80 (0.70 to 0.90).")
    assert "show no relation" in rating
    assert "2 invented sample texts, so it is a simulation" in texts


def test_simulated_intervals_hold_what_they_promise() -> None:
    found = measure.simulated_coverage(walks=4, bars=900)
    assert len(found) == 8
    assert all(abs(each.held - 0.8) < 0.03 for each in found)


def test_large_anomalies_are_found_and_small_ones_less(walk: MarketData) -> None:
    found = measure.injected(walk, [0.5, 8.0], seed=1)
    area = {(each.kind, each.size): each.auc for each in found}
    for kind in ("outlier", "jump", "volume", "pump"):
        assert area[kind, 8.0] > 0.95
        assert area[kind, 0.5] < area[kind, 8.0]
    assert all(each.low <= each.auc <= each.high for each in found)
    assert measure.injected(walk, [0.5, 8.0], seed=1) == found
    check(study.curves(found))


def test_ratings_of_the_past_are_followed_by_the_price() -> None:
    found = measure.past_ratings(market(1_700))
    assert found.ratings == sum(each.times for each in found.steps)
    between = found.correlation
    assert between.value is not None and between.low is not None and between.high is not None
    assert between.low <= between.value <= between.high
    rules = [each["rule"] for each in study.rule_rows(found.last)]
    assert rules == ["trend", "averages", "momentum", "excess", "sentiment"]
    check(study.after_ratings(found))
    # Every price 24 h later is 1 % higher, whatever the rating.
    steady = market(800)
    steady = replace(steady, hours=bars(100.0 * np.exp(np.arange(800) * np.log(1.01) / 24)))
    even = measure.past_ratings(steady)
    assert [each.mean_pct for each in even.steps] == pytest.approx([1.0] * len(even.steps))
    assert even.correlation.value is None or abs(even.correlation.value) <= 1.0
    assert {each.low_pct for each in even.steps} == {None}, "five weeks are too few for an interval"


def test_invented_texts_are_called_so_and_collected_ones_are_preferred(tmp_path: Path) -> None:
    sample = measure.load_news("bitcoin", "crypto-lexicon")
    assert sample.simulated
    assert {text.source for text in sample.texts} == {"sample"}
    index = measure.index_over_time(sample)
    assert {len(values) for values in vars(index).values()} == {len(index.at_us)}
    assert all(np.isnan(each) or -1.0 <= each <= 1.0 for each in index.index)
    factors = measure.index_factors(sample)
    assert factors[0]["source"] == "sample (invented)"
    figure = study.sentiment_index(sample, index)
    assert figure.axes[0].get_title(loc="left").startswith("SIMULATION")
    check(figure)
    url = f"sqlite:///{tmp_path / 'lab.db'}"
    engine = open_database(url)
    body = "The exchange was hacked and all funds are lost, a disaster for all who hold bitcoin."
    TextStore(engine).add([Text("feed", "1", "news", "Hack", body, "", "Feed", START, ("bitcoin",))])
    engine.dispose()
    real = measure.load_news("bitcoin", "crypto-lexicon", url)
    assert (real.simulated, [text.source for text in real.texts]) == (False, ["feed"])
    assert real.texts[0].score < 0
    assert not study.sentiment_index(real, measure.index_over_time(real)).axes[0].get_title(loc="left")
    assert measure.load_news("bitcoin", "crypto-lexicon", f"sqlite:///{tmp_path / 'empty.db'}").simulated
    told = {coin for each in read_sample_texts() for coin in each.coins}
    other = next(coin for coin in COINS if coin not in told)
    with pytest.raises(InputError, match=f"no text is about {other}"):
        measure.load_news(other, "crypto-lexicon")


def test_days_count_their_texts_by_what_they_say() -> None:
    bars = study.sentiment_index(NEWS, measure.index_over_time(NEWS)).axes[1].patches
    assert [(bar.get_x(), bar.get_height()) for bar in bars] == [(START // DAY_US, count) for count in (1, 1, 0)]
    names = [row["model"] for row in study.model_rows()]
    assert {"default", "vader"} <= set(names)


def test_pictures_show_prices_and_forecasts(walk: MarketData) -> None:
    figure = study.prices(walk, 100)
    assert len(figure.axes[0].lines[0].get_xdata()) == 100
    check(figure)
    check(study.accuracy(measure.past_forecasts(walk.hours), COVERAGE))


def test_confidence_of_a_sentiment_model_is_judged_on_headlines_it_never_saw() -> None:
    found = study.confidence(make_model("crypto-lexicon"))
    assert (found.headlines, found.groups) == (375, 319)
    parts, error = found.brier, found.ece
    assert parts.uncertainty == pytest.approx(found.accuracy * (1 - found.accuracy))
    assert found.brier_skill.value == pytest.approx(1 - parts.score / parts.uncertainty)
    assert error.low <= error.value <= error.high and error.chance < error.chance_95
    assert sum(each.items for each in found.bins) == 375
    *_, said, _, _ = found_in(ratings(0.1, 0.0, 0.2), found)
    assert ("no evidence against" in said) == (error.value <= error.chance_95)
    check(study.reliability(found))


def check(figure: Figure) -> None:
    """Each panel's axes say what they are, and nothing is left out of the picture."""
    figure.canvas.draw()
    assert figure.axes[0].get_ylabel() or figure.axes[0].get_yticklabels()
    assert any(axes.get_xlabel() for axes in figure.axes)
    shown = [text for text in figure.texts if text.get_text() and text.get_visible()]
    assert all(figure.bbox.fully_overlaps(text.get_window_extent()) for text in shown)


def found_in(past: PastRatings, sure: ConfidenceRecord) -> list[str]:
    return told(study.findings(NEWS, INJECTED, COVERAGE, past, sure), "prediction")


def ratings(value: float, low: float, high: float) -> PastRatings:
    correlation = RecordedEstimate(value, low, high)
    return example(PastRatings, ratings=9, weeks=3, ahead_h=24, correlation=correlation, last=None)
