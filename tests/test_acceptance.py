from typing import Any

import pytest
from comparisons import make_case, make_cases, make_comparison, make_difference, make_reference

from qubic_lab.runs.acceptance import judge
from qubic_lab.runs.acceptance_rows import Row
from qubic_lab.runs.records import Picture, Records
from qubic_lab.studies.accuracy_comparison import (
    case_label,
    difference,
    example_answers,
    identical_questions,
    identity_sentence,
    measured_cases,
    percent,
    reference_sentences,
    unexplained_differences,
)


def row(rows: list[Row], id: str) -> Row:
    (found,) = (row for row in rows if row.id == id)
    return found


def judge_results(id: str, **results: dict[str, Any]) -> Row:
    """Return the row of one run that recorded these results."""
    return row(judge({"study/k1": Records(results=results)}), id)


def judge_comparisons(comparisons: dict[str, dict[str, Any]]) -> list[Row]:
    """Return the rows of runs that recorded a comparison each."""
    return judge({run: Records(results={"comparison": comparison}) for run, comparison in comparisons.items()})


def test_equal_answers_pass_with_their_sample_and_interval():
    found = row(judge_comparisons({"accuracy/k1": make_comparison(questions=64)}), "11.6")
    assert (found.verdict, found.reason, found.run) == ("pass", "", "accuracy/k1")
    assert "100\N{NO-BREAK SPACE}% of the tokens" in found.measured
    assert "2,048 compared" in found.measured
    assert "64 of 64 questions" in found.measured
    assert "94.3\N{NO-BREAK SPACE}% to 100\N{NO-BREAK SPACE}%" in found.measured


def test_a_pass_on_few_questions_or_random_weights_says_so():
    found = row(judge_comparisons({"accuracy/k1": make_comparison(meaningless=True)}), "11.6")
    assert found.verdict == "pass"
    assert "8 of 50 questions" in found.reason
    assert "random weights" in found.reason


def test_the_least_favourable_run_decides():
    worse = make_comparison(cases=[make_case(token_identity=0.94, divergences=[{"id": "factual-01", "position": 3}])])
    found = row(judge_comparisons({"accuracy/good": make_comparison(), "accuracy/worse": worse}), "11.6")
    assert (found.verdict, found.run) == ("fail", "accuracy/worse")
    assert "7 of 8 questions" in found.measured


def test_exactly_the_limit_is_not_above_it():
    assert (
        row(judge_comparisons({"a/k": make_comparison(cases=[make_case(token_identity=0.95)])}), "11.6").verdict
        == "fail"
    )


def test_the_backend_that_did_not_run_is_named_as_not_measured():
    found = row(judge_comparisons({"accuracy/k1": make_comparison()}), "11.4")
    assert (found.verdict, found.reason) == ("not measured here", "missing: NCCL on GPU")
    assert found.measured == "gloo on CPU, up to 2 ranks"
    found = row(judge_comparisons({"accuracy/k1": make_comparison(device="cuda:0")}), "11.4")
    assert (found.verdict, found.reason) == ("not measured here", "missing: gloo on CPU")
    both = judge_comparisons({"a/k1": make_comparison(), "a/k2": make_comparison(device="cuda")})
    assert row(both, "11.4").verdict == "pass"


def test_without_runs_nothing_is_judged_and_every_row_says_why():
    rows = judge({})
    assert {(row.verdict, row.measured, row.run) for row in rows} == {("not measured here", "", None)}
    assert all(row.reason for row in rows)
    measurable = [
        *(f"10.{number}" for number in range(4, 8)),
        *(f"11.{number}" for number in range(1, 9)),
        "12.7",
        "12.9",
        "13.7",
        "14",
    ]
    assert [row.id for row in rows if row.measurable] == measurable
    assert row(rows, "11.7").reason == "no finished run of concurrency this week"
    assert row(rows, "10.5").reason == "no finished run of cluster this week"
    assert row(rows, "10.2").reason == "tests of the registry, and no study, show it"
    assert len({row.id for row in rows}) == len(rows)


