"""The safetensors format, read by its header and written as a stream, so that no whole file is in memory.

A file is a header length (8 bytes, little-endian), a JSON header (name → dtype, shape, offsets) and the tensors' bytes:
https://huggingface.co/docs/safetensors/index#format
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qubic_lab.errors import ModelError

Shape = tuple[int, ...]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Names of a model's weights in one file, and of the index of weights in several files."""
BLOCK_BYTES = {"Q8_0": 34, "Q4_0": 18}
"""Dtypes of matrices as GGUF has them, with bytes for each 32 values of a row; only our own cache has them."""
DTYPE_WIDTHS = {"F32": 4.0, "BF16": 2.0, "F16": 2.0, **{name: count / 32 for name, count in BLOCK_BYTES.items()}}
"""Dtypes of stored models, with bytes per value."""
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit for the header; a larger value means a damaged file."""
LENGTH_BYTES = 8

Progress = Callable[[float], None]
"""Called with the share of the work that is done, from 0 to 1."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to write: a dtype of DTYPE_WIDTHS and a shape."""

    dtype: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's values."""
        return int(math.prod(self.shape) * DTYPE_WIDTHS[self.dtype])


@dataclass(frozen=True)
class StoredTensor:
    """The location of a tensor: `nbytes` bytes at the absolute position `offset` of `file`."""

    file: Path
    dtype: str
    shape: Shape
    offset: int
    nbytes: int

    def rows(self, begin: int, end: int) -> "StoredTensor":
        """Return the location of some rows."""
        width = self.nbytes // self.shape[0]
        shape = end - begin, *self.shape[1:]
        return StoredTensor(self.file, self.dtype, shape, self.offset + begin * width, (end - begin) * width)


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file by name, without reading their values.

    Raises:
        ModelError: the file cannot be read, is not safetensors, or its length does not match its header.
    """
    encoded, size = _header_and_size(file)
    start = LENGTH_BYTES + len(encoded)
    try:
        header = json.loads(encoded)
        header.pop("__metadata__", None)
        tensors = {name: _stored(file, entry, start) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} has a header that cannot be read ({error}): fetch the file again") from error
    expected = start + sum(tensor.nbytes for tensor in tensors.values())
    if size != expected:
        raise ModelError(f"{file} has {size} bytes but its header says {expected}: it is damaged; fetch it again")
    return tensors


def _header_and_size(file: Path) -> tuple[bytes, int]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(LENGTH_BYTES), "little")
            if 0 < header_bytes <= min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
                return stream.read(header_bytes), size
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror}): fetch the weights again") from error
    raise ModelError(
        f"{file} has {size} bytes and says that its header has {header_bytes}: "
        "it is truncated or not a safetensors file; fetch it again"
    )


def _stored(file: Path, entry: Mapping[str, Any], start: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    tensor = StoredTensor(file, entry["dtype"], shape, start + begin, end - begin)
    width = DTYPE_WIDTHS.get(tensor.dtype)
    if begin < 0 or end < begin or (width and tensor.nbytes != width * math.prod(shape)):
        raise ValueError(f"{tensor.dtype} {list(shape)} cannot lie at {begin} to {end}")
    return tensor


def write_safetensors(
    file: Path,
    tensors: Mapping[str, TensorSpec],
    chunks: Callable[[str], Iterable[memoryview]],
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Write `tensors` to a new file; `chunks(name)` yields the bytes of one tensor, in pieces of any size.

    `advance` is called with the number of bytes of each written piece.
    """
    # Wide dtypes first, as in the format's own writer, so that every tensor starts at a multiple of its width.
    ordered = sorted(tensors.items(), key=lambda item: -DTYPE_WIDTHS[item[1].dtype])
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in ordered:
        begin, end = end, end + spec.nbytes
        header[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % LENGTH_BYTES)
    with file.open("xb") as stream:
        stream.write(len(encoded).to_bytes(LENGTH_BYTES, "little") + encoded)
        for name, spec in ordered:
            written = 0
            for chunk in chunks(name):
                written += stream.write(chunk)
                advance(len(chunk))
            assert written == spec.nbytes, f"{name}: {written} bytes came for {spec}"


def advance_to(progress: Progress, total_bytes: int) -> Callable[[int], None]:
    """Return an `advance` that reports the written share of `total_bytes` to `progress`."""
    written = 0

    def advance(count: int) -> None:
        nonlocal written
        written += count
        progress(written / total_bytes)

    return advance
