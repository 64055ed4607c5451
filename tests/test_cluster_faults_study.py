"""The study of faults: which cases count, what it says of them, and how its row is judged."""

from dataclasses import replace
from typing import Any

import pytest
from examples import example
from headlines import told
from pydantic import TypeAdapter

from qubic_lab.bench.noise import MachineNoise
from qubic_lab.chaos.judge import CaseResult, PhaseLatencies
from qubic_lab.chaos.run import CASES, ChaosResult
from qubic_lab.chaos.simulated import UNDECIDED, MutantsFound, SimulationResult, Violation
from qubic_lab.studies import cluster_faults as study
from qubic_lab.studies.acceptance import AcceptanceRow, WeekResults
from qubic_lab.studies.cluster_faults import KEPT, KEPT_SIMULATION, NOW

LATENCIES = PhaseLatencies(1000.0, 2000.0, None, (4, 10, 0), "no request was answered after the fault")
CASE = example(CaseResult, sent=30, answered=30, lost=0, duplicated=0, wrong=0, recovery_s=3.0, limit_s=10.0)
CASE = replace(CASE, p95_ms=LATENCIES, skipped="", faults=(), passed=True)


def result(*names: str, noise: MachineNoise | None = None, **changes: Any) -> ChaosResult:
    cases = tuple(replace(CASE, case=name, **changes) for name in names)
    return example(ChaosResult, cases=cases, requests=30, measured_utc="2026-12-01T16:00:00+00:00", noise=noise)


def row(now: ChaosResult | None, kept: ChaosResult | None) -> AcceptanceRow:
    named = {NOW: now, KEPT: kept}
    plain = {name: TypeAdapter(ChaosResult).dump_python(each, mode="json") for name, each in named.items() if each}
    found, _ = study.acceptance(WeekResults({"cluster_faults/1": plain}, {}))
    return found


def test_a_case_of_now_stands_in_place_of_the_kept_one() -> None:
    found = study.played(result("a", "b"), result("b", recovery_s=9.0))
    assert {name: case.recovery_s for name, case in found.items()} == {"a": 3.0, "b": 9.0}
    first, _ = study.case_rows(found)
    assert (first["case"], first["p95_during_ms"], first["p95_after_ms"]) == ("a", 2000.0, None)
    [axes] = study.recoveries(found).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_it_says_what_was_lost_and_of_when_the_matrix_is() -> None:
    said = told(study.findings(result("a", recovery_s=4.5), result("b")), study.QUESTION)
    assert "None of 60 requests was lost, doubled or wrong in 2 kinds of faults." in said
    assert "The longest disturbance took 4.5 s: a." in said
    assert any("2026-12-01" in each for each in said)
    late = told(study.findings(result("a", recovery_s=50.0, passed=False), None), study.QUESTION)
    assert late[:2] == [
        "None of 30 requests was lost, doubled or wrong in 1 kind of faults.",
        "Slower to recover than promised: a.",
    ]
    broken = told(study.findings(result("a", lost=1, passed=False), None), study.QUESTION)
    assert broken[0] == "Of 1 kind of faults these broke a promise: a."


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "pass"),
        ({"wrong": 1, "passed": False}, "fail"),
        ({"recovery_s": 50.0, "passed": False}, "fail"),
        ({"recovery_s": 50.0, "passed": False, "noise": MachineNoise(0.5, 0.5)}, "not measured here"),
        ({"lost": 1, "passed": False, "noise": MachineNoise(0.5, 0.5)}, "fail"),
    ],
)
def test_the_row_is_met_when_all_cases_keep_their_promises(changes: dict[str, Any], verdict: str) -> None:
    assert row(result(*CASES, **changes), None).verdict == verdict


def test_some_cases_are_too_few() -> None:
    found = row(result("node-killed"), None)
    assert (found.verdict, "1 of the 14 kinds of faults" in found.reason) == ("partial", True)
    assert row(result("node-killed"), result(*CASES)).verdict == "pass"
    assert study.acceptance(WeekResults({}, {}))[0].verdict == "not measured here"


def simulated(**changes: Any) -> SimulationResult:
    counts = {"struck": {"node killed": 100, "clock set": 240}, "mutants": MutantsFound(49, 49, 52.0)}
    plain = {"seeds": 1_000, "requests": 5_000, "virtual_s": 7_200.0, "times_real": 48.0, "sometimes": {}}
    return example(SimulationResult, **plain | counts | {"measured_utc": "2026-12-01T20:30:00+00:00"} | changes)


@pytest.mark.parametrize(
    ("changes", "verdict", "text"),
    [
        ({}, "pass", "0 of 1,000 seeds broke a promise; the rarest fault struck 100 times"),
        ({"violations": (Violation(7, "a token came twice", ""),)}, "fail", "1 of 1,000 seeds broke a promise"),
        ({"mutants": MutantsFound(49, 48, 52.0)}, "fail", "48 of 49 planted defects found"),
        ({"mutants": None}, "partial", "nobody planted defects"),
        ({"seeds": 20}, "partial", "20 of the 1,000 seeds that a verdict takes"),
        ({"struck": {"node killed": 99}}, "partial", "99 of the 100 strikes of each fault that a verdict takes"),
        ({"sometimes": {UNDECIDED: 3}}, "pass", "3 histories not decided"),
    ],
)
def test_the_simulation_is_judged_by_promises_strikes_and_planted_defects(
    changes: dict[str, Any], verdict: str, text: str
) -> None:
    plain = TypeAdapter(SimulationResult).dump_python(simulated(**changes), mode="json")
    _, found = study.acceptance(WeekResults({"cluster_faults/1": {KEPT_SIMULATION: plain}}, {}))
    assert (found.verdict, text in f"{found.measured}; {found.reason}") == (verdict, True), found


def test_it_says_what_the_simulation_found_and_how_fast_it_is() -> None:
    said = told(study.findings(None, result("a"), simulated()), study.QUESTION)
    begin = "A simulated cluster ran for 2.0 virtual hours on 2026-12-01: 1,000 seeds, 5,000 requests, 340 faults; "
    assert begin + "0 seeds broke a promise." in said
    assert "It is 48 times as fast as real time; 500 is the aim." in said
    assert study.strike_rows(simulated())[0] == {"fault": "node killed", "struck": 100}
