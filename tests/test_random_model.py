import json
from pathlib import Path

import pytest
import torch
from models import SHAPE
from safetensors.torch import load_file

from qubic_lab.errors import InputError, ModelError
from qubic_lab.model import random_model
from qubic_lab.model.checkpoint import Checkpoint, model_hash, weight_files
from qubic_lab.model.config import load_config
from qubic_lab.model.random_model import write_random_model
from qubic_lab.model.safetensors_file import INDEX, WEIGHTS


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "shape.json"
    family = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "float32"}
    sizes = {"num_hidden_layers": 3, "vocab_size": 300, "max_position_embeddings": 256, "eos_token_id": 299}
    path.write_text(json.dumps(SHAPE | family | sizes))
    return str(path)


def test_the_weights_are_random_and_the_norms_are_one(config: str, tmp_path: Path) -> None:
    write_random_model(config, tmp_path / "out")
    weights = load_file(tmp_path / "out" / WEIGHTS)
    for name, weight in weights.items():
        assert weight.dtype == torch.bfloat16
        if name.endswith("norm.weight"):
            assert (weight == 1).all(), name
        else:
            assert weight.unique().numel() > 1, name
    matrix = weights["model.layers.0.mlp.up_proj.weight"].float()
    assert abs(matrix.mean()) < 0.002
    assert abs(matrix.std() - 0.02) < 0.001
    assert not torch.equal(matrix, weights["model.layers.1.mlp.up_proj.weight"].float())


def test_the_same_seed_gives_the_same_model(config: str, tmp_path: Path) -> None:
    for out, seed in (("one", 1), ("same", 1), ("other", 2)):
        write_random_model(config, tmp_path / out, seed=seed)
    assert model_hash(tmp_path / "one") == model_hash(tmp_path / "same") != model_hash(tmp_path / "other")


def test_fewer_layers_are_the_first_ones(config: str, tmp_path: Path) -> None:
    write_random_model(config, tmp_path / "whole")
    write_random_model(config, tmp_path / "part", layers=2)
    whole, part = load_file(tmp_path / "whole" / WEIGHTS), load_file(tmp_path / "part" / WEIGHTS)
    assert whole.keys() - part.keys() == {name for name in whole if name.startswith("model.layers.2.")}
    assert all(torch.equal(weight, whole[name]) for name, weight in part.items())


def test_chunks_and_shards_change_nothing_but_the_files(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_model, "CHUNK_VALUES", 1000)
    write_random_model(config, tmp_path / "whole")
    monkeypatch.setattr(random_model, "SHARD_BYTES", 50_000)
    write_random_model(config, tmp_path / "sharded")
    files = weight_files(tmp_path / "sharded")
    assert len(files) > 3
    assert all(file.stat().st_size < 55_000 for file in files)
    sharded = {name: weight for file in files for name, weight in load_file(file).items()}
    whole = load_file(tmp_path / "whole" / WEIGHTS)
    assert sharded.keys() == whole.keys() == Checkpoint.open(tmp_path / "sharded").tensors.keys()
    assert all(torch.equal(weight, whole[name]) for name, weight in sharded.items())
    assert json.loads((tmp_path / "sharded" / INDEX).read_text())["metadata"]["total_size"] > 0


def test_it_is_labelled_and_works_as_a_model(config: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out"
    write_random_model(config, out)
    assert load_config(out).meaningless
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert load_config(out).eos_token_ids == (tokenizer.eos_token_id,)
    text = "Zwei  Wörter,\n 日本 😀"
    assert bytes(tokenizer(text)["input_ids"]) == text.encode()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == "<|startoftext|>user\nHi<|endoftext|>\n<|startoftext|>assistant\n"
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model(torch.tensor([tokenizer(chat)["input_ids"]])).logits.isfinite().all()


@pytest.mark.parametrize(
    ("shape", "error", "said"),
    [('"vocab_size": 257', ModelError, r"vocab_size is 257.*needs 258"), ("[1", InputError, "cannot be read")],
)
def test_a_shape_that_cannot_be_made_is_refused(
    shape: str, error: type[Exception], said: str, config: str, tmp_path: Path
) -> None:
    Path(config).write_text(Path(config).read_text().replace('"vocab_size": 300', shape))
    with pytest.raises(error, match=said):
        write_random_model(config, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["shape.json"]
