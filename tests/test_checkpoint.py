import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from models import tiny_model
from safetensors.torch import load_file, save_file

from qubic_lab.errors import ModelError
from qubic_lab.model import checkpoint as checkpoint_module
from qubic_lab.model.checkpoint import Checkpoint, model_hash, read_ahead, weight_files
from qubic_lab.model.layout import EMBEDDING, HEAD, stage_ranges, stage_tensors
from qubic_lab.model.safetensors_file import INDEX, WEIGHTS

Change = Callable[[dict[str, torch.Tensor]], object]
LAST_NORM = "model.layers.3.input_layernorm.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "model")


def rewrite(folder: Path, change: Change) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


def read(checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> torch.Tensor:
    destination = torch.full(checkpoint.tensors[name].shape, torch.nan, dtype=dtype)
    checkpoint.read_rows([name], 0, destination)
    return destination


@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_every_tensor_is_read_in_every_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: torch.dtype, wanted: torch.dtype
) -> None:
    monkeypatch.setattr(checkpoint_module, "CHUNK_BYTES", 1000)  # several chunks, the last one not full
    checkpoint = Checkpoint.open(tiny_model(tmp_path, dtype=stored, num_hidden_layers=1))
    for name, expected in load_file(tmp_path / WEIGHTS).items():
        assert torch.equal(read(checkpoint, name, wanted), expected.to(wanted)), name


def test_rows_of_stacked_tensors_are_read_from_any_place(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    names = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]
    whole = checkpoint.read(names, torch.float32, torch.device("cpu"))
    assert torch.equal(whole, torch.cat([load_file(folder / WEIGHTS)[name].float() for name in names]))
    for first, end in ((0, 1), (len(whole) // 3, len(whole)), (len(whole) - 1, len(whole)), (5, len(whole) - 5)):
        some = torch.full((end - first, whole.shape[1]), torch.nan)
        checkpoint.read_rows(names, first, some)
        assert torch.equal(some, whole[first:end])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_all_weights_are_read_ahead_where_they_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_bytes() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    size = (folder / WEIGHTS).stat().st_size
    before = read_bytes()
    read_ahead(folder)
    assert read_bytes() - before > size
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * size - 1))
    before = read_bytes()
    read_ahead(folder)
    assert read_bytes() - before < size
    read_ahead(folder / "missing")  # which those who need it report


def test_chunks_are_the_stored_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "CHUNK_BYTES", 1000)
    stored = b"".join(bytes(chunk) for chunk in Checkpoint.open(folder).chunks(EMBEDDING))
    assert stored == load_file(folder / WEIGHTS)[EMBEDDING].numpy().tobytes()


def test_a_stage_needs_only_its_own_tensors(folder: Path) -> None:
    first, last = stage_ranges((2, 2))
    needed = stage_tensors(Checkpoint.open(folder).config, last)
    rewrite(folder, lambda weights: [weights.pop(name) for name in weights.keys() - needed.keys()])
    assert Checkpoint.open(folder, last).tensors.keys() == needed.keys()
    with pytest.raises(ModelError, match="which the weights lack"):
        Checkpoint.open(folder, first)


def test_a_tied_model_may_store_its_head_as_well(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, tie_word_embeddings=True)
    rewrite(folder, lambda weights: weights.update({HEAD: weights[EMBEDDING].clone()}))
    assert HEAD not in Checkpoint.open(folder).tensors


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-1], "damaged"),
        (lambda data: data + b"\0", "damaged"),
        (lambda data: data[:100], "truncated"),
        (lambda data: b"", "truncated"),
        (lambda data: b"\xff" * 8 + data[8:], "truncated or not a safetensors file"),
        (lambda data: data[:8] + b"?" + data[9:], "header that cannot be read"),
        (lambda data: data.replace(b'"F32"', b'"F16"', 1), "header that cannot be read"),
        (lambda data: data.replace(b'"shape"', b'"sharp"', 1), "header that cannot be read"),
    ],
)
def test_a_damaged_file_is_refused(folder: Path, damage: Callable[[bytes], bytes], said: str) -> None:
    (folder / WEIGHTS).write_bytes(damage((folder / WEIGHTS).read_bytes()))
    with pytest.raises(ModelError, match=said):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.pop(LAST_NORM), "calls for model.layers.3.input_layernorm.weight"),
        (lambda weights: weights.pop(HEAD), "calls for lm_head.weight"),
        (lambda weights: weights.update({LAST_NORM: torch.ones(63)}), r"is \[63\] in model.safetensors, \[64\]"),
        (lambda weights: weights.update({LAST_NORM: torch.ones(64, dtype=torch.float64)}), "F64: not supported"),
        (
            lambda weights: weights.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(16)}),
            "does not call for model.layers.0.self_attn.q_norm.weight",
        ),
    ],
)
def test_weights_that_are_not_the_config_s_are_refused(folder: Path, change: Change, said: str) -> None:
    rewrite(folder, change)
    with pytest.raises(ModelError, match=said):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "values",
    [{"num_hidden_layers": 3}, {"num_hidden_layers": 5}, {"intermediate_size": 97}, {"num_key_value_heads": 4}],
)
def test_a_config_that_is_not_the_weights_is_refused(folder: Path, values: dict[str, object]) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
    with pytest.raises(ModelError, match="config and weights disagree"):
        Checkpoint.open(folder)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, sharded=True)
    weight_files(folder)[1].unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-.*cannot be read"):
        Checkpoint.open(folder)
    (folder / INDEX).write_text("[]")
    with pytest.raises(ModelError, match=r"index\.json cannot be read"):
        Checkpoint.open(folder)
    (folder / INDEX).unlink()
    with pytest.raises(ModelError, match="has no weights"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_that_shrinks_after_it_was_opened_is_noticed(folder: Path, dtype: torch.dtype) -> None:
    checkpoint = Checkpoint.open(folder)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000])
    with pytest.raises(ModelError, match="bytes early"):
        read(checkpoint, EMBEDDING, dtype)


def test_the_hash_is_that_of_config_and_weights(folder: Path) -> None:
    before = model_hash(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    assert model_hash(folder) == before
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    assert model_hash(folder) != before


MEMORY_SCRIPT = """
import sys
from pathlib import Path
from types import SimpleNamespace
import torch
from qubic_lab.model.checkpoint import Checkpoint
from qubic_lab.model.safetensors_file import read_header

def peak_mib():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

file = Path(sys.argv[1])
dtype = getattr(torch, sys.argv[2])
checkpoint = Checkpoint(file.parent, None, read_header(file))
torch.zeros(100).to(dtype)
destination = torch.empty(100, 2**20, dtype=dtype)
before = peak_mib()
checkpoint.read_rows(["matrix"], 0, destination)
print(peak_mib() - before - destination.nbytes / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("dtype", "scratch_mib"), [pytest.param("bfloat16", 0, marks=pytest.mark.slow), ("float32", 16)]
)
def test_reading_needs_no_memory_but_the_destination_s(tmp_path: Path, dtype: str, scratch_mib: int) -> None:
    file = tmp_path / "one.safetensors"
    save_file({"matrix": torch.ones(100, 2**20, dtype=torch.bfloat16)}, file)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, str(file), dtype], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < scratch_mib + 8
