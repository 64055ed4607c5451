"""The study of forecasts: its tables, record and sentences say what was found, and its pictures show it."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from bar_series import bars_of, of_logs, walk
from headlines import told
from matplotlib.figure import Figure

from qubic_lab.oracle.backtest.forecast_accuracy import baseline_points
from qubic_lab.oracle.backtest.past_forecasts import DailyEstimate
from qubic_lab.oracle.model.bars import Bars, Floats
from qubic_lab.oracle.model.timestamps import DAY_US, MINUTE_US
from qubic_lab.stats import holm
from qubic_lab.studies import backtest_figures as figures
from qubic_lab.studies import forecast_accuracy as study
from qubic_lab.studies.forecast_accuracy import ForecastStudy

QUICK = {"resamples": 200, "draws": 100}


@pytest.fixture(scope="module")
def series() -> dict[str, Bars]:
    return {
        "15 min": walk(2_600, seed=1, step=0.002, frame_us=15 * MINUTE_US),
        "1 h": walk(900, seed=2),
        "1 day": walk(900, frame_us=DAY_US),
    }


@pytest.fixture(scope="module")
def found(series: dict[str, Bars]) -> ForecastStudy:
    return study.study_forecasts(series, (1, 4), **QUICK)


@pytest.fixture(scope="module")
def drifts() -> ForecastStudy:
    """Drifts that last for 100 hours: our forecast knows them."""
    draw = np.random.default_rng(4)
    drift = np.repeat(draw.choice([-0.003, 0.003], 20), 100)
    return study.study_forecasts({"1 h": of_logs(np.cumsum(drift + draw.normal(0.0, 0.005, 2_000)))}, (1, 4), **QUICK)


def test_random_walks_are_no_evidence(found: ForecastStudy) -> None:
    horizons = [(each.bars, each.hours, each.forecasts // each.apart) for each in found.horizons]
    assert horizons == [("15 min", 1, 4), ("15 min", 4, 16), ("1 h", 1, 1), ("1 h", 4, 4)]
    raw = {n: each.stays.result.p for n, each in enumerate(found.horizons)}
    assert all(p is not None for p in raw.values())
    assert {n: each.p for n, each in enumerate(found.horizons)} == holm({n: p or 0.0 for n, p in raw.items()})
    assert not any(each.evidence for each in found.horizons)
    told_worse = [each.verdict == "worse" for each in found.horizons]
    assert told_worse == [each.stays.error_ratio.low > 1.0 for each in found.horizons]
    assert {each.verdict for each in found.horizons} <= {"worse", "no evidence"}
    said = told(study.findings(found), "prediction")
    assert said[0] == 'There is no evidence that forecasts know more than "the price stays".'
    assert said[-1] == "Forecasts on bars of 1 day were not measured: bars of 1 day are longer than 4 h."


@pytest.mark.parametrize(
    ("p", "low", "high", "verdict"),
    [
        (0.01, 0.90, 0.99, "better"),
        (0.01, 0.95, 1.05, "something is known, but errors are not shown to be smaller"),
        (0.20, 0.95, 1.05, "no evidence"),
        (0.20, 1.01, 1.05, "worse"),
        (None, 0.95, 1.05, "no evidence"),
    ],
)
def test_verdicts(found: ForecastStudy, p: float | None, low: float, high: float, verdict: str) -> None:
    horizon = found.horizons[0]
    beside = replace(horizon.stays, error_ratio=DailyEstimate(1.0, low, high))
    one = replace(horizon, p=p, accuracy=replace(horizon.accuracy, comparisons=(beside,)))
    assert one.verdict == verdict
    said = " ".join(told(study.findings(ForecastStudy((one,), {})), "prediction"))
    assert said.startswith("There is no evidence") == (p != 0.01)
    assert ("worse than a constant price at 1 of 1" in said) == (verdict == "worse")


def test_lasting_drifts_are_evidence(drifts: ForecastStudy) -> None:
    assert all(each.verdict == "better" for each in drifts.horizons)
    assert study.to_record(drifts)["evidence"] is True
    said = told(study.findings(drifts), "prediction")
    assert said[0] == 'Forecasts beat "the price stays" 1, 4 h ahead on bars of 1 h.'
    numbers = r"was right in ([\d.]+) to ([\d.]+) % of forecasts, the more common one in ([\d.]+) to ([\d.]+)"
    right = re.search(numbers, " ".join(said))
    assert right and float(right[1]) > float(right[4])


def test_the_record_is_plain_and_agrees_with_the_tables(found: ForecastStudy) -> None:
    record = json.loads(json.dumps(study.to_record(found), allow_nan=False))
    measured = [each for each in record["horizons"] if each["measured"]]
    assert [each["hours"] for each in record["horizons"] if not each["measured"]] == [1, 4]
    assert record["evidence"] is False
    for row, each in zip(study.summary_rows(found), measured, strict=True):
        assert (row["bars of"], row["hours"], row["forecasts"]) == (each["bars"], each["hours"], each["forecasts"])
        assert row["error_ratio"] == each["error_ratio"]["value"]
        assert each["error_ratio"]["low"] <= each["error_ratio"]["value"] <= each["error_ratio"]["high"]
        assert row["p by Holm"] == each["cw_p_holm"] >= each["cw_p"] == row["p"]
        assert row["held_pct"] == pytest.approx(100 * each["coverage_80"]["value"])
        assert each["coverage_80"]["level"] == 0.8
        assert abs(each["coverage_80"]["value"] - 0.8) < 0.07
    errors = study.error_rows(found)
    assert len(errors) == len(measured) * 5
    ours = {(row["bars of"], row["hours"]): row["rms_pct"] for row in errors if row["forecast"] == "our forecast"}
    for row in errors:
        if "ours over it" in row:
            assert row["ours over it"] == pytest.approx(ours[row["bars of"], row["hours"]] / row["rms_pct"])


def test_nothing_looks_ahead_and_what_does_is_named(series: Mapping[str, Bars]) -> None:
    assert study.looks_ahead(series) == []

    def peeking(bars: Bars, hours: int) -> dict[str, Floats]:
        ahead = np.append(bars.log_close[hours:], np.repeat(bars.log_close[-1], hours))
        planted = {"tomorrow": ahead, "centred": bars.log_close - bars.log_close.mean()}
        return baseline_points(bars, hours) | planted

    named = study.looks_ahead({"1 h": series["1 h"]}, (2,), peeking)
    assert named == ["tomorrow, 2 h ahead on bars of 1 h", "centred, 2 h ahead on bars of 1 h"]


def test_where_nothing_can_be_measured_the_study_says_so() -> None:
    nothing = study.study_forecasts({"1 h": bars_of([5.0] * 900), "15 min": walk(50, frame_us=15 * MINUTE_US)}, **QUICK)
    assert not nothing.horizons and not study.summary_rows(nothing)
    assert told(study.findings(nothing), "prediction") == [
        "Forecasts of the next hours were not measured: no bars are fit for it.",
        "Forecasts on bars of 1 h were not measured: the price did not move in 900 bars.",
        "Forecasts on bars of 15 min were not measured: 1280 bars of 15 min are needed, 50 are known.",
    ]
    record = study.to_record(nothing)
    assert record["evidence"] is False
    assert {each["measured"] for each in record["horizons"]} == {False}


def test_pictures_show_all_horizons(found: ForecastStudy) -> None:
    errors = figures.forecast_errors(found)
    assert [axes.get_title(loc="left") for axes in errors.axes] == ["bars of 15 min", "bars of 1 h"]
    baselines = [each.get_text() for each in errors.legends[0].get_texts()]
    assert baselines == [f'beside "{name}"' for name in ("the price stays", "mean return", "AR(1)")]
    check(errors)
    assert [[each.hours for each in found.ends(bars)] for bars in ("1 h", "1 day")] == [[1, 4], []]
    calibration = figures.forecast_calibration(found.ends("1 h"))
    assert len(calibration.axes) == 2 * 4
    check(calibration)


def check(figure: Figure) -> None:
    """Axes say what they are, and nothing of the legend lies outside the picture."""
    figure.canvas.draw()
    assert any(axes.get_xlabel() for axes in figure.axes) and any(axes.get_ylabel() for axes in figure.axes)
    assert all(figure.bbox.fully_overlaps(legend.get_window_extent()) for legend in figure.legends)
