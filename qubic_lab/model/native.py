"""The decoder of a CPU: the same layers as decoder.py by our own kernels, one call a step.

The bits of a row depend on its own request alone: any rows may be computed together, by any number of threads. Letters
in names are those of decoder.py.
"""

import ctypes
import mmap
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import prod
from threading import Lock, local
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from qubic_lab.errors import ModelError
from qubic_lab.model.checkpoint import Checkpoint
from qubic_lab.model.cost import kv_page_bytes, quantised_bytes
from qubic_lab.model.decoder import DTYPES, Segment, rope_frequencies
from qubic_lab.model.kernels.build import Layer, Matrix, SegmentPages, Shape, failure, kernels
from qubic_lab.model.layout import (
    BLOCK,
    COLUMNS,
    EMBEDDING,
    FINAL_NORM,
    PAGE,
    QUANTIZATIONS,
    StageRange,
    head_tensor,
)
from qubic_lab.model.safetensors_file import BLOCK_BYTES

DENSE_WORDS = 48
"""Words of 32 bits in which a dense matrix keeps COLUMNS packed words."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Options of glibc's malloc."""
BLOCKS = {8: "Q8_0", 4: "Q4_0"}
"""Dtypes of stored blocks that are as those of the kernels, by bits."""


class HugePages:
    """Memory with huge pages where the system offers them: with small ones, kernels wait for address translation.

    Most matrices of a small model are smaller than such a page, so they share mappings.
    """

    _PAGE, _MAPPING = 2 << 20, 32 << 20
    _PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.int32)
        self._lock = Lock()

    def take(self, words: int) -> torch.Tensor:
        """Return new memory, int32 zeros (words,), at the start of a cache line."""
        if 4 * words > self._MAPPING // 4:
            return self._map(4 * words)[:words]
        with self._lock:
            if words > len(self._rest):
                self._rest = self._map(self._MAPPING)
            taken, self._rest = self._rest[:words], self._rest[words + -words % 16 :]
        return taken

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy of int32 values."""
        return self.take(tensor.numel()).view(tensor.shape).copy_(tensor)

    def _map(self, size: int) -> torch.Tensor:
        size += -size % self._PAGE + self._PAGE
        memory = mmap.mmap(-1, size, **self._PRIVATE)  # shared memory, the default, has small pages
        with suppress(AttributeError, OSError):  # only Linux has them, and its kernel may be built without
            memory.madvise(mmap.MADV_HUGEPAGE)
        words = torch.frombuffer(memory, dtype=torch.int32)
        return words[-words.data_ptr() % self._PAGE // 4 :]


class Scratch(local):
    """Memory that a thread uses again and again: to get new pages costs more than what is copied into them."""

    def __init__(self) -> None:
        self._held: dict[str, torch.Tensor] = {}

    def take(self, use: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return memory with any values; what was taken for the same use before is lost."""
        size = prod(shape) * dtype.itemsize
        if (held := self._held.get(use)) is None or len(held) < size:
            held = self._held[use] = torch.empty(size, dtype=torch.uint8)
        return held[:size].view(dtype).view(*shape)


def _set_malloc(mapped: int) -> None:
    """Let glibc give memory back as soon as it is freed, from this size on; what it kept so far goes back now.

    Small sizes are for what is read once. The largest that glibc chooses itself is 32 MiB, with twice that for the ends
    of its heaps.
    """
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        for option, size in ((_MMAP_THRESHOLD, mapped), (_TRIM_THRESHOLD, 2 * mapped)):
            libc.mallopt(option, size)


