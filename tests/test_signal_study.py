"""The study of signals: simulated scores, and a database of collected prices and texts from end to end."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import update

from qubic_lab.database import open_database
from qubic_lab.errors import InputError
from qubic_lab.oracle.backtest.costs import Costs
from qubic_lab.oracle.backtest.ledger import open_ledger
from qubic_lab.oracle.model.records import Price, Series, Text
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, MINUTE_US
from qubic_lab.oracle.store.price_store import PriceStore
from qubic_lab.oracle.store.tables import NEWS_DATA
from qubic_lab.oracle.store.text_store import Score, TextStore
from qubic_lab.studies import backtest_figures as figures
from qubic_lab.studies import backtest_findings, collected_signals
from qubic_lab.studies import oracle_backtest as study
from qubic_lab.studies import signal_studies as signals
from qubic_lab.studies.collected_signals import ALL_SOURCES, Collected
from qubic_lab.studies.market_bars import load_bars
from qubic_lab.studies.signal_studies import SignalStudy

pytestmark = pytest.mark.usefixtures("quick_audits")
BARS = 640
START_US = 19_500 * DAY_US
COSTS = Costs(10.0, 2.0)
DRAWINGS = (figures.coefficients, figures.quantiles, figures.event_paths, figures.lead_and_lag)


def prices(bars: int = BARS) -> list[Price]:
    """Hours whose opens walk at random and are the last closes."""
    closes = 100.0 * np.exp(np.cumsum(0.01 * np.random.default_rng(0).standard_normal(bars + 1)))
    made = []
    for n, (before, after) in enumerate(pairwise(closes.tolist())):
        opened_us, ends = START_US + n * HOUR_US, {"high": max(before, after), "low": min(before, after)}
        made.append(Price(opened_us, opened_us + HOUR_US, close=after, open=before, **ends, volume=10.0))
    return made


def text(source: str, name: str, published_us: int | None) -> Text:
    """A text of words that no other one has, so that it repeats none."""
    title = " ".join(f"{name}{number}" for number in range(8))
    return Text(source, name, "news", title, "", "", source, published_us, ("bitcoin",))


def fill(
    url: str, sources: tuple[str, ...], *, bars: int = BARS, scored: bool = True, fetched_us: int = MINUTE_US
) -> None:
    """Keep bars, and a text in the middle of each from a source in turn; model "good" knows the next return a little.

    Each text is fetched so much later than it was published. Model "noise" knows nothing.
    """
    engine = open_database(url)
    PriceStore(engine).add(Series("bitcoin", "exchange", 3_600), found := prices(bars))
    closes = np.log([price.close for price in found])
    ahead = np.append(np.diff(closes), 0.0)  # of the bar after a text's own
    rng = np.random.default_rng(1)
    good = np.tanh(0.35 * ahead / ahead.std() + rng.standard_normal(bars))
    noise = np.tanh(rng.standard_normal(bars))
    store = TextStore(engine)
    middles = [price.opened_us + HOUR_US // 2 for price in found]
    store.add(text(sources[n % len(sources)], f"w{n}x", at) for n, at in enumerate(middles))
    kept = {each.external_id: each.id for each in store.read("bitcoin", 0, 1 << 61)}
    if scored:
        store.add_scores(
            Score(kept[f"w{n}x"], f"{name}@1", float(values[n]))
            for name, values in (("good", good), ("noise", noise))
            for n in range(bars)
        )
    with engine.begin() as connection:
        connection.execute(update(NEWS_DATA).values(known_us=NEWS_DATA.c.published_us + fetched_us))
    engine.dispose()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with two sources, and invented samples that would know the future."""
    made = f"sqlite:///{tmp_path_factory.mktemp('collected')}/market.db"
    fill(made, ("feed", "forum"))
    engine = open_database(made)
    store = TextStore(engine)
    store.add([text("sample", f"s{n}y", START_US + n * HOUR_US) for n in range(40)])
    samples = [each for each in store.read("bitcoin", 0, 1 << 61) if each.source == "sample"]
    store.add_scores(Score(each.id, "good@1", 1.0) for each in samples)
    engine.dispose()
    return made


@pytest.fixture(scope="module")
def found(url: str) -> Collected:
    return collected_signals.load_collected(url)


@pytest.fixture(scope="module")
def studies(found: Collected) -> list[SignalStudy]:
    return signals.study_signals(signals.choose_scores((), found, ()), horizons=[1, 4], resamples=100)


