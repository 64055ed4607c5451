"""CPU time of the engine beside a fixed computation: what is measured."""

from pathlib import Path

import pytest

from qubic_lab.bench.pace import LOADS, bench_pace
from qubic_lab.errors import InputError


def test_each_work_has_a_time_and_a_probe_for_each_round(tiny: Path):
    found = bench_pace(str(tiny), "fp32", rounds=2)
    assert [part.name for part in found.parts] == ["decode_step_8_requests", "prompt_of_64"]
    assert all(len(part.cpu_ms) == len(part.fixed_per_s) == 2 * LOADS for part in found.parts)
    assert all(value > 0 for part in found.parts for value in (*part.cpu_ms, *part.fixed_per_s))


def test_a_round_is_needed():
    with pytest.raises(InputError, match="rounds is 0"):
        bench_pace(rounds=0)
