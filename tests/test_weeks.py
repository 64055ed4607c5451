"""A week beside earlier ones: which runs are compared, and what a page says of it."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from studies import Silent, make_manifest, write_notebook, write_study, write_week

from qubic_lab.errors import InputError
from qubic_lab.runs import batch, one_run
from qubic_lab.runs.collect_week import collect_week
from qubic_lab.runs.experiment import load
from qubic_lab.runs.history import MeasureChange, PastRun, find_changes, find_repetitions, find_trends
from qubic_lab.runs.records import RecordedMeasure, Records
from qubic_lab.runs.report import build_page
from qubic_lab.runs.summary import change_sentences
from qubic_lab.studies.finding import Finding

SAMPLES = (1.00, 1.04, 0.97, 1.01, 0.99, 1.02, 0.98, 1.03)


def scaled(samples: Sequence[float], factor: float) -> tuple[float, ...]:
    return tuple(sample * factor for sample in samples)


def make_run(week: str, samples: Sequence[float] = SAMPLES, *, key: str = "", **changes: Any) -> PastRun:
    measures = (RecordedMeasure("speed", tuple(samples), "tokens/s", "higher"),) if samples else ()
    manifest = make_manifest(**{"key": key or week, "parameters": {"number": 2}} | changes)
    return PastRun(week, f"{manifest.study}/{manifest.key}", manifest, Records(measures=measures))


def only_change(now: PastRun, *earlier: PastRun) -> MeasureChange:
    (change,) = find_changes([now], earlier)
    return change


def test_the_latest_earlier_week_that_has_the_measure_is_compared():
    earlier = [make_run("2026-W46"), make_run("2026-W45"), make_run("2026-W47", samples=())]
    change = only_change(make_run("2026-W48", scaled(SAMPLES, 0.3)), *earlier)
    assert (change.earlier_week, change.judgement.verdict) == ("2026-W46", "worse")
    assert change.median == pytest.approx(0.3 * 1.005)


def test_another_week_than_the_latest_can_be_asked_for():
    earlier = [make_run("2026-W46"), make_run("2026-W47", scaled(SAMPLES, 3.0))]
    found = {week: find_changes([make_run("2026-W48")], earlier, week)[0] for week in (None, "2026-W46", "2026-W40")}
    assert [each.earlier_week for each in found.values()] == ["2026-W47", "2026-W46", None]
    assert found["2026-W46"].judgement.shift.ratio == 1.0


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


def test_the_key_figure_of_a_run_is_followed_over_weeks_as_long_as_its_parameters_stay():
    def run(week: str, key: float, **changes: Any) -> PastRun:
        values = {"key": key, "low": key - 1, "high": key + 1, "unit": "tokens/s"}
        return replace(make_run(week, **changes), records=Records(findings=(Finding("It makes {key}.", values),)))

    earlier = [run("2026-W47", 30.0), run("2026-W45", 10.0), run("2026-W46", 20.0, parameters={"number": 3})]
    (trend,) = find_trends([run("2026-W48", 40.0)], [*earlier, make_run("2026-W44")])
    assert (trend.run, trend.unit) == ("study/2026-W48", "tokens/s")
    assert dict(zip(trend.weeks, trend.figures, strict=True)) == {"2026-W45": 10.0, "2026-W47": 30.0, "2026-W48": 40.0}
    assert trend.intervals[-1] == (39.0, 41.0)
    assert find_trends([make_run("2026-W48")], earlier) == []


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
    assert change_sentences([], changed)[0].text == "study, token identity: 1 now, 0.999999999 in 2026-W47."


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
    with pytest.raises(InputError, match=r"week 2026-W46 cannot be compared.*earlier weeks with runs: 2026-W47"):
        collect_week("2026-W48", "2026-W46")
