"""Scores against returns: what is planted is found with its size, chance is not, and nothing looks ahead."""

import math
import re

import numpy as np
import pytest
from markets import random_market, with_gaps
from scipy.signal import lfilter
from scipy.stats import spearmanr

from qubic_lab.errors import InputError
from qubic_lab.oracle.inference import conditional_returns as events
from qubic_lab.oracle.inference import lead_lag
from qubic_lab.oracle.inference.alignment import Aligned, AvailableText, available_texts, trailing_share
from qubic_lab.oracle.inference.conditional_returns import buckets_of, quantile_spread
from qubic_lab.oracle.inference.information import HORIZONS, associate, decay, information
from qubic_lab.oracle.inference.resampling import circular_correlations, circular_shift_test, memory_bars
from qubic_lab.oracle.model.bars import Bars, Floats, join_bars
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US
from qubic_lab.oracle.risk.models import simulate_garch
from qubic_lab.stats import holm_in_parts

MODEL = "m@1"


def aligned_of(score: Floats, returns: Floats, texts: Floats | None = None) -> Aligned:
    """Bars of an hour without gaps; 0.01 × returns[t] is from the open of bar t to the next one."""
    opened = np.arange(len(score), dtype=np.int64) * HOUR_US
    log_open = np.concatenate([[0.0], 0.01 * np.cumsum(returns)[:-1]])
    bars = Bars.of(opened + HOUR_US, np.exp(log_open), frame_us=HOUR_US)
    return Aligned(bars, score, np.ones(len(score)) if texts is None else texts)


def remembering(noise: Floats, memory: float) -> Floats:
    return np.asarray(lfilter([1.0], [1.0, -memory], noise))


def knowing(bars: int, effect: float, seed: int = 0) -> Aligned:
    """Scores that correlate by `effect` with the return from the next open on."""
    rng = np.random.default_rng(seed)
    returns, noise = rng.standard_normal(bars), rng.standard_normal(bars)
    score = effect * np.append(returns[1:], 0.0) + math.sqrt(1.0 - effect**2) * noise
    return aligned_of(score, returns)


def texts_of(market: Bars, scores: Floats, late_us: int = 0) -> tuple[AvailableText, ...]:
    """One text in the middle of each bar that has a score, fetched so much later."""
    middle = (market.opened_us + market.closed_us) // 2
    return available_texts(
        AvailableText(str(n), "a text", int(at), int(at) + late_us, scores={MODEL: float(score)})
        for n, (at, score) in enumerate(zip(middle, scores, strict=True))
        if not math.isnan(score)
    )


def test_scores_stand_beside_the_returns_from_the_next_open_on_and_none_is_over_a_gap() -> None:
    market = random_market(12)
    scores = np.linspace(-1.0, 1.0, 12)
    scores[4] = np.nan
    aligned = Aligned.of(market, texts_of(market, scores), MODEL)
    np.testing.assert_array_equal(aligned.score, scores)
    log_open = np.log(market.open)
    np.testing.assert_array_equal(aligned.ahead(1)[:10], log_open[2:12] - log_open[1:11])
    np.testing.assert_array_equal(aligned.ahead(3, 2)[:6], log_open[6:12] - log_open[3:9])
    np.testing.assert_array_equal(aligned.ahead(1, -1)[:11], log_open[1:] - log_open[:-1])
    assert np.isnan(aligned.ahead(1)[10:]).all() and np.isnan(aligned.ahead(1, -3)[:2]).all()
    means = Aligned.of(market, texts_of(market, scores), MODEL, last=3).score
    assert means[4] == pytest.approx(scores[2:4].mean()) and means[7] == pytest.approx(scores[5:8].mean())
    holed = join_bars([market.slice(0, 5), market.slice(6, 10)])
    ahead = Aligned.of(holed, texts_of(holed, scores[:9]), MODEL).ahead(2)
    # The gap lies in the returns of bars 2 to 4, and the last three have too few bars after them.
    assert np.flatnonzero(~np.isnan(ahead)).tolist() == [0, 1, 5]


