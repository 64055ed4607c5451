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
from qubic_lab.bench.noise import MachineNoise
from qubic_lab.bench.prediction_result import PredictionCell, PredictionResult
from qubic_lab.bench.queue import QueueResult
from qubic_lab.consensus.confidence import ConfidenceReport
from qubic_lab.evals.comparison import SplitComparison
from qubic_lab.evals.consensus_eval import CalibratedType, ConsensusEvaluation, VoteEvaluation
from qubic_lab.evals.paired import MeanEstimate
from qubic_lab.evals.self_consistency import EqualTokens, Gain
from qubic_lab.oracle.risk.warning_scores import IntervalEstimate
from qubic_lab.runs.collect_week import judge
from qubic_lab.runs.records import RecordedPicture, Records
from qubic_lab.studies.acceptance import AcceptanceRow, least_favourable
from qubic_lab.studies.engine_speed import TARGETS
from qubic_lab.studies.oracle_results import (
    AnomaliesRecord,
    AnomalyCurve,
    BestCoefficient,
    CalibrationErrorRecord,
    ConfidenceError,
    ConfidenceRecord,
    ForecastsRecord,
    HorizonRecord,
    RecordedEstimate,
    RiskRecord,
    SignalRecord,
    SignalsRecord,
    WarningsRecord,
    WorthRecord,
)
from qubic_lab.studies.split_strategies import Architecture, ArchitecturePart
from qubic_lab.studies.style import percent

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


def test_equal_answers_pass_with_their_sample_and_what_weakens_it():
    found = judge_results("11.6", comparison=make_comparison(questions=64))
    assert (found.verdict, found.reason, found.run) == ("pass", "", "run")
    assert "64 of 64 questions identical in every case" in found.measured
    found = judge_results("11.6", comparison=make_comparison(questions=49, meaningless=True))
    assert found.verdict == "partial"
    assert found.reason.startswith("49 of the 50 questions that a verdict takes; random weights")


def test_answers_count_beside_tokens() -> None:
    parted = tuple(replace(DIVERGENCE, id=f"q{number}") for number in range(3))
    cases = [make_case(token_identity=0.99, divergences=parted)]
    assert judge_results("11.6", comparison=make_comparison(questions=64, cases=cases)).verdict == "pass"  # 61 of 64
    assert judge_results("11.6", comparison=make_comparison(questions=60, cases=cases)).verdict == "fail"  # 95 %


def test_another_model_or_one_rank_is_no_measure_of_a_split() -> None:
    other = make_comparison(questions=64, candidate="other", model_hash="a", candidate_hash="b")
    for found in (other, make_comparison(questions=64, cases=[make_case(ranks=1)])):
        for row in ("11.4", "11.6"):
            judged = judge_results(row, comparison=found)
            assert judged.verdict == "not measured here" and judged.reason.endswith("split the model itself")
    shipped = replace(other, candidate_hash="a")
    assert judge_runs("11.6", "comparison", other=other, shipped=shipped).run == "shipped"


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
    rows = {row.id: row for row in judge({}) if row.id not in ("9.1", "9.2", "9.3", "9.4")}  # of the plan
    assert {(row.verdict, row.measured, row.run) for row in rows.values()} == {("not measured here", "", None)}
    assert all(row.reason for row in rows.values())
    measurable = [
        *(f"10.{number}" for number in range(4, 8)),
        "10.7.1",
        "10.7.2",
        *(f"11.{number}" for number in range(1, 9)),
    ]
    measurable += [f"11.8.{number}" for number in range(1, len(TARGETS) + 1)]
    assert [row.id for row in rows.values() if row.measurable] == [*measurable, "12.7", "12.9", "13.7", "14"]
    assert rows["11.7"].reason == "no finished run of concurrency this week"
    assert rows["10.5"].reason == "no finished run of cluster this week"
    assert rows["10.2"].reason == "tests of the registry, and no study, show it"
    assert len(rows) + 4 == len(judge({}))


def test_a_result_of_another_version_is_left_out_and_the_others_are_judged(caplog: pytest.LogCaptureFixture):
    good = asdict(make_comparison())
    old = {name: value for name, value in good.items() if name != "token_identity"}
    runs = {"new": Records(results={"comparison": good}), "old": Records(results={"comparison": old})}
    assert row_of("11.6", **runs).run == "new"
    assert "run old is not judged" in caplog.text


