"""The acceptance table: which run decides each row, what is said of it, and what is not called measured."""

from dataclasses import asdict, replace
from typing import Any

import pytest
from comparisons import DIVERGENCE, make_case, make_comparison
from examples import example

from qubic_lab.bench.balance import BalanceResult, BalancerShare
from qubic_lab.bench.concurrency import ConcurrencyLevel, ConcurrencyResult
from qubic_lab.bench.dispatch import DispatchResult, Percentiles
from qubic_lab.bench.failover import ClientStream, FailoverPlan, FailoverResult, KilledProcesses
from qubic_lab.bench.memory import MemoryResult, RankMemory
from qubic_lab.bench.prediction import PredictionCell, PredictionResult
from qubic_lab.consensus.confidence import ConfidenceReport
from qubic_lab.evals.comparison import SplitComparison
from qubic_lab.evals.consensus_eval import CalibratedType, ConsensusEvaluation, VoteEvaluation
from qubic_lab.evals.paired import MeanEstimate
from qubic_lab.evals.self_consistency import EqualTokens, Gain
from qubic_lab.runs.collect_week import judge
from qubic_lab.runs.records import RecordedPicture, Records
from qubic_lab.studies.acceptance import AcceptanceRow
from qubic_lab.studies.split_strategies import Architecture, ArchitecturePart

MIB = 2**20


def row_of(id: str, **runs: Records) -> AcceptanceRow:
    """Return a row of the table for runs by name."""
    (found,) = (row for row in judge(runs) if row.id == id)
    return found


def judge_results(id: str, **results: Any) -> AcceptanceRow:
    """Return the row of one run that recorded these results."""
    return row_of(id, run=Records(results={name: asdict(result) for name, result in results.items()}))


def judge_runs(id: str, name: str, **results: Any) -> AcceptanceRow:
    """Return the row of runs that recorded a result of the same name each."""
    return row_of(id, **{run: Records(results={name: asdict(result)}) for run, result in results.items()})


def test_equal_answers_pass_with_their_sample_and_interval():
    found = judge_results("11.6", comparison=make_comparison(questions=64))
    assert (found.verdict, found.reason, found.run) == ("pass", "", "run")
    assert found.measured.replace("\N{NO-BREAK SPACE}", " ") == (
        "100 % of the tokens in the worst case (2,048 compared in all); 64 of 64 questions identical in every case "
        "(95 % interval 94.3 % to 100 %)"
    )


def test_a_pass_on_few_questions_or_random_weights_says_so():
    found = judge_results("11.6", comparison=make_comparison(meaningless=True))
    assert found.verdict == "pass"
    assert "8 of 50 questions" in found.reason
    assert "random weights" in found.reason


def test_the_least_favourable_run_decides():
    worse = make_comparison(cases=[make_case(token_identity=0.94, divergences=(DIVERGENCE,))])
    found = judge_runs("11.6", "comparison", good=make_comparison(), worse=worse)
    assert (found.verdict, found.run) == ("fail", "worse")
    assert "7 of 8 questions" in found.measured


@pytest.mark.parametrize(
    ("devices", "reason"),
    [(["cpu"], "missing: NCCL on GPU"), (["cuda:0"], "missing: gloo on CPU"), (["cpu", "cuda"], "")],
)
def test_the_backend_that_did_not_run_is_named_as_not_measured(devices: list[str], reason: str):
    runs: dict[str, SplitComparison] = {f"on {each}": make_comparison(device=each) for each in devices}
    found = judge_runs("11.4", "comparison", **runs)
    assert (found.verdict, found.reason) == ("not measured here" if reason else "pass", reason)
    assert found.measured.endswith("up to 2 ranks")


def test_without_runs_nothing_is_judged_and_every_row_says_why():
    rows = {row.id: row for row in judge({})}
    assert {(row.verdict, row.measured, row.run) for row in rows.values()} == {("not measured here", "", None)}
    assert all(row.reason for row in rows.values())
    measurable = [f"10.{number}" for number in range(4, 8)] + [f"11.{number}" for number in range(1, 9)]
    assert [row.id for row in rows.values() if row.measurable] == [*measurable, "12.7", "12.9", "13.7", "14"]
    assert rows["11.7"].reason == "no finished run of concurrency this week"
    assert rows["10.5"].reason == "no finished run of cluster this week"
    assert rows["10.2"].reason == "tests of the registry, and no study, show it"
    assert len(rows) == len(judge({}))


