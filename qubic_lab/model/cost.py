"""Costs of a model's parts: parameters, bytes of weights, and bytes and operations of a decode step. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from qubic_lab.errors import check_choice
from qubic_lab.model.config import ModelConfig
from qubic_lab.model.layout import BLOCK, DTYPE_BYTES, QUANTIZATIONS, StageRange, layer_tensors, stage_tensors
from qubic_lab.model.safetensors_file import Shape


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
def model_cost(config: ModelConfig, dtype: str, context: int = 0, quantization: str = "") -> ModelCost:
    """Return the costs of a model's parts in a dtype, with `context` tokens in each layer's KV cache.

    With a `quantization` the matrices of layers and the head's have it; a tied head is held beside the embedding.

    Operations are 2 per weight of a matrix and, in attention, 2 per element of the queries' products with the keys
    and of the scores' with the values: https://arxiv.org/abs/2001.08361, table 1.

    Raises:
        InputError: the dtype is unknown.
    """
    width = DTYPE_BYTES[check_choice("dtype", dtype, DTYPE_BYTES)]
    matrix = config.vocab * config.hidden
    layer_bits, head_bits = QUANTIZATIONS.get(quantization, (0, 0))
    layer = layer_tensors(config, 0)
    layer_bytes = _weight_bytes(layer, width, layer_bits)
    head_bytes = _weight_bytes({"norm": (config.hidden,), "head": (config.vocab, config.hidden)}, width, head_bits)
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
            weight_bytes=head_bytes if head_bits else head_parameters * width,
            decode_bytes=head_bytes + logits_bytes,
            flops=2 * matrix,
            request_bytes=logits_bytes,
        ),
    )


def kv_cache_bytes(config: ModelConfig, layers: int, dtype: str, tokens: int) -> int:
    """Return the bytes of keys and values for a number of tokens and layers."""
    return 2 * layers * tokens * config.kv_size * DTYPE_BYTES[dtype]


def layer_weight_bytes(config: ModelConfig, dtype: str, quantization: str = "") -> int:
    """Return the bytes of one layer's weights."""
    return stage_weight_bytes(config, StageRange(0, 1, has_embedding=False, has_head=False), dtype, quantization)


@lru_cache(maxsize=1_024)
def stage_weight_bytes(config: ModelConfig, stage: StageRange, dtype: str, quantization: str = "") -> int:
    """Return the bytes of a stage's weights; a tied matrix counts on each rank that has it."""
    width, layers = DTYPE_BYTES[dtype], stage.end - stage.first
    if quantization:
        cost = model_cost(config, dtype, 0, quantization)
        parts = (stage.has_embedding, cost.embedding), (stage.has_head, cost.head), (layers, cost.layer)
        return sum(count * part.weight_bytes for count, part in parts)
    ends = parameter_count(stage_tensors(config, replace(stage, end=stage.first)))
    return (ends + layers * parameter_count(layer_tensors(config, 0))) * width


def _weight_bytes(tensors: Mapping[str, Shape], width: int, bits: int) -> int:
    """Return the bytes of tensors, their matrices with blocks of numbers of `bits` and a scale, if bits are given."""
    return sum(
        shape[0] * -(-shape[1] // BLOCK) * (2 + BLOCK * bits // 8)
        if bits and len(shape) == 2
        else math.prod(shape) * width
        for shape in tensors.values()
    )


def parameter_count(tensors: Mapping[str, Shape]) -> int:
    """Return the number of values in tensors of these shapes."""
    return sum(math.prod(shape) for shape in tensors.values())
