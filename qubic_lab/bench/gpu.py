"""Measures a model in 16 bit on this machine's GPU, or else its CPU: loading time, tokens/s and memory."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from qubic_lab.bench.result import ModelResult, Table, settings_of
from qubic_lab.core import Request, SamplingParams, attributes
from qubic_lab.errors import check_choice
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
    """One request on one rank, and its answer.

    `load_s` includes the start of the processes, `seconds` runs from submission to the last token, and `tokens_per_s`
    counts from the first token on. `memory_total_bytes` is that of the GPU, on a CPU that of the machine, where
    `memory_reserved_bytes` is None.
    """

    load_s: float
    seconds: float
    ttft_ms: float
    tokens_per_s: float
    new_tokens: int
    prompt_tokens: int
    memory_used_bytes: int
    memory_reserved_bytes: int | None
    memory_total_bytes: int
    memory_note: str
    device_name: str
    prompt: str
    temperature: float
    seed: int
    answer: str

    def report(self) -> Iterator[Table | str]:
        reserved = "-" if self.memory_reserved_bytes is None else f"{self.memory_reserved_bytes / 2**20:.0f} MiB"
        yield f"{self.prompt}\n{self.answer}\n"
        yield f"{self.device_name}, {self.memory_total_bytes / 2**20:.0f} MiB of memory"
        yield (
            f"loaded in {self.load_s:.1f} s, {self.new_tokens} new tokens in {self.seconds:.2f} s "
            f"(first after {self.ttft_ms:.0f} ms, then {self.tokens_per_s:.1f} tokens/s)"
        )
        yield f"memory used {self.memory_used_bytes / 2**20:.0f} MiB, reserved {reserved}"

    def single_values(self) -> str:
        """Return every value by its name but the texts, which the report shows in full."""
        return super(GpuResult, replace(self, prompt="", answer="")).single_values()


def bench_gpu(
    model: str = "smollm2",
    dtype: str = "auto",
    new_tokens: int = 100,
    prompt: str = "What is Qubic blockchain?",
    temperature: float = 0.7,
    seed: int = 0,
) -> GpuResult:
    """Load a model in 16 bit, answer one prompt with at most `new_tokens` tokens, and measure time and memory.

    `dtype` is `fp16`, `bf16`, or `auto` for the one that the device supports natively.

    Raises:
        InputError, ModelError, RankError: as for Pipeline.launch.
    """
    check_choice("dtype", dtype, DTYPES)
    sampling = SamplingParams(max_new_tokens=new_tokens, temperature=temperature, seed=seed)
    request = Request(prompt, sampling=sampling)
    device = resolve_config(PipelineConfig(model=model)).device
    capability, device_name, total = _describe_device(device)
    if dtype == "auto":
        dtype = dtype_for(capability)
    started = time.perf_counter()
    with Pipeline.launch(PipelineConfig(model=model, ranks=1, dtype=dtype, device=device)) as pipeline:
        loaded = time.perf_counter()
        completion = pipeline.generate(request)
        answered = time.perf_counter()
        [rank] = pipeline.describe()
        used = pipeline.config
    on_gpu = used.device == "cuda"
    return GpuResult(
        load_s=loaded - started,
        seconds=answered - loaded,
        new_tokens=len(completion.token_ids),
        **attributes(completion, "ttft_ms", "tokens_per_s", "prompt_tokens"),
        memory_used_bytes=rank.gpu_used_bytes if on_gpu else rank.peak_rss_bytes,
        memory_reserved_bytes=rank.gpu_reserved_bytes if on_gpu else None,
        memory_total_bytes=total,
        memory_note=GPU_NOTE if on_gpu else CPU_NOTE,
        device_name=device_name,
        prompt=prompt,
        temperature=temperature,
        seed=seed,
        answer=completion.text,
        **settings_of(used),
    )


def dtype_for(capability: tuple[int, int] | None) -> str:
    """Return the 16-bit dtype for a GPU of a compute capability (major, minor), or for a CPU (None)."""
    return "fp16" if capability is not None and capability < FIRST_CAPABILITY_WITH_BF16 else "bf16"


def _describe_device(device: str) -> tuple[tuple[int, int] | None, str, int]:
    """Return the compute capability of the GPU (None for a CPU), the device's name, and all its memory in bytes."""
    if device != "cuda":
        import psutil

        return None, str(machine()), psutil.virtual_memory().total
    import torch

    return torch.cuda.get_device_capability(), torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1]
