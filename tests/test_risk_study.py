"""The study of risk: both rules get the same time under warning, nothing looks ahead, and odd files are told of."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bar_series import joined
from headlines import told

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US
from qubic_lab.oracle.risk.models import simulate_garch
from qubic_lab.studies import risk_figures as figures
from qubic_lab.studies import risk_warnings as study
from qubic_lab.studies.market_bars import StudyBars
from qubic_lab.studies.risk_warnings import RiskStudy


def made(returns: np.ndarray, frame_us: int = HOUR_US) -> StudyBars:
    """Bars of these log returns."""
    bars = joined(100.0 * np.exp(np.cumsum(returns)), frame_us=frame_us)
    return StudyBars("bitcoin", "file", "USD", "1 h" if frame_us == HOUR_US else "1 day", frame_us, bars, 0)


@pytest.fixture(scope="module")
def risk() -> RiskStudy:
    returns = simulate_garch(4_000, 2e-6, 0.15, 0.83, 5.0, seed=2)[0]
    return study.study_risk(made(returns), horizon_us=DAY_US, drop=0.05, refit_bars=500)


def match(risk: RiskStudy, level: str, drop: float) -> study.MatchedWarnings:
    return study.match_alarm_time(risk.bars.bars, risk.assessment, level, risk.horizon_bars, drop, risk.windows)


def shares(found: study.MatchedWarnings) -> tuple[float, float]:
    """The shares of the time under warning, ours and the naive rule's."""
    assert found.comparison is not None
    return found.comparison.ours.recall_by_chance, found.comparison.naive.recall_by_chance


def test_the_naive_rule_gets_as_much_time_under_warning(risk: RiskStudy) -> None:
    found = risk.matched
    assert found.comparison is not None and found.comparison.ours.falls > 5
    ours, naive = shares(found)
    assert 0.05 < ours < 0.95 and naive == pytest.approx(ours, abs=0.06)
    other = match(risk, "warning", 0.08)
    assert other.quantile == found.quantile  # what came is not looked at
    more = match(risk, "watch", 0.05)
    assert all(now > before for now, before in zip(shares(more), (ours, naive), strict=True))


def test_levels_that_look_ahead_and_wrong_arithmetic_are_seen(risk: RiskStudy) -> None:
    assert not study.looks_ahead(risk)
    levels = risk.assessment.levels.copy()
    levels[risk.assessment.warm_up] = 3
    assert study.looks_ahead(replace(risk, assessment=replace(risk.assessment, levels=levels)))
    assert study.shortfall_is_above(risk)
    tail = risk.tails[0]
    low = replace(tail.forecast, es=tail.forecast.var * 0.9)
    assert not study.shortfall_is_above(replace(risk, tails=(replace(tail, forecast=low),)))


def test_models_are_tested_on_the_same_bars(risk: RiskStudy) -> None:
    rows = study.tail_rows([risk])
    assert len(rows) == 8 and len({row["bars"] for row in rows}) == 1
    by_model = {(row["model"], row["level_pct"]): row for row in rows}
    assert by_model["GARCH-t", 1.0]["christoffersen_p"] > 0.05
    assert by_model["constant normal", 1.0]["christoffersen_p"] < 0.05


def test_the_sentence_hides_no_rejection(risk: RiskStudy) -> None:
    """Each model and test below 5 % in the table is named at its level, and no other."""
    said = told(study.findings([risk]), "warning")
    by_level = {
        level: " ".join(
            each for each in said if each.startswith(f"Value at risk, bars of 1 h, {level:g}\N{NO-BREAK SPACE}%:")
        )
        for level in (1.0, 5.0)
    }
    columns = {"Kupiec": "kupiec_p", "independence": "independence_p", "Christoffersen": "christoffersen_p"}
    for row in study.tail_rows([risk]):
        part = by_level[row["level_pct"]]
        names = [test for test, column in (columns | {"shortfall": "shortfall_p"}).items() if row[column] < 0.05]
        named = re.search(
            rf"(?:rejected are|,) {row['model']} \({row['beyond']} losses, smallest p [^,]*, by: ([^)]*)\)", part
        )
        assert (named[1] if named else "").split(", ") == (names or [""]), part
    assert (
        re.search(r"constant normal .* by: Kupiec", by_level[1.0])
        and " 3 of 4 models passed every test" in by_level[1.0]
    )


