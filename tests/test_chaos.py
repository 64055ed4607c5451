"""What clients saw of a fault, by hand: lost, doubled and wrong answers, and the time to recover."""

import socket
from threading import Thread
from types import SimpleNamespace

import pytest
from commands import Run

from qubic_lab.chaos import node_cases
from qubic_lab.chaos.clients import Answered, Question, read_events
from qubic_lab.chaos.judge import CaseResult, judge, late_times, recovered_at
from qubic_lab.chaos.relay import tcp_relay
from qubic_lab.chaos.run import CASES, ChaosResult
from qubic_lab.chaos.stage import echo_question
from qubic_lab.cluster.tasks import LogEntry

LOST = "all 3 attempts were lost: /api/cluster/tasks/x describes each"


def answered(number: int, due_s: float, late_s: float = 0.0, **changes: object) -> Answered:
    """An answer of two tokens, 0.1 s each; the second one comes late."""
    question = echo_question(number, due_s, tokens=2)
    assert question.answer is not None
    ids, text = question.answer
    token_s = [due_s + 0.1, due_s + 0.2 + late_s]
    fields = {
        "token_s": token_s,
        "token_ids": list(ids),
        "ended_s": token_s[-1],
        "task": f"task {number}",
        "text": text,
        "attempts": 1,
    }
    return Answered(question, **{**fields, **changes})  # type: ignore[arg-type]


def log(*numbers: int) -> list[LogEntry]:
    return [LogEntry(f"task {number}", "completed", 1, "a") for number in numbers]


def judged(*answers: Answered, ends: tuple[int, ...], culprits: tuple[Answered, ...] = ()) -> CaseResult:
    return judge(
        "a case", "does something", 10.0, answers, culprits, log(*ends), struck_s=2.0, mended_s=4.0, seconds=9.0
    )


def test_a_quiet_run_loses_nothing_and_has_recovered_at_once() -> None:
    found = judged(*(answered(number, float(number)) for number in range(6)), ends=(0, 1, 2, 3, 4, 5))
    assert (found.sent, found.answered, found.lost, found.duplicated, found.wrong) == (6, 6, 0, 0, 0)
    assert found.recovery_s == 0.0 and found.passed
    assert found.p95_ms is not None and found.p95_ms.requests == (2, 3, 1)
    assert found.p95_ms.before == pytest.approx(200) and found.p95_ms.why == ""


@pytest.mark.parametrize(
    ("changes", "ends", "expected"),
    [
        ({"ended_s": None, "fault": "reset"}, (0, 1), (1, 0, 0)),
        ({}, (0,), (1, 0, 0)),
        ({}, (0, 1, 1), (0, 1, 0)),
        ({"token_ids": [20, 20]}, (0, 1), (0, 0, 1)),
        ({"text": "20 21 22 "}, (0, 1), (0, 0, 1)),
    ],
    ids=["no end", "no end in the log", "two ends", "a token twice", "another text"],
)
def test_what_is_lost_doubled_or_wrong_is_counted(
    changes: dict[str, object], ends: tuple[int, ...], expected: tuple[int, int, int]
) -> None:
    found = judged(answered(0, 0.0), answered(1, 3.0, **changes), ends=ends)
    assert (found.lost, found.duplicated, found.wrong) == expected
    assert found.passed is False


def test_a_dead_letter_is_the_right_end_of_a_question_that_kills() -> None:
    deadly = Question(1, 2.5, {}, None)
    assert judged(answered(0, 0.0), Answered(deadly, fault=LOST), ends=(0,)).passed
    assert judged(answered(0, 0.0), Answered(deadly, fault="status 503"), ends=(0,)).lost == 1


def test_recovery_ends_when_nobody_waits_longer_than_usual() -> None:
    calm, hit = answered(0, 0.0), answered(1, 1.9, late_s=3.0)
    assert judged(calm, hit, ends=(0, 1)).recovery_s == pytest.approx(5.1 - 2.0)
    never = answered(1, 1.9, ended_s=None)
    assert judged(calm, never, ends=(0, 1)).recovery_s is None
    # What is late long after that has another cause.
    much_later = answered(2, 20.0, late_s=1.0)
    assert judged(calm, hit, much_later, ends=(0, 1, 2)).recovery_s == pytest.approx(3.1)


