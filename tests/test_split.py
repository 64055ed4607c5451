import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import tiny_model
from safetensors.torch import load_file

from qubic_lab.cli.main import run
from qubic_lab.errors import InputError, ModelError
from qubic_lab.model import folders
from qubic_lab.model.checkpoint import Checkpoint, model_hash, weight_files
from qubic_lab.model.folders import MANIFEST, file_hash, new_folder
from qubic_lab.model.layout import stage_ranges, stage_tensors
from qubic_lab.model.resolve import resolve_model
from qubic_lab.model.safetensors_file import WEIGHTS
from qubic_lab.model.split import rank_folder, read_split, split_checkpoint, verify


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("source") / "model")


@pytest.fixture
def parts(source: Path, tmp_path: Path) -> Path:
    split_checkpoint(source, tmp_path / "parts", (2, 1, 1), "C")
    return tmp_path / "parts"


def flip(file: Path, position: int, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1 << bit
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("family", "tied", "sharded", "dtype"),
    [("llama", False, True, torch.float32), ("qwen2", True, False, torch.bfloat16)],
)
def test_each_rank_holds_its_own_tensors_unchanged(
    tmp_path: Path, family: str, tied: bool, sharded: bool, dtype: torch.dtype
) -> None:
    source = tiny_model(tmp_path / "model", family, tie_word_embeddings=tied, sharded=sharded, dtype=dtype)
    whole = {name: weight for file in weight_files(source) for name, weight in load_file(file).items()}
    shares: list[float] = []
    split_checkpoint(source, tmp_path / "parts", (3, 1), "C", shares.append)
    for rank, stage in enumerate(stage_ranges((3, 1))):
        folder = rank_folder(tmp_path / "parts", rank)
        config = Checkpoint.open(folder, stage).config
        weights = load_file(folder / WEIGHTS)
        assert weights.keys() == stage_tensors(config, stage).keys()
        assert all(torch.equal(weight, whole[name]) for name, weight in weights.items())
        assert {weight.dtype for weight in weights.values()} == {dtype}
        for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
            assert (folder / name).read_bytes() == (source / name).read_bytes()
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_a_split_says_how_it_was_made(source: Path, parts: Path) -> None:
    split = read_split(parts)
    assert split is not None
    assert (split.strategy, split.layers_per_rank, split.ranks) == ("C", (2, 1, 1), 3)
    assert split.model_hash == model_hash(parts) == model_hash(source)
    assert read_split(source) is None
    assert resolve_model(str(parts)) == parts
    with pytest.raises(ModelError, match="one rank of a split"):
        resolve_model(str(parts / "rank-0"))


def test_one_rank_s_folder_is_enough_on_its_host(parts: Path) -> None:
    whole = read_split(parts)
    rank_folder(parts, 0).rename(parts.parent / "elsewhere")
    rank_folder(parts, 1).rename(parts.parent / "elsewhere" / "rank-1")
    assert read_split(parts) == whole
    with pytest.raises(ModelError, match="rank-0 is missing"):
        rank_folder(parts, 0)


def test_ranks_of_two_splits_do_not_mix(source: Path, parts: Path, tmp_path: Path) -> None:
    split_checkpoint(source, tmp_path / "other", (1, 1, 2), "C")
    rank_folder(parts, 2).rename(tmp_path / "elsewhere")
    rank_folder(tmp_path / "other", 2).rename(parts / "rank-2")
    with pytest.raises(ModelError, match="manifests disagree"):
        read_split(parts)
    assert "manifests disagree" in verify(parts)[0]
    rank_folder(parts, 2).rename(parts / "rank-3")
    with pytest.raises(ModelError, match="is another rank by its manifest"):
        read_split(parts)


