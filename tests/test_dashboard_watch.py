"""The one poller of all pages: what it reads, how often, and what it says while nobody answers."""

from typing import Any

import pytest

from qubic_lab.dashboard.watch import STATUS, Watch
from qubic_lab.errors import BusyError, NotFoundError, QubicLabError, UnreachableError

NODES = "/api/cluster/nodes"


class Answers:
    """A coordinator that counts what it is asked, at a clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.asked: list[str] = []
        self.error: QubicLabError | None = None

    def read(self, path: str) -> Any:
        self.asked.append(path)
        if self.error is not None:
            raise self.error
        return {"n": len(self.asked)}

    def at(self, now_s: float, watch: Watch) -> list[str]:
        """Move the clock, let the watch look, and return what it asked."""
        self.now_s, self.asked = now_s, []
        watch.look()
        return self.asked


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def watch(answers: Answers) -> Watch:
    return Watch(answers.read, {NODES: lambda answer: answer["n"]}, clock=lambda: answers.now_s)


def test_what_pages_look_at_is_read_once_for_all_and_at_its_pace(answers: Answers, watch: Watch) -> None:
    for _ in range(3):
        watch.see(NODES)
    assert answers.at(0.0, watch) == [STATUS, NODES]
    assert answers.at(3.9, watch) == []
    watch.see(NODES)
    assert answers.at(4.0, watch) == [STATUS, NODES]


def test_what_nobody_looks_at_is_read_no_more(answers: Answers, watch: Watch) -> None:
    watch.see("/api/consensus/status")
    assert "/api/consensus/status" in answers.at(0.0, watch)
    assert answers.at(60.0, watch) == []


def test_a_lost_coordinator_keeps_its_last_values_and_is_asked_for_its_status_alone(
    answers: Answers, watch: Watch
) -> None:
    watch.see(NODES)
    answers.at(0.0, watch)
    before = watch.see(NODES)
    answers.error = UnreachableError("no coordinator answers")
    assert answers.at(10.0, watch) == [STATUS]
    lost = watch.see(NODES)
    assert (lost.value, lost.at_s, lost.error) == (before.value, 0.0, "no coordinator answers")
    answers.at(14.0, watch)
    assert watch.see(STATUS).failing_since_s == 10.0
    answers.error = None
    assert answers.at(17.0, watch) == [STATUS, NODES]
    assert (watch.see(NODES).error, watch.see(STATUS).failing_since_s) == ("", None)


def test_the_oracle_is_read_without_a_coordinator(answers: Answers, watch: Watch) -> None:
    watch.see("/api/oracle/market_overview")
    answers.error = UnreachableError("no coordinator answers")
    assert answers.at(0.0, watch) == [STATUS, "/api/oracle/market_overview"]


def test_what_is_refused_is_asked_again_at_its_pace_alone(answers: Answers, watch: Watch) -> None:
    answers.error = NotFoundError("no such coin")
    watch.see("/api/oracle/texts")
    answers.at(0.0, watch)
    assert "/api/oracle/texts" not in answers.at(19.0, watch)
    assert "/api/oracle/texts" in answers.at(20.0, watch)


def test_a_busy_coordinator_is_left_alone_for_as_long_as_it_says(answers: Answers, watch: Watch) -> None:
    answers.error = BusyError("too many requests", 30.0)
    watch.see(STATUS)
    answers.at(0.0, watch)
    answers.error = None
    answers.now_s = 29.0
    watch.see(STATUS)
    assert answers.at(29.0, watch) == []
    assert answers.at(31.0, watch) == [STATUS]


def test_an_answer_that_nobody_understands_does_not_end_the_watch(answers: Answers) -> None:
    def read(path: str) -> Any:
        if path == NODES:
            raise KeyError("tokens")
        return answers.read(path)

    watch = Watch(read, clock=lambda: answers.now_s)
    watch.see(NODES)
    watch.look()
    assert "KeyError" in watch.see(NODES).error
    assert watch.see(STATUS).error == ""


def test_the_course_of_a_path_is_kept_and_bounded(answers: Answers, watch: Watch) -> None:
    for turn in range(500):
        watch.see(NODES)
        answers.at(4.0 * turn, watch)
    course = watch.course(NODES)
    assert len(course) == 450
    assert course[-1][0] == 4.0 * 499


def test_what_was_changed_is_read_at_once(answers: Answers, watch: Watch) -> None:
    watch.see(NODES)
    answers.at(0.0, watch)
    watch.hurry(NODES)
    assert answers.at(0.5, watch) == [NODES]
