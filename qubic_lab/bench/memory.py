"""Measures the memory of each rank: its weights, and its peak at load and while generating."""

from collections.abc import Iterator
from dataclasses import dataclass

from qubic_lab.bench.result import ModelResult, Table, settings_of
from qubic_lab.core import Request, SamplingParams
from qubic_lab.errors import check_at_least
from qubic_lab.model.config import load_config
from qubic_lab.model.cost import stage_weight_bytes
from qubic_lab.model.layout import PAGE, stage_ranges
from qubic_lab.model.split import text_folder
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig

PROMPT_TOKENS = 64


@dataclass(frozen=True)
class RankMemory:
    """Memory of one rank in bytes.

    `weight_bytes` is what it holds, `share_bytes` what its layers take by the model's shape, `kv_bytes` what it would
    hold if all the room for keys and values were in use. The peaks are resident memory of the process, libraries
    included.
    """

    rank: int
    stage: str
    weight_bytes: int
    share_bytes: int
    load_peak_rss_bytes: int
    peak_rss_bytes: int
    kv_bytes: int = 0


@dataclass(frozen=True)
class MemoryResult(ModelResult):
    """Memory of all ranks; keys and values of `kv_tokens` tokens fit all requests together, None: there is no limit."""

    ranks: tuple[RankMemory, ...]
    strategy: str
    layers: tuple[int, ...]
    new_tokens: int
    kv_tokens: int | None = None

    def report(self) -> Iterator[Table | str]:
        for rank in self.ranks:
            yield (
                f"rank {rank.rank} ({rank.stage}): weights {rank.weight_bytes / 2**20:.0f} MiB, "
                f"keys and values {rank.kv_bytes / 2**20:.0f} MiB at most, "
                f"peak {rank.load_peak_rss_bytes / 2**20:.0f} MiB at load, {rank.peak_rss_bytes / 2**20:.0f} MiB in all"
            )


def bench_memory(config: PipelineConfig, new_tokens: int) -> MemoryResult:
    """Load a model, answer one request of 64 prompt tokens in every slot, and read the ranks' peaks.

    Raises:
        InputError, ModelError, RankError: as for Pipeline.launch.
    """
    check_at_least("new_tokens", new_tokens, 1)
    with Pipeline.launch(config) as pipeline:
        loaded, used = pipeline.describe(), pipeline.config
        list(pipeline.answer_all([fixed_request(new_tokens)] * (used.lanes * used.slots)))
        after = pipeline.describe()
    model = load_config(text_folder(used.folder))
    shares = [
        stage_weight_bytes(model, stage, used.dtype, used.quantization or "") for stage in stage_ranges(used.layers)
    ]
    return MemoryResult(
        ranks=tuple(
            RankMemory(
                *(a.rank, a.stage, a.weight_bytes, share),
                kv_bytes=a.page_bytes * (used.kv_tokens or 0) // PAGE,
                load_peak_rss_bytes=b.peak_rss_bytes,
                peak_rss_bytes=a.peak_rss_bytes,
            )
            for a, b, share in zip(after, loaded, shares, strict=True)
        ),
        new_tokens=new_tokens,
        **settings_of(used, "strategy", "layers", "kv_tokens"),
    )


def fixed_request(new_tokens: int) -> Request:
    """Return a request of 64 prompt tokens whose answer does not end earlier."""
    prompt = tuple(range(1, PROMPT_TOKENS + 1))
    return Request(token_ids=prompt, sampling=SamplingParams(max_new_tokens=new_tokens, ignore_eos=True))
