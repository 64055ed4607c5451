"""Names and shapes of the tensors of the embedding, a layer and the head, and those of a stage."""

from dataclasses import dataclass

from qubic_lab.model.config import ModelConfig
from qubic_lab.model.safetensors_file import Shape

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Dtypes in which a model can run, with bytes per value."""
PAGE = 64
"""Positions of a page of the KV cache."""

QUANTIZATIONS = {"int8": (8, 8), "int4": (4, 8)}
"""Bits of a weight of the layers' matrices and of the head's, by name."""
BLOCK = 32
"""Inputs of an output of a quantised matrix that share a scale of two bytes."""
COLUMNS = 64
"""Outputs of a group of weights as the kernels of a CPU keep them; the last group is filled up."""


@dataclass(frozen=True)
class StageRange:
    """The layers `first` to `end` (exclusive) of a model; the first stage embeds, the last one has the head."""

    first: int
    end: int
    has_embedding: bool
    has_head: bool

    def __str__(self) -> str:
        parts = ["embedding"] if self.has_embedding else []
        parts.append(f"layers {self.first} to {self.end - 1}")
        return " + ".join([*parts, "head"] if self.has_head else parts)


def stage_ranges(layers_per_rank: tuple[int, ...]) -> tuple[StageRange, ...]:
    """Convert layer counts of ranks into layer ranges."""
    ranges = []
    first = 0
    for rank, count in enumerate(layers_per_rank):
        last = rank == len(layers_per_rank) - 1
        ranges.append(StageRange(first, first + count, has_embedding=rank == 0, has_head=last))
        first += count
    return tuple(ranges)


def layer_tensors(config: ModelConfig, layer: int) -> dict[str, Shape]:
    """Return names (as in checkpoints) and shapes of the tensors of one decoder layer."""
    c = config
    prefix = f"model.layers.{layer}."
    tensors: dict[str, Shape] = {
        "input_layernorm.weight": (c.hidden,),
        "self_attn.q_proj.weight": (c.q_size, c.hidden),
        "self_attn.k_proj.weight": (c.kv_size, c.hidden),
        "self_attn.v_proj.weight": (c.kv_size, c.hidden),
        "self_attn.o_proj.weight": (c.hidden, c.q_size),
        "post_attention_layernorm.weight": (c.hidden,),
        "mlp.gate_proj.weight": (c.intermediate, c.hidden),
        "mlp.up_proj.weight": (c.intermediate, c.hidden),
        "mlp.down_proj.weight": (c.hidden, c.intermediate),
    }
    if c.qkv_bias:
        tensors |= {
            "self_attn.q_proj.bias": (c.q_size,),
            "self_attn.k_proj.bias": (c.kv_size,),
            "self_attn.v_proj.bias": (c.kv_size,),
        }
    if c.output_bias:
        tensors["self_attn.o_proj.bias"] = (c.hidden,)
    if c.mlp_bias:
        tensors |= {
            "mlp.gate_proj.bias": (c.intermediate,),
            "mlp.up_proj.bias": (c.intermediate,),
            "mlp.down_proj.bias": (c.hidden,),
        }
    return {prefix + name: shape for name, shape in tensors.items()}


def head_tensor(config: ModelConfig) -> str:
    """Return the name of the output head's matrix, which is the embedding if the two are tied."""
    return EMBEDDING if config.tied_head else HEAD


def stage_tensors(config: ModelConfig, stage: StageRange) -> dict[str, Shape]:
    """Return name and shape of every tensor that a stage reads."""
    tensors: dict[str, Shape] = {}
    if stage.has_embedding:
        tensors[EMBEDDING] = (config.vocab, config.hidden)
    for layer in range(stage.first, stage.end):
        tensors |= layer_tensors(config, layer)
    if stage.has_head:
        tensors[FINAL_NORM] = (config.hidden,)
        tensors[head_tensor(config)] = (config.vocab, config.hidden)
    return tensors


def model_tensors(config: ModelConfig) -> dict[str, Shape]:
    """Return name and shape of every tensor of a whole model."""
    return stage_tensors(config, StageRange(0, config.layers, has_embedding=True, has_head=True))
