from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import tiny_model

from qubic_lab.errors import InputError
from qubic_lab.model.checkpoint import Checkpoint
from qubic_lab.model.config import ModelConfig, load_config, parse_config
from qubic_lab.model.cost import (
    kv_cache_bytes,
    kv_memory_bytes,
    kv_page_bytes,
    layer_weight_bytes,
    model_cost,
    parameter_count,
    stage_weight_bytes,
)
from qubic_lab.model.decoder import torch_dtype
from qubic_lab.model.layout import model_tensors, stage_ranges
from qubic_lab.model.native import NativeDecoder
from qubic_lab.model.random_model import read_shape


def shape_of(alias: str) -> ModelConfig:
    return parse_config(read_shape(alias))


@pytest.mark.parametrize(("alias", "parameters"), [("deepseek", 1_777_088_000), ("smollm2", 134_515_008)])
def test_known_models_have_the_parameters_that_their_cards_name(alias: str, parameters: int) -> None:
    config = shape_of(alias)
    cost = model_cost(config, "bf16")
    assert cost.parameters == parameter_count(model_tensors(config)) == parameters
    assert cost.weight_bytes == 2 * parameters


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_as_many_bytes_as_the_file_holds(tmp_path: Path, tied: bool) -> None:
    checkpoint = Checkpoint.open(tiny_model(tmp_path, "qwen2", tie_word_embeddings=tied))
    stored = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    assert model_cost(checkpoint.config, "fp32").weight_bytes == stored


def test_a_decode_step_by_hand(tmp_path: Path) -> None:
    config = load_config(tiny_model(tmp_path, "llama"))  # hidden 64, 4 heads of 16, 2 of keys, 96 wide, 320 tokens
    matrices = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 96
    cost = model_cost(config, "bf16", context=10)
    assert cost.layer.flops == 2 * matrices + 2 * (10 * 64) + 2 * (10 * 64)
    assert cost.layer.decode_bytes == 2 * (matrices + 2 * 64) + 2 * (10 * 2 * 32)
    assert (cost.embedding.flops, cost.embedding.decode_bytes) == (0, 2 * 64)
    assert (cost.head.flops, cost.head.decode_bytes) == (2 * 320 * 64, 2 * (320 * 64 + 64) + 2 * 4 * 320)


def test_a_batch_reads_weights_once_and_each_request_its_own_keys_and_values() -> None:
    config = shape_of("deepseek")
    short, long = model_cost(config, "fp16"), model_cost(config, "fp16", context=1000)
    keys_and_values = 2 * 1000 * 256 * 2  # 2 heads of 128 each
    assert kv_cache_bytes(config, 1, "fp16", 1000) == keys_and_values
    assert long.layer.step_bytes(1) == long.layer.decode_bytes == layer_weight_bytes(config, "fp16") + keys_and_values
    assert long.layer.step_bytes(8) - short.layer.step_bytes(8) == 8 * keys_and_values
    assert long.head.step_bytes(8) - long.head.step_bytes(1) == 7 * 2 * 4 * config.vocab  # logits in fp32
    assert long.embedding.step_bytes(8) == 8 * 2 * 1536


def test_a_tied_matrix_counts_on_each_rank_that_holds_it() -> None:
    config = shape_of("smollm2")
    matrix_bytes = 2 * config.vocab * config.hidden
    whole = model_cost(config, "bf16").weight_bytes
    stages = [stage_weight_bytes(config, stage, "bf16") for stage in stage_ranges((15, 15))]
    assert sum(stages) == whole + matrix_bytes
    assert stage_weight_bytes(config, *stage_ranges((30,)), "bf16") == whole


def test_keys_and_values_take_whole_pages_of_whole_groups() -> None:
    config = shape_of("deepseek")
    page = 2 * 28 * 64 * 256 * 2
    assert [kv_memory_bytes(config, 28, "bf16", tokens) // page for tokens in (0, 1, 64, 65)] == [0, 1, 1, 2]
    assert kv_page_bytes(replace(config, head_dim=16), 28, "bf16") == 28 * 64 * 2 * (16 + 64) * 2, "values are padded"


@pytest.mark.parametrize(("dtype", "wide", "vocab"), [("bf16", 256, 1_024), ("fp32", 200, 1_000)])
def test_packed_weights_are_about_as_many_bytes_as_the_kernels_point_at(
    tmp_path: Path, dtype: str, wide: int, vocab: int
) -> None:
    shape = {"hidden_size": 128, "intermediate_size": wide, "vocab_size": vocab, "tie_word_embeddings": True}
    checkpoint = Checkpoint.open(tiny_model(tmp_path, "qwen2", std=0.02, **shape))
    (whole,) = stage_ranges((checkpoint.config.layers,))
    decoder = NativeDecoder(checkpoint, whole, torch_dtype(dtype), 1)
    held = sum(tensor.nbytes for tensor in (decoder._embedding, *decoder._kept) if tensor is not None)
    assert stage_weight_bytes(checkpoint.config, whole, dtype, packed=True) == pytest.approx(held, rel=0.03)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantised_weights_are_as_many_bytes_as_a_decoder_holds(tmp_path: Path, quantization: str) -> None:
    checkpoint = Checkpoint.open(tiny_model(tmp_path, "qwen2", tie_word_embeddings=True))
    (whole,) = stage_ranges((checkpoint.config.layers,))
    held = NativeDecoder(checkpoint, whole, torch.bfloat16, 1, quantization).weight_bytes
    assert model_cost(checkpoint.config, "bf16", 0, quantization).weight_bytes == held
    assert stage_weight_bytes(checkpoint.config, whole, "bf16", quantization) == held
    halves = [stage_weight_bytes(checkpoint.config, stage, "bf16", quantization) for stage in stage_ranges((2, 2))]
    assert sum(halves) == held


def test_an_unknown_dtype_is_refused_with_a_suggestion() -> None:
    with pytest.raises(InputError, match="did you mean 'bf16'"):
        model_cost(shape_of("deepseek"), "bf6")
