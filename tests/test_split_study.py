"""What the study of splits says and draws of its results."""

from typing import Any

from examples import example
from headlines import told

from qubic_lab.bench.memory import MemoryResult, RankMemory
from qubic_lab.bench.prediction_result import LayerCosts, PredictionCell, PredictionResult
from qubic_lab.model.config import resolve_shape
from qubic_lab.model.cost import ModelCost, PartCost
from qubic_lab.model.device import parse_devices, parse_link
from qubic_lab.model.recommend import plan
from qubic_lab.studies import split_strategies as study
from qubic_lab.studies.style import percent


def cell(
    strategy: str, ranks: int, batch: int, layers: tuple[int, ...], tokens_per_s: float, **changes: Any
) -> PredictionCell:
    spread = (0.9 * tokens_per_s, tokens_per_s, 1.1 * tokens_per_s)
    plain = {"quantity": "tokens_per_s", "ranks": ranks, "batch": batch, "strategy": strategy, "layers": layers}
    plain |= {"measured": tokens_per_s, "measurements": spread, "error": 0.02, "low": -0.07, "high": 0.13}
    return example(PredictionCell, **plain | changes)


def costs(ranks: int, batch: int, lanes: int, layer_ms: float = 9.9) -> LayerCosts:
    times = {"layer_ms": layer_ms, "head_ms": 3.0, "prefill_layer_ms": 0.7}
    return example(LayerCosts, ranks=ranks, batch=batch, lanes=lanes, **times)


PREDICTION = example(
    PredictionResult,
    model="small",
    median_error=0.02,
    cells=(
        cell("A = B = C", 1, 1, (30,), 50.0),
        cell("A = B = C", 1, 2, (30,), 90.0),
        cell("A = B", 2, 1, (15, 15), 60.0),
        cell("C", 2, 1, (18, 12), 70.0, error=-0.25, low=-0.3, high=-0.2),
        cell("C", 2, 1, (18, 12), 25.0, quantity="latency_ms"),
        cell("D", 2, 1, (30,), 80.0),
    ),
    costs=(costs(1, 1, 1), costs(2, 4, 2), costs(2, 1, 2, 0.5), costs(2, 1, 1)),
)


def test_findings_answer_the_question_and_own_the_worst_prediction() -> None:
    ranks = (example(RankMemory, weight_bytes=191_000_000), example(RankMemory, rank=1, weight_bytes=135_400_000))
    advice = plan(resolve_shape("deepseek"), parse_devices(["t4", "t4"]), parse_link("10Gbps:0.1ms"))
    *found, planned = told(study.findings(PREDICTION, example(MemoryResult, ranks=ranks), advice), "speed")
    assert found == [
        "small runs fastest with one whole model, 1.1 times the next.",
        "With 2 requests it gives 90.0 tokens/s; the others: 60.0 with 2 ranks, A = B (15/15), 70.0 with 2 ranks, C "
        "(18/12), 80.0 with 2 replicas (D).",
        f"Predictions from single-layer costs have a median error of {percent(0.02)}; 5 of 6 are within "
        f"{percent(0.1)}.",
        "The worst is 2 ranks, C (18/12), batch 1, tokens/s, all lanes: −25\N{NO-BREAK SPACE}% (−30\N{NO-BREAK SPACE}% "
        "to −20\N{NO-BREAK SPACE}% over 3 repeats).",
        "Each rank holds only its own part of the weights: 191 MB on rank 0, 135 MB on rank 1.",
    ]
    assert planned.startswith(
        f"For t4, t4 and throughput, {advice.recommendation} (layers: 28/28) is predicted to be best:"
    )
    assert [row["recommended"] for row in study.plan_rows(advice)].count("yes") == 1


def test_only_the_speeds_at_the_most_requests_are_compared_week_by_week() -> None:
    names = [name for name, *_ in study.measures(PREDICTION)]
    assert names == [
        "tokens_per_s_30_layers_on_1_ranks_batch_2",
        "tokens_per_s_15_15_layers_on_2_ranks_batch_1",
        "tokens_per_s_18_12_layers_on_2_ranks_batch_1",
        "tokens_per_s_30_layers_on_2_ranks_each_batch_1",
    ]


def test_parts_are_weighed_in_layers_and_timed_by_the_busy_calibration_of_one_request() -> None:
    def part(decode_bytes: int) -> PartCost:
        return PartCost(parameters=10, weight_bytes=20_000_000, decode_bytes=decode_bytes, flops=20_000_000)

    cost = ModelCost(30, embedding=part(0), layer=part(20_000_000), head=part(10**8))
    found = study.architecture("small", "bf16", cost, PREDICTION)
    parts = {part.part: part for part in found.parts}
    assert parts["head"].in_layers == 5.0
    assert (parts["whole model"].in_layers, parts["whole model"].parameters) == (35.0, 320)
    layer = parts["layer"]
    assert (layer.decode_ms, layer.prefill_ms, parts["head"].decode_ms) == (0.5, 0.7, 3.0)
    assert all(part.decode_ms is None for part in study.architecture("small", "bf16", cost).parts)


def test_the_picture_of_speeds_has_a_row_a_way_and_no_latencies() -> None:
    [errors], [axes] = study.predicted_and_measured(PREDICTION).axes, study.throughput(PREDICTION).axes
    assert "(%)" in errors.get_xlabel() and "(tokens/s)" in axes.get_xlabel()
    labels = [label.get_text() for label in axes.get_yticklabels()]
    speeds = {label: line.get_xdata()[0] for label, line in zip(labels, axes.get_lines(), strict=True)}
    assert labels[0] == "one whole model, 1 at once" and len(labels) == 5
    assert speeds["2 ranks, C (18/12), 2 at once"] == 70.0
