"""Measures the memory of each rank, beside what the planner predicts: weights, keys and values, and its process."""

from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from qubic_lab.bench.result import ModelResult, Table, settings_of
from qubic_lab.core import Request, SamplingParams
from qubic_lab.errors import check_at_least
from qubic_lab.model.config import load_config
from qubic_lab.model.cost import kv_memory_bytes, stage_weight_bytes
from qubic_lab.model.layout import PAGE, stage_ranges
from qubic_lab.model.predict import rank_memory_bytes
from qubic_lab.model.split import text_folder
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig, ResolvedConfig

PROMPT_TOKENS = 64


@dataclass(frozen=True)
class RankMemory:
    """Memory of one rank in bytes.

    `weight_bytes` is what it holds, `share_bytes` what its layers take by the model's shape, both at the full size of
    the dtype; `kv_bytes` is what it would hold if all the room for keys and values were in use. The peaks are resident
    memory of the process, libraries included; `resident_bytes` is that after the answers, `predicted_bytes` what the
    planner says of it (None: it predicts only the kernels of a CPU).
    """

    rank: int
    stage: str
    weight_bytes: int
    share_bytes: int
    load_peak_rss_bytes: int
    peak_rss_bytes: int
    kv_bytes: int = 0
    resident_bytes: int | None = None
    predicted_bytes: int | None = None

    @property
    def error(self) -> float | None:
        """Predicted ÷ resident − 1."""
        if not self.predicted_bytes or not self.resident_bytes:
            return None
        return self.predicted_bytes / self.resident_bytes - 1


@dataclass(frozen=True)
class MemoryResult(ModelResult):
    """Memory of all ranks; keys and values of `kv_tokens` tokens fit all requests together, None: there is no limit."""

    ranks: tuple[RankMemory, ...]
    strategy: str
    layers: tuple[int, ...]
    new_tokens: int
    kv_tokens: int | None = None
    requests: int = 0
    quantization: str = ""

    def report(self) -> Iterator[Table | str]:
        for rank in self.ranks:
            yield (
                f"rank {rank.rank} ({rank.stage}): weights {rank.weight_bytes / 2**20:.0f} MiB, "
                f"keys and values {rank.kv_bytes / 2**20:.0f} MiB at most, "
                f"peak {rank.load_peak_rss_bytes / 2**20:.0f} MiB at load, {rank.peak_rss_bytes / 2**20:.0f} MiB in all"
            )
            if rank.predicted_bytes and rank.resident_bytes and rank.error is not None:
                yield (
                    f"  after {self.requests} answers at once {rank.resident_bytes / 2**20:.0f} MiB, predicted "
                    f"{rank.predicted_bytes / 2**20:.0f} MiB: {rank.error:+.1%}"
                )


def bench_memory(config: PipelineConfig, new_tokens: int) -> MemoryResult:
    """Load a model, answer one request of 64 prompt tokens in every slot, and read the ranks' peaks.

    Raises:
        InputError, ModelError, RankError: as for Pipeline.launch.
    """
    check_at_least("new_tokens", new_tokens, 1)
    with Pipeline.launch(config) as pipeline:
        loaded, used = pipeline.describe(), pipeline.config
        requests = used.lanes * used.slots
        list(pipeline.answer_all([fixed_request(new_tokens)] * requests))
        after = pipeline.describe()
        resident = resident_bytes(pipeline)
    model, form = load_config(text_folder(used.folder)), (used.dtype, used.quantization or "")
    shares = [stage_weight_bytes(model, stage, *form) for stage in stage_ranges(used.layers)]
    predicted = predicted_bytes(used, requests, PROMPT_TOKENS + new_tokens)
    return MemoryResult(
        ranks=tuple(
            RankMemory(
                *(a.rank, a.stage, a.weight_bytes, share),
                kv_bytes=kv_memory_bytes(model, used.layers[a.rank], used.dtype, used.kv_tokens or 0),
                load_peak_rss_bytes=b.peak_rss_bytes,
                peak_rss_bytes=a.peak_rss_bytes,
                resident_bytes=held,
                predicted_bytes=expected,
            )
            for a, b, share, held, expected in zip(after, loaded, shares, resident, predicted, strict=True)
        ),
        new_tokens=new_tokens,
        requests=requests,
        quantization=used.quantization or "",
        **settings_of(used, "strategy", "layers", "kv_tokens"),
    )


def resident_bytes(pipeline: Pipeline) -> list[int]:
    """Return the resident memory of each rank's process."""
    return [int(psutil.Process(rank.pid).memory_info().rss) for rank in pipeline.describe()]


def predicted_bytes(used: ResolvedConfig, requests: int, tokens: int) -> tuple[int, ...] | tuple[None, ...]:
    """Return what the planner says that each rank holds after so many requests at once, each of so many tokens."""
    if used.kernels != "native":
        return (None,) * used.ranks
    kept, model = -(-tokens // PAGE) * PAGE, load_config(text_folder(used.folder))
    return rank_memory_bytes(model, used.layers, used.dtype, requests * kept, used.quantization or "", packed=True)


def fixed_request(new_tokens: int) -> Request:
    """Return a request of 64 prompt tokens whose answer does not end earlier."""
    prompt = tuple(range(1, PROMPT_TOKENS + 1))
    return Request(token_ids=prompt, sampling=SamplingParams(max_new_tokens=new_tokens, ignore_eos=True))
