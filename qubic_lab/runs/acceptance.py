"""Judge recorded results by the acceptance criteria, row by row: plain values in, plain values out."""

from collections.abc import Iterator, Mapping
from functools import partial
from math import inf
from statistics import median
from typing import Any

from qubic_lab.runs.acceptance_rows import Result, Row, Verdict, not_measured, recorded
from qubic_lab.runs.criteria import NOT_MEASURABLE
from qubic_lab.runs.oracle_acceptance import validation_row, warnings_row
from qubic_lab.runs.records import Records
from qubic_lab.stats import wilson_interval
from qubic_lab.studies import consensus_evaluation as consensus
from qubic_lab.studies.accuracy_comparison import identical_questions, percent, tokens_compared

PREDICTION_ERROR = 0.10
LARGEST_ERROR, LARGEST_ERROR_SHARE = 0.20, 0.9
"""So many of the predictions must be nearer than that."""
SHARE_TOLERANCE = 0.10
CONSISTENCY_TARGET = 0.95
QUESTIONS_TARGET = 50
VOTED_QUESTIONS_TARGET = 300
CONFIDENCE = 0.95
CLIENTS_TARGET = 10
P95_TARGET_S = 10.0
BALANCED_REQUESTS = 50
BALANCED = "round-robin"
CONCURRENCY_TARGET = 50
ADDED_TARGET_MS = 100.0
NODE_LIMIT_S = 10.0
"""So soon a failed node gets nothing more, and so soon after its return it may be chosen."""
NOTHING_ON_IT = "no request was on the node that was killed"
BACKENDS = {"cpu": "gloo on CPU", "cuda": "NCCL on GPU"}
TIMELINE = "timeline"
"""The name of the figure that shows a request's way through the ranks."""
REPLICAS = "D"
ARCHITECTURE_PARTS = {
    "parameters": ("parameters",),
    "bytes": ("bytes",),
    "FLOPs": ("flops",),
    "measured time": ("_ms", "_us", "_s"),
}
"""What 11.1 asks for, each with what the names of such values end in."""


def judge(runs: Mapping[str, Records]) -> list[Row]:
    """Return the rows for what the finished runs of a week recorded, given by the runs' names."""
    judged = [
        _balance_row(runs),
        _queue_row(runs),
        _coordinator_row(runs),
        _failover_row(runs),
        _architecture_row(runs),
        _prediction_row(runs),
        _memory_row(runs),
        _pipeline_row(runs),
        _timeline_row(runs),
        _consistency_row(runs),
        _latency_row(runs),
        _benchmark_row(runs),
        _calibration_row(runs),
        _votes_row(runs),
        validation_row(runs),
        warnings_row(runs),
    ]
    unbuilt = [
        Row(id, what, target, measured="", verdict="not measured here", reason=reason, run=None, measurable=False)
        for id, what, target, reason in NOT_MEASURABLE
    ]
    return judged + unbuilt


def _balance_row(runs: Mapping[str, Records]) -> Row:
    row = partial(
        Row,
        id="10.4",
        what="Load balancing",
        target=f"{BALANCED_REQUESTS} requests over equal nodes: even within ±1 for round robin",
    )
    results = recorded(runs, "balance")
    found = {
        run: (share, result["requests"])
        for run, result in results.items()
        for share in result["shares"]
        if share["balancer"] == BALANCED and result["requests"] >= BALANCED_REQUESTS
    }
    if not found:
        return not_measured(row, "cluster", f" gave {BALANCED_REQUESTS} requests or more" if results else "")
    run, (share, requests) = min(found.items(), key=lambda item: bool(item[1][0]["within_1"]))
    return row(
        measured=f"{', '.join(map(str, share['counts']))} of {requests} requests",
        verdict="pass" if share["within_1"] else "fail",
        reason="the coordinator's balancer, simulated nodes",
        run=run,
    )


def _queue_row(runs: Mapping[str, Records]) -> Row:
    row = partial(
        Row, id="10.5", what="Task queue", target="nothing lost, nothing answered twice, when workers are killed"
    )
    found = recorded(runs, "failover")
    if not found:
        return not_measured(row, "cluster")
    # After losses, a run whose killed node had nothing to do is the least favourable: it shows nothing.
    run, worst = max(
        found.items(), key=lambda item: (item[1]["lost"] + item[1]["duplicated"], not item[1]["left_node"])
    )
    verdict: Verdict = "pass"
    reason = "few requests: qubic-lab bench queue kills workers while they do many"
    if worst["lost"] or worst["duplicated"]:
        verdict, reason = "fail", ""
    elif not worst["left_node"]:
        verdict, reason = "not measured here", NOTHING_ON_IT
    return row(
        measured=(
            f"{worst['lost']} lost, {worst['duplicated']} answered twice of {worst['plan']['requests']} requests; "
            f"{_killed(worst)}"
        ),
        verdict=verdict,
        reason=reason,
        run=run,
    )


