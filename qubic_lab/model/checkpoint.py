"""A folder of safetensors: checked against its config before a weight is read, and read in place."""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from qubic_lab.errors import ModelError
from qubic_lab.model.config import ModelConfig, load_config
from qubic_lab.model.folders import MANIFEST, check_intact, file_hash, rank_folders, read_manifest
from qubic_lab.model.layout import HEAD, StageRange, model_tensors, stage_tensors
from qubic_lab.model.safetensors_file import BLOCK_BYTES, DTYPE_WIDTHS, INDEX, WEIGHTS, Shape, StoredTensor, read_header

if TYPE_CHECKING:
    import torch

TEXT_PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model")
"""Files of a model folder without weights: config, generation config, tokenizer, chat template."""
CHUNK_BYTES = 16 * 2**20
"""Buffer size for reads that convert, and for copying files."""


@dataclass(frozen=True)
class Checkpoint:
    """The config and the stored tensors of a model, or of a single stage."""

    folder: Path
    config: ModelConfig
    tensors: Mapping[str, StoredTensor]

    @classmethod
    def open(cls, folder: Path, stage: StageRange | None = None) -> "Checkpoint":
        """Read config and headers and check that they agree; with `stage`, only its tensors are required.

        Raises:
            ModelError: weights are missing, damaged, of an unknown dtype, or do not match the config.
        """
        config = load_config(folder)
        stored: dict[str, StoredTensor] = {}
        for file in weight_files(folder):
            stored |= read_header(file)
        needed = model_tensors(config) if stage is None else stage_tensors(config, stage)
        _check_needed(folder, needed, stored)
        _check_known(folder, config, stored)
        return cls(folder, config, {name: stored[name] for name in needed})

    def read_rows(self, names: Sequence[str], first: int, destination: "torch.Tensor") -> None:
        """Fill the contiguous `destination` with rows from `first` on of tensors that are stacked by rows.

        Values get its dtype and device. Equal dtypes in main memory need no further memory, all others need
        CHUNK_BYTES. A destination of bytes gets the blocks of matrices as they are stored, (rows, bytes). The file is
        read, not mapped, because mapped pages would count as memory of this process.

        Raises:
            ModelError: the file ends early.
        """
        assert destination.is_contiguous(), names
        done = 0
        for name in names:
            tensor = self.tensors[name]
            count = min(tensor.shape[0] - first, len(destination) - done)
            if count > 0:
                _read_into(tensor.rows(first, first + count), destination[done : done + count])
                done += count
            first = max(0, first - tensor.shape[0])
        assert done == len(destination), (names, done)

    def stacked_shape(self, names: Sequence[str]) -> tuple[int, ...]:
        """Return the shape of tensors that are stacked by rows."""
        shapes = [self.tensors[name].shape for name in names]
        return sum(shape[0] for shape in shapes), *shapes[0][1:]

    def read(self, names: Sequence[str], dtype: "torch.dtype", device: "torch.device") -> "torch.Tensor":
        """Read tensors into a new one, stacked by rows; a ModelError if the file ends early."""
        import torch

        stacked = torch.empty(self.stacked_shape(names), dtype=dtype, device=device)
        self.read_rows(names, 0, stacked)
        return stacked

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the stored bytes of a tensor in chunks of at most CHUNK_BYTES; each is valid until the next.

        Raises:
            ModelError: the file ends early.
        """
        tensor = self.tensors[name]
        scratch = memoryview(bytearray(min(CHUNK_BYTES, tensor.nbytes)))
        with tensor.file.open("rb", buffering=0) as stream:
            stream.seek(tensor.offset)
            for begin in range(0, tensor.nbytes, CHUNK_BYTES):
                chunk = scratch[: tensor.nbytes - begin]
                _read_exactly(stream, chunk, tensor.file)
                yield chunk


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder, single or sharded, without opening them.

    Raises:
        ModelError: there are none, or their index cannot be read.
    """
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.exists():
        raise ModelError(f"{folder} has no weights: it needs {WEIGHTS}, or {INDEX} and the files that it names")
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / name for name in sorted(names)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} cannot be read ({error}): fetch it again") from error


def read_ahead(folder: Path) -> None:
    """Read the weights of a model or its split into the system's cache, while those who need them get ready.

    Nothing is read where they would take over half of the free memory. Errors are left to the readers.
    """
    with suppress(ModelError, OSError):
        files = [file for part in rank_folders(folder) or [folder] for file in weight_files(part)]
        if 2 * sum(file.stat().st_size for file in files) > psutil.virtual_memory().available:
            return
        buffer = bytearray(2**20)
        for file in files:
            with file.open("rb", buffering=0) as stream:
                while stream.readinto(buffer):
                    pass


