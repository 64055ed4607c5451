"""What a power failure leaves of the queue's log: where records end, and what a server reads of a cut one."""

import pytest

from qubic_lab.bench.durability import bench_durability, most_within, record_ends


def test_records_end_where_their_last_string_does() -> None:
    first, second = b"*1\r\n$5\r\nMULTI\r\n", b"*2\r\n$4\r\nINCR\r\n$4\r\na\r\nb\r\n"
    assert record_ends(first + second + first) == [15, 39, 54]
    assert record_ends(b"") == []


def test_the_most_within_a_second() -> None:
    assert most_within([0.0, 0.5, 0.9, 1.0, 1.4, 5.0], 1.0) == 4
    assert most_within([], 1.0) == 0


@pytest.mark.slow
def test_a_log_that_is_cut_loses_nothing_that_was_acknowledged_before() -> None:
    found = bench_durability(tasks=2)
    assert (found.lost, found.twice, found.stuck, found.unreadable) == (0, 0, 0, 0)
    assert found.cuts == 2 * found.records > 100
