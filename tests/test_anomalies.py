"""Anomalies of known size are found, what is usual is not, and every hint names its numbers."""

import math
import statistics

import numpy as np
import pytest
from bar_series import bars_of, of_logs, walk
from strict_warnings import WARNINGS_ARE_ERRORS

from qubic_lab.errors import InputError
from qubic_lab.oracle.analysis import anomalies
from qubic_lab.oracle.analysis.anomalies import SCORES, medians_before, robust_scores
from qubic_lab.oracle.analysis.price_analysis import CAUSAL
from qubic_lab.oracle.analysis.trend_and_levels import spread
from qubic_lab.oracle.model.bars import Bars, Floats
from qubic_lab.oracle.model.records import outliers
from qubic_lab.oracle.model.timestamps import HOUR_US
from qubic_lab.studies.anomaly_trials import KINDS, InjectedKind, inject, roc

pytestmark = WARNINGS_ARE_ERRORS
SERIES = walk(3_000, seed=1)
PLACES = list(range(300, 2_900, 50))


def with_volume(series: Bars, volumes: Floats) -> Bars:
    return bars_of(series.close, series.open, series.high, series.low, volumes, series.frame_us)


def test_medians_before_are_those_of_the_values_before() -> None:
    values = np.random.default_rng(0).standard_normal(200)
    found = medians_before(values, 21)
    assert np.isnan(found[:21]).all()
    assert found[21:].tolist() == [statistics.median(values[n - 21 : n].tolist()) for n in range(21, 200)]
    assert np.isnan(medians_before(values[:21], 21)).all()


def test_robust_scores_by_hand() -> None:
    """Distances 1, 3, 2 and then 8: their median is 2, so 8 is 8 / 2.9652 deviations away; floors hold from below."""
    values, middle = np.array([5.0, 11.0, 13.0, 12.0, 18.0]), np.array([np.nan, 10.0, 10.0, 10.0, 10.0])
    assert robust_scores(values, middle, 3, 1e-9)[4] == pytest.approx(8 / (1.4826 * 2))
    assert np.isnan(robust_scores(values, middle, 3, 1e-9)[:4]).all()
    assert robust_scores(values, middle, 3, 4.0)[4] == pytest.approx(2.0)


def test_outliers_are_those_of_cleaning_but_for_a_few() -> None:
    injected = inject("outlier", SERIES, PLACES, 25.0, seed=2).bars
    scores = anomalies.outlier_scores(injected)
    ours = np.abs(scores) >= anomalies.OUTLIER_THRESHOLD
    theirs = outliers(injected.closed_us, injected.close.tolist())
    assert ours[PLACES].all() and theirs[PLACES].all()
    assert np.count_nonzero(ours != theirs) <= 0.02 * np.count_nonzero(theirs)


@pytest.mark.parametrize(("place", "deviations"), [(243, 5.0), (246, 2.5)])
def test_jump_score_by_hand(place: int, deviations: float) -> None:
    """Returns of ±0.01 in turn make a bipower deviation of 0.01 √(π/2), and twice that over a gap of 4 bars."""
    logs = np.cumsum([0.01 * (-1) ** n for n in range(243)] + [0.05])
    scores = anomalies.jump_scores(bars_of(np.exp(logs), places=[*range(243), place]))
    assert np.isnan(scores[:242]).all()
    assert scores[243] == pytest.approx(deviations / math.sqrt(math.pi / 2))


def test_single_jumps_are_called_at_the_rate_that_is_claimed() -> None:
    """Among 1,000 returns of a diffusion a false jump is found in 1 of 100 cases: between 0 and 3 of 100 here."""
    beyond = 2.0 * statistics.NormalDist().cdf(-anomalies.JUMP_THRESHOLD)
    assert 0.005 <= 1.0 - (1.0 - beyond) ** 1_000 <= 0.01, "of 1,000 normal values: the limit law is on the safe side"
    false = 0
    for seed in range(200):
        scores = anomalies.jump_scores(walk(1_242, seed))[242:]
        assert len(scores) == 1_000
        false += bool(np.abs(scores).max() >= anomalies.JUMP_THRESHOLD)
    assert false / 200 <= 0.03


