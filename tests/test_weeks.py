"""A week beside earlier ones: the statistics of a change, which runs are compared, and what a page says of it."""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from studies import Silent, make_manifest, write_notebook, write_study, write_week

from qubic_lab.errors import InputError
from qubic_lab.runs import batch, one_run
from qubic_lab.runs.change import FALSE_ALARMS, Direction, judge_change, log_shift, samples_needed
from qubic_lab.runs.collect_week import collect_week
from qubic_lab.runs.experiment import load
from qubic_lab.runs.history import MeasureChange, PastRun, find_changes, find_repetitions
from qubic_lab.runs.records import RecordedMeasure, Records
from qubic_lab.runs.report import build_page
from qubic_lab.runs.summary import change_sentences

SAMPLES = (1.00, 1.04, 0.97, 1.01, 0.99, 1.02, 0.98, 1.03)


def scaled(samples: Sequence[float], factor: float) -> tuple[float, ...]:
    return tuple(sample * factor for sample in samples)


def test_the_interval_is_that_of_the_exact_rank_test():
    """By brute force: shares of all orders of 4 + 5 distinct values in which the statistic is below k."""
    n, m, tail = 4, 5, 0.05
    orders = list(itertools.combinations(range(n + m), n))
    statistics = [sum(place - rank for rank, place in enumerate(order)) for order in orders]
    k = max(k for k in range(n * m) if sum(s < k for s in statistics) / len(orders) <= tail)
    now, before = (1.1, 1.3, 0.9, 1.2), (1.0, 0.8, 1.05, 0.95, 1.15)
    ratios = sorted(new / old for new in now for old in before)
    shift = log_shift(now, before, 1 - 2 * tail)
    assert shift is not None
    assert (shift.low, shift.high) == pytest.approx((ratios[k - 1], ratios[-k]))
    assert shift.ratio == pytest.approx(math.sqrt(ratios[9] * ratios[10]))


@pytest.mark.parametrize(
    ("now", "before", "better", "verdict", "reason"),
    [
        (scaled(SAMPLES, 0.8), SAMPLES, "higher", "worse", None),
        (scaled(SAMPLES, 0.8), SAMPLES, "lower", "better", None),
        (scaled(SAMPLES, 1.25), SAMPLES, "higher", "better", None),
        (scaled(SAMPLES, 1.25), SAMPLES, "lower", "worse", None),
        (scaled(SAMPLES, 1.02), SAMPLES, "lower", "no change beyond noise", None),
        (SAMPLES, SAMPLES, "higher", "no change beyond noise", None),
        ((1.03,) * 8, (1.0,) * 8, "lower", "no change beyond noise", "certain, but smaller than 5 %"),
        ((1.5,) * 3, SAMPLES[:3], "lower", "too few samples", "3 against 3: 4 on each side could show a change"),
    ],
)
def test_a_change_has_a_direction_a_size_and_enough_samples(
    now: Sequence[float], before: Sequence[float], better: Direction, verdict: str, reason: str | None
):
    judgement = judge_change(now, before, better, compared=1)
    assert judgement.verdict == verdict
    assert reason is None or judgement.reason == reason


def test_more_measures_need_more_samples():
    # Two-sided, n against n samples: at best 2 of the binomial(2n, n) orders.
    assert [samples_needed(FALSE_ALARMS / compared) for compared in (1, 6, 7, 20)] == [4, 5, 6, 6]


@pytest.mark.parametrize("wrong", [(0.0,), (-1.0,), (math.nan,), (math.inf,), ()])
def test_samples_without_a_ratio_are_refused(wrong: tuple[float, ...]):
    with pytest.raises(InputError):
        log_shift(wrong, SAMPLES, 0.95)


@pytest.mark.parametrize(("measures", "samples"), [(1, 5), (8, 8)])
def test_noise_alone_gives_no_more_false_alarms_than_promised(measures: int, samples: int):
    """Heavy-tailed noise far above the practical size, so that only the statistics can hold the alarms back."""
    source = random.Random(7)
    weeks = 400

    def noise() -> list[float]:
        return [math.exp(source.gauss(0, 0.3) / (0.2 + source.random())) for _ in range(samples)]

    def alarm() -> bool:
        verdicts = [judge_change(noise(), noise(), "higher", measures).verdict for _ in range(measures)]
        return any(verdict in ("better", "worse") for verdict in verdicts)

    alarms = sum(alarm() for _ in range(weeks))
    # Three standard deviations above the nominal share.
    assert alarms <= weeks * FALSE_ALARMS + 3 * math.sqrt(weeks * FALSE_ALARMS * (1 - FALSE_ALARMS))


