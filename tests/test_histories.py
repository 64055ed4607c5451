"""Whether histories of a task are linearizable."""

import pytest

from qubic_lab.cluster.tasks import TaskOutcome, TaskProgress
from qubic_lab.simulation import histories
from qubic_lab.simulation.histories import NEVER, Call, Histories, is_linearizable

TASK, TRIES = "t", 3
SUBMITTED = Call("submit", (TASK,), 0, 0.0, 1, [b"new", b"t"])
COMPLETED = TaskOutcome(TASK, "completed", {}, "", 1, ())


def take(began: int, ended: int, token: int, attempt: int) -> Call:
    return Call("take", ("worker",), began, 0.0, ended, [b"t", b"{}", token, attempt, b"{}"])


def write(what: str, began: int, ended: int, token: int, reply: int, *rest: object) -> Call:
    return Call(what, (TASK, token, *rest), began, 0.0, ended, reply)


def look(began: int, ended: int, parts: int, outcome: TaskOutcome | None = None) -> Call:
    return Call("look", (TASK, 0), began, 0.0, ended, TaskProgress([], parts, outcome))


def unsure(what: str, began: int, *arguments: object) -> Call:
    return Call(what, arguments, began, 0.0, NEVER, None, unsure=True)


END = ("completed", "result", "{}", "", 0, 0, "[]")


@pytest.mark.parametrize(
    ("calls", "possible"),
    [
        ([take(2, 3, 1, 1), write("finish", 4, 5, 1, 1, *END), look(6, 7, 0, COMPLETED)], True),
        ([take(2, 3, 1, 1), write("finish", 4, 5, 1, 1, *END), look(6, 7, 0)], False),  # an old state is read
        ([take(2, 3, 1, 1), write("finish", 4, 9, 1, 1, *END), look(5, 6, 0), look(7, 8, 0, COMPLETED)], True),
        ([take(2, 3, 1, 1), write("finish", 4, 9, 1, 1, *END), look(5, 6, 0, COMPLETED), look(7, 8, 0)], False),
        ([take(2, 3, 1, 1), write("finish", 4, 5, 1, 1, *END), write("finish", 6, 7, 1, 1, *END)], True),  # repeated
        ([take(2, 3, 1, 1), write("finish", 4, 5, 1, 0, *END)], False),  # refused to who holds it
        ([take(2, 3, 1, 1), take(4, 5, 2, 2)], False),  # two hold it
        ([take(2, 3, 1, 1), unsure("reclaim", 4, "other"), take(5, 6, 2, 2)], True),
        ([take(2, 3, 1, 1), unsure("reclaim", 7, "other"), take(5, 6, 2, 2)], False),
        ([take(2, 3, 1, 1), write("put_back", 4, 5, 1, 1, "why"), take(6, 7, 2, 2)], True),
        ([take(2, 3, 1, 1), write("put_back", 4, 5, 1, 1, "why"), take(6, 7, 2, 3)], False),  # a try is counted twice
        ([unsure("take", 2, "lost"), unsure("reclaim", 3, "other"), take(4, 5, 2, 2)], True),
        ([take(2, 3, 1, 1), write("progress", 4, 5, 1, 1, "worker", 0, 2), look(6, 7, 1)], True),
        ([take(2, 3, 1, 1), write("progress", 4, 5, 1, 1, "worker", 0, 2), look(6, 7, 0)], False),
        ([take(2, 3, 1, 1), write("progress", 4, 5, 1, 1, "worker", 1, 2)], False),  # a token is missing
    ],
)
def test_a_history_is_possible_if_some_order_explains_all_replies(calls: list[Call], possible: bool) -> None:
    assert is_linearizable([SUBMITTED, *calls], TASK, TRIES) is possible


def test_a_search_that_is_given_up_is_counted_and_neither_passed_nor_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [SUBMITTED, take(2, 3, 1, 1), take(4, 5, 2, 2)]
    assert is_linearizable(calls, TASK, TRIES, most_steps=1) is None
    violations: list[str] = []
    for answer in (None, True, False):
        monkeypatch.setattr(histories, "is_linearizable", lambda *_, answer=answer: answer)
        seen = Histories(lambda: 0.0, TRIES, violations.append)
        seen._calls[TASK] += calls
        seen.check(is_end=True)
        assert (seen.checked, seen.undecided) == (answer is True, answer is None)
    assert len(violations) == 1


def test_many_lost_answers_take_no_long_search() -> None:
    lost = [unsure("take", number, "worker") for number in range(2, 42)]
    lost += [unsure("reclaim", number, "worker") for number in range(42, 82)]
    assert is_linearizable([SUBMITTED, *lost, take(100, 101, 9, 1), look(102, 103, 0)], TASK, TRIES)
    assert not is_linearizable([SUBMITTED, *lost, take(100, 101, 9, 1), take(102, 103, 10, 1)], TASK, 99)
