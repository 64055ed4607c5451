"""Whether a week has changed: the verdicts, machines of several speeds, and how often a verdict is right or false."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from qubic_lab.errors import InputError
from qubic_lab.runs.change import (
    BESIDE_A_PROBE,
    FALSE_ALARMS,
    Comparison,
    Direction,
    Judgement,
    Samples,
    holm_levels,
    judge_changes,
)

SAMPLES = (1.00, 1.04, 0.97, 1.01, 0.99, 1.02, 0.98, 1.03)
EVEN = (50.0,) * len(SAMPLES)
SLOW_GB_PER_S, FAST_GB_PER_S = 50.0, 72.0


def scaled(samples: Sequence[float], factor: float) -> tuple[float, ...]:
    return tuple(sample * factor for sample in samples)


def compare(
    now: Sequence[float],
    before: Sequence[float] = SAMPLES,
    better: Direction = "higher",
    unit: str = "tokens/s",
    probe: Sequence[float] = EVEN,
    earlier: Sequence[Sequence[float]] = (),
) -> Comparison:
    runs = [Samples(tuple(each), tuple(probe)[: len(each)]) for each in (now, before, *earlier)]
    return Comparison(runs[0], runs[1], (*runs[2:], runs[1]), unit, better)


def judge(comparison: Comparison) -> Judgement:
    (judgement,) = judge_changes([comparison])
    return judgement


@pytest.mark.parametrize(
    ("now", "better", "verdict"),
    [
        (scaled(SAMPLES, 0.8), "higher", "worse"),
        (scaled(SAMPLES, 0.8), "lower", "better"),
        (scaled(SAMPLES, 1.25), "higher", "better"),
        (scaled(SAMPLES, 1.25), "lower", "worse"),
        (scaled(SAMPLES, 1.03), "lower", "no change beyond noise"),
        (SAMPLES, "higher", "no change beyond noise"),
    ],
)
def test_a_change_has_a_direction_and_a_size(now: Sequence[float], better: Direction, verdict: str):
    judgement = judge(compare(now, better=better))
    assert judgement.verdict == verdict
    assert judgement.shift is not None
    assert judgement.shift.ratio == pytest.approx(now[0])
    assert (judgement.shift.low <= 1 <= judgement.shift.high) == (verdict == "no change beyond noise")


def test_what_does_not_depend_on_the_machine_is_certain_and_must_still_be_large():
    small, large = (judge(compare((size,) * 5, (1.0,) * 5, unit="bytes")) for size in (1.03, 1.06))
    assert (small.verdict, small.reason) == ("no change beyond noise", "certain, but smaller than 5%")
    assert large.verdict == "better"


def test_a_scatter_takes_five_samples():
    judgement = judge(compare(scaled(SAMPLES[:4], 0.5), SAMPLES))
    assert (judgement.verdict, judgement.shift) == ("too few samples", None)
    assert judgement.reason == "4 against 8: a change takes 5 on each side"


@pytest.mark.parametrize("wrong", [(0.0,), (-1.0,), (math.nan,), (math.inf,), ()])
def test_samples_without_a_ratio_are_refused(wrong: tuple[float, ...]):
    with pytest.raises(InputError):
        Samples(wrong)


def test_each_sample_has_its_probe():
    with pytest.raises(InputError, match="7 probes beside 8 samples"):
        Samples(SAMPLES, EVEN[1:])


def test_without_a_probe_only_a_large_change_of_a_time_is_told_from_the_machine():
    slower, much_slower = (judge(compare(scaled(SAMPLES, factor), probe=())) for factor in (0.8, 0.3))
    assert (slower.verdict, slower.reason) == ("no change beyond noise", "too noisy to show 25%")
    assert much_slower.verdict == "worse"


@pytest.mark.parametrize(("better", "power"), [("higher", 1), ("lower", -1)])
def test_a_machine_of_another_speed_is_no_change_and_a_slower_program_on_it_is_one(better: Direction, power: int):
    def measured(speed: float, factor: float = 1.0) -> Samples:
        probe = (speed, speed * 1.3) * 4
        values = (sample * (speed * factor) ** power for sample, speed in zip(SAMPLES, probe, strict=True))
        return Samples(tuple(values), probe)

    before = measured(SLOW_GB_PER_S)
    for factor, verdict in ((1.0, "no change beyond noise"), (0.85, "worse"), (1.15, "better")):
        now = measured(FAST_GB_PER_S, factor)
        assert judge(Comparison(now, before, (before,), "tokens/s", better)).verdict == verdict


def test_what_steps_from_week_to_week_without_a_change_must_step_further_and_one_real_change_does_not_count():
    now = scaled(SAMPLES, 0.85)
    restless = [scaled(SAMPLES, factor) for factor in (1.0, 0.85) * 10]
    assert judge(compare(now, restless[-2], earlier=restless)).verdict == "no change beyond noise"
    changed_once = [scaled(SAMPLES, 2.0)] * 10 + [SAMPLES] * 9
    assert judge(compare(now, earlier=changed_once)).verdict == "worse"


def test_many_blunt_measures_do_not_hide_what_a_sharp_one_shows():
    sharp, blunt = compare(scaled(SAMPLES, 0.9)), compare(SAMPLES, probe=())
    assert judge_changes([sharp, *[blunt] * 50])[0].verdict == "worse"
    assert judge_changes([sharp, *[compare(SAMPLES)] * 50])[0].verdict == "no change beyond noise"


def test_holm_steps_down_until_a_measure_is_not_certain():
    assert holm_levels({0: 0.2, 1: 0.001, 2: 0.02}, 0.06) == pytest.approx({1: 0.02, 2: 0.03, 0: 0.06})
    assert holm_levels({0: 0.05, 1: 0.04}, 0.06) == pytest.approx({0: 0.03, 1: 0.03})


@pytest.mark.parametrize("measures", [1, 8])
def test_noise_alone_gives_no_more_false_alarms_than_promised(measures: int):
    """The machine's speed changes from sample to sample and run to run, and each run differs as it usually does."""
    source = random.Random(7)
    weeks = 400

    def run() -> Samples:
        here = source.gauss(0, BESIDE_A_PROBE.sd)
        probe = [source.choice((SLOW_GB_PER_S, FAST_GB_PER_S)) * math.exp(source.gauss(0, 0.03)) for _ in range(10)]
        values = (speed * math.exp(here + source.gauss(0, 0.04)) for speed in probe)
        return Samples(tuple(values), tuple(probe))

    def alarm() -> bool:
        pairs = [(run(), run()) for _ in range(measures)]
        judged = judge_changes([Comparison(now, before, (before,), "tokens/s", "higher") for now, before in pairs])
        return any(each.verdict in ("better", "worse") for each in judged)

    alarms = sum(alarm() for _ in range(weeks))
    # Three standard deviations above the nominal share.
    assert alarms <= weeks * FALSE_ALARMS + 3 * math.sqrt(weeks * FALSE_ALARMS * (1 - FALSE_ALARMS))