def make_run(week: str, samples: Sequence[float] = SAMPLES, *, key: str = "", **changes: Any) -> PastRun:
    measures = (RecordedMeasure("speed", tuple(samples), "tokens/s", "higher"),) if samples else ()
    manifest = make_manifest(**{"key": key or week, "parameters": {"number": 2}} | changes)
    return PastRun(week, f"{manifest.study}/{manifest.key}", manifest, Records(measures=measures))


def only_change(now: PastRun, *earlier: PastRun) -> MeasureChange:
    (change,) = find_changes([now], earlier)
    return change


def test_the_latest_earlier_week_that_has_the_measure_is_compared():
    earlier = [make_run("2026-W46"), make_run("2026-W45"), make_run("2026-W47", samples=())]
    change = only_change(make_run("2026-W48", scaled(SAMPLES, 0.7)), *earlier)
    assert (change.earlier_week, change.judgement.verdict) == ("2026-W46", "worse")
    assert change.median == pytest.approx(0.7 * 1.005)


@pytest.mark.parametrize(
    "different",
    [{"parameters": {"number": 3}}, {"study": "other"}, {"model_hash": "b"}, {"data_hashes": {"data/a": "b"}}],
)
def test_only_runs_of_the_same_input_are_compared(different: dict[str, Any]):
    assert only_change(make_run("2026-W48"), make_run("2026-W47", **different)).judgement.verdict == "first measured"


def test_another_machine_is_said_and_the_own_one_preferred():
    other = make_run("2026-W47", machine="another")
    now = make_run("2026-W48", key="same")
    change = only_change(now, other)
    assert (change.judgement.verdict, change.judgement.shift) == ("other machine", None)
    assert change.judgement.reason == "in 2026-W47 it was another"
    assert only_change(now, make_run("2026-W46"), other).earlier_week == "2026-W46"
    assert only_change(now, make_run("2026-W47", key="same")).judgement.verdict == "not measured again"


def test_a_measure_without_a_ratio_is_named():
    with pytest.raises(InputError, match="measure speed of run study/2026-W48: sample 0"):
        find_changes([make_run("2026-W48", (0.0,) * 8)], [make_run("2026-W47")])


def test_what_must_be_equal_is_compared_to_the_last_bit():
    def run(week: str, identity: float, texts: Sequence[str]) -> PastRun:
        comparison = {"token_identity": identity, "answers": [{"text": text} for text in texts]}
        return replace(make_run(week), records=Records(results={"comparison": comparison}))

    now = run("2026-W48", 1.0, ["a", "b"])
    assert all(each.same for each in find_repetitions([now], [run("2026-W47", 1.0, ["a", "b"])]))
    changed = find_repetitions([now], [run("2026-W47", 1.0 - 1e-9, ["a", "c"])])
    assert [(each.what, each.value, each.earlier_value) for each in changed] == [
        ("token identity", "1", "0.999999999"),
        ("answers equal to the earlier ones", "1 of 2", "2 of 2"),
    ]
    assert change_sentences([], changed)[0] == "study, token identity: 1 now, 0.999999999 in 2026-W47."


TIMED = """from pathlib import Path
from qubic_lab.runs.notebook import record_findings, record_measure

seconds = float(Path("seconds.txt").read_text())
record_measure("step", [seconds * (1 + number / 100) for number in range(8)], "s", "lower")
record_measure("size", [1.0] * 8, "bytes", "lower")
record_findings([f"It took {seconds} s."])
"""


def test_a_planted_slowdown_is_found_by_the_page_of_its_week(lab_root: Path, monkeypatch: pytest.MonkeyPatch):
    write_notebook(lab_root / "notebooks" / "tiny.ipynb", TIMED)
    write_study(lab_root, measures_time=True)
    file = write_week(lab_root, "study.yaml", progress={"done": ["measured"]})
    for day, seconds in ((17, 0.02), (24, 0.06)):
        (lab_root / "seconds.txt").write_text(str(seconds))
        moment = datetime(2026, 11, day, 8, tzinfo=UTC)
        for module in (batch, one_run):
            monkeypatch.setattr(module, "utc_now", lambda moment=moment: moment)
        (outcome,) = batch.run_batch(load(file), full=False, watcher=Silent())
        assert (outcome.reused, outcome.error) == (False, None)

    verdicts = {change.measure: change.judgement.verdict for change in collect_week("2026-W48").changes}
    assert verdicts == {"step": "worse", "size": "no change beyond noise"}
    page = build_page().read_text()
    assert "study, step: slower than in 2026-W47" in page
    assert "No change beyond noise in 1 of 2 measures" in page
    assert len(collect_week("2026-W48").measures()) == 16