def _pad(tensor: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    """Pad with zeros as F.pad does, without a copy where there is nothing to add."""
    return F.pad(tensor, padding) if any(padding) else tensor


def pack(weight_OI: torch.Tensor, scratch: Scratch) -> torch.Tensor:
    """Pack a matrix for the kernels: int32 words (groups, words of I, COLUMNS), padded with zero columns."""
    words_OI = _pad(weight_OI, (0, 0, 0, -len(weight_OI) % COLUMNS)).view(torch.int32)
    words_GIC = words_OI.view(-1, COLUMNS, words_OI.shape[1]).transpose(1, 2)
    return scratch.take("packed", words_GIC.shape, torch.int32).copy_(words_GIC)


class DenseMatrix(NamedTuple):
    """A bf16 matrix with 12 bits a value and the same values, as decoder.cpp explains it."""

    words: torch.Tensor
    exceptions: torch.Tensor
    """(E, 3): the numbers of a word and of a column, and what is there; the last one stands behind all words."""
    base: int


def pack_densely(library: ctypes.CDLL, words_GIC: torch.Tensor) -> DenseMatrix | None:
    """Make packed bf16 values dense where they lie.

    Returns None where it would not be faster: for too many exponents, or without AVX-512; pack them again then.
    """
    words_NC = words_GIC.flatten(0, 1)
    most, base = len(words_NC) // 8, ctypes.c_int32()
    exceptions_E3 = torch.empty(most + 1, 3, dtype=torch.int32)
    found = library.dense_pack(words_NC.data_ptr(), len(words_NC), exceptions_E3.data_ptr(), most, ctypes.byref(base))
    if found < 0:
        return None
    return DenseMatrix(words_NC.view(-1)[: len(words_NC) * DENSE_WORDS], exceptions_E3[: found + 1].clone(), base.value)


def interleave(gate_up: torch.Tensor, scratch: Scratch) -> torch.Tensor:
    """Mix gate and up so that a group of columns has half of each; both are padded with zeros to whole halves."""
    half = COLUMNS // 2
    padding = (0, 0) * (gate_up.dim() - 1) + (0, -(len(gate_up) // 2) % half)
    halves = [_pad(part, padding).unflatten(0, (-1, half)) for part in gate_up.chunk(2)]
    shape = (len(halves[0]), 2, *halves[0].shape[1:])
    mixed = scratch.take("interleaved", shape, gate_up.dtype)
    return torch.stack(halves, dim=1, out=mixed).flatten(0, 2)


class NativeDecoder:
    """One stage of a model: its layers, the embedding on the first stage, the head on the last, and the KV cache.

    The cache has pages of PAGE positions, and each slot a table of those that hold its text, which slots may share.
    """

    fixed_rows = False
    """As in Decoder."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        stage: StageRange,
        dtype: torch.dtype,
        threads: int,
        quantization: str = "",
    ) -> None:
        """Read and pack the weights of the stage; `dtype` is fp32 or bf16, `quantization` of QUANTIZATIONS or empty.

        Raises:
            ModelError: the checkpoint's files are damaged, or the kernels cannot be compiled.
        """
        library = kernels()
        if library is None:
            raise ModelError(f"native kernels cannot run: {failure()}; or use kernels=torch on all ranks")
        self._library = library
        self.config = checkpoint.config
        self.stage = stage
        self.dtype = dtype
        self.device = torch.device("cpu")
        self._layer_bits, self._head_bits = QUANTIZATIONS.get(quantization, (0, 0))
        self._checkpoint = checkpoint
        self._kept: list[torch.Tensor] = []  # what the kernels point at
        self._memory, self._scratch = HugePages(), Scratch()
        self._read_bytes: list[int] = []
        _set_malloc(mapped=1 << 20)
        self._embedding = self._read(EMBEDDING) if stage.has_embedding else None
        with ThreadPoolExecutor(threads) as pool:
            layers = list(pool.map(self._read_layer, range(stage.first, stage.end)))
        self._layers = (Layer * len(layers))(*layers)
        head, final_norm = Matrix(), None
        if stage.has_head:
            head, final_norm = self._read_head(), self._read_vector(FINAL_NORM)
        del self._scratch
        self._shape = Shape(
            layers=len(self._layers),
            hidden=self.config.hidden,
            heads=self.config.heads,
            kv_heads=self.config.kv_heads,
            head_dim=self.config.head_dim,
            intermediate=self.config.intermediate,
            bf16=dtype == torch.bfloat16,
            threads=threads,
            norm_eps=self.config.norm_eps,
            frequencies=self._keep(rope_frequencies(self.config.rope, self.config.head_dim)),
            final_norm=final_norm,
            head=head,
        )
        self._handle = library.decoder_create(ctypes.byref(self._shape), self._layers)
        name = next(name for name, each in DTYPES.items() if each == dtype)
        self.page_bytes = kv_page_bytes(self.config, len(self._layers), name)
        """Bytes of a page, over the layers of the stage."""
        assert self.page_bytes == 4 * library.decoder_page_words(self._handle)
        self.reset(slots=1)
        _set_malloc(mapped=32 << 20)

    def __del__(self) -> None:
        if handle := getattr(self, "_handle", None):
            self._library.decoder_destroy(handle)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the stage's weights in this dtype, and of quantised ones as they lie in memory."""
        return sum(self._read_bytes)

    def use_threads(self, threads: int) -> None:
        """Compute with this many threads."""
        if threads != self._shape.threads:
            self._library.decoder_destroy(self._handle)
            self._shape.threads = threads
            self._handle = self._library.decoder_create(ctypes.byref(self._shape), self._layers)

    def reset(self, slots: int, *, placed: bool = False) -> None:
        """Create an empty KV cache with a number of slots; `placed` if `place_pages` alone gives pages to them."""
        self._pages: dict[int, torch.Tensor] = {}  # by their numbers
        self._texts: list[list[torch.Tensor]] = [[] for _ in range(slots)]  # the pages of each slot
        self._tables: list[Any] = [None] * slots
        self._placed = placed
        self._page_memory = HugePages()

    def place_pages(self, placements: Iterable[Sequence[int]]) -> None:
        """Put pages into the tables of slots: slot, place and the page's number each; a page of slot -1 is cleared.

        Values behind a request's end are still multiplied by 0, so a page that may have infinities must be cleared
        before another request uses it.
        """
        changed = set()
        for slot, place, number in placements:
            if (page := self._pages.get(number)) is None:
                page = self._pages[number] = self._page_memory.take(self.page_bytes // 4)
            if slot < 0:
                page.zero_()
                continue
            self._texts[slot][place : place + 1] = [page]
            changed.add(slot)
        for slot in changed:
            text = self._texts[slot]
            self._tables[slot] = (ctypes.c_void_p * len(text))(*(page.data_ptr() for page in text))

    def copy_slot(self, source: int, target: int, length: int) -> None:
        """Copy the pages of the first `length` positions of a slot to another one, unless they are the same ones."""
        self._reserve(target, length)
        for page, copy in zip(self._texts[source][: -(-length // PAGE)], self._texts[target], strict=False):
            if copy is not page:
                copy.copy_(page)

    def embed(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Return the embeddings of tokens, shape (tokens, H)."""
        assert self._embedding is not None
        return F.embedding(torch.tensor(token_ids), self._embedding)

    def forward(
        self, hidden_RH: torch.Tensor, segments: Sequence[Segment], *, prompt: bool, ends_only: bool = False
    ) -> torch.Tensor:
        """Run the rows of segments, in their order, through the layers, in place; return hidden states (R, H).

        `prompt` makes no difference. With `ends_only` the last row of each segment alone gets through all of the last
        layer, and the others return as that layer got them.
        """
        array = (SegmentPages * len(segments))(
            *(SegmentPages(start, rows, self._reserve(slot, start + rows)) for slot, start, rows in segments)
        )
        hidden_RH = hidden_RH.contiguous()
        self._library.decoder_run(self._handle, hidden_RH.data_ptr(), array, len(segments), ends_only)
        return hidden_RH

    def logits(self, hidden_RH: torch.Tensor) -> torch.Tensor:
        """Return the head's logits (R, V) in fp32."""
        hidden_RH = hidden_RH.contiguous()
        logits = torch.empty(len(hidden_RH), self._shape.head.columns)
        self._library.decoder_logits(self._handle, hidden_RH.data_ptr(), len(hidden_RH), logits.data_ptr())
        return logits[:, : self.config.vocab]

    def all_finite(self, values_RX: torch.Tensor) -> bool:
        """Whether rows in bf16 or fp32 have neither infinities nor NaN."""
        rows, width = values_RX.shape
        bf16 = values_RX.dtype == torch.bfloat16
        return bool(self._library.all_finite(values_RX.data_ptr(), values_RX.stride(0), rows, width, bf16))

    def draw(
        self,
        logits_RV: torch.Tensor,
        rows: Sequence[int],
        temperatures: Sequence[float],
        seeds: Sequence[int],
        indices: Sequence[int],
    ) -> list[int]:
        """Return a token for each of some rows, drawn with NumPy's Philox of a seed and an index.

        It is -1 where sums in another order could find another token.
        """
        count = len(rows)
        tokens = (ctypes.c_int32 * count)()
        self._library.draw_tokens(
            *(self._handle, logits_RV.data_ptr(), logits_RV.stride(0), logits_RV.shape[1], count),
            *((ctypes.c_int32 * count)(*rows), (ctypes.c_double * count)(*temperatures)),
            *((ctypes.c_uint64 * count)(*seeds), (ctypes.c_uint64 * count)(*indices), tokens),
        )
        return list(tokens)

    def _reserve(self, slot: int, length: int) -> int:
        """Return the address of a slot's table, with pages for `length` positions."""
        held, needed = len(self._texts[slot]), -(-length // PAGE)
        if needed > held:
            assert not self._placed, f"slot {slot} has {held} pages, and a step needs {needed}"
            unused = len(self._pages) - held  # numbers that no other slot has
            self.place_pages((slot, place, unused + place) for place in range(held, needed))
        return ctypes.addressof(self._tables[slot])

    def _keep(self, tensor: torch.Tensor) -> int:
        """Keep a tensor as long as the decoder, and return its address."""
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _read(self, *names: str) -> torch.Tensor:
        tensor = self._checkpoint.read(names, self.dtype, self.device)
        self._read_bytes.append(tensor.nbytes)
        return tensor

    def _read_vector(self, name: str) -> int:
        return self._keep(self._read(name).float())

    def _read_matrix(self, bits: int, *names: str) -> torch.Tensor:
        """Read a matrix in the decoder's dtype, or to be quantised: as blocks or bf16 if it is stored so, else fp32."""
        stored = {self._checkpoint.tensors[name].dtype for name in names}
        if bits and stored == {BLOCKS[bits]}:
            return self._checkpoint.read_blocks(names)
        dtype = self.dtype
        if bits:
            dtype = torch.bfloat16 if stored == {"BF16"} else torch.float32
        weight_OI = self._scratch.take("stored", self._checkpoint.stacked_shape(names), dtype)
        if not bits:
            self._read_bytes.append(weight_OI.nbytes)
        return self._checkpoint.read(names, dtype, self.device, weight_OI)

    def _matrix(self, weight_OI: torch.Tensor, bits: int, bias_O: torch.Tensor | None = None) -> Matrix:
        outputs, inputs = weight_OI.shape
        if weight_OI.dtype == torch.uint8:
            inputs = inputs // BLOCK_BYTES[BLOCKS[bits]] * BLOCK
        columns = outputs + -outputs % COLUMNS
        bias = None if bias_O is None else self._keep(F.pad(bias_O.float(), (0, columns - len(bias_O))))
        matrix = Matrix(None, bias, columns, inputs * self.dtype.itemsize // 4, bits=bits)
        if bits:
            matrix.words = self._keep(self._quantise(weight_OI, inputs, bits))
            return matrix
        words = pack(weight_OI, self._scratch)
        if self.dtype == torch.bfloat16:
            if dense := pack_densely(self._library, words):
                words, matrix.base = dense.words, dense.base
                matrix.exceptions, matrix.exception_count = self._keep(dense.exceptions), len(dense.exceptions) - 1
            else:
                words = pack(weight_OI, self._scratch)
        matrix.words = self._keep(self._memory.keep(words))
        return matrix

    def _quantise(self, weight_OI: torch.Tensor, inputs: int, bits: int) -> torch.Tensor:
        outputs = len(weight_OI)
        packed = self._memory.take(quantised_bytes(outputs, inputs, bits) // 4)
        self._read_bytes.append(packed.nbytes)
        weight_OI = weight_OI.contiguous()
        width = 0 if weight_OI.dtype == torch.uint8 else weight_OI.itemsize
        if not self._library.quantise(weight_OI.data_ptr(), width, outputs, inputs, bits, packed.data_ptr()):
            raise ModelError(f"{self._checkpoint.folder} has weights that are not finite: fetch them again")
        return packed

    def _read_layer(self, layer: int) -> Layer:
        config, prefix, bits = self.config, f"model.layers.{layer}.", self._layer_bits

        def names(part: str, kind: str, projections: Sequence[str]) -> list[str]:
            return [f"{prefix}{part}.{name}_proj.{kind}" for name in projections]

        def weights(part: str, *projections: str) -> torch.Tensor:
            return self._read_matrix(bits, *names(part, "weight", projections))

        def biases(part: str, *projections: str) -> torch.Tensor:
            return self._read(*names(part, "bias", projections))

        def attention(projections: str, has_bias: bool) -> Matrix:
            bias_O = biases("self_attn", *projections) if has_bias else None
            return self._matrix(weights("self_attn", *projections), bits, bias_O)

        def down() -> torch.Tensor:
            weight_OI = weights("mlp", "down")
            if weight_OI.dtype == torch.uint8:  # blocks are whole
                return weight_OI
            return _pad(weight_OI, (0, -weight_OI.shape[1] % (COLUMNS // 2)))

        gate_up_bias = interleave(biases("mlp", "gate", "up"), Scratch()) if config.mlp_bias else None
        return Layer(
            input_norm=self._read_vector(f"{prefix}input_layernorm.weight"),
            qkv=attention("qkv", config.qkv_bias),
            output=attention("o", config.output_bias),
            post_norm=self._read_vector(f"{prefix}post_attention_layernorm.weight"),
            gate_up=self._matrix(interleave(weights("mlp", "gate", "up"), self._scratch), bits, gate_up_bias),
            down=self._matrix(down(), bits, biases("mlp", "down") if config.mlp_bias else None),
        )

    def _read_head(self) -> Matrix:
        bits = self._head_bits
        if self.config.tied_head and self._embedding is not None and not bits:
            return self._matrix(self._embedding, bits)
        return self._matrix(self._read_matrix(bits, head_tensor(self.config)), bits)