def test_calibration_is_of_the_tested_bars_at_every_level(risk: RiskStudy) -> None:
    assert {tail.test.level for tail in risk.tails} == set(study.CALIBRATED_LEVELS)
    assert all(covered is not None and covered.bars == 4_000 - 1 - 751 for covered in risk.coverages)
    off = {
        (tail.model, tail.test.level): not covered.low <= covered.level <= covered.high
        for tail, covered in zip(risk.tails, risk.coverages, strict=True)
        if covered is not None
    }
    assert not any(off["GARCH-t", level] for level in study.CALIBRATED_LEVELS)
    assert off["constant normal", 0.005]
    assert risk.evenness.bars == 4_000 - 1 - 250
    even = replace(risk, evenness=replace(risk.evenness, p=0.2))
    assert "bars of 1 h, is not rejected (Kolmogorov-Smirnov p = 0.2)" in str(study.findings([even])[-1])
    assert len(figures.calibration(risk).axes[1].patches) >= len(risk.evenness.counts)


def test_the_verdict_needs_more_than_luck(risk: RiskStudy) -> None:
    comparison = risk.matched.comparison
    assert comparison is not None

    def said(only_ours: int, only_naive: int, p: float) -> str:
        given = replace(comparison, only_ours=only_ours, only_naive=only_naive, p=p)
        return " ".join(
            told(study.findings([replace(risk, matched=replace(risk.matched, comparison=given))]), "warning")
        )

    assert ": no clear difference." in said(5, 2, 0.45)
    assert ": clearly more." in said(12, 1, 0.003)
    assert ": clearly fewer." in said(1, 12, 0.003)
    assert "too few falls" not in said(5, 2, 0.45)
    few = replace(comparison, ours=replace(comparison.ours, falls=5))
    text = str(study.findings([replace(risk, matched=replace(risk.matched, comparison=few))])[1])
    assert f"p = {comparison.p:.2g}, too few falls for evidence)" in text  # five of five against none: p = 0.06
    precision = comparison.ours.precision
    assert precision.low is not None and f"% ({100 * precision.low:.0f}\N{NO-BREAK SPACE}% to" in said(5, 2, 0.45)


def test_tables_and_pictures_have_all(risk: RiskStudy) -> None:
    rows = study.score_rows([risk])
    assert [row["warnings"] for row in rows] == ["ours", "naive"]
    last = study.warning_rows([risk])
    assert 0 < len(last) <= 5 and all(row["evidence"] and row["level"] in ("warning", "alarm") for row in last)
    now = {row["rule"]: row for row in study.now_rows([risk])}
    assert now["volume"]["level"] == "unknown" and now["volume"]["not known because"] == "no volume is known"
    assert now["volatility"]["value"] > 0
    assert figures.volatilities(risk).axes[0].lines
    labels = figures.losses(risk).axes[0].get_legend_handles_labels()[1]
    assert "loss beyond that of GARCH-t" in labels  # two values at risk are drawn
    begins = next(each for each in figures.timeline(risk).axes[0].lines if each.get_label() == "judged from here")
    assert np.asarray(begins.get_xdata())[0] * DAY_US == risk.assessment.closed_us[risk.matched.start]
    rules = [label.get_text() for label in figures.worth([risk]).axes[0].get_yticklabels()]
    assert rules == ["ours, 1 h", "naive, 1 h"]
    assert study.record([risk])["risks"][0]["warnings"]["naive_share"] == shares(risk.matched)[1]