def test_an_architecture_must_hold_all_that_is_asked():
    part = {"name": "layer", "parameters": 1, "weight_bytes": 2, "flops": 3, "decode_ms": 0.5}
    assert judge_results("11.1", architecture={"parts": [part]}).verdict == "pass"
    del part["decode_ms"]
    found = judge_results("11.1", architecture={"parts": [part], "note_ms": "none"})
    assert (found.verdict, found.reason) == ("not measured here", "missing: measured time")


def make_cell(**changes: Any) -> dict[str, Any]:
    return {
        "quantity": "tokens_per_s",
        "ranks": 2,
        "batch": 4,
        "strategy": "C",
        "layers": [16, 14],
        "error": 0.02,
        "low": -0.01,
        "high": 0.05,
    } | changes


def test_predictions_are_judged_by_their_median_and_their_bounds():
    good = [make_cell()] * 8
    assert judge_results("11.2", prediction={"cells": good}).verdict == "pass"
    worst = make_cell(error=-0.31, low=-0.4, high=-0.2, strategy="C", ranks=2, batch=4, quantity="latency_ms")
    found = judge_results("11.2", prediction={"cells": [*good, make_cell(), worst], "meaningless": True})
    assert (found.verdict, found.measured.replace("\N{NO-BREAK SPACE}", " ")) == (
        "pass",
        "median error 2 %; 9 of 10 predictions within 20 %; the worst is −31 % (repeats −40 % to −20 %) "
        "for C, ranks: 2, batch 4, latency",
    )
    assert "random weights" in found.reason
    assert judge_results("11.2", prediction={"cells": [*good, worst]}).verdict == "fail"  # 8 of 9 within the bounds
    assert judge_results("11.2", prediction={"cells": [make_cell(error=0.10)]}).verdict == "fail"


def test_a_rank_that_loads_more_than_its_share_fails():
    def judged(weight_mib: int) -> Row:
        mib = 2**20
        rank = {"rank": 1, "weight_bytes": weight_mib * mib, "share_bytes": 100 * mib, "peak_rss_bytes": 400 * mib}
        return judge_results("11.3", memory={"ranks": [rank | {"weight_bytes": 100 * mib, "rank": 0}, rank]})

    assert judged(109).verdict == "pass"
    assert judged(200).verdict == "fail"
    assert "rank 1: 200 MiB of weights for a share of 100 MiB" in judged(200).measured.replace(
        "\N{NO-BREAK SPACE}", " "
    )


def test_a_timeline_is_a_picture_of_that_name():
    timeline = Picture("timeline", "The ranks over a second.", "<svg/>")
    found = row(judge({"a/k": Records(pictures=(timeline,))}), "11.5")
    assert (found.verdict, found.run) == ("pass", "a/k")
    other = Picture("speeds", "Speeds", "<svg/>")
    assert row(judge({"a/k": Records(pictures=(other,))}), "11.5").verdict == "not measured here"


def make_level(clients: int, p95_s: float = 2.0, **changes: Any) -> dict[str, Any]:
    speed = {"tokens_per_s": 20.0 * clients**0.5, "answers_unchanged": True}
    return {"clients": clients, "requests": 40, "p50_s": 1.0, "p95_s": p95_s, "p99_s": 2 * p95_s} | speed | changes


@pytest.mark.parametrize(
    ("levels", "verdict"),
    [
        ([make_level(1), make_level(10, 9.9), make_level(16, 12.0)], "pass"),  # ten clients are asked for
        ([make_level(1), make_level(10, 10.0)], "fail"),
        ([make_level(8, 11.0), make_level(16, 3.0)], "pass"),
        ([make_level(2, answers_unchanged=False), make_level(10)], "fail"),
        ([make_level(8)], "not measured here"),
    ],
)
def test_latency_is_judged_at_ten_clients_and_answers_at_all(levels: list[dict[str, Any]], verdict: str):
    assert judge_results("11.7", concurrency={"levels": levels}).verdict == verdict


