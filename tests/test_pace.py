"""CPU time of the engine beside a fixed computation: what is measured."""

from pathlib import Path

import pytest

from qubic_lab.bench.pace import LOADS, bench_pace
from qubic_lab.errors import InputError


def test_each_round_of_each_load_has_a_time_and_a_probe(tiny: Path):
    found = bench_pace(str(tiny), "fp32", rounds=2)
    assert len(found.cpu_ms) == len(found.fixed_per_s) == 2 * LOADS
    assert all(value > 0 for value in (*found.cpu_ms, *found.fixed_per_s))


def test_a_round_is_needed():
    with pytest.raises(InputError, match="rounds is 0"):
        bench_pace(rounds=0)
