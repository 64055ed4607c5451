"""Our decoder against the transformers implementation: every feature of both families, chunked prefill and decode."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from models import LINEAR_ROPE, LLAMA3_ROPE, tiny_model

from qubic_lab.model.checkpoint import Checkpoint
from qubic_lab.model.decoder import DTYPES, KV_BLOCK, Decoder, lane_rows
from qubic_lab.model.layout import stage_ranges

CPU = torch.device("cpu")
FEATURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "llama biases": {"attention_bias": True, "mlp_bias": True},
    "llama llama3 rope": {"rope_parameters": LLAMA3_ROPE},
    "llama linear rope": {"rope_parameters": LINEAR_ROPE},
    "llama theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "llama head_dim": {"head_dim": 24},
    "llama odd heads": {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 54, "head_dim": 10},
    "llama no groups": {"num_key_value_heads": 4},
    "qwen2": {"family": "qwen2"},
    "qwen2 tied": {"family": "qwen2", "tie_word_embeddings": True},
}
TOKENS = torch.randint(0, 300, (150,), generator=torch.Generator().manual_seed(1)).tolist()
CUTS = (0, 100, 101, 131)
"""Prompt chunks: a long one, a single token, across a block of the cache; the rest is decoded."""


def our_logits(folder: Path, dtype: torch.dtype, cuts: tuple[int, ...] = CUTS) -> torch.Tensor:
    """Logits (tokens, V) of slot 1 in a lane of two: chunks by prefill, then one token at a time."""
    checkpoint = Checkpoint.open(folder)
    decoder = Decoder(checkpoint, stage_ranges((checkpoint.config.layers,))[0], dtype, CPU)
    decoder.reset(slots=2)
    rows = lane_rows(2, dtype)
    logits = []
    with torch.inference_mode():
        for start, end in pairwise(cuts):
            hidden = decoder.prefill(decoder.embed(TOKENS[start:end]), slot=1, start=start)
            logits.append(decoder.logits(hidden))
        for position in range(cuts[-1], len(TOKENS)):
            lane = decoder.embed([0, TOKENS[position]] + [0] * (rows - 2))
            logits.append(decoder.logits(decoder.decode(lane, 0, [-1, position]))[1:2])
    return torch.cat(logits).float()


def reference_logits(folder: Path, dtype: torch.dtype) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.inference_mode():
        return model(torch.tensor([TOKENS])).logits[0].float()


@pytest.mark.parametrize("name", FEATURES)
def test_fp32_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", **FEATURES[name])
    ours, theirs = our_logits(folder, torch.float32), reference_logits(folder, torch.float32)
    # Logits are of the order of 5; sums in another order differ in the last bits of fp32.
    assert (ours - theirs).abs().max() < 5e-5
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_16_bit_logits_are_as_near_to_fp32_as_those_of_transformers(dtype: str, tiny: Path) -> None:
    exact = reference_logits(tiny, torch.float32)
    ours = (our_logits(tiny, DTYPES[dtype]) - exact).abs().mean()
    theirs = (reference_logits(tiny, DTYPES[dtype]) - exact).abs().mean()
    assert ours < 1.2 * theirs


def test_a_stage_holds_its_own_weights_only(tiny: Path) -> None:
    checkpoint = Checkpoint.open(tiny)
    stages = [Decoder(checkpoint, stage, torch.bfloat16, CPU) for stage in stage_ranges((2, 2))]
    whole = Decoder(checkpoint, stage_ranges((4,))[0], torch.bfloat16, CPU)
    assert sum(stage.weight_bytes for stage in stages) == whole.weight_bytes
    assert [len(stage.layers) for stage in stages] == [2, 2]
    assert (stages[0].head, stages[1].embedding) == (None, None)


def test_the_cache_grows_with_the_longest_slot_and_keeps_what_it_holds(tiny: Path) -> None:
    checkpoint = Checkpoint.open(tiny)
    decoder = Decoder(checkpoint, stage_ranges((4,))[0], torch.float32, CPU)
    with torch.inference_mode():
        decoder.prefill(decoder.embed(TOKENS[:10]), slot=0, start=0)
        before = decoder.keys[0].clone()
        assert decoder.capacity == KV_BLOCK
        decoder.prefill(decoder.embed(TOKENS[10:140]), slot=0, start=10)
    assert decoder.capacity == 3 * KV_BLOCK
    assert torch.equal(decoder.keys[0][:, :, :10], before[:, :, :10])
