"""A lean decoder for the Llama and Qwen2 families: the layers of one stage, fused projections, a slot KV cache.

Letters in names: R rows of a micro-batch, H hidden size, Q query heads, K key/value heads, G = Q / K queries that share
a key, D head size, L keys attended over, V vocabulary.

An answer must not depend on the other requests in its micro-batch. So the kernels' shapes are fixed: a decode step
always has `lane_rows` rows, and a slot attends over its own length rounded up to KV_BLOCK. In
attention, heads are padded with zeros to a multiple of HEAD_BLOCK, so that every row starts on a cache line;
otherwise fp32 kernels round differently, and a result would depend on the row.

On a GPU attention uses the memory-efficient kernel or none: it adds up Q·K in fp32, where fp16 would overflow, and
one block of threads walks over all keys of a head in order, whoever else is in the batch. The G queries that share a
key are rows of one head, so that keys and values need neither copies nor `enable_gqa`, for which a GPU before sm_80
has only the slow MATH kernel.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from qubic_lab.errors import InputError, check_choice
from qubic_lab.model.checkpoint import Checkpoint
from qubic_lab.model.config import RopeConfig
from qubic_lab.model.graphs import LayerSteps, StepGraphs, run_layers
from qubic_lab.model.layout import EMBEDDING, FINAL_NORM, StageRange, head_tensor

KV_BLOCK = 64
HEAD_BLOCK = 32
FIRST_GPU_CAPACITY = 1024
"""Positions of a slot in a new KV cache on a GPU: growth moves the cache, and graphs must be captured anew."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


IDLE = -1
"""Start of a segment whose row means nothing."""


class Segment(NamedTuple):
    """Rows of a micro-batch that belong to one slot: its tokens from position `start` on."""

    slot: int
    start: int
    rows: int


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's dtype for `fp32`, `bf16` or `fp16`; an InputError if the name is unknown."""
    return DTYPES[check_choice("dtype", name, DTYPES)]


def lane_rows(slots: int, dtype: torch.dtype) -> int:
    """Return the number of rows of a decode step for a number of slots.

    In fp32 the rows are padded to groups of four, because the matrix kernel treats the rows of a partial group
    differently, and the bits of a slot would depend on its position.
    """
    return slots if slots == 1 or dtype != torch.float32 else 4 * math.ceil(slots / 4)