def make_cell(**changes: Any) -> PredictionCell:
    plain = {"quantity": "tokens_per_s", "ranks": 2, "batch": 4, "strategy": "C", "error": 0.02}
    return example(PredictionCell, **plain | {"low": -0.01, "high": 0.05} | changes)


LATE_CELL = make_cell(quantity="latency_ms")
WORST_CELL = make_cell(error=-0.31, low=-0.4, high=-0.2, quantity="latency_ms")
CELLS = (*[make_cell()] * 5, *[LATE_CELL] * 4)


def predicted(*cells: PredictionCell, **changes: Any) -> PredictionResult:
    return example(PredictionResult, cells=cells, **changes)


def test_predictions_are_judged_by_their_median_and_their_bounds():
    found = judge_results("11.2", prediction=predicted(*CELLS, WORST_CELL, meaningless=True))
    assert found.verdict == "pass" and "random weights" in found.reason
    assert found.measured.startswith(f"median error {percent(0.02)} (throughput), {percent(0.02)} (latency); 9 of 10 ")
    assert found.measured.endswith("for C, ranks: 2, batch 4, latency")
    # Good predictions of one quantity do not hide bad ones of the other, or that there are none.
    hidden = predicted(*[make_cell()] * 19, make_cell(error=0.11, low=0.1, high=0.13, quantity="latency_ms"))
    assert judge_results("11.2", prediction=hidden).verdict == "fail"
    found = judge_results("11.2", prediction=predicted(make_cell()))
    assert (found.verdict, found.reason) == ("not measured here", "missing: latency")


def test_predictions_whose_repeats_differ_by_more_than_the_miss_are_not_called_wrong() -> None:
    found = judge_results("11.2", prediction=predicted(make_cell(error=0.12, low=0.08, high=0.31), LATE_CELL))
    assert found.verdict == "not measured here"
    assert (
        found.reason == "machine too noisy: the repeats of a prediction are up to 23.0 points apart, more than the miss"
    )
    told = judge_results("11.2", prediction=predicted(make_cell(left_out=3), LATE_CELL)).measured
    assert "3 pairs that others disturbed left out" in told


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
    plain = {"clients": clients, "requests": 72, "p95_s": p95_s, "tokens_per_s": 20.0 * clients**0.5}
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
        ({}, "partial", "pass"),
        ({"lost": 1}, "fail", "fail"),
        ({"duplicated": 1}, "fail", "fail"),
        ({"wrong": (1,)}, "partial", "fail"),  # all have one end, but a client's tokens were not right
        ({"left_node": ()}, "not measured here", "not measured here"),
        ({"left_node": (), "lost": 1}, "fail", "fail"),
        ({"shut_s": 12.1}, "partial", "fail"),
        ({"open_s": 13.1}, "partial", "fail"),
        ({"open_s": None}, "partial", "not measured here"),  # looked at for 6 s
        ({"open_s": None, "streams": ended(13.0)}, "partial", "fail"),  # for 10 s
    ],
)
def test_a_failure_is_judged_by_what_was_lost_and_by_the_nodes_return(
    changes: dict[str, Any], of_queue: str, of_failover: str
):
    assert judge_results("10.5", failover=make_failover(**changes)).verdict == of_queue
    assert judge_results("10.7", failover=make_failover(**changes)).verdict == of_failover


def test_a_failure_is_reported_with_its_sample_and_its_times():
    found = judge_results("10.7", failover=make_failover(wrong=(3,)))
    assert found.measured.startswith("17 of 18 requests") and found.measured.endswith("after 0.5 s; back after 3.0 s")
    short = judge_results("10.7", failover=make_failover(open_s=None))
    assert "not back in the run" in short.measured
    assert short.reason == "the run ended 6.0 s after the node was started again"
    failures = replace(FAILURES, coordinator="coordinator-1", coordinator_killed_s=7.0)
    both = judge_results("10.5", failover=make_failover(failures=failures, left_coordinator=(4,)))
    assert both.measured.endswith("answered 2 requests; coordinator-1 was killed while it answered 1 request")


