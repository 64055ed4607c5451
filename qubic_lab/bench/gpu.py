"""What a model takes in 16 bit on this machine's GPU, or on its CPU: time to load, tokens/s and memory."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from qubic_lab.core import Request, SamplingParams
from qubic_lab.errors import check_at_least, check_choice
from qubic_lab.pipeline import Pipeline, PipelineConfig
from qubic_lab.pipeline.config import resolve_config
from qubic_lab.provenance import machine, source_commit

PROMPT_TOKENS = 64
DTYPES = ("auto", "fp16", "bf16")
FIRST_CAPABILITY_WITH_BF16 = (8, 0)
"""Compute capability of the first GPUs that compute in bf16 (Ampere); older ones, such as the T4, emulate it."""
GPU_NOTE = "used: most that tensors took on the GPU; reserved: most that torch's allocator held"
CPU_NOTE = "used: peak resident memory of the rank's process; a process on a CPU reserves none beyond it"


@dataclass(frozen=True)
class GpuResult:
    """One request on one rank.

    `load_s` includes the start of the processes, `seconds` runs from submission to the last token, and `tokens_per_s`
    counts from the first token on. `memory_reserved_bytes` is None where `memory_note` says why.
    """

    load_s: float
    seconds: float
    ttft_ms: float
    tokens_per_s: float
    new_tokens: int
    prompt_tokens: int
    memory_used_bytes: int
    memory_reserved_bytes: int | None
    memory_note: str
    model: str
    meaningless: bool
    dtype: str
    device: str
    device_name: str
    threads: int
    commit: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def bench_gpu(model: str = "smollm2", dtype: str = "auto", new_tokens: int = 100) -> GpuResult:
    """Load a model in 16 bit, answer one request of 64 prompt tokens, and read times and memory.

    Args:
        model: alias, hub id, folder or GGUF file.
        dtype: `fp16`, `bf16`, or `auto` for what the device computes in.
        new_tokens: tokens to generate, whatever the model's end tokens.

    Raises:
        InputError, ModelError, RankError: as of Pipeline.launch.
    """
    check_choice("dtype", dtype, DTYPES)
    check_at_least("new_tokens", new_tokens, 1)
    device = resolve_config(PipelineConfig(model=model)).device
    if dtype == "auto":
        dtype = dtype_for(_capability(device))
    started = time.perf_counter()
    with Pipeline.launch(PipelineConfig(model=model, ranks=1, dtype=dtype, device=device)) as pipeline:
        loaded = time.perf_counter()
        prompt = tuple(range(1, PROMPT_TOKENS + 1))
        sampling = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
        completion = pipeline.generate(Request(token_ids=prompt, sampling=sampling))
        answered = time.perf_counter()
        [rank] = pipeline.describe()
        used = pipeline.config
    on_gpu = used.device == "cuda"
    return GpuResult(
        load_s=loaded - started,
        seconds=answered - loaded,
        ttft_ms=completion.ttft_ms,
        tokens_per_s=completion.tokens_per_s,
        new_tokens=len(completion.token_ids),
        prompt_tokens=PROMPT_TOKENS,
        memory_used_bytes=rank.gpu_used_bytes if on_gpu else rank.peak_rss_bytes,
        memory_reserved_bytes=rank.gpu_reserved_bytes if on_gpu else None,
        memory_note=GPU_NOTE if on_gpu else CPU_NOTE,
        model=used.model,
        meaningless=used.meaningless,
        dtype=used.dtype,
        device=used.device,
        device_name=_device_name(device),
        threads=used.threads,
        commit=str(source_commit()),
    )


def dtype_for(capability: tuple[int, int] | None) -> str:
    """Return the 16-bit dtype for a GPU's compute capability (major, minor), or for a CPU (None)."""
    return "fp16" if capability is not None and capability < FIRST_CAPABILITY_WITH_BF16 else "bf16"


def _capability(device: str) -> tuple[int, int] | None:
    if device != "cuda":
        return None
    import torch

    return torch.cuda.get_device_capability()


def _device_name(device: str) -> str:
    if device != "cuda":
        return str(machine())
    import torch

    return torch.cuda.get_device_name()
