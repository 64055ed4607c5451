"""A replica's score by hand, and the gates that it cannot outvote: circuit, error rate, silence, drain."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubic_lab.cluster.health import (
    CircuitState,
    Gate,
    HealthLimits,
    Outcome,
    ReplicaCircuit,
    ReplicaHealth,
    Vitals,
    health_score,
)

LIMITS = HealthLimits(failures_to_open=3, fewest_outcomes=10, recent_outcomes=20, open_s=5.0, probe_timeout_s=3.0)
NO_ERROR_RATE = replace(LIMITS, fewest_outcomes=1000, recent_outcomes=1000)

VITALS = ["cpu_share", "memory_share", "response_s", "error_share"]
shares = st.floats(0.0, 1.0)
vitals = st.builds(Vitals, shares, shares, st.floats(0.0, 1000.0), shares)


def fed(circuit: ReplicaCircuit, oks: Sequence[bool], start_s: float = 0.0) -> ReplicaCircuit:
    """A circuit after requests that were sent one a second, each of which took half a second."""
    for number, ok in enumerate(oks):
        circuit = circuit.after(Outcome(ok, start_s + number, start_s + number + 0.5))
    return circuit


def opened() -> ReplicaCircuit:
    """A circuit that opened at 2.5 s."""
    return fed(ReplicaCircuit(LIMITS), [False] * 3)


@pytest.mark.parametrize(
    ("measured", "score"),
    [
        (Vitals(0.0, 0.0, 0.0, 0.0), 100.0),
        (Vitals(1.0, 1.0, 10.0, 1.0), 0.0),
        (Vitals(1.0, 1.0, 600.0, 1.0), 0.0),
        (Vitals(0.5, 0.2, 2.0, 0.1), 15.0 + 24.0 + 20.0 + 13.5),
        (Vitals(0.5, 0.2, None, 0.1), 15.0 + 24.0 + 25.0 + 13.5),
    ],
)
def test_score_is_what_the_weights_give_by_hand(measured: Vitals, score: float) -> None:
    assert health_score(measured) == pytest.approx(score)


@given(vitals, st.sampled_from(VITALS), shares)
def test_score_is_0_to_100_and_never_rises_with_what_is_bad(measured: Vitals, name: str, value: float) -> None:
    assert 0.0 <= health_score(measured) <= 100.0
    worse = replace(measured, **{name: max(getattr(measured, name), value)})
    assert health_score(worse) <= health_score(measured)


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 6))
def test_a_circuit_opens_when_so_many_fail_in_a_row_and_not_before(oks: list[bool], failures: int) -> None:
    circuit = ReplicaCircuit(replace(NO_ERROR_RATE, failures_to_open=failures))
    in_a_row = 0
    for number, ok in enumerate(oks):
        circuit = fed(circuit, [ok], start_s=number)
        in_a_row = 0 if ok else in_a_row + 1
        if in_a_row == failures:
            assert (circuit.cause, circuit.since_s) == (Gate.FAILURES, number + 0.5)
            return
        assert circuit.cause is None


def test_a_replica_that_fails_every_second_request_is_out_once_enough_are_known() -> None:
    circuit = ReplicaCircuit(LIMITS)
    nine = fed(circuit, [False, True] * 4 + [False])
    assert nine.cause is None
    assert fed(nine, [True], start_s=9.0).cause is Gate.ERROR_RATE


@given(st.integers(0, 20))
def test_the_error_rate_counts_the_recent_requests_alone(failures: int) -> None:
    spread = [number % 2 == 0 or number >= 2 * failures for number in range(40)]  # every second one fails, then none
    circuit = fed(ReplicaCircuit(replace(LIMITS, error_share_to_open=1.0)), spread)
    assert circuit.error_share(40.0) == spread[-20:].count(False) / 20


def test_no_request_passes_an_open_circuit_and_exactly_one_probe_a_half_open_one() -> None:
    circuit = opened()
    assert circuit.state(7.4) is CircuitState.OPEN
    assert not circuit.wants_probe(7.4)
    assert circuit.state(7.5) is CircuitState.HALF_OPEN
    probes = 0
    for tick in range(75, 105):  # until the probe is lost
        if circuit.wants_probe(tick / 10):
            circuit = circuit.with_probe(tick / 10)
            probes += 1
    assert probes == 1
    assert circuit.wants_probe(10.5)
    with pytest.raises(AssertionError):
        circuit.with_probe(10.4)


def test_an_idle_replica_is_probed_now_and_then_and_a_busy_one_is_not() -> None:
    circuit = fed(ReplicaCircuit(LIMITS), [True])  # heard of at 0.5 s
    assert not circuit.wants_probe(2.4, idle=True)
    assert not circuit.wants_probe(2.5, idle=False)
    assert circuit.wants_probe(2.5, idle=True)
    probed = circuit.with_probe(2.5)
    assert not probed.wants_probe(5.4, idle=True)
    assert not probed.after(Outcome(True, 2.5, 2.6, probe=True)).wants_probe(4.5, idle=True)
    assert probed.after(Outcome(True, 2.5, 2.6, probe=True)).wants_probe(4.6, idle=True)


def test_probes_find_out_within_10_s_that_an_idle_replica_fails() -> None:
    health, now_s = ReplicaHealth(beat_s=0.0), 0.0
    while health.gate(now_s) is None and now_s < 10.0:
        health = health.with_beat(now_s)
        if health.wants_probe(now_s, idle=True):
            health = health.with_probe(now_s).after(Outcome(False, now_s, now_s + 0.05, probe=True))
        now_s += 0.5
    assert health.gate(now_s) is Gate.FAILURES and now_s < 10.0


def test_an_answered_probe_closes_the_circuit_and_is_no_answer_of_a_request() -> None:
    circuit = opened().with_probe(7.5).after(Outcome(True, 7.5, 7.6, probe=True))
    assert circuit.state(7.6) is CircuitState.CLOSED
    assert (circuit.error_share(7.6), circuit.response_s(7.6)) == (0.0, None)
    assert fed(circuit, [False], start_s=8.0).cause is Gate.FAILURES  # the fourth in a row
    answered = fed(circuit, [True], start_s=8.0)
    assert fed(answered, [False] * 2, start_s=9.0).cause is None
    assert fed(answered, [False] * 3, start_s=9.0).cause is Gate.FAILURES


def test_a_replica_that_fails_every_request_is_out_after_three_whatever_probes_say() -> None:
    circuit, now_s = ReplicaCircuit(LIMITS), 0.0
    for failures in range(1, 4):
        circuit = circuit.after(Outcome(False, now_s, now_s + 0.5))
        assert (circuit.cause is None) == (failures < 3)
        for _ in range(5 if failures < 3 else 0):
            now_s += 3.0
            circuit = circuit.with_probe(now_s).after(Outcome(True, now_s, now_s + 0.008, probe=True))
        now_s += 600.0  # the wait between two requests does not matter
    assert circuit.cause is Gate.FAILURES


def test_probes_do_not_thin_out_errors() -> None:
    circuit, now_s = ReplicaCircuit(LIMITS), 0.0
    for number in range(10):
        circuit = circuit.after(Outcome(True, now_s, now_s + 0.1, probe=True))
        circuit = circuit.after(Outcome(number % 2 == 0, now_s + 2.0, now_s + 3.0))
        now_s += 5.0
    assert circuit.cause is Gate.ERROR_RATE


def test_a_failed_probe_opens_the_circuit_for_the_whole_time_again() -> None:
    circuit = opened().with_probe(7.5).after(Outcome(False, 7.5, 8.0, probe=True))
    assert circuit.cause is Gate.FAILURES
    assert not circuit.wants_probe(12.9)
    assert circuit.wants_probe(13.0)


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 2.5), st.floats(2.5, 100.0)), max_size=30))
def test_requests_from_before_a_change_cannot_undo_it(late: list[tuple[bool, float, float]]) -> None:
    circuit = opened()
    closed = circuit.with_probe(7.5).after(Outcome(True, 7.5, 7.6, probe=True))
    for ok, sent_s, ended_s in late:
        assert circuit.after(Outcome(ok, sent_s, ended_s)) == circuit
        assert closed.after(Outcome(ok, sent_s, max(ended_s, 7.6))) == closed


def test_response_time_is_the_mean_of_answers_not_of_failures_or_probes_and_is_forgotten() -> None:
    assert ReplicaCircuit(LIMITS).response_s(0.0) is None
    circuit = ReplicaCircuit(LIMITS).after(Outcome(True, 0.0, 1.0)).after(Outcome(True, 1.0, 4.0))
    circuit = circuit.after(Outcome(False, 4.0, 34.0)).after(Outcome(True, 40.0, 40.008, probe=True))
    assert circuit.response_s(41.0) == 2.0
    assert (circuit.response_s(333.0), circuit.response_s(334.0)) == (2.0, None)
    assert circuit.error_share(334.0) == 0.0
    again = circuit.after(Outcome(True, 320.0, 325.0))  # those that are older than five minutes are left out
    assert (again.response_s(325.0), again.error_share(325.0)) == (5.0, 0.5)


def test_speed_is_the_median_of_three_answers_or_more() -> None:
    circuit = ReplicaCircuit(LIMITS)
    for number, tokens_per_s in enumerate((10.0, 0.0, 30.0, 31.0)):  # 0: an answer that was too short to tell
        assert circuit.speed(10.0)[0] == 0.0
        circuit = circuit.after(Outcome(True, number, number + 0.5, tokens_per_s=tokens_per_s))
    assert (circuit.speed(10.0), circuit.speed(303.5)) == ((30.0, (10.0, 30.0, 31.0)), (0.0, ()))


def test_a_draining_replica_is_out_and_is_not_probed() -> None:
    health = ReplicaHealth(beat_s=7.0, circuit=opened())
    assert (health.gate(7.5), health.wants_probe(7.5)) == (Gate.FAILURES, True)
    draining = replace(health, draining=True)
    assert (draining.gate(7.5), draining.wants_probe(7.5)) == (Gate.DRAINING, False)


def test_a_silent_replica_is_out_and_is_probed_once_it_is_heard_of_again() -> None:
    assert ReplicaHealth(beat_s=100.0).gate(107.4) is None
    assert ReplicaHealth(beat_s=100.0).gate(107.5) is Gate.SILENT
    health = ReplicaHealth(beat_s=0.0, circuit=opened())
    assert not health.wants_probe(20.0)
    heard = health.with_beat(20.0)
    assert heard.wants_probe(20.0)
    back = heard.with_probe(20.0).after(Outcome(True, 20.0, 20.1, probe=True))
    assert back.gate(20.1) is None
