from dataclasses import replace

import pytest

from qubic_lab.model.config import parse_config
from qubic_lab.model.cost import DENSE_SHARE, kv_memory_bytes, model_cost, stage_weight_bytes
from qubic_lab.model.device import CATALOGUE, Link, parse_devices
from qubic_lab.model.layout import stage_ranges
from qubic_lab.model.predict import (
    PROCESS_BYTES,
    SERVER_BYTES,
    TOKEN_BYTES,
    WORKING_RESERVE_BYTES,
    PartTimes,
    drafted_step,
    hop_seconds,
    most_batch,
    most_layers,
    part_times,
    pipeline_speed,
    rank_memory_bytes,
    stage_seconds,
)
from qubic_lab.model.random_model import read_shape

DEEPSEEK = parse_config(read_shape("deepseek"))
SMOLLM2 = parse_config(read_shape("smollm2"))
T4 = CATALOGUE["t4"]


def test_the_first_stage_has_the_embedding_the_last_the_head_and_each_its_overhead() -> None:
    slow, fast = PartTimes(1.0, 10.0, 100.0, 0.5), PartTimes(2.0, 20.0, 200.0, 0.25)
    assert stage_seconds([slow, fast], [3, 4]) == (31.5, 280.25)
    assert stage_seconds([slow], [2]) == (121.5,)


@pytest.mark.parametrize(
    ("stages_s", "hop_s", "lanes", "batch", "expected"),
    [
        ([0.3, 0.5], 0.01, 2, 4, (8 / 1.0, 1000, 820)),  # full lanes: the slowest stage sets the pace
        ([0.3, 0.5], 0.2, 2, 1, (2 / 1.2, 1200, 1200)),  # too few lanes: they wait for the way round
        ([0.5], 9.0, 1, 3, (6.0, 500, 500)),  # a single rank has no hops
    ],
)
def test_speed_of_a_pipeline(stages_s, hop_s, lanes, batch, expected) -> None:
    speed = pipeline_speed(stages_s, hop_s=hop_s, lanes=lanes, batch=batch)
    assert (speed.tokens_per_s, speed.latency_ms, speed.idle_latency_ms) == pytest.approx(expected)


def test_a_small_batch_is_bound_by_bytes_and_a_large_one_by_operations() -> None:
    cost = model_cost(DEEPSEEK, "fp16")
    small, large = part_times(cost, T4, "fp16", 1), part_times(cost, T4, "fp16", 1024)
    assert small.head_s == cost.head.decode_bytes / 259e9
    assert small.layer_s == cost.layer.decode_bytes / 259e9 + T4.layer_overhead_s
    assert large.head_s == pytest.approx(1024 * cost.head.flops / T4.flops_per_s)
    assert part_times(cost, T4, "fp32", 1024).head_s == pytest.approx(8 * large.head_s)


def test_a_hop_takes_its_latency_and_the_hidden_states() -> None:
    link = Link(bits_per_s=1e9, latency_s=1e-3)
    assert hop_seconds(DEEPSEEK, link, "fp16", 4) == pytest.approx(1e-3 + 4 * 1536 * 2 * 8 / 1e9)


@pytest.mark.parametrize("config", [DEEPSEEK, SMOLLM2])
def test_room_for_layers_and_requests_agrees_with_the_memory_of_a_rank(config) -> None:
    (device,) = parse_devices(["d=2500MB@259GB/s@65TFLOPS"])
    cached = 3 * 1024
    for first, last in ((True, False), (False, False), (False, True)):
        room = most_layers(config, device, "fp16", cached, first=first, last=last)
        for count, fits in ((room, True), (room + 1, False)):
            # the rank that is asked about stands first, in the middle or last among three
            layers = [1, 1, 1]
            rank = 0 if first else 2 if last else 1
            layers[rank] = count
            held = rank_memory_bytes(config, layers, "fp16", cached)[rank]
            assert (held <= device.usable_bytes) == fits or room == config.layers


def test_the_memory_of_a_rank_is_weights_cache_and_reserve() -> None:
    stages = stage_ranges((20, 8))
    assert rank_memory_bytes(DEEPSEEK, (20, 8), "fp16", 5000) == tuple(
        stage_weight_bytes(DEEPSEEK, stage, "fp16")
        + kv_memory_bytes(DEEPSEEK, stage.end - stage.first, "fp16", 5000)
        + WORKING_RESERVE_BYTES
        for stage in stages
    )


def test_a_cpu_keeps_weights_packed_and_the_first_rank_serves_clients() -> None:
    held = rank_memory_bytes(replace(DEEPSEEK, meaningless=False), (17, 11), "bf16", 0, packed=True)
    weights = [stage_weight_bytes(DEEPSEEK, stage, "bf16", packed=True) for stage in stage_ranges((17, 11))]
    full = [stage_weight_bytes(DEEPSEEK, stage, "bf16") for stage in stage_ranges((17, 11))]
    embedding = 2 * DEEPSEEK.vocab * DEEPSEEK.hidden
    assert weights[0] - embedding == pytest.approx(DENSE_SHARE * (full[0] - embedding), rel=1e-3)
    assert weights[1] == pytest.approx(DENSE_SHARE * full[1], rel=1e-3)
    served, other = (of - own for of, own in zip(held, weights, strict=True))
    assert served - other == SERVER_BYTES + DEEPSEEK.vocab * TOKEN_BYTES
    assert 0 < other - PROCESS_BYTES < 2**25


def test_a_cpu_reads_and_computes_one_after_the_other() -> None:
    (cpu,) = parse_devices(["cpu=24GB@40GB/s@0.2TFLOPS"])
    cost = model_cost(DEEPSEEK, "bf16", packed=True)
    for rows in (1, 8):
        expected = cost.layer.step_bytes(rows) / 40e9 + rows * cost.layer.flops / 0.2e12
        assert part_times(cost, cpu, "bf16", rows).layer_s == pytest.approx(expected)


def test_as_many_tokens_are_drafted_as_pay() -> None:
    assert drafted_step(0.0, lambda rows: 1.0) == (0, 1.0)
    assert drafted_step(0.5, lambda rows: float(rows)) == (0, 1.0), "a row costs what it brings at most"
    drafted, token_s = drafted_step(0.5, lambda rows: 1.0 + 0.2 * (rows - 1))
    assert (drafted, token_s) == (1, pytest.approx(1.2 / 1.5)), "two: 1.4 / 1.75"
    assert drafted_step(0.9, lambda rows: 1.0)[0] == 15


def test_one_request_more_a_lane_would_not_fit() -> None:
    most = most_batch(DEEPSEEK, [T4, T4], (14, 14), "fp16", cached_each=2 * 8192)
    fits = [
        max(rank_memory_bytes(DEEPSEEK, (14, 14), "fp16", n * 2 * 8192)) <= T4.usable_bytes for n in (most, most + 1)
    ]
    assert fits == [True, False]
    assert most_batch(DEEPSEEK, parse_devices(["d=2GB@1GB/s@1TFLOPS"]), (28,), "fp16", 1) == 0