def test_a_score_that_was_fetched_later_is_not_known_before() -> None:
    market = random_market(400, seed=5)
    ahead = np.append(np.diff(np.log(market.open[1:])), [0.0, 0.0])
    leak = np.tanh(ahead / ahead.std())
    honest, late = (Aligned.of(market, texts_of(market, leak, days * DAY_US), MODEL) for days in (0, 2))
    assert associate(honest.score, honest.ahead(1)).ic == pytest.approx(1.0)
    known = associate(late.score, late.ahead(1)).ic
    assert abs(known) < 0.15
    assert associate(late.score, late.ahead(1, -2)).ic == pytest.approx(1.0)


def test_what_is_high_is_told_by_the_past_alone() -> None:
    rng = np.random.default_rng(1)
    values = np.round(rng.standard_normal(400), 1)
    values[rng.random(400) < 0.2] = np.nan
    shares = trailing_share(values)
    known = np.flatnonzero(~np.isnan(values))
    for place in (known[50], known[83], known[300]):
        before = values[:place][~np.isnan(values[:place])][-250:]
        assert shares[place] == pytest.approx(np.mean(before < values[place]) + 0.5 * np.mean(before == values[place]))
    assert np.isnan(shares[known[:50]]).all() and np.isnan(shares[np.isnan(values)]).all()


@pytest.mark.parametrize("cut", [120, 233])
def test_nothing_changes_when_later_bars_are_cut_off_or_scrambled(cut: int) -> None:
    market = with_gaps(random_market(420, seed=2), 0.05)
    rng = np.random.default_rng(3)
    scores = rng.uniform(-1.0, 1.0, len(market))
    scores[rng.random(len(market)) < 0.3] = np.nan
    texts = texts_of(market, scores, DAY_US)
    whole = Aligned.of(market, texts, MODEL, last=3)
    short = Aligned.of(market.slice(0, cut), texts, MODEL, last=3)
    np.testing.assert_array_equal(whole.score[:cut], short.score)
    other = whole.score.copy()
    other[cut:] = rng.permutation(other[cut:]) * 3.0
    for series in (short.score, other):
        np.testing.assert_array_equal(buckets_of(whole.score)[:cut], buckets_of(series)[:cut])
        for one, two in zip(events.extremes(whole.score), events.extremes(series), strict=True):
            early = [events.thinned(each[each < cut], 24) for each in (one, two)]
            np.testing.assert_array_equal(early[0], early[1])
            np.testing.assert_array_equal(early[0], events.thinned(one, 24)[: len(early[0])])


def test_correlations_are_those_of_spearman_at_all_shifts_and_overlap_leaves_fewer_effective_pairs() -> None:
    rng = np.random.default_rng(0)
    score, move = rng.standard_normal(150), rng.standard_normal(150)
    found = circular_correlations([score], [move])[0] / math.sqrt(150)
    for shift in (0, 1, 40, 149):
        assert found[shift] == pytest.approx(spearmanr(np.roll(score, shift), move).statistic, abs=1e-12)
    score[::3] = np.nan
    move[-20:] = np.nan
    gaps = circular_correlations([score], [move])[0]
    moved = np.roll(score, 30)
    both = ~(np.isnan(moved) | np.isnan(move))
    alike = spearmanr(moved[both], move[both]).statistic
    assert gaps[30] / math.sqrt(both.sum()) == pytest.approx(alike, abs=0.02)  # ranks are among all known ones here
    aligned = knowing(600, 0.2)
    rounded, move = np.round(aligned.score, 1), aligned.ahead(4)  # with ties
    known = ~np.isnan(move)
    alike = spearmanr(rounded[known], move[known]).statistic
    assert associate(rounded, move, 4).ic == pytest.approx(alike, abs=1e-12)
    slow = associate(remembering(rng.standard_normal(600), 0.95), aligned.ahead(8), 8)
    assert slow.effective < 0.35 * slow.pairs, "overlapping returns of a slow score say less"