def text_files(folder: Path) -> list[Path]:
    """Return the files that accompany a model's weights: config, tokenizer, chat template."""
    found = {file for pattern in TEXT_PATTERNS for file in folder.glob(pattern) if file.is_file()}
    return sorted(file for file in found if file.name not in (INDEX, MANIFEST))


def model_hash(folder: Path) -> str:
    """Return the hex SHA-256 of a model, over names and SHA-256 of its config.json and its weight files.

    A split has the hash of its original model, which its manifests contain, if the files here are those of it.

    Raises:
        ModelError: a file is missing, or a file of a split is not the one that was written.
    """
    ranks = rank_folders(folder)
    for rank in ranks:
        check_intact(rank)
    if ranks and (manifest := read_manifest(ranks[0])):
        return str(manifest["model_hash"])
    total = hashlib.sha256()
    for file in sorted([folder / "config.json", *weight_files(folder)]):
        total.update(f"{file.name} {file_hash(file)}\n".encode())
    return total.hexdigest()


def run_hash(folder: Path, quantization: str | None) -> str:
    """Return the hash of a model as it runs: `model_hash`, and another one with quantised weights.

    Raises:
        ModelError: as for model_hash.
    """
    own = model_hash(folder)
    return hashlib.sha256(f"{own} {quantization}".encode()).hexdigest() if quantization else own


def _check_needed(folder: Path, needed: Mapping[str, Shape], stored: Mapping[str, StoredTensor]) -> None:
    for name, shape in needed.items():
        tensor = stored.get(name)
        if tensor is None:
            raise ModelError(
                f"{folder}: config and weights disagree: config.json calls for {name}, which the weights lack; "
                "give the files of one model"
            )
        if tensor.shape != shape:
            raise ModelError(
                f"{folder}: config and weights disagree: {name} is {list(tensor.shape)} in {tensor.file.name}, "
                f"{list(shape)} by config.json; give the files of one model"
            )
        if tensor.dtype not in DTYPE_WIDTHS:
            raise ModelError(
                f"{folder}: {name} is stored as {tensor.dtype}: not supported; known: {', '.join(DTYPE_WIDTHS)}"
            )


def _check_known(folder: Path, config: ModelConfig, stored: Mapping[str, StoredTensor]) -> None:
    """Refuse weights that the config does not describe, because ignoring them would change the model."""
    known = model_tensors(config)
    for name in stored:
        # Some checkpoints store a tied head, which the config takes from the embedding, and RoPE's constants.
        if name not in known and name != HEAD and not name.endswith("rotary_emb.inv_freq"):
            raise ModelError(
                f"{folder}: config and weights disagree: config.json does not call for {name}; "
                "give the files of one model"
            )


def _read_into(tensor: StoredTensor, destination: "torch.Tensor") -> None:
    import torch

    flat = destination.detach().view(-1)
    dtype = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}.get(tensor.dtype, torch.uint8)
    if dtype == torch.uint8 and flat.dtype != torch.uint8:
        _read_values_of_blocks(tensor, flat)
        return
    with tensor.file.open("rb", buffering=0) as stream:
        stream.seek(tensor.offset)
        if dtype == flat.dtype and flat.device.type == "cpu":
            _read_exactly(stream, _bytes_of(flat), tensor.file)
            return
        scratch = torch.empty(CHUNK_BYTES // dtype.itemsize, dtype=dtype)
        for part in flat.split(len(scratch)):
            values = scratch[: len(part)]
            _read_exactly(stream, _bytes_of(values), tensor.file)
            part.copy_(values)


def _read_values_of_blocks(tensor: StoredTensor, flat: "torch.Tensor") -> None:
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType, quants

    width, done = BLOCK_BYTES[tensor.dtype], 0
    raw = np.empty(CHUNK_BYTES // width * width, np.uint8)
    with tensor.file.open("rb", buffering=0) as stream:
        stream.seek(tensor.offset)
        for begin in range(0, tensor.nbytes, len(raw)):
            part = raw[: tensor.nbytes - begin]
            _read_exactly(stream, part.data, tensor.file)
            values = torch.from_numpy(quants.dequantize(part, GGMLQuantizationType[tensor.dtype]))
            flat[done : done + len(values)].copy_(values)
            done += len(values)


def _bytes_of(flat: "torch.Tensor") -> memoryview:
    """Return a one-dimensional tensor's memory as writable bytes."""
    import torch

    return flat.view(torch.uint8).numpy().data


def _read_exactly(stream: io.FileIO, buffer: memoryview, file: Path) -> None:
    """Fill `buffer`; one system call reads at most 2 GiB."""
    filled = 0
    while filled < len(buffer):
        count = stream.readinto(buffer[filled:])
        if not count:
            raise ModelError(f"{file} ends {len(buffer) - filled} bytes early: it was changed while being read")
        filled += count
