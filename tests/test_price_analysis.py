"""The analysis of a frame of bars: every number from the past alone, and a reason where there is none."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from bar_series import START, bars_of, of_logs, walk
from hypothesis import given, settings
from hypothesis import strategies as st
from strict_warnings import WARNINGS_ARE_ERRORS

from qubic_lab.oracle.analysis.anomalies import NOT_VISIBLE, find_hints
from qubic_lab.oracle.analysis.price_analysis import CAUSAL, MOST_LEVELS, NO_BARS, RECENT, analyse
from qubic_lab.oracle.analysis.results import BarAnalysis
from qubic_lab.oracle.analysis.trend_and_levels import (
    LevelRule,
    drift_scores,
    find_breakouts,
    find_levels,
    find_pivots,
    find_trend,
    pivot_highs,
    pivot_lows,
)
from qubic_lab.oracle.model.bars import Bars, Floats
from qubic_lab.oracle.model.response import Missing, to_plain
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, MINUTE_US, SECOND_US, iso
from qubic_lab.studies.anomaly_trials import inject

pytestmark = WARNINGS_ARE_ERRORS
Function = Callable[[Bars], Floats]


def made(seed: int, count: int, step: float, gaps: bool, holes: float, frame_us: int) -> Bars:
    """Return a series with what occurs: gaps, unknown volumes, no trade, prices that stand still, a spike."""
    chance = np.random.default_rng(seed)
    series = walk(count, seed, step, float(10 ** chance.uniform(-6, 5)), frame_us)
    logs = series.log_close.copy()
    still = int(chance.integers(0, count - 40))
    logs[still : still + int(chance.integers(1, 40))] = logs[still]
    logs[int(chance.integers(0, count))] += float(chance.normal() * 20 * step)
    close = np.exp(logs)
    high, low = np.maximum(series.high, close), np.minimum(series.low, close)
    volume = np.where(chance.random(count) < holes, chance.choice([0.0, np.nan], count), series.volume)
    places = np.cumsum(np.where(chance.random(count) < 0.05, 3, 1)) if gaps else np.arange(count)
    return bars_of(close, series.open, high, low, volume, frame_us, places.tolist())


def scrambled(series: Bars, kept: int, seed: int) -> Bars:
    """Return the series with other prices, volumes and times from a place on."""
    chance = np.random.default_rng(seed)
    rest = len(series) - kept
    wild = {name: getattr(series, name).copy() for name in ("open", "high", "low", "close", "volume")}
    for name in wild:
        wild[name][kept:] = np.exp(chance.normal(0.0, 3.0, rest))
    wild["high"][kept:] = np.maximum(wild["high"], wild["low"])[kept:]
    wild["low"] = np.minimum(wild["high"], wild["low"])
    times = series.closed_us.copy()
    times[kept:] = times[kept:] + np.cumsum(chance.integers(0, 5, rest)) * series.frame_us
    return Bars.of(times, **wild, frame_us=series.frame_us)


def same(one: Floats, other: Floats) -> bool:
    """Return whether all bits agree; one NaN is as good as another."""
    return np.where(np.isnan(one), np.nan, one).tobytes() == np.where(np.isnan(other), np.nan, other).tobytes()


def check_causal(function: Function, series: Bars, cut: int, seed: int) -> None:
    values = function(series)
    assert len(values) == len(series)
    assert same(function(series.slice(0, cut)), values[:cut]), f"the first {cut} bars alone give other values"
    assert same(function(scrambled(series, cut, seed))[:cut], values[:cut]), f"bars from {cut} on change earlier values"


@pytest.mark.parametrize("name", CAUSAL)
@settings(max_examples=20)
@given(
    st.integers(0, 2**32 - 1),
    st.one_of(st.integers(1, 519), st.integers(-5, 5).map(lambda off: f"{off:+d}")),
    st.sampled_from([0.0005, 0.004, 0.05]),
    st.booleans(),
    st.sampled_from([0.0, 0.0, 0.15]),
    st.sampled_from([15 * MINUTE_US, HOUR_US, 4 * HOUR_US]),
)
def test_no_value_depends_on_later_bars(
    name: str, seed: int, cut: int | str, step: float, gaps: bool, holes: float, frame_us: int
) -> None:
    """Prefix invariance and future scramble, bit for bit, at any bar or ("+2") near the warm-up; none is infinite."""
    series = made(seed, 520, step, gaps, holes, frame_us)
    place = cut if isinstance(cut, int) else max(1, CAUSAL[name].warm_up + int(cut))
    check_causal(CAUSAL[name], series, place, seed)
    assert not np.isinf(CAUSAL[name](series)).any()


def centred_mean(series: Bars) -> Floats:
    return np.convolve(series.close, np.ones(3) / 3, "same")


def z_of_the_whole(series: Bars) -> Floats:
    return (series.close - series.close.mean()) / (1e-9 + series.close.std())


def filled_back(series: Bars) -> Floats:
    values = CAUSAL["rsi_14"](series)
    values[:14] = values[14] if len(values) > 14 else np.nan
    return values


def shown_early(series: Bars) -> Floats:
    return np.concatenate([CAUSAL["pivot_high"](series)[5:], np.full(min(5, len(series)), np.nan)])


@pytest.mark.parametrize("leak", [centred_mean, z_of_the_whole, filled_back, shown_early])
def test_planted_leaks_are_caught(leak: Function) -> None:
    """The check above is able to fail: a centred window, a scale of the whole, filling back, a pivot at its own bar."""
    caught = 0
    for cut in range(1, 120, 4):
        try:
            check_causal(leak, walk(130, seed=3), cut, cut)
        except AssertionError:
            caught += 1
    assert caught > 3


@pytest.mark.parametrize("name", CAUSAL)
def test_first_value_comes_after_the_declared_warm_up(name: str) -> None:
    series = walk(700, seed=2, frame_us=4 * HOUR_US if name.startswith("forecast") else HOUR_US)
    values, warm_up = CAUSAL[name](series), CAUSAL[name].warm_up
    assert np.isnan(values[:warm_up]).all()
    if not name.startswith("pivot"):
        assert not math.isnan(values[warm_up])
        assert np.isnan(CAUSAL[name](series.slice(0, warm_up))).all()


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(230, 400), st.booleans())
def test_what_is_reported_of_a_bar_is_known_with_that_bar(seed: int, cut: int, gaps: bool) -> None:
    """Levels, breakouts, hints and whole analyses are those of the bars that were there."""
    series = made(seed, 420, 0.01, gaps, 0.0, HOUR_US)
    series = inject("pump", series, [350], 8.0, seed).bars
    past, at = series.slice(0, cut), int(series.closed_us[cut - 1])
    assert find_levels(past) == find_levels(scrambled(series, cut, seed).slice(0, cut))
    assert find_breakouts(past, 400) == tuple(each for each in find_breakouts(series, 420) if each.at_us <= at)
    assert find_hints(past, 400) == tuple(each for each in find_hints(series, 420) if each.at_us <= at)
    assert analysed(past, at) == analysed(scrambled(series, cut, seed), at)


STILL = [5.0] * 400
ODD = {
    "nothing": bars_of([]),
    "one bar": walk(1),
    "few bars": walk(20),
    "quotes without volumes": of_logs(walk(400).log_close),
    "constant": bars_of(STILL, volume=3.0),
    "constant without trade": bars_of(STILL, volume=0.0),
    "constant without volumes": bars_of(STILL),
    "no trade": bars_of(walk(400).close, volume=0.0),
    "constant, then one move": bars_of([*STILL, 6.0], volume=1.0),
    "one move, then constant": bars_of([6.0, *STILL], volume=1.0),
    "two prices in turn": bars_of([5.0, 6.0] * 200, volume=[1.0, 2.0] * 200),
    "a ramp": bars_of(np.arange(1.0, 401.0), volume=np.arange(400.0)),
    "days": walk(400, frame_us=DAY_US),
    "minutes": walk(400, frame_us=MINUTE_US),
    "tiny": walk(400, first=1e-9),
    "wild": walk(400, step=1.0),
}


def analysed(series: Bars, at_us: int | None = None) -> BarAnalysis:
    return analyse(series, START + 500 * series.frame_us if at_us is None else at_us, "exchange", 0)


@pytest.mark.parametrize("name", ODD)
def test_nothing_odd_gives_warnings_or_infinities(name: str) -> None:
    plain = to_plain(analysed(ODD[name]))
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert not any(np.isinf(function(ODD[name])).any() for function in CAUSAL.values())


def reasons(found: BarAnalysis) -> dict[str, str]:
    parts = vars(found) | found.indicators | found.forecasts | vars(found.anomalies)
    return {name: each.reason for name, each in parts.items() if isinstance(each, Missing)}


def test_without_a_bar_every_part_is_missing() -> None:
    assert analysed(ODD["nothing"]) == analysed(walk(20), START) == BarAnalysis.missing(NO_BARS)


NO_VOLUME = "no volume is known: exchange gives none of a bar; import bars that have volumes"


@pytest.mark.parametrize(
    ("name", "expected", "present"),
    [
        (
            "few bars",
            {
                "sma_50": "50 bars are needed, 20 are known",
                "trend": "49 bars are needed, 20 are known",
                "jumps": "243 bars are needed, 20 are known",
                "1h": "145 bars are needed, 20 are known",
            },
            {"sma_20", "levels", "patterns"},
        ),
        ("one bar", {"sma_20": "20 bars are needed, 1 is known"}, {"analysed"}),
        (
            "constant",
            {
                "rsi_14": "the price did not move",
                "bollinger_position": "the price did not move",
                "levels": "the price did not move in the last 1000 bars",
                "1h": "the price did not move in the last 49 bars",
                "jump_test": "the price hardly moved in the last 97 bars",
                "patterns": "open, high, low and close are one price in each bar: no candle has a body or shadows",
            },
            {"outliers", "jumps", "volumes", "trend"},
        ),
        (
            "no trade",
            {
                "volume_balance": "volumes are not known or 0",
                "manipulation": "195 bars with a volume above 0 are needed, 0 are known",
            },
            {"volumes"},
        ),
        ("quotes without volumes", {"volumes": NO_VOLUME, "manipulation": NO_VOLUME}, set()),
    ],
)
def test_what_is_missing_says_why(name: str, expected: dict[str, str], present: set[str]) -> None:
    why = reasons(analysed(ODD[name]))
    assert {each: why.get(each) for each in expected} == expected
    assert not present & set(why)


def test_every_value_has_its_age_and_warm_up() -> None:
    series = walk(600, seed=9)
    first_us, last_us = int(series.closed_us[0]), int(series.closed_us[-1])
    found = analysed(series, last_us + 90 * SECOND_US)
    assert not reasons(found)
    bars = found.analysed
    assert (bars.source, bars.interval_s, bars.bars, bars.missing) == ("exchange", 0, 600, 0)
    assert (bars.first_us, bars.last_us, bars.age_s) == (first_us, last_us, 90.0)
    assert NOT_VISIBLE in bars.notes
    for name, each in found.indicators.items():
        assert (each.value, each.warm_up, each.age_s) == (CAUSAL[name](series)[-1], CAUSAL[name].warm_up, 90.0)
    assert 0 < len(found.levels) <= MOST_LEVELS
    plain = to_plain(found)
    assert plain["forecasts"]["4h"]["at"] == iso(last_us + 4 * HOUR_US)
    assert plain["levels"][0]["first"].endswith("Z")


def test_what_is_missing_and_bars_without_trade_are_noted() -> None:
    found = analysed(bars_of(walk(300).close, volume=0.0, places=[*range(200), *range(210, 310)]))
    assert found.analysed.missing == 10
    assert found.analysed.notes[0].startswith("10 bars are missing and were not filled in")
    assert [each.kind for each in found.anomalies.volumes] == ["zero-volume"] * RECENT
    assert "in 300 of 300 bars nothing was traded" in found.analysed.notes


def test_recent_anomalies_have_their_numbers() -> None:
    series = walk(600, seed=3)

    def found(bars: Bars, place: int = 599) -> dict[str, Any]:
        return vars(analysed(bars, int(series.closed_us[place])).anomalies)

    jumped = inject("jump", series, [590], 25.0, seed=1).bars
    pct = 100 * (jumped.close[590] / jumped.close[589] - 1)
    for name in ("jump", "outlier"):
        (unusual,) = found(jumped)[f"{name}s"]
        assert (unusual.kind, unusual.at_us) == (name, series.closed_us[590])
        assert unusual.evidence["return_pct"] == pytest.approx(pct)
        assert f"{pct:+.2f} % in 1 bar: {unusual.score:+.1f}" in unusual.text
    assert found(series)["jumps"] == found(series)["outliers"] == ()
    more = inject("volume", series, [590], 12.0).bars
    (unusual,) = found(more)["volumes"]
    volume = unusual.evidence["volume"]
    assert (unusual.kind, unusual.at_us, volume) == ("volume", series.closed_us[590], more.volume[590])
    assert "at this time of day on 15 days" in unusual.text
    assert found(more, 580)["volumes"] == ()


def test_recent_patterns_are_reported() -> None:
    """An engulfing rise at the second last bar, after bars without a shape."""
    flat = [(100.0, 101.5, 98.5, 101.0 - 2 * (n % 2)) for n in range(20)]
    open, high, low, close = np.array([*flat, (101, 102, 98, 99), (98.5, 103, 98, 102.5), (102, 104, 100, 103.0)]).T
    series = bars_of(close, open, high, low)
    found = analysed(series).patterns
    engulfing = [(each.direction, each.at_us) for each in found if each.name == "engulfing"]
    assert engulfing == [("rise", series.closed_us[-2])]
    assert all(each.at_us >= series.closed_us[-3] for each in found)


def test_pivots_are_known_when_they_are_confirmed() -> None:
    high = [1.0, 2.0, 3.0, 2.0, 2.5, 2.5, 1.0, 4.0, 1.0, 1.0]
    series = bars_of(high, low=[1.0] * 10, high=high)
    found = pivot_highs(series, 2)
    assert np.flatnonzero(~np.isnan(found)).tolist() == [4, 9]  # of bars 2 and 7
    assert found[[4, 9]].tolist() == [3.0, 4.0]
    lows = bars_of([5.0] * 9, low=[4.0, 3.0, 2.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0], high=[5.0] * 9)
    assert pivot_lows(lows, 2)[[4, 8]].tolist() == [2.0, 1.0]
    pivots = find_pivots(series, LevelRule(side=2))
    assert (pivots.known - pivots.place).tolist() == [2] * len(pivots.place)
    assert np.isnan(pivot_highs(bars_of([5.0] * 20), 2)).all()


def zigzag(tops: list[float], bottoms: list[float]) -> list[float]:
    """Return closes that go from bottom to top and back, 6 bars each way."""
    points = [each for pair in zip(bottoms, tops, strict=True) for each in pair] + [bottoms[-1]]
    closes = [points[0]]
    for start, end in pairwise(points):
        closes += np.linspace(start, end, 7)[1:].tolist()
    return closes


def test_levels_are_where_moves_ended() -> None:
    closes = zigzag([110.0, 110.3, 109.8, 110.1], [100.0, 100.2, 99.9, 100.1])
    series = bars_of([*closes, *np.linspace(100.1, 104, 7)[1:]])
    found = {each.kind: each for each in find_levels(series)}
    assert set(found) == {"support", "resistance"}
    above, below = found["resistance"], found["support"]
    assert (above.low, above.high, above.touches) == (109.8, 110.3, 4)
    assert (below.low, below.high) == (99.9, 100.2)
    assert below.touches == 4  # the first bottom has no bars before it
    places = [6, 18, 30, 42]
    weights = [0.5 ** ((len(series) - 1 - place) / 250) for place in places]
    assert above.strength == pytest.approx(sum(weights))
    tops = zip(weights, [110.0, 110.3, 109.8, 110.1], strict=True)
    assert above.price == pytest.approx(sum(weight * top for weight, top in tops) / sum(weights))
    assert above.distance_pct == pytest.approx(100 * (above.price / 104 - 1))
    assert (above.first_us, above.last_us) == (series.closed_us[6], series.closed_us[42])


def test_pivots_that_lie_apart_are_levels_of_their_own() -> None:
    """Clusters are no wider than the rule says, however many pivots lie between two ends."""
    tops = [110.0 + 0.6 * n for n in range(8)]
    series = bars_of(zigzag(tops, [100.0] * 8))
    atr = float(CAUSAL["atr_14"](series)[-1])
    found = find_levels(series, rule=LevelRule(touches=1))
    assert all(each.high - each.low <= atr for each in found)
    assert sum(each.touches for each in found if each.kind == "resistance") == 8
    assert [each.strength for each in found] == sorted((each.strength for each in found), reverse=True)
    assert all(each.touches >= 3 for each in find_levels(series, rule=LevelRule(touches=3)))


def test_old_bars_have_no_level() -> None:
    series = bars_of([*zigzag([200.0] * 4, [190.0] * 4), *zigzag([110.0] * 4, [100.0] * 4)])
    assert any(each.price > 150 for each in find_levels(series))
    assert all(each.price < 150 for each in find_levels(series, rule=LevelRule(bars=50)))


@pytest.mark.parametrize(("volume", "confirmed"), [(100.0, True), (11.0, False), (math.nan, False)])
def test_breakout_by_hand(volume: float, confirmed: bool) -> None:
    closes = [*zigzag([110.0] * 4, [100.0] * 4), *np.linspace(100, 109, 7)[1:].tolist()]
    volumes = [10.0] * len(closes)
    before = bars_of(closes, volume=volumes)
    assert find_breakouts(before, 30) == ()
    atr = float(CAUSAL["atr_14"](before)[-1])
    (found,) = find_breakouts(bars_of([*closes, 112.0], volume=[*volumes, volume]), 30)
    assert (found.direction, found.close, found.at_us) == ("up", 112.0, before.closed_us[-1] + HOUR_US)
    assert (found.level.kind, found.level.high) == ("resistance", 110.0)
    assert found.margin == pytest.approx(2.0 / atr)
    assert found.volume_ratio == (None if math.isnan(volume) else volume / 10)
    assert found.confirmed == confirmed
    assert find_breakouts(bars_of([*closes, 110.0 + 0.2 * atr], volume=[*volumes, volume]), 30) == ()
    assert len(find_breakouts(bars_of([*closes, 112.0, 113.0]), 30)) == 1  # the second close was beyond it before
    assert find_breakouts(bars_of([*closes, 110.2, 107.0]), 30) == ()  # it came from there: the level has held
    assert len(find_breakouts(bars_of([*closes, 110.2, 110.1, 112.0]), 30)) == 1  # slowly, but through


def test_breakout_downwards() -> None:
    closes = [*zigzag([110.0] * 4, [100.0] * 4), *np.linspace(100, 101, 7)[1:].tolist(), 97.0]
    (found,) = find_breakouts(bars_of(closes), 1)
    assert (found.direction, found.level.low, found.confirmed) == ("down", 100.0, False)


def test_trend_needs_more_than_chance() -> None:
    """Of random walks 5 in 100 are called trends, though the regression's own t calls nearly all of them so."""
    walks = [find_trend(walk(120, seed)) for seed in range(400)]
    trends = [each for each in walks if each is not None]
    assert len(trends) == 400
    assert 0.02 <= sum(each.direction != "none" for each in trends) / 400 <= 0.08
    assert sum(abs(each.slope_t or 0.0) > 1.96 for each in trends) / 400 > 0.6
    rising = find_trend(of_logs(walk(200).log_close + 0.003 * np.arange(200)))
    falling = find_trend(of_logs(walk(200).log_close - 0.003 * np.arange(200)))
    assert (rising.direction, falling.direction) == ("rising", "falling")
    assert rising.text.startswith("rising: move over 48 bars of +")