@pytest.mark.parametrize("effect", [0.25, -0.25])
def test_a_planted_effect_is_found_with_its_sign_and_size(effect: float) -> None:
    rank = 6.0 / math.pi * math.asin(effect / 2.0)  # Spearman's of a normal distribution
    held = 0
    for seed in range(20):
        found = information({"a": knowing(1_000, effect, seed)}).rows[0]
        assert found.evidence and found.p_holm < 0.05
        assert math.copysign(1.0, found.found.ic) == math.copysign(1.0, effect)
        held += found.found.low <= rank <= found.found.high
    assert held >= 17
    spread = quantile_spread(knowing(1_000, effect), resamples=200)
    # The highest and the lowest fifth of a normal score are 2 × 1.4 deviations apart.
    assert spread.low <= 0.01 * effect * 2.8 <= spread.high and abs(spread.spread) > 0.004
    assert spread.edge_bps == pytest.approx(5_000 * spread.spread)
    means = [bucket.mean for bucket in spread.buckets]
    assert means == sorted(means, reverse=effect < 0.0) and len(means) == 5 and spread.monotone_p < 0.05
    nothing = quantile_spread(knowing(1_000, 0.0), resamples=200)
    assert nothing.monotone_p > 0.05 and nothing.low < 0.0 < nothing.high


def test_all_that_is_looked_at_counts() -> None:
    rng = np.random.default_rng(4)
    good = knowing(700, 0.12, seed=1)
    noise = {f"n{k}": aligned_of(rng.standard_normal(700), np.diff(good.log_open, append=0.0)) for k in range(12)}
    alone, among = information({"a": good}, [1]), information({"a": good, **noise}, [1])
    assert (alone.tests, among.tests) == (1, 13)
    assert alone.rows[0].p_corrected == alone.rows[0].p
    first = among.of("a")[0]
    assert first.p_corrected > 3 * first.p
    assert first.detectable > 1.2 * alone.rows[0].detectable
    # The same scores twice are one idea: the largest of all knows that, Holm does not.
    twice = information({"a": good, "b": good}, [1]).rows[0]
    assert twice.p_corrected == twice.p and twice.p_holm == pytest.approx(2 * (twice.p or 0.0))


def test_chance_is_called_evidence_as_rarely_as_promised() -> None:
    false = 0
    for run in range(320):
        rng = np.random.default_rng((1, run))
        memory = (0.0, 0.8)[run % 2]
        aligned = aligned_of(remembering(rng.standard_normal(400), memory), rng.standard_t(4, 400))
        moves = [aligned.ahead(horizon) for horizon in (1, 2, 4, 8)]
        placebo = circular_shift_test([aligned.score], moves, 8 + memory_bars(aligned.score))
        false += bool((placebo.p_corrected <= 0.05).any())
    assert 6 <= false <= 28  # 16 expected; a binomial count is outside once in 300 runs


@pytest.mark.slow
@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_long_null_runs_keep_the_level_and_intervals_their_coverage(memory: float) -> None:
    runs, false, leads, held = 600, 0, 0, np.zeros(len(HORIZONS))
    for run in range(runs):
        rng = np.random.default_rng((2, run))
        returns = simulate_garch(1_000, 1e-6, 0.1, 0.88, 5.0, seed=run)[0] if run % 2 else rng.standard_t(4, 1_000)
        aligned = aligned_of(remembering(rng.standard_normal(1_000), memory), returns)
        found = information({"a": aligned})
        false += any(row.evidence for row in found.rows)
        for place, row in enumerate(found.rows):
            held[place] += row.found.low <= 0.0 <= row.found.high
        if run % 6 == 0:
            leads += lead_lag.lead_lag(aligned).verdict != "neither"
    assert 0.03 <= false / runs <= 0.08
    assert (held / runs >= 0.86).all() and held[0] / runs >= 0.93  # 24 bars and a long memory leave few that differ
    assert leads <= 14


