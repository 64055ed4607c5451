"""The decoder of a CPU: the same layers as decoder.py by our own kernels, one call a step.

The bits of a row depend on its own request alone: any rows may be computed together, by any number of threads. Letters
in names are those of decoder.py.
"""

import ctypes
import mmap
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import prod
from threading import Lock, local
from typing import Any

import torch
import torch.nn.functional as F

from qubic_lab.errors import ModelError
from qubic_lab.model.checkpoint import Checkpoint
from qubic_lab.model.cost import kv_page_bytes, padded, quantised_bytes
from qubic_lab.model.decoder import DTYPES, Segment, rope_frequencies
from qubic_lab.model.kernels.build import Layer, Matrix, SegmentPages, Shape, failure, kernels
from qubic_lab.model.layout import (
    COLUMNS,
    EMBEDDING,
    FINAL_NORM,
    PAGE,
    QUANTIZATIONS,
    StageRange,
    head_tensor,
)

DENSE_WORDS = 48
"""Words of 32 bits in which a dense matrix keeps COLUMNS packed words."""
WORDS_AN_EXCEPTION = 8
"""A dense matrix has at most one exception for so many of its words of all columns, as in decoder.cpp."""
LAST_WORD = 2**31 - 1
"""The number of the exception behind all words."""
PIECE_BYTES = 4 * 2**20
"""Weights that are read and packed at once: few enough to stay in a cache."""
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