def _killed(failover: Result) -> str:
    failures = failover["failures"]
    too = f", {failures['coordinator']} with {len(failover['left_coordinator'])}" if failures["coordinator"] else ""
    return f"{failures['node']} was killed with {len(failover['left_node'])} in mid-answer{too}"


def _coordinator_row(runs: Mapping[str, Records]) -> Row:
    row = partial(
        Row,
        id="10.6",
        what="Coordinator",
        target=f"{CONCURRENCY_TARGET} concurrent requests: added latency < {ADDED_TARGET_MS:g} ms at p95",
    )
    results = recorded(runs, "dispatch")
    # No right answer, no latency: that is the least favourable.
    p95_ms = {
        run: float(result["added_ms"]["p95"]) if result["added_ms"] else inf
        for run, result in results.items()
        if result["concurrency"] >= CONCURRENCY_TARGET
    }
    if not p95_ms:
        return not_measured(row, "cluster", f" has {CONCURRENCY_TARGET} clients or more" if results else "")
    run = max(p95_ms, key=lambda run: (results[run]["errors"], p95_ms[run]))
    worst, added = results[run], results[run]["added_ms"]
    said = "no latency"
    if added:
        low, high = added["p95_low"], added["p95_high"]
        interval = "" if None in (low, high) else f" ({percent(CONFIDENCE)} interval {low:.0f} to {high:.0f} ms)"
        said = f"p95 {added['p95']:.0f} ms{interval}"
    return row(
        measured=(
            f"{said} of {worst['requests']} requests from {worst['concurrency']} clients; "
            f"{worst['errors']} without their right answer"
        ),
        verdict="pass" if p95_ms[run] < ADDED_TARGET_MS and not worst["errors"] else "fail",
        reason=f"clients, coordinator and nodes, whose model is a wait of {worst['seconds']:g} s, share one machine",
        run=run,
    )


def _failover_row(runs: Mapping[str, Records]) -> Row:
    row = partial(
        Row,
        id="10.7",
        what="Failover",
        target=f"failed node found, its work moved, node back by itself; each within {NODE_LIMIT_S:g} s",
    )
    judged = {run: (result, *_judge_failover(result)) for run, result in recorded(runs, "failover").items()}
    if not judged:
        return not_measured(row, "cluster")
    least_favourable_first = ("fail", "not measured here", "pass")
    run, (worst, verdict, reason) = min(judged.items(), key=lambda item: least_favourable_first.index(item[1][1]))
    shut_s, open_s = _after_failure_s(worst)
    requests = worst["plan"]["requests"]
    return row(
        measured=(
            f"{requests - len(worst['wrong'])} of {requests} requests answered whole and once; {_killed(worst)}; "
            f"{_after('noticed', shut_s)}, {_after('back', open_s)}"
        ),
        verdict=verdict,
        reason=reason,
        run=run,
    )


def _judge_failover(failover: Result) -> tuple[Verdict, str]:
    """Return verdict and reason for one run."""
    if failover["wrong"] or failover["lost"] or failover["duplicated"]:
        return "fail", "not every request was answered once"
    times_s = _after_failure_s(failover)
    if any(each is not None and each > NODE_LIMIT_S for each in times_s):
        return "fail", ""
    if not failover["left_node"]:
        return "not measured here", NOTHING_ON_IT
    if None in times_s:
        # Nobody looks at the nodes any more once the last stream has ended.
        looked_s = max(stream["ended_s"] for stream in failover["streams"]) - failover["failures"]["started_s"]
        if looked_s >= NODE_LIMIT_S:
            return "fail", ""
        return "not measured here", f"the run ended {looked_s:.1f} s after the node was started again"
    return "pass", "the nodes' model is a wait"


def _after_failure_s(failover: Result) -> tuple[float | None, float | None]:
    """Return how long after its end a node was left alone, and how long after its start it might be chosen."""
    failures, shut_s, open_s = failover["failures"], failover["shut_s"], failover["open_s"]
    return (
        None if shut_s is None else shut_s - failures["killed_s"],
        None if open_s is None else open_s - failures["started_s"],
    )


