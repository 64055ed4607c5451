"""Predictions for a split: seconds of each stage, tokens per second, latency, and bytes on each rank. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qubic_lab.model.config import ModelConfig
from qubic_lab.model.cost import (
    ModelCost,
    PartCost,
    PartTimes,
    kv_memory_bytes,
    layer_weight_bytes,
    stage_weight_bytes,
)
from qubic_lab.model.device import Device, Link
from qubic_lab.model.layout import DTYPE_BYTES, StageRange, stage_ranges

WORKING_RESERVE_BYTES = 2**30
"""Assumed reserve of each rank for CUDA context, workspaces, activations of a prompt's chunk, and logits."""
PROCESS_BYTES, SERVER_BYTES, TOKEN_BYTES = 199 * 2**20, 37 * 2**20, 1_050
"""Resident memory of a rank on a CPU without a model (Python, torch, gRPC), what the first rank has more to serve
clients, and what each token of its tokenizer takes; measured with torch 2.13."""
BYTE_TOKENS = 258
"""Tokens of the tokenizer of a model with random weights."""
STEP_ROWS = 512
"""The most rows of a step on a CPU, for which its buffers are."""

MOST_DRAFTED = 15
"""Limit of drafted tokens of an answer in a step."""


@dataclass(frozen=True)
class Speed:
    """Speed of a pipeline: total tokens/s of all lanes, and milliseconds between two tokens of one request.

    `latency_ms` holds while all lanes run, `idle_latency_ms` (the sum of stages and hops) while one lane runs alone.
    """

    tokens_per_s: float
    latency_ms: float
    idle_latency_ms: float


def part_times(cost: ModelCost, device: Device, dtype: str, batch: int) -> PartTimes:
    """Return the seconds of a decode step's parts on a device, for a lane of `batch` requests.

    A part takes the longer one of the times to read its bytes and to do its operations (the roofline model,
    https://doi.org/10.1145/1498765.1498785); weights are read once per lane, KV caches once per request. On a CPU it
    takes both times, because its threads do one after the other, and nothing is launched.
    """
    flops_per_s = device.flops_per_s_in(dtype)

    def seconds(part: PartCost) -> float:
        times = part.step_bytes(batch) / device.bandwidth_bytes_per_s, part.flops * batch / flops_per_s
        return sum(times) if device.is_cpu else max(times)

    launch_s = 0.0 if device.is_cpu else device.layer_overhead_s
    return PartTimes(seconds(cost.embedding), seconds(cost.layer) + launch_s, seconds(cost.head))


def hop_seconds(config: ModelConfig, link: Link, dtype: str, batch: int) -> float:
    """Return the seconds for sending a lane's hidden states to the next rank."""
    return link.latency_s + 8 * batch * config.hidden * DTYPE_BYTES[dtype] / link.bits_per_s


def stage_seconds(times: Sequence[PartTimes], layers: Sequence[int]) -> tuple[float, ...]:
    """Return the seconds of each rank's stage, from the times and the number of layers of each rank."""
    end = len(layers) - 1
    return tuple(
        part.stage_s(count, first=rank == 0, last=rank == end)
        for rank, (part, count) in enumerate(zip(times, layers, strict=True))
    )


def round_seconds(stage_s: Sequence[float], hop_s: float, lanes: int) -> float:
    """Return the seconds of a round, in which every lane gets one step.

    Either the slowest stage is never idle, or a lane is back before its turn and does not wait. There are as many
    hops as ranks, because the last one carries the tokens back to rank 0; a single rank has none.
    """
    hops = len(stage_s) if len(stage_s) > 1 else 0
    return max(lanes * max(stage_s), sum(stage_s) + hops * hop_s)


def pipeline_speed(stage_s: Sequence[float], hop_s: float, lanes: int, batch: int) -> Speed:
    """Return the speed of `lanes` lanes of `batch` requests, from the seconds of stages and hops."""
    round_s = round_seconds(stage_s, hop_s, lanes)
    return Speed(
        tokens_per_s=lanes * batch / round_s,
        latency_ms=1e3 * round_s,
        idle_latency_ms=1e3 * round_seconds(stage_s, hop_s, lanes=1),
    )


def drafted_step(accepted: float, step_s: Callable[[int], float]) -> tuple[int, float]:
    """Return how many drafted tokens in a step make an answer fastest, and its seconds for a token then.

    `accepted` is the chance of a drafted token to be right where the one before it is, so that i of them are by its
    i-th power; `step_s` is the time of a step by its rows, of which one is for the token that is due anyhow.
    """

    def token_s(drafted: int) -> float:
        return step_s(1 + drafted) / sum(accepted**i for i in range(drafted + 1))

    best = min(range(MOST_DRAFTED + 1), key=token_s)
    return best, token_s(best)


def rank_memory_bytes(
    config: ModelConfig,
    layers: Sequence[int],
    dtype: str,
    cached: int,
    quantization: str = "",
    packed: bool = False,
) -> tuple[int, ...]:
    """Return the bytes on each rank: weights, keys and values of `cached` tokens of all requests, the working memory.

    On a CPU weights are `packed`.
    """
    on_cpu = packed or bool(quantization)
    return tuple(
        stage_weight_bytes(config, stage, dtype, quantization, packed)
        + kv_memory_bytes(config, count, dtype, cached)
        + working_bytes(config, dtype, on_cpu, first=stage.has_embedding)
        for count, stage in zip(layers, stage_ranges(tuple(layers)), strict=True)
    )


def working_bytes(config: ModelConfig, dtype: str, on_cpu: bool, first: bool) -> int:
    """Return what a rank takes beside weights, keys and values: on a CPU the process, and buffers of a step's rows."""
    if not on_cpu:
        return WORKING_RESERVE_BYTES
    tokens = BYTE_TOKENS if config.meaningless else config.vocab
    process = PROCESS_BYTES + (SERVER_BYTES + tokens * TOKEN_BYTES if first else 0)
    row = 3 * config.hidden + config.q_size + config.intermediate
    return process + STEP_ROWS * (DTYPE_BYTES[dtype] * row + 4 * (config.q_size + 2 * config.kv_size))


def most_layers(
    config: ModelConfig,
    device: Device,
    dtype: str,
    cached: int,
    quantization: str = "",
    packed: bool = False,
    *,
    first: bool,
    last: bool,
) -> int:
    """Return how many layers fit on a device with the embedding (first rank) and the head (last rank).

    `cached` is the total number of tokens in the KV cache.
    """
    ends = stage_weight_bytes(config, StageRange(0, 0, first, last), dtype, quantization, packed)
    fixed = ends + working_bytes(config, dtype, packed or bool(quantization), first)
    a_layer = layer_weight_bytes(config, dtype, quantization, packed) + kv_memory_bytes(config, 1, dtype, cached)
    return max(0, min(config.layers, (device.usable_bytes - fixed) // a_layer))


def most_batch(
    config: ModelConfig,
    devices: Sequence[Device],
    layers: Sequence[int],
    dtype: str,
    cached_each: int,
    quantization: str = "",
    packed: bool = False,
) -> int:
    """Return how many requests per lane fit in memory, if one more in every lane adds `cached_each` tokens."""
    empty = rank_memory_bytes(config, layers, dtype, 0, quantization, packed)
    room = [
        (device.usable_bytes - held) // kv_memory_bytes(config, count, dtype, cached_each)
        for device, held, count in zip(devices, empty, layers, strict=True)
    ]
    return max(0, min(room))