def test_a_result_of_another_version_is_left_out_and_the_others_are_judged(caplog: pytest.LogCaptureFixture):
    good = asdict(make_comparison())
    old = {name: value for name, value in good.items() if name != "token_identity"}
    runs = {"new": Records(results={"comparison": good}), "old": Records(results={"comparison": old})}
    assert row_of("11.6", **runs).run == "new"
    assert "run old is not judged" in caplog.text


def make_cell(**changes: Any) -> PredictionCell:
    plain = {"quantity": "tokens_per_s", "ranks": 2, "batch": 4, "strategy": "C", "error": 0.02}
    return example(PredictionCell, **plain | {"low": -0.01, "high": 0.05} | changes)


WORST_CELL = make_cell(error=-0.31, low=-0.4, high=-0.2, quantity="latency_ms")


def predicted(*cells: PredictionCell, **changes: Any) -> PredictionResult:
    return example(PredictionResult, cells=cells, **changes)


def test_predictions_are_judged_by_their_median_and_their_bounds():
    found = judge_results("11.2", prediction=predicted(*[make_cell()] * 9, WORST_CELL, meaningless=True))
    assert (found.verdict, found.measured.replace("\N{NO-BREAK SPACE}", " ")) == (
        "pass",
        "median error 2 %; 9 of 10 predictions within 20 %; the worst is −31 % (repeats −40 % to −20 %) "
        "for C, ranks: 2, batch 4, latency",
    )
    assert "random weights" in found.reason


def make_memory(*weights_mib: int) -> MemoryResult:
    ranks = [
        example(RankMemory, rank=rank, weight_bytes=weight * MIB, share_bytes=100 * MIB)
        for rank, weight in enumerate(weights_mib)
    ]
    return example(MemoryResult, ranks=tuple(ranks))


def test_a_timeline_is_a_picture_of_that_name():
    timeline, other = (RecordedPicture(name, f"Caption of {name}", "<svg/>") for name in ("timeline", "speeds"))
    found = row_of("11.5", run=Records(pictures=(timeline,)))
    assert (found.verdict, found.run) == ("pass", "run")
    assert row_of("11.5", run=Records(pictures=(other,))).verdict == "not measured here"


def make_level(clients: int, p95_s: float = 2.0, **changes: Any) -> ConcurrencyLevel:
    plain = {"clients": clients, "requests": 40, "p95_s": p95_s, "tokens_per_s": 20.0 * clients**0.5}
    return example(ConcurrencyLevel, **plain | {"answers_unchanged": True} | changes)


def with_clients(*levels: ConcurrencyLevel) -> ConcurrencyResult:
    return example(ConcurrencyResult, levels=levels)


def test_a_benchmark_needs_all_its_sides():
    concurrency = with_clients(make_level(1), make_level(16))
    one, replicas = make_cell(ranks=1), make_cell(strategy="D")
    results = {"concurrency": concurrency, "memory": make_memory(1), "prediction": predicted(one, replicas)}
    found = judge_results("11.8", **results)
    assert found.verdict == "pass"
    assert "16 clients get 4.0 × the tokens/s of one" in found.measured
    found = judge_results("11.8", concurrency=concurrency, prediction=predicted(one))
    assert (found.verdict, found.reason) == ("not measured here", "missing: memory of each rank, replicas")


FAILURES = KilledProcesses("node-2", killed_s=2.0, started_s=3.0, coordinator=None, coordinator_killed_s=None)


def ended(*times_s: float) -> tuple[ClientStream, ...]:
    return tuple(example(ClientStream, ended_s=each) for each in times_s)


def make_failover(**changes: Any) -> FailoverResult:
    plain = {"plan": FailoverPlan(requests=18), "failures": FAILURES, "shut_s": 2.5, "open_s": 6.0, "left_node": (1, 2)}
    return example(FailoverResult, **plain | {"streams": ended(8.0, 9.0)} | changes)