def test_what_the_end_of_a_fault_disturbs_counts_from_there() -> None:
    late = [(2.1, 3.0), (11.0, 13.0)]
    assert (recovered_at(late, 2.0), recovered_at(late, 10.5), recovered_at([], 1.0)) == (3.0, 13.0, 1.0)


def test_times_of_the_clients_that_are_the_fault_say_nothing() -> None:
    slow = answered(9, 2.5, late_s=60.0)
    found = judged(answered(0, 0.0), culprits=(slow,), ends=(0, 9))
    assert (found.sent, found.recovery_s) == (2, 0.0)
    assert late_times([answered(0, 0.0)], 2.0) == []


def test_events_are_read_from_lines() -> None:
    lines = ["event: token", "id: 1", 'data: {"id": 5}', "", "event: end", 'data: {"text": "x"}']
    assert list(read_events(lines)) == [("token", {"id": 5}), ("end", {"text": "x"})]


def echo_server() -> tuple[socket.socket, int]:
    """Send back what one client sends."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            while piece := connection.recv(100):
                connection.sendall(piece)

    Thread(target=serve, daemon=True).start()
    return listener, listener.getsockname()[1]


def test_a_relay_that_is_cut_keeps_what_is_sent_until_it_heals() -> None:
    listener, port = echo_server()
    with listener, tcp_relay(port) as relay, socket.create_connection(("127.0.0.1", relay.port)) as client:
        client.sendall(b"one")
        assert client.recv(100) == b"one"
        relay.cut()
        client.sendall(b"two")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(100)
        relay.heal()
        client.settimeout(60)
        assert client.recv(100) == b"two"


def test_the_command_lists_its_cases_and_refuses_others(here: Run) -> None:
    listed = here("chaos --list").out
    assert len(CASES) == 14 and all(name in listed for name in CASES)
    assert "did you mean 'node-killed'?" in here("chaos --case node-kiled").failed(2)
    assert "--requests is 3" in here("chaos --case node-killed --requests 3").failed(2)


def test_a_case_that_cannot_be_played_says_why(monkeypatch: pytest.MonkeyPatch, here: Run) -> None:
    monkeypatch.setattr("qubic_lab.chaos.node_cases._faketime", lambda: None)
    found = here("chaos --case node-clock --json").json
    [case] = found["cases"]
    assert "libfaketime" in case["skipped"] and case["passed"] is None and case["p95_ms"] is None


def test_the_table_says_what_was_not_as_promised() -> None:
    good = judged(answered(0, 0.0), ends=(0,))
    bad = judged(answered(0, 0.0), ends=(0, 0))
    *_, last = ChaosResult(requests=12, cases=(good, bad), measured_utc="2026-12-01T00:00:00+00:00").report()
    assert last == "2 requests in 2 cases: 0 lost, 1 answered twice, 0 wrong; not as promised: a case"


def test_a_rank_is_killed_while_its_pipeline_has_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    work, killed = iter([{}, {"node-1": 0}, {"node-1": 1}]), list[str]()

    class Rank:
        def __init__(self, name: str) -> None:
            self.name = name

        def cmdline(self) -> list[str]:
            return ["python", "-m", "qubic_lab.pipeline.rank"]

        def kill(self) -> None:
            assert next(work, None) is None, "it has looked until there was a request"
            killed.append(self.name)

    launcher = SimpleNamespace(children=lambda recursive: [Rank("rank 0"), Rank("rank 1")])
    monkeypatch.setattr(node_cases.psutil, "Process", lambda pid: launcher)
    cluster = SimpleNamespace(pid=lambda name: 1, log=lambda name: "")
    node_cases.RankKilled().strike(SimpleNamespace(cluster=cluster, work=lambda: next(work)))  # type: ignore[arg-type]
    assert killed == ["rank 1"]
