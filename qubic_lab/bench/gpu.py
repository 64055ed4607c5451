"""Measures a model in 16 bit on this machine's GPU, or else its CPU: loading time, tokens/s and memory."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from qubic_lab.bench.memory import PROMPT_TOKENS, fixed_request
from qubic_lab.bench.result import ModelResult, Table, settings_of
from qubic_lab.errors import check_at_least, check_choice
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig, resolve_config
from qubic_lab.provenance import machine

DTYPES = ("auto", "fp16", "bf16")
FIRST_CAPABILITY_WITH_BF16 = (8, 0)
"""Compute capability of the first GPUs with native bf16 (Ampere); older ones, such as the T4, emulate it."""
GPU_NOTE = "used: peak of the tensors on the GPU; reserved: peak of torch's allocator"
CPU_NOTE = "used: peak resident memory of the rank's process; CPU processes reserve nothing beyond it"


@dataclass(frozen=True)
class GpuResult(ModelResult):
    """One request on one rank.

    `load_s` includes the start of the processes, `seconds` runs from submission to the last token, and `tokens_per_s`
    counts from the first token on. `memory_reserved_bytes` is None on a CPU.
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
    device_name: str

    def report(self) -> Iterator[Table | str]:
        reserved = "-" if self.memory_reserved_bytes is None else f"{self.memory_reserved_bytes / 2**20:.0f} MiB"
        yield (
            f"loaded in {self.load_s:.1f} s, {self.new_tokens} new tokens in {self.seconds:.2f} s "
            f"(first after {self.ttft_ms:.0f} ms, then {self.tokens_per_s:.1f} tokens/s)"
        )
        yield f"memory used {self.memory_used_bytes / 2**20:.0f} MiB, reserved {reserved}"


def bench_gpu(model: str = "smollm2", dtype: str = "auto", new_tokens: int = 100) -> GpuResult:
    """Load a model in 16 bit, answer one request of 64 prompt tokens, and measure time and memory.

    `dtype` is `fp16`, `bf16`, or `auto` for the one that the device supports natively. End tokens are ignored.

    Raises:
        InputError, ModelError, RankError: as for Pipeline.launch.
    """
    check_choice("dtype", dtype, DTYPES)
    check_at_least("new_tokens", new_tokens, 1)
    device = resolve_config(PipelineConfig(model=model)).device
    capability, device_name = _describe_device(device)
    if dtype == "auto":
        dtype = dtype_for(capability)
    started = time.perf_counter()
    with Pipeline.launch(PipelineConfig(model=model, ranks=1, dtype=dtype, device=device)) as pipeline:
        loaded = time.perf_counter()
        completion = pipeline.generate(fixed_request(new_tokens))
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
        device_name=device_name,
        **settings_of(used),
    )


def dtype_for(capability: tuple[int, int] | None) -> str:
    """Return the 16-bit dtype for a GPU of a compute capability (major, minor), or for a CPU (None)."""
    return "fp16" if capability is not None and capability < FIRST_CAPABILITY_WITH_BF16 else "bf16"


def _describe_device(device: str) -> tuple[tuple[int, int] | None, str]:
    """Return the compute capability of the GPU (None for a CPU) and the device's name."""
    if device != "cuda":
        return None, str(machine())
    import torch

    return torch.cuda.get_device_capability(), torch.cuda.get_device_name()
