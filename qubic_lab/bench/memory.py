"""Memory of each rank: what its weights take, and the largest it ever held, at load and while generating."""

from dataclasses import asdict, dataclass
from typing import Any

from qubic_lab.core import Request, SamplingParams
from qubic_lab.model.config import load_config
from qubic_lab.model.cost import stage_weight_bytes
from qubic_lab.model.layout import stage_ranges
from qubic_lab.model.split import text_folder
from qubic_lab.pipeline import Pipeline, PipelineConfig
from qubic_lab.pipeline.config import ResolvedConfig
from qubic_lab.provenance import machine, source_commit

PROMPT_TOKENS = 64


@dataclass(frozen=True)
class RankMemory:
    """One rank, in bytes: what it holds, and what its layers take by the model's shape alone, its share.

    The peaks are of the process's resident memory, libraries included.
    """

    rank: int
    stage: str
    weight_bytes: int
    share_bytes: int
    load_peak_rss_bytes: int
    peak_rss_bytes: int


@dataclass(frozen=True)
class MemoryResult:
    """The ranks and what they ran."""

    ranks: tuple[RankMemory, ...]
    model: str
    meaningless: bool
    strategy: str
    layers: tuple[int, ...]
    dtype: str
    device: str
    threads: int
    new_tokens: int
    machine: str
    commit: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def bench_memory(config: PipelineConfig, new_tokens: int) -> MemoryResult:
    """Load a model, answer one request of 64 prompt tokens in every slot, and read the ranks' peaks.

    Raises:
        InputError, ModelError, RankError: as of Pipeline.launch.
    """
    with Pipeline.launch(config) as pipeline:
        loaded = pipeline.describe()
        prompt = tuple(range(1, PROMPT_TOKENS + 1))
        request = Request(token_ids=prompt, sampling=SamplingParams(max_new_tokens=new_tokens, ignore_eos=True))
        used = pipeline.config
        list(pipeline.answer_all([request] * (used.lanes * used.slots)))
        after = pipeline.describe()
    shares = _shares(used)
    return MemoryResult(
        ranks=tuple(
            RankMemory(a.rank, a.stage, a.weight_bytes, share, b.peak_rss_bytes, a.peak_rss_bytes)
            for a, b, share in zip(after, loaded, shares, strict=True)
        ),
        model=used.model,
        meaningless=used.meaningless,
        strategy=used.strategy,
        layers=used.layers,
        dtype=used.dtype,
        device=used.device,
        threads=used.threads,
        new_tokens=new_tokens,
        machine=str(machine()),
        commit=str(source_commit()),
    )


def _shares(used: ResolvedConfig) -> list[int]:
    """Return the bytes of each rank's layers; a tied matrix that one rank uses twice counts once."""
    config = load_config(text_folder(used.folder))
    return [stage_weight_bytes(config, stage, used.dtype) for stage in stage_ranges(used.layers)]
