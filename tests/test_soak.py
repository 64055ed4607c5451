"""A soak compares what members hold early and late, and no client of it may see an error."""

import pytest

from qubic_lab.chaos.soak import Held, growths_of, run_soak
from qubic_lab.errors import InputError


def held(at_s: float, megabytes: int, files: int = 20, lasting: int = 30, kept: int = 0) -> Held:
    return Held(
        at_s, {"node": megabytes * 10**6, "redis": 10**7 + 4_000 * kept}, {"node": files, "redis": 9}, lasting, kept
    )


def test_what_is_held_late_is_compared_with_early_and_the_begin_does_not_count() -> None:
    flat = [held(at_s, 500 if at_s < 20 else 100 + at_s // 10, kept=10 * at_s) for at_s in range(0, 101, 5)]
    assert [each.what for each in growths_of(flat, 100.0) if not each.is_flat] == []
    assert growths_of(flat, 100.0)[0].early == 103.0
    leaks = [held(at_s, 100 + at_s, files=20 + at_s, lasting=30 + at_s) for at_s in range(0, 101, 5)]
    grew = [each.what for each in growths_of(leaks, 100.0) if not each.is_flat]
    assert grew == ["node, MB", "node, open files", "Redis keys that stay"]


@pytest.mark.parametrize("asked", [(0.1, 20.0), (1.0, -1.0)])
def test_a_soak_that_shows_nothing_is_refused(asked: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="--minutes"):
        run_soak(*asked)


@pytest.mark.slow
def test_nothing_grows_in_twenty_minutes_of_faults_and_no_client_sees_an_error() -> None:
    result = run_soak(minutes=20.0, fault_every_s=20.0)
    assert (result.errors, result.first_error) == (0, "")
    assert [each.what for each in result.growths if not each.is_flat] == []
    assert len(result.growths) == 7 and len(result.faults) == 6 and len(result.requests) == 3