def _after(what: str, seconds: float | None) -> str:
    return f"not {what} in the run" if seconds is None else f"{what} after {seconds:.1f} s"


def _architecture_row(runs: Mapping[str, Records]) -> Row:
    row = partial(
        Row, id="11.1", what="Architecture analysis", target="parameters, bytes, FLOPs and measured time of the layers"
    )
    found = recorded(runs, "architecture")
    if not found:
        return not_measured(row, "split_strategies")
    run, architecture = next(iter(found.items()))
    names = set(_names(architecture))
    missing = [
        part
        for part, endings in ARCHITECTURE_PARTS.items()
        if not any(name.endswith(ending) or name == ending for name in names for ending in endings)
    ]
    return row(
        measured=", ".join(part for part in ARCHITECTURE_PARTS if part not in missing),
        verdict="not measured here" if missing else "pass",
        reason=f"missing: {', '.join(missing)}" if missing else "",
        run=run,
    )


def _names(value: Any) -> Iterator[str]:
    """Yield the names of all numbers in nested values."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if isinstance(inner, int | float):
                yield name
            yield from _names(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _names(inner)


def _prediction_row(runs: Mapping[str, Records]) -> Row:
    row = partial(
        Row,
        id="11.2",
        what="Split strategies: predicted against measured",
        target=(
            f"throughput and latency: median error < {percent(PREDICTION_ERROR)}, "
            f"{percent(LARGEST_ERROR_SHARE)} of the errors < {percent(LARGEST_ERROR)}"
        ),
    )
    cells = [(run, cell) for run, result in recorded(runs, "prediction").items() for cell in result["cells"]]
    if not cells:
        return not_measured(row, "split_strategies")
    run, worst = max(cells, key=lambda item: abs(item[1]["error"]))
    errors = [abs(cell["error"]) for _, cell in cells]
    within = sum(error < LARGEST_ERROR for error in errors)
    good = median(errors) < PREDICTION_ERROR and within >= LARGEST_ERROR_SHARE * len(cells)
    return row(
        measured=(
            f"median error {percent(median(errors))}; {within} of {len(cells)} predictions within "
            f"{percent(LARGEST_ERROR)}; the worst is {_signed(worst['error'])} "
            f"(repeats {_signed(worst['low'])} to {_signed(worst['high'])}) "
            f"for {worst['strategy']}, ranks: {worst['ranks']}, batch {worst['batch']}{_quantity(worst)}"
        ),
        verdict="pass" if good else "fail",
        reason=_meaningless(recorded(runs, "prediction")[run]),
        run=run,
    )


def _quantity(cell: Result) -> str:
    names = {"tokens_per_s": ", throughput", "latency_ms": ", latency"}
    return names.get(str(cell.get("quantity")), "")


def _signed(share: float) -> str:
    return f"{'+' if share >= 0 else '−'}{percent(abs(share))}"


def _memory_row(runs: Mapping[str, Records]) -> Row:
    row = partial(
        Row,
        id="11.3",
        what="A rank loads only its own layers",
        target=f"weights per rank ≈ its share (within {percent(SHARE_TOLERANCE)})",
    )
    found = recorded(runs, "memory")
    if not found:
        return not_measured(row, "split_strategies")
    run, worst = max(
        ((run, rank) for run, result in found.items() for rank in result["ranks"]), key=lambda item: _excess(item[1])
    )
    ranks = found[run]["ranks"]
    shares = ", ".join(
        f"rank {rank['rank']}: {_mib(rank['weight_bytes'])} of weights for a share of {_mib(rank['share_bytes'])}, "
        f"{_mib(rank['peak_rss_bytes'])} resident at most"
        for rank in ranks
    )
    return row(
        measured=shares,
        verdict="pass" if _excess(worst) <= SHARE_TOLERANCE else "fail",
        reason="resident memory includes the libraries of each process",
        run=run,
    )


def _excess(rank: Result) -> float:
    return abs(float(rank["weight_bytes"]) / float(rank["share_bytes"]) - 1)


def _mib(count: float) -> str:
    return f"{count / 2**20:,.0f}\N{NO-BREAK SPACE}MiB"


def _pipeline_row(runs: Mapping[str, Records]) -> Row:
    row = partial(Row, id="11.4", what="Pipeline of 1 to N ranks", target="NCCL on GPUs, gloo on CPU, same code")
    comparisons = recorded(runs, "comparison")
    if not comparisons:
        return not_measured(row, "accuracy_comparison")
    # "cuda:0" and "cuda" are the same kind of device.
    run_of_device = {compared["device"].partition(":")[0]: key for key, compared in comparisons.items()}
    measured = ", ".join(BACKENDS[device] for device in sorted(run_of_device))
    missing = [f"missing: {BACKENDS[device]}" for device in sorted(BACKENDS.keys() - run_of_device.keys())]
    most_ranks = max(int(case["ranks"]) for comparison in comparisons.values() for case in comparison["cases"])
    return row(
        measured=f"{measured}, up to {most_ranks} ranks",
        verdict="not measured here" if missing else "pass",
        reason="; ".join(missing),
        run=next(iter(run_of_device.values())),
    )


def _timeline_row(runs: Mapping[str, Records]) -> Row:
    row = partial(
        Row, id="11.5", what="Trace of each request", target="picture of compute, transfer, wait and queue of each rank"
    )
    for run, records in runs.items():
        for picture in records.pictures:
            if picture.name == TIMELINE:
                return row(measured=f"the picture “{picture.caption}”", verdict="pass", reason="", run=run)
    return not_measured(row, "a study with a timeline")


def _consistency_row(runs: Mapping[str, Records]) -> Row:
    row = partial(
        Row,
        id="11.6",
        what="Answers of the split model against the whole one",
        target=f"consistency > {percent(CONSISTENCY_TARGET)} on {QUESTIONS_TARGET} questions, aim {percent(1.0)}",
    )
    comparisons = recorded(runs, "comparison")
    if not comparisons:
        return not_measured(row, "accuracy_comparison")
    # The least favourable run decides; among equals, the one that asked least.
    run, worst = min(comparisons.items(), key=lambda item: (item[1]["token_identity"], item[1]["questions"]))
    questions, same = worst["questions"], identical_questions(worst)
    low, high = wilson_interval(same, questions, CONFIDENCE)
    few = f"{questions} of {QUESTIONS_TARGET} questions: the full form asks more"
    limits = [few if questions < QUESTIONS_TARGET else "", _meaningless(worst)]
    return row(
        measured=(
            f"{percent(worst['token_identity'])} of the tokens in the worst case "
            f"({tokens_compared(worst):,} compared in all); "
            f"{same} of {questions} questions identical in every case "
            f"({percent(CONFIDENCE)} interval {percent(low)} to {percent(high)})"
        ),
        verdict="pass" if worst["token_identity"] > CONSISTENCY_TARGET else "fail",
        reason="; ".join(filter(None, limits)),
        run=run,
    )


def _latency_row(runs: Mapping[str, Records]) -> Row:
    row = partial(
        Row,
        id="11.7",
        what="Latency and concurrency",
        target=f"p95 < {P95_TARGET_S:g} s end to end, {CLIENTS_TARGET} clients at once, answers unchanged",
    )
    results = recorded(runs, "concurrency")
    # The target names ten clients: the level of each run that is next to it, and of those the least favourable.
    enough = {
        run: [level for level in result["levels"] if level["clients"] >= CLIENTS_TARGET]
        for run, result in results.items()
    }
    nearest = {run: min(levels, key=lambda level: level["clients"]) for run, levels in enough.items() if levels}
    if not nearest:
        return not_measured(row, "concurrency", f" has {CLIENTS_TARGET} clients or more" if results else "")
    run, level = max(nearest.items(), key=lambda item: item[1]["p95_s"])
    unchanged = all(level["answers_unchanged"] for result in results.values() for level in result["levels"])
    interval = ""
    if None not in (level.get("p95_low_s"), level.get("p95_high_s")):  # too few requests give no upper end
        interval = f" ({percent(CONFIDENCE)} interval {level['p95_low_s']:.2f} to {level['p95_high_s']:.2f} s)"
    return row(
        measured=(
            f"p95 {level['p95_s']:.2f} s{interval} of {level['requests']} requests from {level['clients']} clients; "
            f"answers {'unchanged at every level' if unchanged else 'changed by concurrency'}"
        ),
        verdict="pass" if level["p95_s"] < P95_TARGET_S and unchanged else "fail",
        reason=_meaningless(results[run]),
        run=run,
    )


def _benchmark_row(runs: Mapping[str, Records]) -> Row:
    row = partial(
        Row,
        id="11.8",
        what="Benchmark report",
        target="single against concurrent, resource use, against one node and against replicas",
    )
    levels = {
        level["clients"]: (run, level)
        for run, result in recorded(runs, "concurrency").items()
        for level in result["levels"]
    }
    cells = [cell for result in recorded(runs, "prediction").values() for cell in result["cells"]]
    has = {
        "single against concurrent": 1 in levels and len(levels) > 1,
        "memory of each rank": bool(recorded(runs, "memory")),
        "one node": any(cell["ranks"] == 1 for cell in cells),
        "replicas": any(cell["strategy"] == REPLICAS for cell in cells),
    }
    if not any(has.values()):
        return not_measured(row, "concurrency and split_strategies")
    missing = [what for what, there in has.items() if not there]
    speeds = ""
    if has["single against concurrent"]:
        one, most = levels[1][1], levels[max(levels)][1]
        ratio = most["tokens_per_s"] / one["tokens_per_s"]
        speeds = f": {max(levels)} clients get {ratio:.1f} × the tokens/s of one"
    sources = [run for run, _ in levels.values()] or list(recorded(runs, "prediction") | recorded(runs, "memory"))
    return row(
        measured=f"{', '.join(what for what, there in has.items() if there)}{speeds}",
        verdict="not measured here" if missing else "pass",
        reason=f"missing: {', '.join(missing)}" if missing else "",
        run=sources[0],
    )


def _calibration_row(runs: Mapping[str, Records]) -> Row:
    row = partial(
        Row,
        id="12.7",
        what="Calibrated confidence",
        target="on held-out votes an error (ECE) no larger than 95 % of those of perfect confidences",
    )
    results = recorded(runs, "consensus")
    reports = {
        run: each["report"]
        for run, result in results.items()
        for each in result["votes"]["calibrated"]
        if each["question_type"] == consensus.ANY
    }
    if not reports:
        return not_measured(row, "consensus_evaluation", " asked enough questions to calibrate" if results else "")
    run = max(reports, key=lambda run: reports[run]["ece"] - reports[run]["ece_if_calibrated_95"])
    worst = reports[run]
    low, high = worst["ece_interval"]
    return row(
        measured=(
            f"ECE {worst['ece']:.3f} ({percent(CONFIDENCE)} interval {low:.3f} to {high:.3f}), "
            f"up to {worst['ece_if_calibrated_95']:.3f} by chance alone; Brier {worst['brier']:.3f}; "
            f"{worst['items']} votes"
        ),
        verdict="pass" if worst["ece"] <= worst["ece_if_calibrated_95"] else "fail",
        reason=_meaningless(results[run]),
        run=run,
    )


def _votes_row(runs: Mapping[str, Records]) -> Row:
    row = partial(
        Row,
        id="12.9",
        what="Votes against single answers",
        target=f"more right answers than one sample, by the interval, on {VOTED_QUESTIONS_TARGET} questions or more",
    )
    results = recorded(runs, "consensus")
    enough = {run: each for run, each in results.items() if each["votes"]["questions"] >= VOTED_QUESTIONS_TARGET}
    if not enough:
        few = f" asked {VOTED_QUESTIONS_TARGET} questions: the full form does"
        return not_measured(row, "consensus_evaluation", few if results else "")
    run, worst = min(enough.items(), key=lambda item: item[1]["votes"]["gains"][consensus.ALL]["difference"]["low"])
    votes = worst["votes"]
    gain = votes["gains"][consensus.ALL]["difference"]
    rivals = {
        "the greedy answer": votes["greedy_gains"][consensus.ALL]["difference"],
        "a greedy answer with as many tokens": votes["equal_tokens"]["gain"]["difference"],
    }
    beside = ", ".join(f"{name} {consensus.difference_text(each)}" for name, each in rivals.items())
    return row(
        measured=(
            f"a vote of {votes['k']} less one sample: {consensus.difference_text(gain)} of {votes['questions']} "
            f"questions; less {beside}"
        ),
        verdict="pass" if consensus.verdict(gain) == "better" else "fail",
        reason=_meaningless(worst) or consensus.verdict(gain),
        run=run,
    )


def _meaningless(result: Result) -> str:
    """Say what keeps a verdict from meaning all that the criterion asks."""
    return "random weights: this shows the split, not a model's answers" if result.get("meaningless") else ""
