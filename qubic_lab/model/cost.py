"""Costs of a model's parts: parameters, bytes of weights, and bytes and operations of a decode step. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from qubic_lab.errors import check_choice
from qubic_lab.model.config import ModelConfig
from qubic_lab.model.layout import (
    BLOCK,
    COLUMNS,
    DTYPE_BYTES,
    PAGE,
    QUANTIZATIONS,
    StageRange,
    layer_tensors,
    stage_tensors,
)
from qubic_lab.model.safetensors_file import Shape

DENSE_SHARE = 0.751
"""Of its bytes in bf16, what a CPU keeps of a matrix: 12 of 16 bits, and a few exceptions."""


@dataclass(frozen=True)
class PartCost:
    """The cost of one part for one sequence: `decode_bytes` and `flops` are those of one decode step, one token.

    `request_bytes` is the part of `decode_bytes` that each request of a batch moves separately: KV cache, row of the
    embedding, and logits. The rest, the weights, is read once for all requests.
    """

    parameters: int
    weight_bytes: int
    decode_bytes: int
    flops: int
    request_bytes: int = 0

    def step_bytes(self, batch: int) -> int:
        """Return the bytes that a decode step of `batch` requests moves."""
        return self.decode_bytes + (batch - 1) * self.request_bytes


@dataclass(frozen=True)
class ModelCost:
    """The costs of the embedding, of each layer and of the head (with the final norm).

    A tied head adds no parameters or weights to the model, but its step reads the whole embedding.
    """

    layers: int
    embedding: PartCost
    layer: PartCost
    head: PartCost

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return self.embedding.parameters + self.layers * self.layer.parameters + self.head.parameters

    @property
    def weight_bytes(self) -> int:
        """Bytes of the whole model's weights."""
        return self.embedding.weight_bytes + self.layers * self.layer.weight_bytes + self.head.weight_bytes


@dataclass(frozen=True)
class PartTimes:
    """Seconds of the parts of a lane's step on one device; `overhead_s` occurs once per step."""

    embedding_s: float
    layer_s: float
    head_s: float
    overhead_s: float = 0.0

    def stage_s(self, layers: int, *, first: bool, last: bool) -> float:
        """Return the seconds of a stage with a number of layers; the first has the embedding, the last the head."""
        return (
            (self.embedding_s if first else 0.0)
            + self.layer_s * layers
            + (self.head_s if last else 0.0)
            + self.overhead_s
        )


@lru_cache(maxsize=1_024)
def model_cost(
    config: ModelConfig, dtype: str, context: int = 0, quantization: str = "", packed: bool = False
) -> ModelCost:
    """Return the costs of a model's parts in a dtype, with `context` tokens in each layer's KV cache.

    Weights are `packed`, or have a `quantization`, as the kernels of a CPU keep them: the matrices of layers and the
    head's, bf16 ones in 12 bits; a tied head is held beside the embedding.

    Operations are 2 per weight of a matrix and, in attention, 2 per element of the queries' products with the keys
    and of the scores' with the values: https://arxiv.org/abs/2001.08361, table 1.

    Raises:
        InputError: the dtype is unknown.
    """
    width = DTYPE_BYTES[check_choice("dtype", dtype, DTYPE_BYTES)]
    matrix = config.vocab * config.hidden
    layer_bits, head_bits = QUANTIZATIONS.get(quantization, (0, 0))
    layer = layer_tensors(config, 0)
    head = {"norm": (config.hidden,), "head": (config.vocab, config.hidden)}
    if packed := packed or bool(quantization):
        layer_bytes = _packed_layer_bytes(config, layer, dtype, layer_bits)
        head_bytes = config.hidden * width + _packed_bytes(config.vocab, config.hidden, dtype, head_bits)
    else:
        layer_bytes, head_bytes = (parameter_count(tensors) * width for tensors in (layer, head))
    kv_bytes = kv_cache_bytes(config, 1, dtype, context)
    layer_parameters = parameter_count(layer)
    layer_matrices = sum(math.prod(shape) for shape in layer.values() if len(shape) == 2)
    logits_bytes = 2 * 4 * config.vocab  # written in fp32, and read to choose the token
    head_parameters = config.hidden + (0 if config.tied_head else matrix)
    return ModelCost(
        layers=config.layers,
        embedding=PartCost(
            parameters=matrix,
            weight_bytes=matrix * width,
            decode_bytes=config.hidden * width,
            flops=0,
            request_bytes=config.hidden * width,
        ),
        layer=PartCost(
            parameters=layer_parameters,
            weight_bytes=layer_bytes,
            decode_bytes=layer_bytes + kv_bytes,
            flops=2 * layer_matrices + 4 * context * config.q_size,
            request_bytes=kv_bytes,
        ),
        head=PartCost(
            parameters=head_parameters,
            weight_bytes=head_bytes if packed else head_parameters * width,
            decode_bytes=head_bytes + logits_bytes,
            flops=2 * matrix,
            request_bytes=logits_bytes,
        ),
    )