@pytest.mark.slow
def test_what_is_called_detectable_is_detected() -> None:
    found = 0
    for seed in range(200):
        detectable = information({"a": knowing(800, 0.0, seed)}).rows[0].detectable
        effect = 2.0 * math.sin(math.pi * detectable / 6.0)
        found += information({"a": knowing(800, effect, seed + 1_000)}).rows[0].evidence
    assert 0.72 <= found / 200 <= 0.9


def test_half_lives_are_as_sure_as_they_say_and_there_is_none_without_memory() -> None:
    """Coefficients of one series err together: taken as independent, two of three intervals held."""
    true, found = math.log(2) / -math.log(0.7), []
    for seed in range(20):
        rng = np.random.default_rng((5, seed))
        drift = remembering(rng.standard_normal(1_000), 0.7)
        returns = np.concatenate([[0.0], 0.5 * drift[:-1]]) + rng.standard_normal(1_000)
        found.append(decay(aligned_of(drift, returns), 0.08))
    known = [each for each in found if each.half_life is not None and each.low is not None]
    assert len(known) >= 19
    held = sum((each.low or 0.0) <= true <= (each.high or math.inf) for each in known)
    assert held >= 17
    assert np.median([each.half_life or 0.0 for each in known]) == pytest.approx(true, rel=0.1)
    once = decay(knowing(1_000, 0.3), 0.08)
    assert once.half_life is None and "only the next bar is beyond" in once.absent
    assert decay(knowing(1_000, 0.0), 0.08).absent.startswith("no bar ahead is beyond")


def test_events_show_what_came_after_and_what_came_before() -> None:
    rng = np.random.default_rng(0)
    returns = rng.standard_normal(3_000)
    after = 0.5 * np.append(returns[1:], 0.0) + rng.standard_normal(3_000)
    before = 0.4 * np.append(0.0, np.convolve(returns, np.ones(12))[:2_999]) + rng.standard_normal(3_000)
    knows, follows = (
        next(each for each in events.event_studies(aligned_of(score, returns), resamples=200) if "sign" in each.kind)
        for score in (after, before)
    )
    assert knows.first.p_holm < 0.01 and knows.first.mean > 0.004
    assert knows.before.p_holm > 0.05
    assert follows.before.p_holm < 0.01 and follows.before.mean > 0.03
    assert follows.first.p_holm > 0.05
    assert knows.path[24] == 0.0 and knows.used <= knows.found and len(knows.path) == 49


def test_bursts_of_texts_are_thinned_events_and_a_steady_flow_has_none() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(2.0, 2_000).astype(np.float64)
    counts[100::60] = 30.0
    aligned = aligned_of(rng.standard_normal(2_000), rng.standard_normal(2_000), counts)
    burst = events.event_studies(aligned, resamples=50)[-1]
    assert burst.kind == "bursts of texts" and burst.used >= 25 and burst.after is not None
    assert events.thinned(np.array([3, 5, 27, 28, 51, 52]), 24).tolist() == [3, 27, 51]
    steady = events.event_studies(knowing(500, 0.0), resamples=50)[-1]
    assert (steady.found, steady.used) == (0, 0) and steady.absent.startswith("0 events")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(0.0, 0.4, "sentiment leads"), (0.4, 0.0, "price leads"), (0.4, 0.4, "both"), (0.0, 0.0, "neither")],
)
def test_who_leads(before: float, after: float, said: str) -> None:
    rng = np.random.default_rng(1)
    returns = rng.standard_normal(900)
    score = before * np.append(0.0, returns[:-1]) + after * np.append(returns[1:], 0.0) + rng.standard_normal(900)
    found = lead_lag.lead_lag(aligned_of(score, returns))
    assert found.verdict == said
    assert not after or (found.ahead.lag, found.ahead.correlation > 0.2) == (1, True)
    assert not before or (found.before.lag, found.before.correlation > 0.2) == (-1, True)


