"""Open-loop load: when requests are due, that waiting counts, and what is said of answers, refusals and recovery."""

import asyncio
import math
import time

import pytest

from qubic_lab.bench.arrivals import Arrival, due_times, send_when_due
from qubic_lab.bench.lean_http import LeanReply
from qubic_lab.bench.load import LoadAnswer, Outcome, bench_load, cluster_request, judge_reply, recovery_s, sum_up
from qubic_lab.errors import InputError


def test_profiles_have_their_rates_and_equal_seeds_equal_times() -> None:
    steady, burst, ramp = (due_times(profile, 100.0, 100.0, seed=1) for profile in ("steady", "burst", "ramp"))
    assert all(9_600 < len(each) < 10_400 for each in (steady, burst))
    assert 4_700 < len(ramp) < 5_300 and len([at_s for at_s in ramp if at_s < 50.0]) < 0.3 * len(ramp)
    in_bursts = [at_s for at_s in burst if at_s % 5.0 < 1.0]
    assert 0.57 < len(in_bursts) / len(burst) < 0.63
    assert steady == sorted(steady) == due_times("steady", 100.0, 100.0, seed=1) != due_times("steady", 100.0, 100.0)


@pytest.mark.parametrize("asked", [("stedy", 1.0, 1.0), ("steady", 0.0, 1.0), ("ramp", 1.0, -1.0)])
def test_impossible_loads_are_refused(asked: tuple[str, float, float]) -> None:
    with pytest.raises(InputError, match=r"did you mean 'steady'|above 0"):
        due_times(*asked)


@pytest.mark.parametrize("option", ["answer_s", "bound_s", "overload"])
@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_impossible_times_are_refused_before_anything_starts(option: str, value: float) -> None:
    with pytest.raises(InputError, match=f"--{option.removesuffix('_s')} is .*: give a number above 0"):
        bench_load(surfaces=["cluster"], **{option: value})  # type: ignore[arg-type]


def test_requests_do_not_wait_for_answers_and_being_held_back_counts() -> None:
    async def run() -> list[Arrival[int]]:
        last_sent = asyncio.Event()

        async def send(number: int) -> int:
            if number == 0:
                await last_sent.wait()  # the first answer comes after all others
            elif number == 1:
                time.sleep(0.1)  # the generator itself is held up
            else:
                last_sent.set()
            return number

        return await send_when_due([0.0, 0.01, 0.02], send)

    found = asyncio.run(run())
    assert [(each.due_s, each.answer) for each in found] == [(0.0, 0), (0.01, 1), (0.02, 2)]
    assert found[2].late_s >= 0.09 and found[2].latency_s >= found[2].late_s


def test_a_refusal_says_when_to_come_again_and_anything_else_is_a_failure() -> None:
    request = cluster_request(1, 2.0)
    judged = [
        judge_reply(request, reply)
        for reply in (
            LeanReply(200, b'{"text":"4 5 6 7 "}'),
            LeanReply(200, b'{"text":"0 1 2 3 "}'),
            LeanReply(429, b"", "1"),
            LeanReply(503, b""),
            LeanReply(0, b""),
        )
    ]
    assert [each.outcome for each in judged] == ["right", "failed", "refused", "failed", "failed"]
    assert "connection ended" in judged[-1].fault


def seen(*outcomes: tuple[Outcome, float]) -> list[Arrival[LoadAnswer]]:
    return [
        Arrival(float(number), 0.0, latency_s, LoadAnswer(outcome, "why" if outcome == "failed" else ""))
        for number, (outcome, latency_s) in enumerate(outcomes)
    ]


def test_goodput_counts_what_is_right_and_in_time() -> None:
    found = sum_up(
        "cluster", "steady", 2.0, 2.0, 1.0, seen(("right", 0.5), ("right", 3.0), ("refused", 0.1), ("failed", 1))
    )
    assert (found.in_time, found.late, found.refused, found.failed, found.goodput_per_s) == (1, 1, 1, 1, 0.5)
    assert (found.latency_ms["p50"], found.latency_ms["max"], found.refused_ms) == (500.0, 3_000.0, 100.0)
    assert found.first_fault == "why"


def test_in_a_longer_time_goodput_leaves_out_the_begin_and_what_comes_after_the_end() -> None:
    found = sum_up("cluster", "steady", 1.0, 10.0, 1.0, seen(*[("right", 0.5)] * 9, ("right", 1.0)))
    assert found.in_time == 10 and found.goodput_per_s == pytest.approx(8 / 9)


@pytest.mark.parametrize(
    ("outcomes", "after_s"),
    [
        ([("right", 0.1), ("right", 0.1)], 0.0),
        ([("refused", 0.1), ("right", 3.0), ("right", 0.1), ("right", 0.1)], 2.0),
        ([("right", 0.1), ("failed", 0.1)], None),
    ],
)
def test_recovered_is_when_all_further_answers_come_in_time(
    outcomes: list[tuple[Outcome, float]], after_s: float | None
) -> None:
    assert recovery_s(seen(*outcomes), bound_s=1.0) == after_s