PACES = json.loads((Path(__file__).parent / "recorded_paces.json").read_text())
"""The engine's CPU times of runs of one program, one after the other, on two cores that others used for 85 %.

Beside them are speeds of the service from runs of weekly pages, which are far noisier.
"""
WEEKS = 200


def simulated_weeks(draw: random.Random, slower: float) -> list[Comparison]:
    """Take two recorded runs of each kind for two weeks; in the later one the program takes so many times as long."""
    before, now = draw.sample(PACES["engine"], 2)
    old = Samples(tuple(before["cpu_ms"]), tuple(before["fixed_per_s"]))
    new = Samples(scaled(now["cpu_ms"], slower), tuple(now["fixed_per_s"]))
    found = [Comparison(new, old, (old,), "ms", "lower")]
    for runs in PACES["speeds"].values():
        before, now = draw.sample(runs, 2)
        old, new = Samples(tuple(before)), Samples(scaled(now, 1 / slower))
        found.append(Comparison(new, old, (old,), "tokens/s", "higher"))
    return found


def share_of_weeks(slower: float, verdicts: Sequence[str]) -> float:
    """Return the share of pairs of weeks in which some measure has one of the verdicts."""
    draw = random.Random(20)
    judged = (judge_changes(simulated_weeks(draw, slower)) for _ in range(WEEKS))
    return sum(any(each.verdict in verdicts for each in week) for week in judged) / WEEKS


def test_a_regression_of_a_tenth_is_flagged_in_four_of_five_weeks_and_the_same_program_in_one_of_twenty():
    """By recorded runs, two of which are two weeks; the machine was as busy as a shared one gets."""
    flagged, false = share_of_weeks(1.1, ["worse"]), share_of_weeks(1.0, ["worse", "better"])
    assert (flagged >= 0.8, false <= FALSE_ALARMS) == (True, True), f"{flagged:.1%} flagged, {false:.1%} false"
