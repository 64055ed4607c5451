"""The way between two ranks, measured between two processes and read from known times."""

import pytest

from qubic_lab.bench.link import LARGE_BYTES, bench_link, link_of
from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.model.device import parse_link


def test_latency_and_bandwidth_are_told_apart() -> None:
    way_s, large_s = 0.1e-3, 0.1e-3 + LARGE_BYTES * 8 / 10e9  # a tenth of a millisecond, 10 Gbps
    found = link_of([way_s] * 20, [large_s] * 20, "gloo")
    assert found.latency_ms == pytest.approx(0.1)
    assert found.gbps == pytest.approx(10.0)
    assert str(found) == "10.00Gbps:0.1000ms"


def test_one_slow_message_in_twenty_does_not_move_the_ends() -> None:
    found = link_of([1e-3] * 38 + [1.0] * 2, [2e-3] * 38 + [5.0] * 2, "gloo")
    assert found.latency_high_ms == pytest.approx(1.0)
    assert found.gbps_low == pytest.approx(found.gbps_high)


def test_small_messages_that_wait_for_a_busy_machine_give_no_absurd_bandwidth() -> None:
    # Half of the small messages wait 4 ms for their turn, longer than a large one takes.
    found = link_of([0.1e-3] * 9 + [4e-3] * 11, [0.1e-3 + LARGE_BYTES * 8 / 30e9] * 20, "gloo")
    assert found.latency_ms == pytest.approx(4.0)
    assert found.gbps == pytest.approx(30.0) == pytest.approx(found.gbps_high)


@pytest.mark.parametrize("large_s", [1e-3, 0.9e-3, 1e-3 + 1e-8])
def test_a_bandwidth_that_the_times_do_not_show_is_not_measurable(large_s: float) -> None:
    with pytest.raises(QubicLabError, match=r"bandwidth is not measurable: 8 MiB took .* ms, 3,072 bytes 1\.0000 ms"):
        link_of([1e-3] * 20, [large_s] * 20, "gloo")


@pytest.mark.dist
def test_a_measured_link_is_one_that_a_plan_takes() -> None:
    found = bench_link(repeat=20)
    assert found.backend == "gloo"
    assert 0 < found.latency_low_ms <= found.latency_ms <= found.latency_high_ms
    link = parse_link(str(found))
    assert link.latency_s == pytest.approx(found.latency_ms / 1e3, rel=0.01)
    assert link.bits_per_s == pytest.approx(found.gbps * 1e9, rel=0.01)


def test_too_few_messages_are_refused() -> None:
    with pytest.raises(InputError, match="repeat is 5"):
        bench_link(repeat=5)