def test_one_flipped_bit_is_found_in_every_file(parts: Path) -> None:
    for file in sorted((parts / "rank-1").iterdir()):
        size = file.stat().st_size
        for position in (0, size // 2, size - 1):
            flip(file, position, bit=position % 8)
            assert len(verify(parts)) == 1, file
            assert str(file) in verify(parts / "rank-1")[0]
            flip(file, position, bit=position % 8)
    assert verify(parts) == []


def test_a_split_with_a_flipped_bit_has_no_hash_and_a_checked_file_is_not_read_again(
    source: Path, parts: Path, tmp_path: Path, set_settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_settings(cache=tmp_path / "cache")
    read: list[Path] = []
    monkeypatch.setattr(folders, "SETTLED_NS", 0)
    monkeypatch.setattr(folders, "file_hash", lambda file: read.append(file) or file_hash(file))
    weights = parts / "rank-1" / WEIGHTS
    assert model_hash(parts) == model_hash(source)
    assert read.count(weights) == 1
    assert model_hash(parts) == model_hash(source)
    assert read.count(weights) == 1
    before = weights.stat()
    time.sleep(0.02)  # the clock of file systems goes in steps of some ms
    flip(weights, before.st_size // 2)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ModelError, match=rf"{weights} has changed.*: copy the folder again"):
        model_hash(parts)
    flip(weights, before.st_size // 2)
    assert model_hash(parts) == model_hash(source)


@pytest.mark.dist
def test_a_split_with_a_flipped_bit_is_not_loaded(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = parts / "rank-2" / WEIGHTS
    flip(weights, weights.stat().st_size - 1)
    assert run(["generate", "--model", str(parts), "--prompt", "hi", "--raw", "--threads", "1"]) == 2
    assert f"{weights} has changed" in capsys.readouterr().err


def test_one_flipped_bit_is_found_anywhere_in_a_manifest(parts: Path) -> None:
    manifest = parts / "rank-0" / MANIFEST
    for position in range(manifest.stat().st_size):
        flip(manifest, position, bit=position % 8)
        assert verify(parts / "rank-0"), position
        flip(manifest, position, bit=position % 8)


def test_missing_extra_and_short_files_are_found(parts: Path) -> None:
    (parts / "rank-0" / "config.json").unlink()
    (parts / "rank-1" / "notes.txt").write_text("mine")
    weights = parts / "rank-2" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    missing, extra, short = verify(parts)
    assert missing.endswith("config.json is missing")
    assert extra.endswith("notes.txt is not in the manifest")
    assert "bytes" in short


def test_missing_ranks_and_manifests_are_found(parts: Path) -> None:
    rank_folder(parts, 1).rename(parts.parent / "elsewhere")
    assert verify(parts) == [f"{parts / 'rank-1'} is missing"]
    (parts / "rank-2" / MANIFEST).unlink()
    assert verify(parts) == [f"{parts / 'rank-2' / MANIFEST} is missing"]


def test_nothing_is_left_of_a_folder_that_was_not_finished(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as partial:
        (partial / "file").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        split_checkpoint(source, tmp_path, (4,), "C")
    with pytest.raises(InputError, match="is a file"):
        split_checkpoint(source, tmp_path / "file", (4,), "C")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "empty").mkdir()
    split_checkpoint(source, tmp_path / "empty", (4,), "C")
    assert verify(tmp_path / "empty") == []


def test_the_commands_split_and_verify(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    check = ["verify", str(out)]
    assert run(f"split --model {source} --strategy A --cut 1 --out {out}".split()) == 0
    assert "rank 0: embedding + layers 0 to 0; rank 1: layers 1 to 3 + head" in capsys.readouterr().out
    assert run(check) == 0
    assert "no file has changed" in capsys.readouterr().out
    for rank in (0, 1):
        flip(out / f"rank-{rank}" / WEIGHTS, 5000)
    assert run(check) == 1
    printed, error = capsys.readouterr()
    assert printed == ""
    assert "rank-0/model.safetensors has changed" in error and "(and 1 more)" in error
