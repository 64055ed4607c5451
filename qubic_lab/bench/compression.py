"""Measures what packing hidden states between ranks costs and saves, and on which links it pays."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

from qubic_lab.bench.memory import fixed_request
from qubic_lab.bench.result import (
    FEWEST_PAIRS,
    ModelResult,
    Table,
    interval_text,
    median_interval,
    seconds_of,
    settings_of,
)
from qubic_lab.errors import check_at_least
from qubic_lab.model.layout import stage_ranges
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig, ResolvedConfig

if TYPE_CHECKING:
    import torch

ROWS = (1, 8, 64, 512)
"""Rows of a micro-batch: one request, a lane of eight, and chunks of prompts."""
REPEATS = 20


@dataclass(frozen=True)
class PackedSize:
    """A micro-batch of `rows` hidden states: bytes before and after packing, and median times.

    `pays_below_gbps`: on slower links (10⁹ bits/s) the bytes that are saved would take longer than packing and
    unpacking.
    """

    rows: int
    plain_bytes: int
    packed_bytes: int
    pack_us: float
    unpack_us: float
    pays_below_gbps: float

    @property
    def saved(self) -> float:
        """The share of the bytes that packing saves."""
        return 1.0 - self.packed_bytes / self.plain_bytes


@dataclass(frozen=True)
class CompressionResult(ModelResult):
    """Sizes of real hidden states after rank 0, and the time of whole answers with packing divided by that without.

    `low` to `high` is the 95 % interval of the median `ratio`; `equal_tokens` says whether all answers were the same.
    """

    sizes: tuple[PackedSize, ...]
    ratio: float
    low: float
    high: float
    equal_tokens: bool
    pairs: int
    ranks: int
    new_tokens: int

    def report(self) -> Iterator[Table | str]:
        rows = [
            (
                *(f"{each.rows}", f"{each.plain_bytes:,}", f"{each.packed_bytes:,}", f"{each.saved:.0%}"),
                *(f"{each.pack_us:.0f}", f"{each.unpack_us:.0f}", f"{each.pays_below_gbps:.2g}"),
            )
            for each in self.sizes
        ]
        yield Table(("rows", "bytes", "packed", "saved", "packing, us", "unpacking, us", "pays below, Gbit/s"), rows)
        ratio = interval_text(self.ratio, self.low, self.high, ".3f")
        yield f"time of answers with packing divided by time without, here: {ratio}, 95 % interval, {self.pairs} pairs"
        yield "no token changes" if self.equal_tokens else "TOKENS CHANGE"


def bench_compression(config: PipelineConfig, pairs: int = 10, new_tokens: int = 32) -> CompressionResult:
    """Pack hidden states of a prompt behind rank 0, and answer a request with and without packing in turns.

    Raises:
        InputError: fewer than two ranks, too few pairs, or as for Pipeline.launch.
        ModelError, RankError: as for Pipeline.launch.
    """
    check_at_least("pairs", pairs, FEWEST_PAIRS)
    check_at_least("ranks", config.ranks or 1, 2)
    ways = {each: replace(config, compression=each) for each in (None, "lossless")}
    ratios: list[float] = []
    answers: set[tuple[int, ...]] = set()
    with Pipeline.launch(ways[None]) as pipeline:
        used = pipeline.config
        request = fixed_request(new_tokens)
        for pair in range(-1, pairs):  # the first is the warm-up
            taken_s: dict[str | None, float] = {}
            for way in (None, "lossless") if pair % 2 == 0 else ("lossless", None):
                pipeline.configure(ways[way])
                taken_s[way] = seconds_of(lambda: answers.add(pipeline.answer(request).completion.token_ids))
            if pair >= 0:
                ratios.append(taken_s["lossless"] / taken_s[None])
    ratio, low, high = median_interval(ratios)
    return CompressionResult(
        sizes=tuple(_size_of(hidden) for hidden in _hidden_states(used)),
        ratio=ratio,
        low=low,
        high=high,
        equal_tokens=len(answers) == 1,
        pairs=pairs,
        new_tokens=new_tokens,
        **settings_of(used, "ranks"),
    )


def _hidden_states(config: ResolvedConfig) -> Iterator["torch.Tensor"]:
    """Yield what rank 0 sends for the first rows of a prompt."""
    import torch

    from qubic_lab.model.checkpoint import Checkpoint
    from qubic_lab.model.decoder import Decoder, Segment, torch_dtype
    from qubic_lab.model.split import rank_folder, read_split

    folder = config.folder if read_split(config.folder) is None else rank_folder(config.folder, 0)
    stage = stage_ranges(config.layers)[0]
    checkpoint = Checkpoint.open(folder, stage)
    decoder = Decoder(checkpoint, stage, torch_dtype(config.dtype), torch.device("cpu"))
    most = min(ROWS[-1], checkpoint.config.max_positions)
    tokens = torch.randint(checkpoint.config.vocab, (most,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.inference_mode():
        decoder.reset(1)
        hidden = decoder.forward(decoder.embed(tokens), [Segment(0, 0, most)], prompt=True)
    yield from (hidden[:rows].contiguous() for rows in ROWS if rows <= most)


def _size_of(hidden: "torch.Tensor") -> PackedSize:
    from qubic_lab.pipeline.packing import pack, unpack

    packed = pack(hidden)
    pack_s = median(seconds_of(lambda: pack(hidden)) for _ in range(REPEATS))
    unpack_s = median(seconds_of(lambda: unpack(packed, tuple(hidden.shape), hidden.dtype)) for _ in range(REPEATS))
    saved = max(0, hidden.nbytes - len(packed))
    return PackedSize(
        rows=len(hidden),
        plain_bytes=hidden.nbytes,
        packed_bytes=len(packed),
        pack_us=pack_s * 1e6,
        unpack_us=unpack_s * 1e6,
        pays_below_gbps=saved * 8 / (pack_s + unpack_s) / 1e9,
    )