def kv_cache_bytes(config: ModelConfig, layers: int, dtype: str, tokens: int) -> int:
    """Return the bytes of keys and values for a number of tokens and layers."""
    return 2 * layers * tokens * config.kv_size * DTYPE_BYTES[dtype]


def kv_page_bytes(config: ModelConfig, layers: int, dtype: str) -> int:
    """Return the bytes of a page of the KV cache, the keys and values of PAGE tokens, for a number of layers.

    The values of a head are filled up to whole groups of COLUMNS.
    """
    columns = config.head_dim + padded(config.head_dim, COLUMNS)
    return layers * config.kv_heads * columns * PAGE * DTYPE_BYTES[dtype]


def kv_memory_bytes(config: ModelConfig, layers: int, dtype: str, tokens: int) -> int:
    """Return the bytes that keys and values of a number of tokens take in memory, in whole pages."""
    return -(-tokens // PAGE) * kv_page_bytes(config, layers, dtype)


def layer_weight_bytes(config: ModelConfig, dtype: str, quantization: str = "", packed: bool = False) -> int:
    """Return the bytes of one layer's weights."""
    layer = StageRange(0, 1, has_embedding=False, has_head=False)
    return stage_weight_bytes(config, layer, dtype, quantization, packed)


@lru_cache(maxsize=1_024)
def stage_weight_bytes(
    config: ModelConfig, stage: StageRange, dtype: str, quantization: str = "", packed: bool = False
) -> int:
    """Return the bytes of a stage's weights, in the form of `model_cost`; each rank with a tied matrix has it."""
    width, layers = DTYPE_BYTES[dtype], stage.end - stage.first
    if packed or quantization:
        cost = model_cost(config, dtype, 0, quantization, packed=True)
        parts = (stage.has_embedding, cost.embedding), (stage.has_head, cost.head), (layers, cost.layer)
        return sum(count * part.weight_bytes for count, part in parts)
    ends = parameter_count(stage_tensors(config, replace(stage, end=stage.first)))
    return (ends + layers * parameter_count(layer_tensors(config, 0))) * width


def quantised_bytes(outputs: int, inputs: int, bits: int) -> int:
    """Return the bytes of a quantised matrix: its numbers, and a scale of two bytes for each block."""
    return padded(outputs, COLUMNS) * -(-inputs // BLOCK) * (2 + BLOCK * bits // 8)


def _packed_layer_bytes(config: ModelConfig, layer: Mapping[str, Shape], dtype: str, bits: int) -> int:
    """Return the bytes of a layer with the matrices of the kernels; gate and up fill half a group of outputs each."""
    hidden, wide = config.hidden, padded(config.intermediate, COLUMNS // 2)
    matrices = (config.q_size + 2 * config.kv_size, hidden), (hidden, config.q_size), (2 * wide, hidden), (hidden, wide)
    vectors = sum(shape[0] for shape in layer.values() if len(shape) == 1)
    return vectors * DTYPE_BYTES[dtype] + sum(_packed_bytes(*shape, dtype, bits) for shape in matrices)


def _packed_bytes(outputs: int, inputs: int, dtype: str, bits: int) -> int:
    if bits:
        return quantised_bytes(outputs, inputs, bits)
    whole = padded(outputs, COLUMNS) * inputs * DTYPE_BYTES[dtype]
    return round(whole * DENSE_SHARE) if dtype == "bf16" else whole


def padded(count: int, group: int) -> int:
    """Return the least multiple of `group` that is not below `count`."""
    return count + -count % group


def parameter_count(tensors: Mapping[str, Shape]) -> int:
    """Return the number of values in tensors of these shapes."""
    return sum(math.prod(shape) for shape in tensors.values())