def test_latency_has_its_interval_where_it_is_recorded():
    found = judge_results("11.7", concurrency={"levels": [make_level(10, p95_low_s=1.5, p95_high_s=3.25)]})
    assert "1.50 to 3.25 s" in found.measured


def test_a_benchmark_needs_all_its_sides():
    levels, memory = (
        [make_level(1), make_level(16)],
        {"ranks": [{"weight_bytes": 1, "share_bytes": 1, "peak_rss_bytes": 1, "rank": 0}]},
    )
    cells = [make_cell(ranks=1), make_cell(strategy="D")]
    found = judge_results("11.8", concurrency={"levels": levels}, memory=memory, prediction={"cells": cells})
    assert found.verdict == "pass"
    assert "16 clients get 4.0 × the tokens/s of one" in found.measured
    found = judge_results("11.8", concurrency={"levels": levels}, prediction={"cells": cells[:1]})
    assert (found.verdict, found.reason) == ("not measured here", "missing: memory of each rank, replicas")


def make_share(counts: list[int], within_1: bool | None, balancer: str = "round-robin") -> dict[str, Any]:
    return {"balancer": balancer, "counts": counts, "within_1": within_1}


@pytest.mark.parametrize(
    ("requests", "within_1", "verdict"),
    [(50, True, "pass"), (50, False, "fail"), (49, True, "not measured here")],
)
def test_shares_are_judged_by_round_robin_alone(requests: int, within_1: bool, verdict: str):
    shares = [make_share([17, 17, 16], within_1), make_share([30, 10, 10], False, "weighted-round-robin")]
    found = judge_results("10.4", balance={"requests": requests, "shares": shares})
    assert found.verdict == verdict
    if verdict == "pass":
        assert found.measured == "17, 17, 16 of 50 requests"
        assert "simulated nodes" in found.reason


def make_failover(**changes: Any) -> dict[str, Any]:
    failures = {"node": "node-2", "killed_s": 2.0, "started_s": 3.0, "coordinator": None, "coordinator_killed_s": None}
    return {
        "plan": {"requests": 18},
        "failures": failures,
        "shut_s": 2.5,
        "open_s": 6.0,
        "left_node": [1, 2],
        "left_coordinator": [],
        "lost": 0,
        "duplicated": 0,
        "wrong": [],
        "streams": [{"ended_s": 8.0}, {"ended_s": 9.0}],
    } | changes


@pytest.mark.parametrize(
    ("changes", "of_queue", "of_failover"),
    [
        ({}, "pass", "pass"),
        ({"lost": 1}, "fail", "fail"),
        ({"duplicated": 1}, "fail", "fail"),
        ({"wrong": [1]}, "pass", "fail"),  # all have one end, but a client's tokens were not right
        ({"left_node": []}, "not measured here", "not measured here"),
        ({"left_node": [], "lost": 1}, "fail", "fail"),
        ({"shut_s": 12.1}, "pass", "fail"),
        ({"open_s": 13.1}, "pass", "fail"),
        ({"open_s": None}, "pass", "not measured here"),  # looked at for 6 s
        ({"open_s": None, "streams": [{"ended_s": 13.0}]}, "pass", "fail"),  # for 10 s
    ],
    ids=str,
)
def test_a_failure_is_judged_by_what_was_lost_and_by_the_nodes_return(
    changes: dict[str, Any], of_queue: str, of_failover: str
):
    assert judge_results("10.5", failover=make_failover(**changes)).verdict == of_queue
    assert judge_results("10.7", failover=make_failover(**changes)).verdict == of_failover