def test_trend_by_hand() -> None:
    series = walk(200, seed=4)
    found = find_trend(series)
    logs = series.log_close[-49:]
    moves = np.diff(logs)
    assert found.drift == pytest.approx((logs[-1] - logs[0]) / math.sqrt(np.mean(moves**2)) / math.sqrt(48))
    assert found.drift == pytest.approx(drift_scores(series)[-1])
    slope, _ = np.polyfit(np.arange(48.0), logs[1:], 1)
    assert found.slope_pct_per_hour == pytest.approx(100 * math.expm1(slope))
    assert found.fit == pytest.approx(np.corrcoef(np.arange(48.0), logs[1:])[0, 1] ** 2)
    assert found.adx == CAUSAL["adx_14"](series)[-1]
    assert found.strong == (found.adx >= 25)
    assert find_trend(series.slice(0, 48)) is None
    still = find_trend(bars_of(STILL))
    assert (still.direction, still.drift, still.slope_t, still.fit) == ("none", None, None, None)
    assert still.text == "the price did not move in 48 bars"


def test_gaps_do_not_make_trends() -> None:
    """The same move over 48 bars is less of a surprise the more time it took."""
    logs = 0.003 * np.arange(60) + walk(60).log_close
    near, far = bars_of(np.exp(logs)), bars_of(np.exp(logs), places=(np.arange(60) * 4).tolist())
    assert drift_scores(far)[-1] == pytest.approx(drift_scores(near)[-1])
    slow, quick = find_trend(far), find_trend(near)
    assert math.log1p(quick.slope_pct_per_hour / 100) == pytest.approx(4 * math.log1p(slow.slope_pct_per_hour / 100))