def test_bipower_test_by_hand() -> None:
    """Every sum of Barndorff-Nielsen and Shephard's ratio statistic, by plain loops."""
    given = [0.01, -0.02, 0.015, 0.01, -0.03, 0.02, 0.01, -0.01, 0.09, 0.02, -0.01, 0.015]
    size, n, mu = [abs(each) for each in given], 12, math.sqrt(2 / math.pi)
    realised = sum(each**2 for each in size)
    bipower = n / (n - 1) * sum(size[i] * size[i - 1] for i in range(1, n)) / mu**2
    quads = sum(size[i] * size[i - 1] * size[i - 2] * size[i - 3] for i in range(3, n))
    quarticity = n * n / (n - 3) * quads / mu**4
    scale = math.sqrt((math.pi**2 / 4 + math.pi - 5) / n * max(1.0, quarticity / bipower**2))
    found = anomalies.jump_test(np.array(given))
    assert found.jump_share == pytest.approx(1 - bipower / realised)
    assert found.statistic == pytest.approx((1 - bipower / realised) / scale)
    assert found.p_value == pytest.approx(1 - statistics.NormalDist().cdf(found.statistic))
    assert found.returns == 12


@pytest.mark.parametrize("count", [96, 300])
def test_bipower_test_keeps_its_size_and_finds_jumps(count: int) -> None:
    """5 % of diffusions are rejected, within 2 points, also where volatility doubles; most jumps are found."""
    chance, false, found = np.random.default_rng(4), 0, 0
    for number in range(1_500):
        calm = chance.standard_normal(count) * 0.004 * np.linspace(1.0, 2.0 if number % 2 else 1.0, count)
        jumped = calm.copy()
        jumped[count // 2] += 0.06
        for moves, is_jump in ((calm, False), (jumped, True)):
            test = anomalies.jump_test(moves)
            false += not is_jump and test.p_value < 0.05
            found += is_jump and test.p_value < 0.05
    assert 0.03 <= false / 1_500 <= 0.07
    assert found / 1_500 >= 0.8


def test_bipower_scores_are_the_test_over_the_last_96_returns() -> None:
    scores = anomalies.bipower_scores(SERIES)
    for place in (96, 500, 2_999):
        test = anomalies.jump_test(SERIES.step_returns[place - 95 : place + 1])
        assert scores[place] == pytest.approx(test.statistic, rel=1e-6)


def test_without_moves_there_is_no_test() -> None:
    assert anomalies.jump_test(np.zeros(50)) is None
    assert anomalies.jump_test(np.array([0.0] * 20 + [0.1] + [0.0] * 20)) is None  # a single move has no neighbour


def test_volume_score_by_hand() -> None:
    """Against the 15 bars before at the same time of day, with the distances of the 97 bars before from theirs."""
    series = walk(24 * 22, seed=5)
    logs = [math.log(each) for each in series.volume.tolist()]
    usual = {n: statistics.median(logs[n - 24 * day] for day in range(1, 16)) for n in range(24 * 15, len(logs))}
    for place in (24 * 15 + 97, 24 * 22 - 1):
        away = statistics.median(abs(logs[n] - usual[n]) for n in range(place - 97, place))
        basis = anomalies.volume_basis(series)
        assert basis.score[place] == pytest.approx((logs[place] - usual[place]) / (1.4826 * away))
        assert basis.usual(place) == pytest.approx(math.exp(usual[place]))
        assert basis.same_time[place]
    lately = statistics.median(logs[300 - 97 : 300])
    middles = {n: statistics.median(logs[n - 97 : n]) for n in range(203, 300)}
    away = statistics.median(abs(logs[n] - middles[n]) for n in middles)
    assert not basis.same_time[300]
    assert basis.score[300] == pytest.approx((logs[300] - lately) / (1.4826 * away))


def test_a_busy_hour_of_each_day_is_usual() -> None:
    """100 times the volume each day at one hour scores high only until that hour has a history."""
    series = walk(24 * 30, seed=6)
    busy = np.where(np.arange(len(series)) % 24 == 14, 100.0, 1.0)
    basis = anomalies.volume_basis(with_volume(series, series.volume * busy))
    hours = np.flatnonzero(busy > 1.0)
    early, late = hours[(hours > 194) & (hours < 24 * 15)], hours[hours > 24 * 20]
    assert (basis.score[early] > anomalies.VOLUME_THRESHOLD).all()
    assert (np.abs(basis.score[late]) < anomalies.VOLUME_THRESHOLD).all()
    once = with_volume(series, series.volume * np.where(np.arange(len(series)) == 24 * 25 + 3, 100.0, busy))
    assert SCORES["volume_score"](once)[24 * 25 + 3] > anomalies.VOLUME_THRESHOLD


def test_no_volume_is_neither_usual_nor_unusual() -> None:
    """Bars without trade, or without a known volume, have no score and do not move those of others."""
    series = walk(900, seed=7)
    kept = np.delete(np.arange(900), np.arange(200, 230))
    for hole in (0.0, np.nan):
        holed = series.volume.copy()
        holed[200:230] = hole
        scores = SCORES["volume_score"](with_volume(series, holed))
        assert np.isnan(scores[200:230]).all()
        alone = SCORES["volume_score"](bars_of(series.close[kept], volume=series.volume[kept], places=kept.tolist()))
        np.testing.assert_array_equal(scores[kept], alone)


def test_equal_volumes_may_differ_a_little() -> None:
    series = walk(400)
    flat = np.full(400, 7.0)
    flat[350], flat[360] = 7.1, 14.0
    scores = SCORES["volume_score"](with_volume(series, flat))
    assert scores[350] < 1.0 < anomalies.VOLUME_THRESHOLD < scores[360]


def test_pump_and_dump_is_told_with_its_numbers() -> None:
    injected = inject("pump", SERIES, [1_000], 8.0)
    hints = [each for each in anomalies.find_hints(injected.bars, 3_000) if each.kind == "pump-and-dump"]
    assert len(hints) == 1
    (hint,) = hints
    place = int(np.searchsorted(injected.bars.closed_us, hint.at_us))
    assert 1_006 <= place <= 1_011  # told where enough is lost again, at the latest at its end
    close = injected.bars.close
    peak = max(close[place - 11 : place + 1])
    assert hint.evidence["rise_pct"] == pytest.approx(100 * (peak / close[place - 12] - 1))
    assert hint.evidence["given_back_share"] == pytest.approx(
        math.log(peak / close[place]) / math.log(peak / close[place - 12])
    )
    assert hint.evidence["volume_score"] == max(SCORES["volume_score"](injected.bars)[place - 11 : place + 1])
    for name, digits in (("rise_pct", 2), ("rise_deviations", 1), ("volume_score", 1)):
        assert f"{hint.evidence[name]:.{digits}f}" in hint.text
    assert anomalies.find_hints(injected.bars.slice(0, 1_500), 100) == ()


def test_a_rise_that_stays_or_has_no_volume_is_no_pump() -> None:
    risen = inject("jump", SERIES, [1_000], 20.0, seed=1).bars
    pumped = inject("pump", SERIES, [1_000], 8.0).bars
    quiet = with_volume(pumped, SERIES.volume)
    for series in (risen, quiet, SERIES):
        assert "pump-and-dump" not in {each.kind for each in anomalies.find_hints(series, 3_000)}


def test_volume_without_a_move_is_told_with_its_numbers() -> None:
    injected = inject("wash", SERIES, [1_000], 8.0).bars
    hints = anomalies.find_hints(injected, 3_000)
    assert [each.at_us for each in hints] == [injected.closed_us[1_000]]
    hint = hints[0]
    assert hint.kind == "wash-trading"
    assert hint.evidence["range_ratio"] == 0.0
    assert hint.evidence["volume"] == injected.volume[1_000]
    assert f"{hint.evidence['volume'] / hint.evidence['usual_volume']:.1f} times the usual" in hint.text
    moving = [place for place in PLACES if anomalies.range_ratios(SERIES)[place] > 1.0]
    assert anomalies.find_hints(inject("volume", SERIES, moving, 8.0).bars, 3_000) == ()
    assert "order book" in anomalies.NOT_VISIBLE


def test_a_hint_is_told_once() -> None:
    """A shape that lasts over several bars is told at its first, whatever part of the series is asked for."""
    injected = inject("pump", SERIES, [1_000], 12.0).bars
    (hint,) = anomalies.find_hints(injected, 3_000)
    after = int(np.searchsorted(injected.closed_us, hint.at_us)) + 1
    assert anomalies.find_hints(injected.slice(0, after + 1), 1) == ()
    assert anomalies.find_hints(injected.slice(0, after), 1) == (hint,)


def test_injected_sizes_are_as_asked() -> None:
    size = spread(SERIES)
    jumped = inject("jump", SERIES, [500, 700], 5.0, seed=0)
    assert (jumped.bars.close == inject("jump", SERIES, [500, 700], 5.0, seed=0).bars.close).all()
    shift = np.log(jumped.bars.close / SERIES.close)
    assert abs(shift[500]) == pytest.approx(5 * size[499])
    np.testing.assert_allclose(shift[:500], 0.0, atol=1e-15)
    np.testing.assert_allclose(shift[500:700], shift[500])
    assert abs(shift[700] - shift[699]) == pytest.approx(5 * size[699])
    off = inject("outlier", SERIES, [500], 5.0, seed=0)
    assert np.flatnonzero(off.bars.close != SERIES.close).tolist() == [500]
    assert np.flatnonzero(~off.judged).tolist() == [501]
    more = inject("volume", SERIES, [500], 5.0).bars
    assert math.log(more.volume[500] / SERIES.volume[500]) == pytest.approx(5 * np.std(np.log(SERIES.volume[403:500])))
    assert np.flatnonzero(more.volume != SERIES.volume).tolist() == [500]
    assert (more.close == SERIES.close).all()
    pumped = np.log(inject("pump", SERIES, [500], 3.0).bars.close / SERIES.close)
    assert pumped.max() == pytest.approx(pumped[505]) == pytest.approx(3 * size[499] * math.sqrt(12))
    assert pumped[511] == pytest.approx(0.1 * pumped[505]) == pytest.approx(pumped[2_000])
    for kind in KINDS:
        changed = inject(kind, SERIES, [500], 3.0).bars
        inside = (changed.low <= np.minimum(changed.open, changed.close)) & (
            changed.high >= np.maximum(changed.open, changed.close)
        )
        assert inside.all()


def test_a_volume_that_is_not_known_cannot_be_larger() -> None:
    with pytest.raises(InputError, match="no volume is known at place 500"):
        inject("volume", of_logs(SERIES.log_close), [500], 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_greater_anomalies_are_found_better(kind: InjectedKind) -> None:
    areas = []
    for size in (0.5, 3.0, 8.0):
        injected = inject(kind, SERIES, PLACES, size, seed=4)
        scores = np.abs(CAUSAL[KINDS[kind]](injected.bars))
        areas.append(roc(scores[injected.judged], injected.truth[injected.judged]).auc)
    assert areas[0] < areas[1] < areas[2]
    assert areas[0] < 0.85
    assert areas[2] > 0.98


def test_curve_by_hand() -> None:
    found = roc(np.array([0.1, 0.4, 0.35, 0.8, math.nan]), np.array([False, False, True, True, True]))
    assert list(found.hits) == [0.0, 0.5, 0.5, 1.0, 1.0]
    assert list(found.false_alarms) == [0.0, 0.0, 0.5, 0.5, 1.0]
    assert (found.auc, found.anomalies, found.others) == (0.75, 2, 2)


@pytest.mark.parametrize("distance", [0.0, 1.0, 2.0])
def test_interval_of_the_area_holds_the_true_one(distance: float) -> None:
    """Of 500 samples of two normal distributions, whose true area is Φ(distance / √2): 92 of 100 or more."""
    true, chance = statistics.NormalDist().cdf(distance / math.sqrt(2)), np.random.default_rng(1)
    truth = np.arange(300) < 40
    inside = 0
    for _ in range(500):
        found = roc(chance.standard_normal(300) + distance * truth, truth)
        inside += found.low <= true <= found.high
    assert inside / 500 >= 0.92
    assert distance > 1.0 or inside / 500 <= 0.99  # near 1 it is wider than need be


def test_a_perfect_curve_is_not_certain() -> None:
    few, many = (roc(np.arange(float(count)), np.arange(count) >= count // 2) for count in (10, 100))
    assert few.auc == many.auc == many.high == 1.0
    assert few.low < many.low < 1.0


def test_no_curve_without_both_kinds() -> None:
    with pytest.raises(InputError, match="0 anomalies and 1 other bars"):
        roc(np.array([1.0, math.nan]), np.array([False, True]))


@pytest.mark.parametrize("hours", [4, 7, 12, 24])
def test_bars_of_any_length(hours: int) -> None:
    """Bars of 7 hours change their time of day, those of 12 have two, and days one: no score before the warm-up."""
    basis = anomalies.volume_basis(walk(600, frame_us=hours * HOUR_US))
    assert basis.same_time.any() == basis.same_time[-1] == (hours < 24)
    assert np.isnan(basis.score[: anomalies.VOLUME_WARM_UP]).all()
    assert not np.isnan(basis.score[anomalies.VOLUME_WARM_UP :]).any()