def test_a_failure_is_told_with_its_sample_and_its_times():
    found = judge_results("10.7", failover=make_failover(wrong=[3]))
    assert found.measured == (
        "17 of 18 requests answered whole and once; node-2 was killed with 2 in mid-answer; "
        "noticed after 0.5 s, back after 3.0 s"
    )
    short = judge_results("10.7", failover=make_failover(open_s=None))
    assert "not back in the run" in short.measured
    assert short.reason == "the run ended 6.0 s after the node was started again"
    failures = make_failover()["failures"] | {"coordinator": "coordinator-1", "coordinator_killed_s": 7.0}
    both = judge_results("10.5", failover=make_failover(failures=failures, left_coordinator=[4]))
    assert both.measured.endswith("node-2 was killed with 2 in mid-answer, coordinator-1 with 1")


def test_of_several_failures_the_least_favourable_decides():
    runs = {
        "cluster/good": Records(results={"failover": make_failover()}),
        "cluster/idle": Records(results={"failover": make_failover(left_node=[])}),
        "cluster/lost": Records(results={"failover": make_failover(lost=1)}),
    }
    for number in ("10.5", "10.7"):
        assert (row(judge(runs), number).verdict, row(judge(runs), number).run) == ("fail", "cluster/lost")
    del runs["cluster/lost"]
    assert {row(judge(runs), number).run for number in ("10.5", "10.7")} == {"cluster/idle"}


def make_dispatch(p95_ms: float | None, **changes: Any) -> dict[str, Any]:
    added_ms = None if p95_ms is None else {"p95": p95_ms, "p95_low": p95_ms - 5, "p95_high": p95_ms + 5}
    return {"requests": 150, "concurrency": 50, "errors": 0, "seconds": 0.6, "added_ms": added_ms} | changes


@pytest.mark.parametrize(
    ("dispatch", "verdict"),
    [
        (make_dispatch(99.9), "pass"),
        (make_dispatch(100.0), "fail"),
        (make_dispatch(20.0, errors=1), "fail"),
        (make_dispatch(None, errors=150), "fail"),
        (make_dispatch(20.0, concurrency=49), "not measured here"),
    ],
)
def test_added_latency_is_judged_at_fifty_clients(dispatch: dict[str, Any], verdict: str):
    assert judge_results("10.6", dispatch=dispatch).verdict == verdict


def test_added_latency_has_its_interval_where_there_is_one():
    found = judge_results("10.6", dispatch=make_dispatch(42.0))
    assert "p95 42 ms (95\N{NO-BREAK SPACE}% interval 37 to 47 ms) of 150 requests from 50 clients" in found.measured
    few = make_dispatch(42.0, added_ms={"p95": 42.0, "p95_low": 37.0, "p95_high": None})
    assert "p95 42 ms of 150 requests" in judge_results("10.6", dispatch=few).measured


def test_a_case_that_stands_for_others_is_counted_once_and_named_by_all():
    comparison = make_comparison()
    labels = [case_label(case, comparison) for case in measured_cases(comparison)]
    assert labels[:2] == ["fp32, 2 ranks, A = B, batch 1", "fp32, 2 ranks, C, batch 1"]
    assert len(labels) == 8


def test_a_question_that_differs_in_two_cases_is_one_question():
    cases = [make_case(batch=batch, divergences=[{"id": "factual-01", "position": 3}]) for batch in (1, 4)]
    assert identical_questions(make_comparison(cases=cases)) == 7


def test_identity_in_words():
    assert identity_sentence(make_comparison()) == (
        "The split smollm2 gave the same tokens as the whole model in all 8 cases "
        "(fp32 and bf16, 2,048 tokens compared); its logits are equal bit for bit."
    )
    almost = identity_sentence(make_comparison(cases=[*make_cases(), make_case(batch=8, logits_max_abs=0.00025)]))
    assert "but not bit for bit: logits differ by up to 0.00025 in 1 of 9 cases" in almost
    different = identity_sentence(make_comparison(cases=[make_case(token_identity=0.5, logits_max_abs=2.0)]))
    assert "is not the whole model: 1 of 1 cases differ" in different
    assert "only 50\N{NO-BREAK SPACE}% of the tokens agree" in different


