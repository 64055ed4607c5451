"""What the study of splits says and draws of its results."""

from typing import Any

import pytest

from qubic_lab.studies import split_strategies as study


def cell(
    strategy: str, ranks: int, batch: int, layers: list[int], tokens_per_s: float, **changes: Any
) -> dict[str, Any]:
    return {
        "quantity": "tokens_per_s",
        "ranks": ranks,
        "batch": batch,
        "strategy": strategy,
        "layers": layers,
        "predicted": 1.02 * tokens_per_s,
        "measured": tokens_per_s,
        "measurements": [0.9 * tokens_per_s, tokens_per_s, 1.1 * tokens_per_s],
        "error": 0.02,
        "low": -0.07,
        "high": 0.13,
    } | changes


COSTS = {"layer_ms": 0.5, "head_ms": 3.0, "overhead_ms": [1.0, 0.4], "hop_ms": 0.0, "prefill_layer_ms": 0.7}
PREDICTION: dict[str, Any] = {
    "model": "small",
    "median_error": 0.02,
    "cells": [
        cell("A = B = C", 1, 1, [30], 50.0),
        cell("A = B = C", 1, 2, [30], 90.0),
        cell("A = B", 2, 1, [15, 15], 60.0),
        cell("C", 2, 1, [18, 12], 70.0, error=-0.25, low=-0.3, high=-0.2),
        cell("C", 2, 1, [18, 12], 25.0, quantity="latency_ms"),
        cell("D", 2, 1, [30], 80.0),
    ],
    "costs": [
        {"ranks": 1, "batch": 1, "lanes": 1, "layers": [30], **COSTS, "layer_ms": 9.9},
        {"ranks": 2, "batch": 4, "lanes": 2, "layers": [16, 14], **COSTS, "layer_ms": 9.9},
        {"ranks": 2, "batch": 1, "lanes": 2, "layers": [16, 14], **COSTS},
        {"ranks": 2, "batch": 1, "lanes": 1, "layers": [16, 14], **COSTS, "layer_ms": 9.9},
    ],
}
MEMORY = {"ranks": [{"rank": 0, "weight_bytes": 191_000_000}, {"rank": 1, "weight_bytes": 135_400_000}]}
ADVICE = {"devices": ["t4", "t4"], "goal": "throughput", "reason": "D is fastest."}


def test_findings_answer_the_question_and_own_the_worst_prediction() -> None:
    best, errors, memory, plan = study.findings(PREDICTION, MEMORY, ADVICE)
    assert best == (
        "Here small gave the most with one whole model: 90.0 tokens/s for 2 requests at once; for as many requests "
        "2 ranks, A = B (15/15) 60.0, 2 ranks, C (18/12) 70.0, 2 replicas (D) 80.0."
    )
    assert errors == (
        "Predictions from the costs of single layers missed by 2.0% in the median of 6 cells, 5 of them by less than "
        "10%; the worst was 2 ranks, C (18/12), batch 1, tokens/s, all lanes: -25% (-30% to -20% over 3 repeats)."
    )
    assert memory == "Each rank holds its own part of the weights only: 191 MB on rank 0, 135 MB on rank 1."
    assert plan == "Predicted for t4, t4 and throughput: D is fastest."


def test_only_the_speeds_at_the_most_requests_are_compared_week_by_week() -> None:
    names = [name for name, *_ in study.measures(PREDICTION)]
    assert names == [
        "tokens_per_s_30_layers_on_1_ranks_batch_2",
        "tokens_per_s_15_15_layers_on_2_ranks_batch_1",
        "tokens_per_s_18_12_layers_on_2_ranks_batch_1",
        "tokens_per_s_30_layers_on_2_ranks_each_batch_1",
    ]


def test_parts_are_weighed_in_layers_and_timed_by_the_busy_calibration_of_one_request() -> None:
    part = {"parameters": 10, "weight_bytes": 20_000_000, "decode_bytes": 20_000_000, "flops": 20_000_000}
    cost = {
        "layers": 30,
        "embedding": part | {"decode_bytes": 0},
        "layer": part,
        "head": part | {"decode_bytes": 10**8},
    }
    rows = {row["part"]: row for row in study.architecture_rows(cost, PREDICTION)}
    assert rows["head"]["in_layers"] == 5.0
    assert rows["whole model"]["in_layers"] == 35.0
    assert rows["whole model"]["parameters"] == 320
    assert (rows["layer"]["decode_ms"], rows["layer"]["prefill_ms"], rows["head"]["decode_ms"]) == (0.5, 0.7, 3.0)


@pytest.mark.parametrize("draw", [study.predicted_and_measured, study.throughput])
def test_pictures_name_their_units(draw: Any) -> None:
    [axes] = draw(PREDICTION).axes
    labels = f"{axes.get_xlabel()} {axes.get_ylabel()}"
    assert "(%)" in labels or "(tokens/s)" in labels


def test_the_picture_of_speeds_has_a_line_a_way_and_no_latencies() -> None:
    [axes] = study.throughput(PREDICTION).axes
    lines = {line.get_label(): line for line in axes.containers}
    assert set(lines) == {"one whole model", "2 ranks, A = B", "2 ranks, C", "2 replicas (D)"}
    assert list(lines["one whole model"][0].get_xdata()) == [1, 2]
    assert list(lines["2 ranks, C"][0].get_ydata()) == [70.0]
