"""Tiny random models in the form that checkpoints have, made with transformers, which tests also compare with."""

from pathlib import Path
from typing import Any, Literal

import torch

from qubic_lab.model.random_model import END_ID, START_ID, save_byte_tokenizer

SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}

LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def tiny_model(
    folder: Path,
    family: Literal["llama", "qwen2"] = "llama",
    *,
    seed: int = 0,
    std: float = 0.15,
    dtype: torch.dtype = torch.float32,
    sharded: bool = False,
    **overrides: Any,
) -> Path:
    """Write a random model with config, weights and byte tokenizer into `folder` and return it.

    `overrides` go to the transformers config over SHAPE (e.g. `tie_word_embeddings=True`, `head_dim=24`,
    `rope_parameters=LLAMA3_ROPE`). Weights have the standard deviation `std`, large enough for greedy tokens to vary;
    norms and biases are random too, so that one left out shows. `sharded` splits the weights over several files.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM  # takes seconds

    classes = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
    config_class, model_class = classes[family]
    config = config_class(**{**SHAPE, "bos_token_id": START_ID, "eos_token_id": END_ID, **overrides})
    model = model_class(config).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator) * std
            weight.copy_(1 + noise if "norm" in name else noise)
    model.save_pretrained(folder, max_shard_size="100KB" if sharded else "1GB")
    save_byte_tokenizer(folder, config.max_position_embeddings)
    return folder
