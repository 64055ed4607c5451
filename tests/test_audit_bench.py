"""The corpus of planted leaks and clean signals, and the benchmark that audits the look-ahead check on it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from commands import Run

from qubic_lab.bench import audit
from qubic_lab.bench.audit import (
    PARTS,
    AuditedCase,
    LeakCase,
    audit_case,
    bench_audit,
    corpus,
    load_case,
    sum_up_audits,
)

CASES = {each.name: each for each in corpus()}
HARD = (
    *("delay_of_the_body", "late_ratings_ahead", "at_midnight"),
    *("convolved_by_fourier", "means_from_the_other_end", "refuses_large_moves"),
)
"""Some of the development part: leaks that fewer cuts miss, clean signals that a stricter check accuses."""


def test_the_corpus_is_large_varied_and_split() -> None:
    for leaks in (True, False):
        cases = [each for each in CASES.values() if each.leaks == leaks]
        assert len(cases) >= 120 and len({each.kind for each in cases}) >= 12
        for part in PARTS:
            assert sum(each.part == part for each in cases) >= 40
    assert all(each.part == "development" for each in CASES.values() if each.file.endswith("_first"))
    # A name's part never changes, whatever else is in the corpus.
    assert (CASES["zigzag"].part, CASES["kalman_level"].part) == ("held-out", "development")


def test_a_signal_is_loaded_without_what_it_kept() -> None:
    case = CASES["scaled_by_the_first_call"]
    (first, frame), (second, _) = load_case(case), load_case(case)
    assert np.asarray(first(frame.iloc[:50]))[-1] != np.asarray(second(frame))[49]
    assert load_case(CASES["later_winners"])[1].columns.nlevels == 2


@pytest.mark.parametrize("name", HARD)
def test_hard_signals_are_judged_right(name: str) -> None:
    found = audit_case(CASES[name])
    assert found.right, found.text


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_error_rates_are_within_their_limits() -> None:
    found = bench_audit()
    assert found.within_limits, "\n".join(map(str, found.report()))


def audited(name: str, leaks: bool, right: bool, held_out: bool = False) -> AuditedCase:
    case = LeakCase(name, "shift", "leaks_bars" if leaks else "clean_bars", leaks, PARTS[held_out])
    return AuditedCase(case, right, f"{name}: so", 32, 0.5)


def test_what_was_missed_or_accused_is_counted_and_named() -> None:
    leaks = [audited(f"leak {number}", True, number != 7, number % 2 == 1) for number in range(50)]
    clean = [audited(f"clean {number}", False, number != 3) for number in range(40)]
    found = sum_up_audits([*leaks, *clean], 0, 1.0)
    development, held_out, whole = found.parts
    assert whole.found is not None and whole.accused is not None
    assert (whole.found.count, whole.found.runs, whole.accused.count, whole.accused.runs) == (49, 50, 1, 40)
    assert held_out.found is not None and (held_out.found.count, held_out.accused) == (24, None)
    assert development.found is not None and development.found.value == 1.0
    assert [(each.leaks, each.all.count) for each in found.kinds] == [(True, 49), (False, 1)]
    lines = [each for each in found.report() if isinstance(each, str)]
    assert lines[0].startswith("MISSED (held-out, shift): leak 7") and "clean 3" in lines[1] and "MISSED" in lines[2]
    assert not found.within_limits  # one of 40 is more than 2 %
    assert sum_up_audits([*leaks, *clean[4:]], 0, 1.0).within_limits
    assert not sum_up_audits(leaks[:48], 0, 1.0).within_limits  # 47 of 48 is less than 98 %


def test_command_audits_the_signals_that_are_named(here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_here(parts: dict[str, tuple[Callable[[int], Any], int]], progress: Any) -> dict[str, list[Any]]:
        """Run in this process: `test_backtest_bench.py` starts others, which take seconds to import."""
        return {name: list(map(run, range(count))) for name, (run, count) in parts.items()}

    monkeypatch.setattr(audit, "run_parts", run_here)
    found = here("bench audit --only next_return,momentum --json").json
    assert [each["case"]["name"] for each in found["cases"]] == ["momentum", "next_return"]
    assert found["within_limits"] and found["parts"][0]["part"] == "development"
    assert "did you mean 'zigzag'" in here("bench audit --only zigzac").failed(2)
    assert "did you mean 'held-out'" in here("bench audit --part heldout").failed(2)