def test_of_several_failures_the_least_favourable_decides():
    runs = {"good": make_failover(), "idle": make_failover(left_node=())}
    assert judge_runs("10.7", "failover", **runs).run == "idle"
    for row in ("10.5", "10.7"):
        found = judge_runs(row, "failover", **runs, lost=make_failover(lost=1))
        assert (found.verdict, found.run) == ("fail", "lost")
    assert least_favourable([]) is None


def test_the_queue_is_judged_by_all_requests_that_were_interrupted() -> None:
    killed = example(QueueResult, tasks=20_000, disturbed=70, reclaimed=57)
    found = judge_results("10.5", failover=make_failover(), queue=killed)
    assert (found.verdict, found.reason) == ("pass", "")
    assert found.measured.startswith("0 lost, 0 answered twice of 20,018 requests, 59 of them interrupted; node-2 was")
    assert found.measured.endswith("70 workers killed")
    found = judge_results("10.5", failover=make_failover(), queue=replace(killed, reclaimed=56))
    assert (found.verdict, found.reason) == ("partial", "58 of the 59 interrupted requests that a verdict takes")


def make_dispatch(p95_ms: float | None, **changes: Any) -> DispatchResult:
    added = None
    if p95_ms is not None:
        added = example(Percentiles, p95=p95_ms, p95_low=p95_ms - 5, p95_high=p95_ms + 5)
    plain = {"requests": 150, "concurrency": 50, "seconds": 0.6, "added_ms": added}
    return example(DispatchResult, **plain | changes)


@pytest.mark.parametrize(
    ("id", "name", "missed", "broken"),
    [
        ("10.6", "dispatch", make_dispatch(120.0), make_dispatch(20.0, errors=1)),
        ("10.7", "failover", make_failover(open_s=13.1), make_failover(open_s=13.1, lost=1)),
        ("11.2", "prediction", predicted(WORST_CELL, make_cell()), None),
        (
            "11.7",
            "concurrency",
            with_clients(make_level(10, 12.0)),
            with_clients(make_level(10, answers_unchanged=False)),
        ),
    ],
)
def test_a_busy_machine_excuses_times_and_nothing_else(id: str, name: str, missed: Any, broken: Any) -> None:
    busy, quiet = MachineNoise(before=0.98, during=0.47), MachineNoise(before=0.98, during=0.1)
    assert judge_results(id, **{name: replace(missed, noise=quiet)}).verdict == "fail"
    found = judge_results(id, **{name: replace(missed, noise=busy)})
    assert found.verdict == "not measured here"
    assert found.reason.startswith(
        f"machine too noisy: other processes used {percent(0.47)} of its cores during the measurement, "
        f"{percent(0.98)} in the moment before (a verdict takes {percent(0.1)} at most)"
    )
    if broken is not None:
        assert judge_results(id, **{name: replace(broken, noise=busy)}).verdict == "fail"


def make_votes(
    low: float = 0.02,
    questions: int = 300,
    ece: float = 0.05,
    *,
    greedy: float = 0.02,
    equal: float = 0.02,
    votes: tuple[int, int] = (200, 200),
    meaningless: bool = False,
    **changes: Any,
) -> ConsensusEvaluation:
    def gain(low: float) -> Gain:
        return example(Gain, difference=MeanEstimate(low + 0.02, low, low + 0.04, questions))

    report = example(
        ConfidenceReport, ece=ece, ece_interval=(0.01, 0.1), ece_if_calibrated_95=0.06, brier_interval=(0.0, 0.0),
        ece_equal_width_interval=(0.0, 0.0), aurc_interval=(0.0, 0.0), brier=0.2, items=votes[1],
    )  # fmt: skip
    calibrated = (
        example(CalibratedType, question_type="factual", report=replace(report, ece=0.5)),
        example(CalibratedType, question_type="any", report=report, development=votes[0]),
    )
    gains = {"gains": {"all": gain(low), "factual": gain(-1.0)}, "greedy_gains": {"all": gain(greedy)}}
    at_equal = example(EqualTokens, gain=gain(equal))
    plain = {"k": 5, "questions": questions, "calibrated": calibrated, "equal_tokens": at_equal, **gains}
    return example(ConsensusEvaluation, meaningless=meaningless, votes=example(VoteEvaluation, **plain | changes))


def make_architecture(decode_ms: float | None) -> Architecture:
    return example(Architecture, parts=(example(ArchitecturePart, part="layer", decode_ms=decode_ms),))