def interleave(gate_up_O: torch.Tensor) -> torch.Tensor:
    """Mix gate and up so that a group of columns has half of each; both are padded with zeros to whole halves."""
    half = COLUMNS // 2
    halves = [F.pad(part, (0, -len(part) % half)).view(-1, half) for part in gate_up_O.chunk(2)]
    return torch.stack(halves, dim=1).view(-1)


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
        with ThreadPoolExecutor(threads) as pool:  # the head first: it takes longest
            head = pool.submit(self._read_head if stage.has_head else Matrix)
            embedding = pool.submit(self._read_embedding) if stage.has_embedding else None
            layers = list(pool.map(self._read_layer, range(stage.first, stage.end)))
        self._layers = (Layer * len(layers))(*layers)
        self._embedding = embedding.result() if embedding else None
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
            final_norm=self._read_vector(FINAL_NORM) if stage.has_head else None,
            head=head.result(),
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

    def _read_embedding(self) -> torch.Tensor:
        shape = self._checkpoint.stacked_shape([EMBEDDING])
        embedding = self._memory.take(prod(shape) * self.dtype.itemsize // 4).view(self.dtype).view(shape)
        self._checkpoint.read_rows([EMBEDDING], 0, embedding)
        self._read_bytes.append(embedding.nbytes)
        return embedding

    def _read_matrix(
        self, bits: int, *parts: Sequence[str], bias_O: torch.Tensor | None = None, whole_inputs: int = 1
    ) -> Matrix:
        """Read and pack a matrix whose groups of columns have equal shares of all `parts`, names stacked by rows.

        Its inputs are padded with zeros to a multiple of `whole_inputs`.
        """
        outputs, inputs = self._checkpoint.stacked_shape(parts[0])
        columns = len(parts) * padded(outputs, COLUMNS // len(parts))
        bias = None if bias_O is None else self._keep(F.pad(bias_O.float(), (0, columns - len(bias_O))))
        matrix = Matrix(None, bias, columns, padded(inputs, whole_inputs) * self.dtype.itemsize // 4, bits=bits)
        if bits:
            self._quantise(matrix, parts, inputs)
            return matrix
        if not (parts[0] == [EMBEDDING] and self.stage.has_embedding):  # a tied head is counted as embedding
            self._read_bytes.append(len(parts) * outputs * inputs * self.dtype.itemsize)
        if self.dtype == torch.float32 or not self._pack_densely(matrix, parts):
            words_GIC = self._memory.take(columns * matrix.inputs).view(-1, matrix.inputs, COLUMNS)
            for group, piece_GIC in self._pack(matrix, parts):
                words_GIC[group : group + len(piece_GIC)] = piece_GIC
            matrix.words = self._keep(words_GIC)
        return matrix

    def _pack(self, matrix: Matrix, parts: Sequence[Sequence[str]]) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield pieces of a matrix as the kernels take it, int32 (groups, words of I, COLUMNS), as `_pieces` does."""
        for group, piece_OI in self._pieces(parts, self.dtype):
            words_GCI = piece_OI.view(torch.int32).view(-1, COLUMNS, piece_OI.shape[1] * self.dtype.itemsize // 4)
            packed_GIC = self._scratch.take("packed", (len(words_GCI), matrix.inputs, COLUMNS), torch.int32)
            packed_GIC[:, : words_GCI.shape[2]] = words_GCI.transpose(1, 2)
            packed_GIC[:, words_GCI.shape[2] :] = 0
            yield group, packed_GIC

    def _pack_densely(self, matrix: Matrix, parts: Sequence[Sequence[str]]) -> bool:
        """Pack bf16 values with 12 bits for each, as decoder.cpp explains it; return whether that is faster."""
        words, found = matrix.columns // COLUMNS * matrix.inputs, 0
        dense = exceptions_E3 = torch.empty(0)
        for group, piece_GIC in self._pack(matrix, parts):
            piece_words = piece_GIC.numel() // COLUMNS
            if not group:
                matrix.base = self._library.dense_base(piece_GIC.data_ptr(), piece_words)
                if not matrix.base:
                    return False
                dense = self._memory.take(words * DENSE_WORDS)
                exceptions_E3 = torch.empty(words // WORDS_AN_EXCEPTION + 1, 3, dtype=torch.int32)
            found = self._library.dense_pack(
                *(piece_GIC.data_ptr(), piece_words, group * matrix.inputs, matrix.base),
                *(dense.data_ptr(), exceptions_E3.data_ptr(), found, len(exceptions_E3) - 1),
            )
            if found < 0:
                matrix.base = 0
                return False
        exceptions_E3[found] = torch.tensor([LAST_WORD, 0, 0])
        matrix.words, matrix.exceptions = self._keep(dense), self._keep(exceptions_E3[: found + 1].clone())
        matrix.exception_count = found
        return True

    def _quantise(self, matrix: Matrix, parts: Sequence[Sequence[str]], inputs: int) -> None:
        """Pack numbers of 8 or 4 bits: those of blocks, if the matrix is stored so, and else of bf16 or fp32."""
        stored = {self._checkpoint.tensors[name].dtype for names in parts for name in names}
        dtype = torch.bfloat16 if stored == {"BF16"} else torch.float32
        if stored == {BLOCKS[matrix.bits]}:
            dtype = torch.uint8
        packed = self._memory.take(quantised_bytes(matrix.columns, inputs, matrix.bits) // 4)
        self._read_bytes.append(packed.nbytes)
        groups = packed.view(matrix.columns // COLUMNS, -1)
        for group, piece_OI in self._pieces(parts, dtype):
            if not self._library.quantise(
                *(piece_OI.data_ptr(), 0 if dtype == torch.uint8 else dtype.itemsize, len(piece_OI), inputs),
                *(matrix.bits, groups[group].data_ptr()),
            ):
                raise ModelError(f"{self._checkpoint.folder} has weights that are not finite: fetch them again")
        matrix.words = self._keep(packed)

    def _pieces(self, parts: Sequence[Sequence[str]], dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield whole groups of a matrix's columns, zeros after the last ones, and the number of the first group.

        They are bytes of blocks, or values in another `dtype`, in memory that the next piece overwrites.
        """
        outputs, width = self._checkpoint.stacked_shape(parts[0])
        if dtype == torch.uint8:
            width = self._checkpoint.tensors[parts[0][0]].rows(0, 1).nbytes
        share, row_bytes = COLUMNS // len(parts), width * dtype.itemsize
        step = share * max(1, PIECE_BYTES // (COLUMNS * row_bytes))
        for first in range(0, outputs, step):
            count = min(step, outputs - first)
            shape = (len(parts), padded(count, share), width)
            rows_POI = self._scratch.take("rows", shape, dtype)
            rows_POI[:, count:] = 0
            for names, rows_OI in zip(parts, rows_POI, strict=True):
                self._checkpoint.read_rows(names, first, rows_OI[:count])
            piece = rows_POI
            if len(parts) > 1:
                mixed = rows_POI.view(len(parts), -1, share, width).transpose(0, 1)
                piece = self._scratch.take("piece", mixed.shape, dtype).copy_(mixed)
            yield first // share, piece.view(-1, width)

    def _read_layer(self, layer: int) -> Layer:
        config, prefix, bits = self.config, f"model.layers.{layer}.", self._layer_bits

        def names(part: str, kind: str, projections: Sequence[str]) -> list[str]:
            return [f"{prefix}{part}.{name}_proj.{kind}" for name in projections]

        def biases(part: str, *projections: str) -> torch.Tensor:
            return self._read(*names(part, "bias", projections))

        def attention(projections: str, has_bias: bool) -> Matrix:
            bias_O = biases("self_attn", *projections) if has_bias else None
            return self._read_matrix(bits, names("self_attn", "weight", projections), bias_O=bias_O)

        gate, up, down = (names("mlp", "weight", [name]) for name in ("gate", "up", "down"))
        gate_up_bias = interleave(biases("mlp", "gate", "up")) if config.mlp_bias else None
        down_bias = biases("mlp", "down") if config.mlp_bias else None
        return Layer(
            input_norm=self._read_vector(f"{prefix}input_layernorm.weight"),
            qkv=attention("qkv", config.qkv_bias),
            output=attention("o", config.output_bias),
            post_norm=self._read_vector(f"{prefix}post_attention_layernorm.weight"),
            gate_up=self._read_matrix(bits, gate, up, bias_O=gate_up_bias),
            down=self._read_matrix(bits, down, bias_O=down_bias, whole_inputs=COLUMNS // 2),
        )

    def _read_head(self) -> Matrix:
        return self._read_matrix(self._head_bits, [head_tensor(self.config)])