def linear(x_RI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """Multiply rows by a weight matrix; a single 16-bit row is computed as two.

    One row would use a matrix-vector kernel that is slower than two rows of the matrix kernel and rounds differently,
    so a lane of one slot would give other answers than a lane of many.
    """
    if x_RI.shape[0] == 1 and x_RI.dtype != torch.float32:
        return F.linear(x_RI.expand(2, -1), weight_OI, bias_O)[:1]
    return F.linear(x_RI, weight_OI, bias_O)


def rope_frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """Return the rotation per position of each pair of a head, shape (D / 2,), in radians, fp32.

    Source: RoPE (arXiv 2104.09864). `linear` divides positions; `llama3` divides only low frequencies, with a smooth
    transition (Llama 3.1 model card and reference code).
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / rope.theta**exponents
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        wavelengths = 2 * math.pi / frequencies
        low_wavelength = rope.original_max_positions / rope.low_freq_factor
        high_wavelength = rope.original_max_positions / rope.high_freq_factor
        smooth = (rope.original_max_positions / wavelengths - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        between = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
        scaled = torch.where(wavelengths > low_wavelength, frequencies / rope.factor, between)
        return torch.where(wavelengths < high_wavelength, frequencies, scaled)
    return frequencies


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one decoder layer, with one matrix for queries, keys and values, and one for gate and up."""

    input_norm_H: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    output: torch.Tensor
    output_bias: torch.Tensor | None
    post_norm_H: torch.Tensor
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


# Stores keys and values (R, K, D) of a micro-batch in the KV cache, given the layer's index in the stage.
Store = Callable[[int, torch.Tensor, torch.Tensor], None]


class Decoder:
    """One stage of a model: its layers, the embedding on the first stage, the head on the last, and the KV cache."""

    fixed_rows = True
    """Whether the bits of a row depend only on its request if the pass has a fixed shape: a chunk of one prompt, or
    `lane_rows` rows, one for each slot of a lane."""

    def __init__(self, checkpoint: Checkpoint, stage: StageRange, dtype: torch.dtype, device: torch.device) -> None:
        """Read the weights of the stage into memory.

        Raises:
            ModelError: the checkpoint's files are damaged.
            InputError: the GPU has no memory-efficient attention in this dtype.
        """
        self.config = checkpoint.config
        self.stage = stage
        self.dtype = dtype
        self.device = device
        self._head_padding = -self.config.head_dim % HEAD_BLOCK
        self.graphs = self._prepare_gpu() if device.type == "cuda" else None
        self._checkpoint = checkpoint
        self.embedding = self._read(EMBEDDING) if stage.has_embedding else None
        self.layers = [self._read_layer(layer) for layer in range(stage.first, stage.end)]
        self.final_norm_H = self._read(FINAL_NORM) if stage.has_head else None
        self.head = self._read_head() if stage.has_head else None
        self.frequencies = rope_frequencies(self.config.rope, self.config.head_dim).to(device)
        self.reset(slots=1)

    def reset(self, slots: int) -> None:
        """Create an empty KV cache with a number of slots."""
        self.slots = slots
        self.capacity = 0
        if self.graphs:
            self.graphs.clear()
        padded_dim = self.config.head_dim + self._head_padding
        empty = torch.empty(slots, self.config.kv_heads, 0, padded_dim, dtype=self.dtype, device=self.device)
        self.keys = [empty] * len(self.layers)
        self.values = [empty] * len(self.layers)

    def clear_slot(self, slot: int) -> None:
        """Zero a slot that may have infinities, because masked values are still multiplied by 0."""
        for cache in (*self.keys, *self.values):
            cache[slot].zero_()

    def copy_slot(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a slot to another one."""
        for cache in (*self.keys, *self.values):
            cache[target, :, :length] = cache[source, :, :length]

    @property
    def weight_bytes(self) -> int:
        """Bytes of this stage's weights; a tied matrix counts once."""
        held = {id(t): t for t in (self.embedding, self.head, self.final_norm_H) if t is not None}
        for layer in self.layers:
            held |= {id(t): t for t in vars(layer).values() if t is not None}
        return sum(t.nbytes for t in held.values())

    def embed(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Return the embeddings of tokens, shape (tokens, H)."""
        assert self.embedding is not None
        return F.embedding(torch.tensor(token_ids, device=self.device), self.embedding)

    def forward(
        self, hidden_RH: torch.Tensor, segments: Sequence[Segment], *, prompt: bool, ends_only: bool = False
    ) -> torch.Tensor:
        """Run a micro-batch through the layers; return hidden states of the same shape (R, H).

        Args:
            hidden_RH: the rows of the segments, in their order.
            segments: chunks of prompts, or a row for each slot of a lane, IDLE or not; rows beyond them are padding.
            prompt: whether these are chunks of prompts.
            ends_only: whether only the last row of each segment is wanted; makes no difference here.
        """
        if not prompt:
            return self.decode(hidden_RH, segments[0].slot, [segment.start for segment in segments])
        if len(segments) == 1:
            return self.prefill(hidden_RH, segments[0].slot, segments[0].start)
        chunks = hidden_RH.split([segment.rows for segment in segments])
        return torch.cat([self.prefill(x, each.slot, each.start) for x, each in zip(chunks, segments, strict=True)])

    def prefill(self, hidden_RH: torch.Tensor, slot: int, start: int) -> torch.Tensor:
        """Run a chunk of one prompt, positions `start` on, through the layers; return its hidden states (R, H)."""
        rows = hidden_RH.shape[0]
        length = self._reserve(start + rows)
        positions = torch.arange(start, start + rows, device=self.device)
        queries_per_key = self.config.heads // self.config.kv_heads
        causal_RL = torch.arange(length, device=self.device) <= positions[:, None]
        bias = self._bias(causal_RL).repeat(queries_per_key, 1)

        def store(layer: int, k_RKD: torch.Tensor, v_RKD: torch.Tensor) -> None:
            self.keys[layer][slot, :, start : start + rows] = k_RKD.transpose(0, 1)
            self.values[layer][slot, :, start : start + rows] = v_RKD.transpose(0, 1)

        def attend(layer: int, q_RQD: torch.Tensor) -> torch.Tensor:
            keys, values = self.keys[layer][slot, None, :, :length], self.values[layer][slot, None, :, :length]
            q_KGRD = q_RQD.unflatten(1, (-1, queries_per_key)).permute(1, 2, 0, 3)
            mixed = self._mix(q_KGRD.flatten(1, 2)[None], keys, values, bias)
            mixed_KGRD: torch.Tensor = mixed[0].unflatten(1, (queries_per_key, rows))
            return mixed_KGRD.permute(2, 0, 1, 3)

        with self._attention_kernel():
            return run_layers(self._layers(hidden_RH, positions, store), attend)

    def decode(self, hidden_RH: torch.Tensor, first_slot: int, positions: Sequence[int]) -> torch.Tensor:
        """Run one token per slot of a lane through the layers; return hidden states of the same shape (R, H).

        Args:
            hidden_RH: `lane_rows` rows; row i is the token of slot `first_slot + i`, rows beyond the slots are padding.
            first_slot: the lane's first slot.
            positions: one per slot; -1 where the slot is idle and its row means nothing.
        """
        self._reserve(max(positions) + 1)
        row_positions = torch.zeros(hidden_RH.shape[0], dtype=torch.int64)
        row_positions[: len(positions)] = torch.tensor(positions).clamp(min=0)
        row_positions = row_positions.to(self.device)
        active = [(row, first_slot + row, position) for row, position in enumerate(positions) if position >= 0]
        # idle rows store nothing: the last active one stores the same again, so that shapes are those of the lane
        active += active[-1:] * (len(positions) - len(active))
        stored_3S = torch.tensor(active, device=self.device).T
        groups = self._attention_groups(first_slot, positions, row_positions)
        queries_per_key = self.config.heads // self.config.kv_heads
        padded_dim = self.config.head_dim + self._head_padding
        mixed_RKGD = hidden_RH.new_zeros(len(hidden_RH), self.config.kv_heads, queries_per_key, padded_dim)

        def layers(x_RH: torch.Tensor, positions_R: torch.Tensor, stored_3S: torch.Tensor) -> LayerSteps:
            rows, slots, stored_positions = stored_3S

            def store(layer: int, k_RKD: torch.Tensor, v_RKD: torch.Tensor) -> None:
                self.keys[layer][slots, :, stored_positions] = k_RKD[rows]
                self.values[layer][slots, :, stored_positions] = v_RKD[rows]

            return self._layers(x_RH, positions_R, store)

        def attend(layer: int, q_RQD: torch.Tensor, mixed_RKGD: torch.Tensor = mixed_RKGD) -> torch.Tensor:
            keys, values = self.keys[layer], self.values[layer]
            q_RKGD = q_RQD.unflatten(1, (-1, queries_per_key))
            for group in groups:
                mixed_RKGD[group.rows] = self._mix(
                    q_RKGD[group.rows].contiguous(),
                    keys[group.slots, :, : group.length],
                    values[group.slots, :, : group.length],
                    group.bias,
                )
            return mixed_RKGD

        inputs = (hidden_RH, row_positions, stored_3S)
        with self._attention_kernel():
            if self.graphs is not None:
                return self.graphs.run(layers, inputs, attend, mixed_RKGD)
            return run_layers(layers(*inputs), attend)

    def logits(self, hidden_RH: torch.Tensor) -> torch.Tensor:
        """Return the head's logits (R, V) in the decoder's dtype."""
        assert self.head is not None and self.final_norm_H is not None
        return linear(self._norm(hidden_RH, self.final_norm_H), self.head)

    def _layers(self, hidden_RH: torch.Tensor, positions_R: torch.Tensor, store: Store) -> LayerSteps:
        angles = positions_R[:, None].float() * self.frequencies
        cos_R1D = torch.cat((angles, angles), dim=-1).cos().to(self.dtype)[:, None]
        sin_R1D = torch.cat((angles, angles), dim=-1).sin().to(self.dtype)[:, None]
        heads, kv_heads, head_dim = self.config.heads, self.config.kv_heads, self.config.head_dim
        x = hidden_RH
        for index, layer in enumerate(self.layers):
            qkv = linear(self._norm(x, layer.input_norm_H), layer.qkv, layer.qkv_bias).unflatten(1, (-1, head_dim))
            qk, v = qkv.split((heads + kv_heads, kv_heads), dim=1)
            first_half, second_half = qk.chunk(2, dim=-1)
            qk = qk * cos_R1D + torch.cat((-second_half, first_half), dim=-1) * sin_R1D
            qk, v = F.pad(qk, (0, self._head_padding)), F.pad(v, (0, self._head_padding))
            q, k = qk.split((heads, kv_heads), dim=1)
            store(index, k, v)
            mixed = yield q
            assert mixed is not None
            x = x + linear(mixed[..., :head_dim].reshape(len(x), -1), layer.output, layer.output_bias)
            gate, up = linear(self._norm(x, layer.post_norm_H), layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
            x = x + linear(F.silu(gate) * up, layer.down, layer.down_bias)
        return x

    def _mix(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        scale = self.config.head_dim**-0.5
        mixed: torch.Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
        return mixed

    def _bias(self, seen: torch.Tensor) -> torch.Tensor:
        """Return what to add to Q·K: made once here, because SDPA would make it of a mask in every layer."""
        return torch.zeros(seen.shape, dtype=self.dtype, device=self.device).masked_fill_(~seen, -math.inf)

    def _attention_kernel(self) -> AbstractContextManager[object]:
        """Allow attention only the memory-efficient kernel on a GPU: another one would be an error, not a surprise."""
        return sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION) if self.device.type == "cuda" else nullcontext()

    def _prepare_gpu(self) -> StepGraphs:
        """Make matrix products add up in fp32, and check that the attention kernel exists before weights are read."""
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        padded_dim = self.config.head_dim + self._head_padding
        one = torch.zeros(1, self.config.kv_heads, KV_BLOCK, padded_dim, dtype=self.dtype, device=self.device)
        bias = self._bias(torch.ones(KV_BLOCK, KV_BLOCK, dtype=torch.bool, device=self.device))
        try:
            with self._attention_kernel():
                self._mix(one, one, one, bias)
        except RuntimeError as error:
            what = f"{torch.cuda.get_device_name(self.device)} has no memory-efficient attention for {self.dtype}"
            raise InputError(f"{what}: use fp16 or fp32 ({error})") from error
        return StepGraphs()

    def _norm(self, x: torch.Tensor, weight_H: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (self.config.hidden,), weight_H, self.config.norm_eps)

    def _attention_groups(
        self, first_slot: int, positions: Sequence[int], row_positions: torch.Tensor
    ) -> "list[_AttentionGroup]":
        """Group the lane's active rows by their rounded length; a group without others between is a view, no copy."""
        rows_by_length: dict[int, list[int]] = defaultdict(list)
        for row, position in enumerate(positions):
            if position >= 0:
                rows_by_length[_round_up(position + 1)].append(row)
        groups = []
        for length, rows in rows_by_length.items():
            row_index: Any = slice(rows[0], rows[-1] + 1)
            slot_index: Any = slice(first_slot + rows[0], first_slot + rows[-1] + 1)
            # idle rows may be included: they see position 0, and their result is not read
            if any(row not in rows and positions[row] >= 0 for row in range(rows[0], rows[-1])):
                row_index = torch.tensor(rows, device=self.device)
                slot_index = row_index + first_slot
            seen = torch.arange(length, device=self.device) <= row_positions[row_index][:, None]
            groups.append(_AttentionGroup(row_index, slot_index, length, self._bias(seen[:, None, None, :])))
        return groups

    def _reserve(self, length: int) -> int:
        """Reserve room for `length` positions in every slot; return the length rounded up to KV_BLOCK."""
        needed = _round_up(length)
        if needed > self.capacity:
            wanted = max(2 * self.capacity, 0 if self.graphs is None else FIRST_GPU_CAPACITY)
            self.capacity = max(needed, min(wanted, _round_up(self.config.max_positions)))
            if self.graphs:
                self.graphs.clear()
            self.keys = [self._grown(cache) for cache in self.keys]
            self.values = [self._grown(cache) for cache in self.values]
        return needed

    def _grown(self, cache: torch.Tensor) -> torch.Tensor:
        # zeros, because masked values are multiplied by 0 and must be finite; unused pages cost nothing
        grown = torch.zeros(*cache.shape[:2], self.capacity, cache.shape[3], dtype=self.dtype, device=self.device)
        grown[:, :, : cache.shape[2]] = cache
        return grown

    def _read(self, *names: str) -> torch.Tensor:
        return self._checkpoint.read(names, self.dtype, self.device)

    def _read_layer(self, layer: int) -> LayerWeights:
        config = self.config

        def read(*names: str) -> torch.Tensor:
            return self._read(*(f"model.layers.{layer}.{name}" for name in names))

        qkv = [f"self_attn.{name}_proj" for name in "qkv"]
        gate_up = ["mlp.gate_proj", "mlp.up_proj"]
        return LayerWeights(
            input_norm_H=read("input_layernorm.weight"),
            qkv=read(*(f"{name}.weight" for name in qkv)),
            qkv_bias=read(*(f"{name}.bias" for name in qkv)) if config.qkv_bias else None,
            output=read("self_attn.o_proj.weight"),
            output_bias=read("self_attn.o_proj.bias") if config.output_bias else None,
            post_norm_H=read("post_attention_layernorm.weight"),
            gate_up=read(*(f"{name}.weight" for name in gate_up)),
            gate_up_bias=read(*(f"{name}.bias" for name in gate_up)) if config.mlp_bias else None,
            down=read("mlp.down_proj.weight"),
            down_bias=read("mlp.down_proj.bias") if config.mlp_bias else None,
        )

    def _read_head(self) -> torch.Tensor:
        if self.config.tied_head and self.embedding is not None:
            return self.embedding
        return self._read(head_tensor(self.config))


@dataclass(frozen=True)
class _AttentionGroup:
    """Rows of a decode step that attend over the same number of keys; `bias` (rows, 1, 1, L) is 0 where seen."""

    rows: Any
    slots: Any
    length: int
    bias: torch.Tensor


def _round_up(length: int) -> int:
    return KV_BLOCK * math.ceil(length / KV_BLOCK)