@pytest.mark.parametrize(
    ("changes", "of_queue", "of_failover"),
    [
        ({}, "pass", "pass"),
        ({"lost": 1}, "fail", "fail"),
        ({"duplicated": 1}, "fail", "fail"),
        ({"wrong": (1,)}, "pass", "fail"),  # all have one end, but a client's tokens were not right
        ({"left_node": ()}, "not measured here", "not measured here"),
        ({"left_node": (), "lost": 1}, "fail", "fail"),
        ({"shut_s": 12.1}, "pass", "fail"),
        ({"open_s": 13.1}, "pass", "fail"),
        ({"open_s": None}, "pass", "not measured here"),  # looked at for 6 s
        ({"open_s": None, "streams": ended(13.0)}, "pass", "fail"),  # for 10 s
    ],
)
def test_a_failure_is_judged_by_what_was_lost_and_by_the_nodes_return(
    changes: dict[str, Any], of_queue: str, of_failover: str
):
    assert judge_results("10.5", failover=make_failover(**changes)).verdict == of_queue
    assert judge_results("10.7", failover=make_failover(**changes)).verdict == of_failover


def test_a_failure_is_reported_with_its_sample_and_its_times():
    found = judge_results("10.7", failover=make_failover(wrong=(3,)))
    assert found.measured == (
        "17 of 18 requests answered whole and once; node-2 was killed with 2 in mid-answer; "
        "noticed after 0.5 s, back after 3.0 s"
    )
    short = judge_results("10.7", failover=make_failover(open_s=None))
    assert "not back in the run" in short.measured
    assert short.reason == "the run ended 6.0 s after the node was started again"
    failures = replace(FAILURES, coordinator="coordinator-1", coordinator_killed_s=7.0)
    both = judge_results("10.5", failover=make_failover(failures=failures, left_coordinator=(4,)))
    assert both.measured.endswith("node-2 was killed with 2 in mid-answer, coordinator-1 with 1")


@pytest.mark.parametrize("id", ["10.5", "10.7"])
def test_of_several_failures_the_least_favourable_decides(id: str):
    runs = {"good": make_failover(), "idle": make_failover(left_node=())}
    assert judge_runs(id, "failover", **runs).run == "idle"
    found = judge_runs(id, "failover", **runs, lost=make_failover(lost=1))
    assert (found.verdict, found.run) == ("fail", "lost")


def make_dispatch(p95_ms: float | None, **changes: Any) -> DispatchResult:
    added = None
    if p95_ms is not None:
        added = example(Percentiles, p95=p95_ms, p95_low=p95_ms - 5, p95_high=p95_ms + 5)
    plain = {"requests": 150, "concurrency": 50, "seconds": 0.6, "added_ms": added}
    return example(DispatchResult, **plain | changes)


def make_votes(low: float = 0.02, questions: int = 300, ece: float = 0.05, **changes: Any) -> ConsensusEvaluation:
    def gain(low: float) -> Gain:
        return example(Gain, difference=MeanEstimate(low + 0.02, low, low + 0.04, questions))

    report = example(
        ConfidenceReport, ece=ece, ece_interval=(0.01, 0.1), ece_if_calibrated_95=0.06, brier_interval=(0.0, 0.0),
        ece_equal_width_interval=(0.0, 0.0), aurc_interval=(0.0, 0.0), brier=0.2, items=150,
    )  # fmt: skip
    calibrated = (
        example(CalibratedType, question_type="factual", report=replace(report, ece=0.5)),
        example(CalibratedType, question_type="any", report=report),
    )
    plain = {
        "k": 5,
        "questions": questions,
        "gains": {"all": gain(low), "factual": gain(-1.0)},
        "greedy_gains": {"all": gain(-0.09)},
        "equal_tokens": example(EqualTokens, gain=gain(-0.14)),
        "calibrated": calibrated,
    }
    return example(ConsensusEvaluation, votes=example(VoteEvaluation, **plain | changes))


def make_architecture(decode_ms: float | None) -> Architecture:
    return example(Architecture, parts=(example(ArchitecturePart, part="layer", decode_ms=decode_ms),))


def make_balance(requests: int, within_1: bool) -> BalanceResult:
    shares = (
        BalancerShare("round-robin", (17, 17, 16), None, within_1),
        BalancerShare("weighted-round-robin", (30, 10, 10), None, False),
    )
    return example(BalanceResult, requests=requests, shares=shares)