def test_collected_texts_stand_beside_prices_of_their_own_time(found: Collected) -> None:
    assert (found.bars.name, found.bars.coin, found.bars.source) == ("1 h", "bitcoin", "exchange")
    assert len(found.bars.bars) == BARS and found.models == ("good@1", "noise@1")
    texts = {name: len(each) for name, each in found.by_source.items()}
    assert texts == {ALL_SOURCES: BARS, "feed": BARS // 2, "forum": BARS // 2}
    first = found.by_source["feed"][0]
    assert first.available_us == first.published_us + MINUTE_US + collected_signals.LATENCY_US
    assert [row["bars with a score"] for row in found.usage] == [BARS, BARS // 2, BARS // 2]


def test_what_is_planted_in_one_model_is_found_there_and_not_in_the_other(studies: list[SignalStudy]) -> None:
    assert [study.title for study in studies] == [
        f"{source}, {model}, 1 h" for source in (ALL_SOURCES, "feed", "forum") for model in ("good", "noise")
    ]
    assert {study.tests for study in studies} == {12}
    by_title = {study.title: study for study in studies}
    planted, noise = by_title["all sources, good, 1 h"], by_title["all sources, noise, 1 h"]
    assert planted.evidence and planted.best is not None and planted.best.horizon == 1
    assert planted.best.found.low is not None and planted.best.found.high is not None
    assert planted.best.found.low <= 0.32 <= planted.best.found.high  # 0.35 / √(1 + 0.35²), by ranks
    assert not noise.evidence and (planted.lead.verdict, noise.lead.verdict) == ("sentiment leads", "neither")
    assert not signals.looks_ahead(studies)
    by_whole = replace(planted.aligned, score=planted.aligned.score / np.nanmax(planted.aligned.score))
    assert signals.looks_ahead([replace(planted, aligned=by_whole)]) == [planted.title]
    smooth = signals.study_signals([[planted.scored]], horizons=[1], last=4, resamples=20)[0]
    assert smooth.best is not None and smooth.best.found.ic is not None and planted.best.found.ic is not None
    assert 0.0 < smooth.best.found.ic < planted.best.found.ic  # three of four bars know nothing of the next one


def test_a_collected_study_is_told_as_measured(found: Collected, studies: list[SignalStudy]) -> None:
    record = signals.to_dict(studies)
    json.dumps(record, allow_nan=False)
    assert (record["simulation"], record["measured"], record["reason"]) == (False, True, None)
    first = record["studies"][0]
    assert (first["source"], first["model"], first["effect"], first["bars"]) == (ALL_SOURCES, "good@1", None, "1 h")
    assert first["evidence"] and first["best"]["horizon"] == 1 and first["lead"] == "sentiment leads"
    said = list(map(str, signals.findings(studies, COSTS)))
    assert not any("SIMULATION" in each for each in said)
    assert said[0].startswith("All sources, good, 1 h: scores predict returns (IC +0.")
    assert any(each.startswith("All sources, noise, 1 h: no evidence that scores predict") for each in said)
    assert found.notes()[-1].startswith("640 of 640 collected texts were scored more than a day after they came")
    assert signals.caption(studies, "x") == "x"
    with open_ledger("sqlite://") as ledger:
        (bars, texts), *others = signals.traded(signals.choose_scores((), found, ()), found)
        family = study.study_family(bars, ledger, COSTS, scored=texts, draws=2, resamples=100)
    assert not others and family.recorded == 8 and not family.simulated
    assert family.title == "collected sentiment, 1 h"
    assert "not measured" not in " ".join(map(str, backtest_findings.findings([family], collected=True)))


def test_tables_and_figures_show_every_series(studies: list[SignalStudy]) -> None:
    assert len(signals.information_rows(studies)) == 12
    row = signals.summary_rows(studies, COSTS)[0]
    assert row["round_trip_bps"] == 24.0 and row["evidence"] and row["edge_bps"] > 10.0
    for draw in DRAWINGS:
        figure = draw(studies)
        assert [axes.get_title(loc="left") for axes in figure.axes] == [each.title for each in studies]
    empty = replace(studies[3], events=tuple(replace(each, absent="too few") for each in studies[3].events))
    panels = figures.event_paths([*studies[:3], empty, *studies[4:]]).axes[3:]
    assert [axes.yaxis.get_tick_params()["labelleft"] for axes in panels] == [True, False, False]  # one scale for a row
    many = figures.lead_and_lag([*studies, *studies])
    assert len(many.axes) == figures.MOST_PANELS
    assert "\n6 of 12 series: all sources first" in many.get_supxlabel()


def test_texts_that_were_fetched_late_count_from_then_on(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/late.db"
    fill(url, ("feed",), fetched_us=30 * HOUR_US)
    found = collected_signals.load_collected(url)
    told = found.usage[0]
    assert (told["late by a bar"], told["too late"]) == (BARS, 30) and list(found.by_source) == [ALL_SOURCES]
    notes = found.notes()
    assert notes[0].startswith("30 of 640 collected texts came after") and "fetched more than a bar" in notes[1]
    good = signals.study_signals(signals.choose_scores((), found, ()), horizons=[1], resamples=50)[0]
    assert not good.evidence and good.lead.verdict == "price leads"  # it tells what has come 29 hours ago


def test_models_are_chosen_by_name_and_score_where_nothing_is_stored(url: str, tmp_path: Path) -> None:
    assert collected_signals.load_collected(url, "BTC", ["noise"]).models == ("noise@1",)
    with pytest.raises(InputError, match="unknown model 'nois'"):
        collected_signals.load_collected(url, "bitcoin", ["nois"])
    fresh = f"sqlite:///{tmp_path}/fresh.db"
    fill(fresh, ("feed",), scored=False)
    found = collected_signals.load_collected(fresh, "bitcoin", ["crypto-lexicon"])
    assert found.models[0].startswith("crypto-lexicon@")
    flat = signals.study_signals(signals.choose_scores((), found, ()), resamples=50)
    assert "scores cannot be compared with returns: every score is" in str(signals.findings(flat, COSTS)[0])
    assert signals.to_dict(flat)["studies"][0]["best"] is None
    for draw in DRAWINGS:
        draw(flat)


def test_databases_that_cannot_be_used_get_one_clear_line(url: str, tmp_path: Path) -> None:
    empty, samples, few, bare = (f"sqlite:///{tmp_path}/{name}.db" for name in ("empty", "samples", "few", "bare"))
    fill(few, ("feed",), bars=200)
    for made, source in ((samples, "sample"), (bare, "feed")):
        engine = open_database(made)
        TextStore(engine).add([text(source, "one", START_US)])
        engine.dispose()
    open_database(empty).dispose()
    absent = tmp_path / "absent.db"
    for database, coin, said in (
        (f"sqlite:///{absent}", "bitcoin", "absent.db does not exist: check the path"),
        (url, "bitcoinn", "did you mean 'bitcoin'"),
        (url, "ethereum", "no collected text is about ethereum"),
        (empty, "bitcoin", "no collected text is about bitcoin in sqlite"),
        (samples, "bitcoin", "invented samples do not count"),
        (bare, "bitcoin", "there are no prices of bitcoin in usd"),
        (few, "bitcoin", "bitcoin has 200 bars in the time of its texts"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            collected_signals.load_markets("", coin, {}, database, ["crypto-lexicon"] if database == bare else [])
        assert "\n" not in str(caught.value)
    assert not absent.exists()
    with pytest.raises(InputError, match="leave one of the two out"):
        collected_signals.load_markets("my.csv", "bitcoin", {}, url)
    with pytest.raises(InputError, match="`models` are vader and `collected` is empty"):
        collected_signals.load_markets(models=["vader"])


def test_simulations_say_so_everywhere_and_find_what_is_planted() -> None:
    markets = load_bars()
    groups = signals.choose_scores(markets, None, [0.0, 0.4])
    assert [len(group) for group in groups] == [1, 1, 1, 1] and len(signals.traded(groups, None)) == 4
    found = signals.study_signals(groups[2:], horizons=[1, 2, 24, 200], resamples=50)
    nothing, planted = found
    assert not nothing.evidence and planted.evidence and planted.coefficients[0].evidence
    assert [row.horizon for row in planted.coefficients] == [1, 2, 24]  # 200 days do not fit into 661
    *said, left_out = map(str, signals.findings(found, COSTS))
    assert all(each.startswith("SIMULATION: effect ") for each in said)
    assert left_out == "Horizons of 200 bars were left out: 661 bars of 1 day are too few."
    record = signals.to_dict(found)
    assert (record["simulation"], record["measured"], record["reason"]) == (True, False, "no collected texts")
    assert [each["effect"] for each in record["studies"]] == [0.0, 0.4]
    assert signals.caption(found, "x") == "SIMULATION: x"
    titles = [axes.get_title(loc="left") for axes in figures.coefficients(found).axes]
    assert titles == ["SIMULATION: effect 0, 1 day", "SIMULATION: effect 0.4, 1 day"]
    assert not signals.looks_ahead(found)


def test_scores_that_predict_the_opposite_are_traded_against() -> None:
    (bars,) = (each for each in load_bars() if each.name == "1 day")
    groups = signals.choose_scores([bars], None, [-0.4])
    said, worth = map(str, signals.findings(signals.study_signals(groups, horizons=[1], resamples=50), COSTS))
    assert "scores predict returns of the opposite sign (IC −0." in said and "1 test)" in said
    assert "a trade against them gains " in worth and "bp over a bar, more than its cost of 24 bp" in worth
    with pytest.raises(InputError, match="seed is -1: it must be at least 0"):
        signals.choose_scores([bars], None, [0.0], -1)
    with pytest.raises(InputError, match="seed is -1: it must be at least 0"):
        signals.study_signals(groups, seed=-1)