def make_balance(requests: int, within_1: bool) -> BalanceResult:
    shares = (
        BalancerShare("round-robin", (17, 17, 16), None, within_1),
        BalancerShare("weighted-round-robin", (30, 10, 10), None, False),
    )
    return example(BalanceResult, requests=requests, shares=shares)


NOT_MEASURED = "not measured here"
NO_BENEFIT = "measured, no benefit"
VERDICTS: list[tuple[str, str, Any, str]] = [
    ("10.4", "balance", make_balance(50, True), "pass"),  # by round robin alone
    ("10.4", "balance", make_balance(50, False), "fail"),
    ("10.4", "balance", make_balance(49, True), "partial"),
    ("10.4", "balance", make_balance(49, False), "fail"),
    ("10.6", "dispatch", make_dispatch(99.9), "pass"),
    ("10.6", "dispatch", make_dispatch(100.0), "fail"),
    ("10.6", "dispatch", make_dispatch(20.0, errors=1), "fail"),
    ("10.6", "dispatch", make_dispatch(None, errors=150), "fail"),
    ("10.6", "dispatch", make_dispatch(20.0, concurrency=49), "partial"),
    ("10.6", "dispatch", make_dispatch(20.0, requests=71), "partial"),
    ("11.1", "architecture", make_architecture(0.5), "pass"),
    ("11.1", "architecture", make_architecture(None), NOT_MEASURED),
    ("11.2", "prediction", predicted(*CELLS), "pass"),
    ("11.2", "prediction", predicted(*CELLS[1:], WORST_CELL), "fail"),  # 8 of 9 within the bounds
    ("11.2", "prediction", predicted(make_cell(error=0.10, low=0.10, high=0.12), LATE_CELL), "fail"),
    ("11.3", "memory", make_memory(100, 109), "pass"),
    ("11.3", "memory", make_memory(100, 200), "fail"),
    ("11.3", "memory", make_memory(100), NOT_MEASURED),  # a single rank holds all layers
    ("11.6", "comparison", make_comparison(cases=[make_case(token_identity=0.95)]), "fail"),  # not above the limit
    ("11.7", "concurrency", with_clients(make_level(1), make_level(10, 9.9), make_level(16, 12.0)), "pass"),
    ("11.7", "concurrency", with_clients(make_level(1), make_level(10, 10.0)), "fail"),
    ("11.7", "concurrency", with_clients(make_level(8, 11.0), make_level(16, 3.0)), "pass"),
    ("11.7", "concurrency", with_clients(make_level(2, answers_unchanged=False), make_level(10)), "fail"),
    ("11.7", "concurrency", with_clients(make_level(8)), "partial"),  # ten clients are asked for
    ("11.7", "concurrency", with_clients(make_level(10, requests=71)), "partial"),  # no upper end of p95
    ("12.7", "consensus", make_votes(ece=0.06), "pass"),  # what chance alone gives
    ("12.7", "consensus", make_votes(ece=0.061), "fail"),
    ("12.7", "consensus", make_votes(calibrated=()), NOT_MEASURED),
    ("12.7", "consensus", make_votes(votes=(199, 300)), "partial"),
    ("12.7", "consensus", make_votes(votes=(300, 199)), "partial"),
    ("12.7", "consensus", make_votes(meaningless=True), NOT_MEASURED),
    ("12.9", "consensus", make_votes(0.001), "pass"),
    ("12.9", "consensus", make_votes(-0.001), NO_BENEFIT),
    ("12.9", "consensus", make_votes(greedy=-0.001), NO_BENEFIT),
    ("12.9", "consensus", make_votes(equal=-0.001), NO_BENEFIT),
    ("12.9", "consensus", make_votes(equal=-0.228), "fail"),
    ("12.9", "consensus", make_votes(greedy=-0.05), "fail"),
    ("12.9", "consensus", make_votes(questions=299), "partial"),
    ("12.9", "consensus", make_votes(questions=299, equal=-0.228), "partial"),
    ("12.9", "consensus", make_votes(meaningless=True), NOT_MEASURED),
]


