"""New work is refused while the event loop is behind, not after a burst, and at once when it was behind lately."""

from qubic_lab.api.shedding import BEHIND_S, BURST_S, REMEMBERED_S, Backlog


def test_a_burst_is_taken_and_a_lasting_backlog_is_not() -> None:
    backlog = Backlog()
    backlog.note(10 * BEHIND_S, now_s=100.0)
    assert not backlog.refuses(100.0) and not backlog.refuses(100.0 + BURST_S / 2)
    assert backlog.refuses(100.0 + BURST_S)
    backlog.note(BEHIND_S / 2, now_s=101.0)
    assert not backlog.refuses(101.0)


def test_after_a_refusal_the_next_backlog_is_no_burst_for_a_while() -> None:
    backlog = Backlog()
    backlog.note(2 * BEHIND_S, now_s=100.0)
    assert backlog.refuses(100.0 + BURST_S)
    for at_s, refused in ((105.0, True), (105.0 + REMEMBERED_S, False)):
        backlog.note(BEHIND_S / 2, at_s - 0.1)
        backlog.note(2 * BEHIND_S, at_s)
        assert backlog.refuses(at_s) is refused
