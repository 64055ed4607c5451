"""How long a request may wait: half of what its answer leaves, also where all tasks so far were cut off."""

import pytest

from qubic_lab.cluster.admission import FEWEST, Admission, size_of

SIZE = size_of({"sampling": {"max_new_tokens": 4}})


def learned(*held_s: float, cut: bool = False) -> Admission:
    admission = Admission()
    for each in held_s:
        admission.note(SIZE, each, cut)
    return admission


def test_half_of_what_the_answer_leaves_may_be_waited_for() -> None:
    admission = learned(*[1.0] * (FEWEST - 1))
    assert admission.held_s is None and admission.patience_s(SIZE, 2.0) == 1.0  # too few tell how long an answer takes
    admission.note(SIZE, 1.0, cut=False)
    assert admission.held_s == 1.0
    assert [admission.patience_s(SIZE, deadline_s) for deadline_s in (2.0, 11.0, 1.0, 0.5)] == [0.5, 5.0, 0.0, 0.0]


def test_answers_of_other_sizes_do_not_count() -> None:
    longer = size_of({"sampling": {"max_new_tokens": 400}})
    admission = learned(*[20.0] * FEWEST)
    assert longer != SIZE and admission.patience_s(longer, 2.0) == 1.0


def test_answers_that_vary_leave_less_time() -> None:
    assert learned(*[0.5, 1.5] * FEWEST).patience_s(SIZE, 4.0) < learned(*[1.0] * 2 * FEWEST).patience_s(SIZE, 4.0)


def test_tasks_cut_off_at_their_deadline_do_not_pass_for_answers() -> None:
    """Else, with answers a little too long for it, all would be admitted for ever and none answered in time."""
    admission, deadline_s, answer_s = Admission(), 2.0, 1.02
    ends = []
    for _ in range(100):
        left_s = deadline_s - admission.patience_s(SIZE, deadline_s)  # of who waits as long as it may
        admission.note(SIZE, min(left_s, answer_s), left_s < answer_s)
        ends.append(left_s >= answer_s)
    assert ends[:FEWEST] == [False] * FEWEST and all(ends[FEWEST:])


@pytest.mark.parametrize("before_s", [0.1, 10.0])
def test_a_change_is_learned_within_a_few_dozen_tasks(before_s: float) -> None:
    admission = learned(*[before_s] * 500, *[1.0] * 100)
    assert admission.held_s == pytest.approx(1.0, rel=0.05)
    assert admission.patience_s(SIZE, 4.0) == pytest.approx(1.5, abs=0.15)