@pytest.mark.parametrize(("id", "name", "result", "verdict"), VERDICTS)
def test_each_criterion_is_judged_by_its_limit(id: str, name: str, result: Any, verdict: str):
    found = judge_results(id, **{name: result})
    assert found.verdict == verdict
    assert ("that a verdict takes" in found.reason) == (verdict == "partial") or verdict == "fail"


def test_of_several_runs_the_least_favourable_votes_decide() -> None:
    runs = {"good": make_votes(0.1), "bad": make_votes(-0.1), "few": make_votes(-0.5, 18, calibrated=())}
    found = judge_runs("12.9", "consensus", **runs)
    assert (found.run, found.verdict) == ("bad", "fail")
    assert "against one sample: worse; against the greedy answer: better" in found.reason
    assert judge_results("12.7", consensus=make_votes(calibrated=())).run is None


def signals(measured: bool = True, evidence: bool = False) -> SignalsRecord:
    best = BestCoefficient(0.021, -0.01, 0.052, 0.4, 900)
    weak = SignalRecord("newsapi, 1 h", False, replace(best, ic=0.5, p_corrected=0.8))
    studies = (weak, SignalRecord("hacker-news, 1 h", evidence, best))
    return SignalsRecord(measured, None if measured else "no collected texts", studies)


def horizon(bars: str, hours: int, high: float = 0.99) -> HorizonRecord:
    ratio, ece = RecordedEstimate(0.9 + hours / 100, 0.89, high), CalibrationErrorRecord(0.05, 0.03)
    return HorizonRecord(bars, hours, True, ratio, RecordedEstimate(0.81, 0.78, 0.84), ece)


DAYS = HorizonRecord("1 day", 1, measured=False)
FORECASTS = ForecastsRecord((DAYS, horizon("15 min", 1), horizon("15 min", 2), horizon("1 h", 1, 1.2)))
SMALL = example(AnomalyCurve, kind="jump", size=2.0, auc=0.6, low=0.5, high=0.7)
JUMP = replace(SMALL, size=8.0, auc=0.97, low=0.95, high=0.99)
OUTLIER = replace(SMALL, kind="outlier", size=8.0, auc=0.99, low=0.98, high=1.0)
ANOMALIES = AnomaliesRecord((JUMP, OUTLIER, SMALL))
CONFIDENCE = example(ConfidenceRecord, headlines=375, ece=ConfidenceError(0.069, 0.0, 0.087, 0.05, 0.081))


def validated(**changes: Any) -> AcceptanceRow:
    parts = {"signals": signals(evidence=True), "forecasts_1_4h": FORECASTS}
    parts |= {"anomalies": ANOMALIES, "sentiment_confidence": CONFIDENCE}
    return judge_results("13.7", **{name: each for name, each in (parts | changes).items() if each is not None})


def test_a_validation_of_all_four_parts_passes_and_tells_each() -> None:
    found = validated()
    assert (found.verdict, found.reason) == ("pass", "")
    told = found.measured.split("; ")
    assert "evidence in 1 of 2 series (hacker-news, 1 h)" in told[0]
    assert "information coefficient of 0.021 (95 % interval −0.010 to 0.052)" in told[1] and "900 pairs" in told[1]
    assert "forecasts of 1, 2 h from bars of 15 min" in told[2] and "at least 0.970" in told[5]


@pytest.mark.parametrize(
    ("part", "recorded", "named"),
    [
        ("signals", signals(), "sentiment against returns"),
        ("forecasts_1_4h", ForecastsRecord((horizon("15 min", 1), horizon("15 min", 2, 1.01))), "forecasts"),
        ("anomalies", AnomaliesRecord((replace(JUMP, low=0.49),)), "anomalies"),
        ("sentiment_confidence", replace(CONFIDENCE, ece=replace(CONFIDENCE.ece, value=0.082)), "confidence"),
    ],
)
def test_a_validation_that_shows_nothing_is_no_pass(part: str, recorded: Any, named: str) -> None:
    found = validated(**{part: recorded})
    assert (found.verdict, found.reason) == ("measured, no benefit", f"not shown: {named}")
    if part == "signals":
        assert found.measured.startswith("sentiment of collected texts: no evidence in 2 series")