def test_reference_in_words():
    def sentence(**changes: object) -> str:
        return reference_sentences(make_comparison(reference=[make_reference(**changes)]))[0]

    assert "chose the same 256 tokens; the largest difference of a logit is 0.000021" in sentence()
    assert "which rounding explains" in sentence(differences=[make_difference(margin=0.0004)])
    assert "which rounding does not explain" in sentence(differences=[make_difference(margin=0.2)])
    assert "margin is up to about 0.06" in sentence(dtype="bf16", differences=[make_difference(margin=0.06)])


def test_only_wide_fp32_margins_are_unexplained():
    narrow, wide = make_difference(margin=0.0004), make_difference(margin=0.001)
    reference = [make_reference(differences=[narrow, wide]), make_reference(dtype="bf16", differences=[wide])]
    assert unexplained_differences(make_comparison(reference=reference)) == [wide]


def test_examples_are_the_first_of_each_kind():
    answers = [{"id": str(number), "kind": kind} for number, kind in enumerate(["b", "a", "b"])]
    assert [answer["id"] for answer in example_answers(make_comparison(answers=answers))] == ["0", "1"]


def test_all_and_nothing_are_said_only_where_they_are_true():
    assert percent(1.0) == "100\N{NO-BREAK SPACE}%"
    assert percent(0.99999) == "99.9\N{NO-BREAK SPACE}%"
    assert difference(0.0) == "0 exactly"
    assert difference(3e-12) == "0.000000000003"


def make_votes(low: float = 0.02, questions: int = 300, ece: float = 0.05, **changes: Any) -> dict[str, Any]:
    def gain(low: float) -> dict[str, Any]:
        return {"difference": {"value": low + 0.02, "low": low, "high": low + 0.04, "n": questions}}

    report = {"ece": ece, "ece_interval": (0.01, 0.1), "ece_if_calibrated_95": 0.06, "brier": 0.2, "items": 150}
    votes = {
        "k": 5,
        "questions": questions,
        "gains": {"all": gain(low), "factual": gain(-1.0)},
        "greedy_gains": {"all": gain(-0.09)},
        "equal_tokens": {"gain": gain(-0.14)},
        "calibrated": [
            {"question_type": "factual", "report": report | {"ece": 0.5}},
            {"question_type": "any", "report": report},
        ],
    }
    return {"votes": votes | changes, "meaningless": False}


@pytest.mark.parametrize(("low", "verdict"), [(0.001, "pass"), (-0.001, "fail"), (-0.2, "fail")])
def test_votes_are_judged_by_the_interval_of_all_questions(low: float, verdict: str) -> None:
    found = judge_results("12.9", consensus=make_votes(low))
    assert found.verdict == verdict
    assert "of 300 questions" in found.measured and "the greedy answer −7.0 points (−9.0 to −5.0)" in found.measured


def test_few_questions_are_no_verdict_on_votes() -> None:
    found = judge_results("12.9", consensus=make_votes(questions=299))
    assert (found.verdict, found.measured) == ("not measured here", "") and "asked 300 questions" in found.reason


def test_of_several_runs_the_least_favourable_votes_decide() -> None:
    runs = {"a/good": make_votes(0.1), "a/bad": make_votes(-0.1), "a/few": make_votes(-0.5, 18, calibrated=[])}
    rows = judge({run: Records(results={"consensus": each}) for run, each in runs.items()})
    assert (row(rows, "12.9").run, row(rows, "12.9").verdict) == ("a/bad", "fail")


@pytest.mark.parametrize(("ece", "verdict"), [(0.06, "pass"), (0.061, "fail")])
def test_a_calibration_is_judged_by_what_chance_alone_gives(ece: float, verdict: str) -> None:
    assert judge_results("12.7", consensus=make_votes(ece=ece)).verdict == verdict
    missing = judge_results("12.7", consensus=make_votes(calibrated=[]))
    assert (missing.verdict, missing.run) == ("not measured here", None)