NOT_MEASURED = "not measured here"
VERDICTS: list[tuple[str, str, Any, str]] = [
    ("10.4", "balance", make_balance(50, True), "pass"),  # by round robin alone
    ("10.4", "balance", make_balance(50, False), "fail"),
    ("10.4", "balance", make_balance(49, True), NOT_MEASURED),
    ("10.6", "dispatch", make_dispatch(99.9), "pass"),
    ("10.6", "dispatch", make_dispatch(100.0), "fail"),
    ("10.6", "dispatch", make_dispatch(20.0, errors=1), "fail"),
    ("10.6", "dispatch", make_dispatch(None, errors=150), "fail"),
    ("10.6", "dispatch", make_dispatch(20.0, concurrency=49), NOT_MEASURED),
    ("11.1", "architecture", make_architecture(0.5), "pass"),
    ("11.1", "architecture", make_architecture(None), NOT_MEASURED),
    ("11.2", "prediction", predicted(*[make_cell()] * 8), "pass"),
    ("11.2", "prediction", predicted(*[make_cell()] * 8, WORST_CELL), "fail"),  # 8 of 9 within the bounds
    ("11.2", "prediction", predicted(make_cell(error=0.10)), "fail"),
    ("11.3", "memory", make_memory(100, 109), "pass"),
    ("11.3", "memory", make_memory(100, 200), "fail"),
    ("11.6", "comparison", make_comparison(cases=[make_case(token_identity=0.95)]), "fail"),  # not above the limit
    ("11.7", "concurrency", with_clients(make_level(1), make_level(10, 9.9), make_level(16, 12.0)), "pass"),
    ("11.7", "concurrency", with_clients(make_level(1), make_level(10, 10.0)), "fail"),
    ("11.7", "concurrency", with_clients(make_level(8, 11.0), make_level(16, 3.0)), "pass"),
    ("11.7", "concurrency", with_clients(make_level(2, answers_unchanged=False), make_level(10)), "fail"),
    ("11.7", "concurrency", with_clients(make_level(8)), NOT_MEASURED),  # ten clients are asked for
    ("12.7", "consensus", make_votes(ece=0.06), "pass"),  # what chance alone gives
    ("12.7", "consensus", make_votes(ece=0.061), "fail"),
    ("12.7", "consensus", make_votes(calibrated=()), NOT_MEASURED),
    ("12.9", "consensus", make_votes(0.001), "pass"),
    ("12.9", "consensus", make_votes(-0.001), "fail"),
    ("12.9", "consensus", make_votes(questions=299), NOT_MEASURED),
]


@pytest.mark.parametrize(("id", "name", "result", "verdict"), VERDICTS)
def test_each_criterion_is_judged_by_its_limit(id: str, name: str, result: Any, verdict: str):
    assert judge_results(id, **{name: result}).verdict == verdict


@pytest.mark.parametrize(
    ("id", "name", "result", "measured", "reason"),
    [
        ("10.4", "balance", make_balance(50, True), "17, 17, 16 of 50 requests", "simulated nodes"),
        (
            "10.6",
            "dispatch",
            make_dispatch(42.0),
            "p95 42 ms (95 % interval 37 to 47 ms) of 150 requests from 50 clients",
            "",
        ),
        (
            "10.6",
            "dispatch",
            make_dispatch(42.0, added_ms=example(Percentiles, p95=42.0, p95_low=37.0)),
            "p95 42 ms of 150 requests",
            "",
        ),
        ("11.1", "architecture", make_architecture(None), "", "missing: measured time"),
        ("11.3", "memory", make_memory(100, 109), "rank 1: 109 MiB of weights for a share of 100", ""),
        ("11.7", "concurrency", with_clients(make_level(10, p95_low_s=1.5, p95_high_s=3.25)), "1.50 to 3.25 s", ""),
        ("12.9", "consensus", make_votes(0.02), "of 300 questions", ""),
        ("12.9", "consensus", make_votes(-0.001), "the greedy answer −7.0 points (−9.0 to −5.0)", ""),
        ("12.9", "consensus", make_votes(questions=299), "", "asked 300 questions"),
    ],
)
def test_a_row_says_what_was_measured(id: str, name: str, result: Any, measured: str, reason: str):
    found = judge_results(id, **{name: result})
    assert measured in found.measured.replace("\N{NO-BREAK SPACE}", " ")
    assert reason in found.reason


def test_of_several_runs_the_least_favourable_votes_decide() -> None:
    runs = {"good": make_votes(0.1), "bad": make_votes(-0.1), "few": make_votes(-0.5, 18, calibrated=())}
    found = judge_runs("12.9", "consensus", **runs)
    assert (found.run, found.verdict) == ("bad", "fail")
    assert judge_results("12.7", consensus=make_votes(calibrated=())).run is None
