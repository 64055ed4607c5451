import json
from pathlib import Path
from typing import Any

import pytest
from models import LLAMA3_ROPE, SHAPE

from qubic_lab.errors import ModelError
from qubic_lab.model.config import MEANINGLESS_KEY, RopeConfig, load_config, parse_config

LLAMA: dict[str, Any] = {**SHAPE, "architectures": ["LlamaForCausalLM"]}
QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"]}

LLAMA3 = {key: value for key, value in LLAMA3_ROPE.items() if key not in ("rope_type", "rope_theta")}
LINEAR, OF_LLAMA3 = RopeConfig(5e5, "linear", 4.0), RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 64)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in LLAMA.items() if name != key}


def test_sizes_biases_and_family_follow_from_the_config() -> None:
    llama, biased, qwen2 = (parse_config(raw) for raw in (LLAMA, {**LLAMA, "attention_bias": True}, QWEN2))
    assert (llama.head_dim, llama.q_size, llama.kv_size) == (16, 64, 32)
    assert parse_config({**LLAMA, "head_dim": 24}).q_size == 96
    assert parse_config(without("num_key_value_heads")).kv_heads == 4
    biases = [(config.qkv_bias, config.output_bias) for config in (llama, biased, qwen2)]
    assert biases == [(False, False), (True, True), (True, False)]
    assert parse_config({**without("architectures"), "model_type": "qwen2"}).family == "qwen2"


@pytest.mark.parametrize(
    ("raw", "rope"),
    [
        ({}, RopeConfig()),
        ({"rope_theta": 5e5}, RopeConfig(5e5)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, RopeConfig(5e5)),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4}}, LINEAR),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}}, LINEAR),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}, OF_LLAMA3),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}, OF_LLAMA3),
    ],
)
def test_both_spellings_of_rope_say_the_same(raw: dict[str, Any], rope: RopeConfig) -> None:
    assert parse_config({**LLAMA, **raw}).rope == rope


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (without("hidden_size"), "hidden_size is missing"),
        ({**LLAMA, "hidden_size": "64"}, "hidden_size is '64'"),
        ({**LLAMA, "num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({**LLAMA, "architectures": ["MistralForCausalLM"]}, "MistralForCausalLM is not supported"),
        ({**LLAMA, "num_key_value_heads": 3}, "not a multiple"),
        ({**LLAMA, "head_dim": 15}, "head_dim 15 is odd"),
        ({**LLAMA, "hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({**LLAMA, "quantization_config": {"bits": 4}}, "quantized"),
        ({**QWEN2, "use_sliding_window": True}, "sliding-window"),
        ({**QWEN2, "layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({**LLAMA, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' is not supported"),
        ({**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "needs low_freq_factor"),
    ],
)
def test_what_the_decoder_does_not_know_is_refused(raw: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        parse_config(raw)


def test_end_tokens_come_from_the_generation_config_first(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "eos_token_id": 2, MEANINGLESS_KEY: True}))
    assert load_config(tmp_path).eos_token_ids == (2,)
    assert load_config(tmp_path).meaningless
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert load_config(tmp_path).eos_token_ids == (2, 7)
    (tmp_path / "generation_config.json").write_text("{}")
    assert load_config(tmp_path).eos_token_ids == (2,)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_config_that_cannot_be_read_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        load_config(tmp_path)