@pytest.mark.parametrize(
    ("part", "recorded", "missing"),
    [
        ("forecasts_1_4h", None, "forecasts"),
        ("anomalies", None, "anomalies"),
        ("sentiment_confidence", None, "confidence"),
        ("forecasts_1_4h", ForecastsRecord((DAYS,)), "forecasts"),
        ("anomalies", AnomaliesRecord((SMALL,)), "anomalies"),
        ("signals", signals(measured=False), "sentiment against returns (no collected texts)"),
    ],
)
def test_a_missing_part_is_named_and_the_rest_is_still_told(part: str, recorded: Any, missing: str) -> None:
    found = validated(**{part: recorded})
    assert (found.verdict, found.reason) == ("not measured here", f"missing: {missing}")
    assert ("information coefficient" in found.measured) == (part != "signals")
    assert ("forecasts of 1, 2 h" in found.measured) == (part != "forecasts_1_4h")


def interval(value: float | None, low: float | None = None, high: float | None = None) -> IntervalEstimate:
    return IntervalEstimate(value=value, low=low, high=high)


def worth(name: str = "1 day", *, falls: int = 20, found: int = 12, p: float = 0.4, **changes: Any) -> WorthRecord:
    ours = example(
        WarningsRecord,
        warnings=30,
        precision=interval(0.4, 0.25, 0.58),
        precision_by_chance=0.31,
        falls=falls,
        found=found,
        recall=interval(0.6, 0.39, 0.78),
        recall_by_chance=0.1,
        time_under_warning=0.1,
        false_alarms_a_month=interval(0.9, 0.5, 1.4),
        lead_h=interval(48.0, 24.0, 72.0),
    )
    plain = {"bars_of": name, "drop": 0.1, "ours": replace(ours, **changes), "naive": replace(ours, found=10), "p": p}
    return WorthRecord(**plain, absent="")


def test_warnings_are_told_with_intervals_and_against_the_naive_rule() -> None:
    found = judge_results("14", risk=RiskRecord((worth("15 min", found=18, p=0.01), worth())))
    assert found.verdict == "pass"
    told = found.measured.replace("\N{NO-BREAK SPACE}", " ")
    assert "bars of 1 day: precision 40 % (25 % to 58 %) of 30 warnings, by chance 31 %; recall 60 %" in told
    more, same = found.reason.split("; ")
    beyond = "falls found than by volatility alone"
    assert more == f"bars of 15 min: evidence of more {beyond} (18 and 10, p = 0.01, evidence below 0.025)"
    assert same == f"bars of 1 day: no evidence of more {beyond} (12 and 10, p = 0.4, evidence below 0.025)"
    assert "bars of 1 day: fewer falls" in judge_results("14", risk=RiskRecord((worth(found=1, p=0.01),))).reason


@pytest.mark.parametrize(
    ("worths", "verdict"),
    [
        ((worth(),), "measured, no benefit"),
        ((worth(found=18, p=0.04),), "pass"),
        ((worth(found=18, p=0.04), worth("1 h")), "measured, no benefit"),  # two tests, so each at 2.5 %
        ((worth(found=18, p=0.01), worth("1 h", found=1, p=0.01)), "fail"),
        ((worth(falls=5, found=5, p=0.06),), "partial"),  # five falls cannot be evidence
        ((worth(falls=6, found=5, p=0.06),), "measured, no benefit"),
        ((worth(falls=5, found=5, p=0.06), worth("1 h")), "measured, no benefit"),
    ],
)
def test_warnings_pass_by_evidence_alone(worths: tuple[WorthRecord, ...], verdict: str) -> None:
    found = judge_results("14", risk=RiskRecord(worths))
    assert found.verdict == verdict
    assert verdict != "partial" or "5 of the 6 falls that a verdict takes" in found.reason


def test_few_leads_have_no_interval_and_no_falls_no_verdict() -> None:
    few = worth(lead_h=interval(5.0), precision=interval(None))
    told = judge_results("14", risk=RiskRecord((few,))).measured
    assert "lead in hours 5.0 (too few for an interval)" in told and "precision unknown of 30" in told
    nothing = (worth(falls=0), replace(worth("1 h"), ours=None, absent="40 bars: too few"))
    found = judge_results("14", risk=RiskRecord(nothing))
    reason = "bars of 1 day: no fall began while warnings were judged; bars of 1 h: 40 bars: too few"
    assert (found.verdict, found.reason) == ("not measured here", reason)
    assert row_of("14").reason == "no finished run of risk_warnings this week"