def test_what_warnings_were_worth_is_recorded_with_intervals(risk: RiskStudy) -> None:
    flat = study.study_risk(made(np.zeros(700)), horizon_us=DAY_US, drop=0.05)
    worth, none = study.record([risk, flat])["worth"]
    assert (worth["bars_of"], worth["level"], worth["drop"], worth["horizon_h"]) == ("1 h", "warning", 0.05, 24.0)
    for rule in ("ours", "naive"):
        found = worth[rule]
        assert found.precision.value == found.right / found.warnings
        assert found.recall.value == found.found / found.falls
        for each in (found.precision, found.recall, found.false_alarms_a_month):
            assert each.low <= each.value <= each.high
        assert found.lead_h.value > 0.0 and (found.lead_h.low is None) == (found.found < 6)
    assert 0.0 < worth["p"] <= 1.0 and worth["absent"] == ""
    assert none["ours"] is none["naive"] is none["p"] is None and none["absent"]


def test_a_constant_price_has_no_risk_and_says_so() -> None:
    flat = study.study_risk(made(np.zeros(700)), horizon_us=DAY_US, drop=0.05)
    said = " ".join(told(study.findings([flat]), "warning"))
    for part in ("no model could be tested (no fit converged: do returns vary?)", "could not be judged", "is unknown"):
        assert part in said
    assert study.shortfall_is_above(flat) and not study.looks_ahead(flat)
    for picture in (figures.timeline, figures.volatilities, figures.losses, figures.calibration):
        picture(flat)
    figures.worth([flat])
    assert study.score_rows([flat]) == [] and study.warning_rows([flat]) == []


def test_too_few_bars_to_judge_are_reported() -> None:
    short = study.study_risk(made(np.random.default_rng(0).normal(0, 0.01, 320)), horizon_us=DAY_US, drop=0.05)
    assert "could not be judged because: " in str(study.findings([short])[1])
    early = np.append(np.full(60, -0.01), np.random.default_rng(0).normal(0, 0.0005, 1_500))
    quiet = study.study_risk(made(early), horizon_us=DAY_US, drop=0.05)
    start = quiet.matched.start
    text = " ".join(told(study.findings([quiet]), "warning"))
    said = "could not be judged: no fall of 5\N{NO-BREAK SPACE}% within 24 h began. They are judged after the first"
    assert f"{said} {start} bars." in text and start > 60
    drop = -np.abs(np.random.default_rng(3).normal(0.0, 0.004, 1_200))
    sinking = study.study_risk(made(drop), horizon_us=DAY_US, drop=0.04, refit_bars=500)
    text = " ".join(told(study.findings([sinking]), "warning"))
    assert "The price was already that low in 100\N{NO-BREAK SPACE}% of the bars after them." in text
    value_at_risk = next(each for each in told(study.findings([short]), "warning") if each.startswith("Value at risk"))
    assert "beyond a level of 0.01)" in value_at_risk  # not of one that only pictures show
    figures.timeline(short)
    figures.losses(short)


def test_days_have_their_own_windows_and_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    days = made(np.random.default_rng(1).normal(0, 0.03, 500), DAY_US)
    found = study.study_risk(days, horizon_us=7 * DAY_US, drop=0.1)
    assert (found.windows.bars, found.horizon_bars, found.name) == (7, 7, "1 day")
    assert found.matched.comparison is not None
    assert "7 days" in str(study.findings([found])[1])
    with pytest.raises(InputError, match="seed is -1"):
        study.looks_ahead(found, seed=-1)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"level": "warnin"}, "did you mean"),
        ({"horizon_us": 0}, "ahead: give a time above 0"),
        ({"drop": 2.0}, "drop is 2"),
        ({"rules": str(tmp_path / "none.yaml")}, "cannot be read"),
    ]
    for changes, said in wrong:
        with pytest.raises(InputError, match=said):
            study.study_risk(days, **{"horizon_us": DAY_US, "drop": 0.1} | changes)