def test_short_series_lead_by_chance_as_rarely_as_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 lags of 300 bars: shifts show the same largest one over and over, and by them 22 % were beyond chance."""
    monkeypatch.setattr(lead_lag, "_adds", lambda *_: None)
    beyond, found = 0, 0
    for run in range(50):
        rng = np.random.default_rng((4, run))
        each = lead_lag.lead_lag(aligned_of(rng.standard_normal(300), rng.standard_normal(300)))
        beyond += bool(np.abs(each.correlation).max() > each.band)
        found += min(each.ahead.p_holm, each.before.p_holm) <= 0.05
    assert beyond <= 6 and found <= 6  # 2.5 expected


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        (np.append(0.5, np.zeros(599)), "do not vary there"),
        (np.append(np.zeros(599), 0.5), "do not vary there"),
        (remembering(np.random.default_rng(0).standard_normal(300), 0.99), "300 bars are too few.* are needed"),
        (np.full(400, 0.3), "every score is 0.3"),
    ],
)
def test_an_unknown_lead_has_a_reason(score: Floats, reason: str) -> None:
    found = lead_lag.lead_lag(aligned_of(score, np.random.default_rng(1).standard_normal(len(score))))
    assert found.verdict == "unknown" and re.search(reason, found.absent)


def test_a_memory_of_what_is_led_is_no_lead() -> None:
    rng = np.random.default_rng(5)
    returns = remembering(rng.standard_normal(1_500), 0.4)  # so a price that leads correlates with later returns, too
    score = 0.6 * np.append(0.0, returns[:-1]) + 0.6 * rng.standard_normal(1_500)
    found = lead_lag.lead_lag(aligned_of(score, returns))
    assert found.ahead.p_holm < 0.05  # chance alone would take it for a lead
    assert found.ahead.wald_p > 0.05
    assert found.verdict == "price leads"


def test_p_values_of_sides_are_corrected_for_all_series() -> None:
    one = lead_lag.lead_lag(knowing(500, 0.3))
    three = holm_in_parts([one, one, one], "ahead", "before")
    assert three[0].before.p_holm == pytest.approx(min(1.0, max(6 * one.ahead.p, 3 * one.before.p)))
    assert three[0].ahead.p_holm == pytest.approx(6 * one.ahead.p)


def test_what_cannot_be_studied_says_why() -> None:
    flat = aligned_of(np.full(400, 0.3), np.random.default_rng(0).standard_normal(400))
    found = information({"a": flat})
    assert {row.found.absent for row in found.rows} == {"every score is 0.3"} and found.tests == 0
    assert not any(row.evidence for row in found.rows) and found.rows[0].p_corrected is None
    assert quantile_spread(flat).absent.startswith("a bucket holds 0 of")
    assert quantile_spread(aligned_of(flat.log_open, np.zeros(400))).absent == "every return is 0"
    assert all(each.absent for each in events.event_studies(flat))
    still = information({"a": aligned_of(np.random.default_rng(0).standard_normal(400), np.zeros(400))})
    assert still.rows[0].found.absent == "every return is 0"

    one = np.full(400, np.nan)
    one[200] = 0.5
    market = random_market(400)
    with pytest.raises(InputError, match="bars with scores are too few"):
        information({"a": aligned_of(one, np.zeros(400))})
    with pytest.raises(InputError, match="no bar has a score"):
        information({"a": aligned_of(np.full(400, np.nan), np.zeros(400))})
    with pytest.raises(InputError, match="has a score by 'm@1': score them"):
        Aligned.of(market, (), MODEL)
    with pytest.raises(InputError, match="on other bars"):
        information({"a": knowing(400, 0.0), "b": knowing(500, 0.0)})
    with pytest.raises(InputError, match="one asset at a time"):
        Aligned.of(random_market(30, assets=2), (), MODEL)
    with pytest.raises(InputError, match=r"100 bars are too few.*give at least 178"):
        circular_shift_test([np.arange(100.0)], [np.arange(100.0)], 40)
