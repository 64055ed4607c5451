"""Measures the CPU time that one thread of the engine takes for its work, in turn with a fixed computation.

Other processes change CPU time far less than time, and what they do change (caches, the cores' clock) changes the fixed
computation too. So a slower program is told from a busy machine: see `runs/change.py`. Two layers are measured, whose
weights stay in a cache: the speed of memory depends too much on others, and on where the weights come to lie.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qubic_lab.bench.layers import stage_decoder
from qubic_lab.core import Progress, no_progress
from qubic_lab.errors import check_at_least
from qubic_lab.model.config import check_context, load_config
from qubic_lab.model.layout import stage_ranges
from qubic_lab.model.resolve import resolve_whole
from qubic_lab.pipeline.config import PipelineConfig, resolve_config

if TYPE_CHECKING:
    from qubic_lab.model.decoder import Decoder
    from qubic_lab.model.native import NativeDecoder

LAYERS = 2
LOADS = 6
"""Times that the weights are read anew: where they come to lie matters."""
READ_FLOATS, READS = 2**21, 24
"""Of the fixed computation: sums of as much memory as the layers have."""
PROMPT_TOKENS = 64
SLOTS = 8


@dataclass(frozen=True)
class PacePart:
    """A kind of work: its CPU times, and how many fixed computations a second of the CPU was worth beside each."""

    name: str
    cpu_ms: tuple[float, ...]
    fixed_per_s: tuple[float, ...]


@dataclass(frozen=True)
class Pace:
    """All kinds of work; each of the rounds does all of them, and the fixed computation before and after each."""

    model: str
    dtype: str
    layers: int
    parts: tuple[PacePart, ...]


@dataclass(frozen=True)
class _Work:
    """Work that takes some ms, done `times` times in it."""

    times: int
    do: Callable[[], object]

    def cpu_s(self) -> float:
        """Do it, and return the CPU time of one of the times."""
        started = time.process_time()
        for _ in range(self.times):
            self.do()
        return (time.process_time() - started) / self.times


def bench_pace(model: str = "smollm2", dtype: str = "bf16", rounds: int = 10, progress: Progress = no_progress) -> Pace:
    """Measure a decode step of SLOTS requests, and a prompt, in LAYERS layers on one thread of a CPU.

    Raises:
        InputError: a value is out of range.
        ModelError: the model cannot be found, or its files are damaged.
    """
    import torch

    check_at_least("rounds", rounds, 1)
    folder = resolve_whole(model)
    config = load_config(folder)
    check_context(config, PROMPT_TOKENS, 1)
    used = resolve_config(PipelineConfig(str(folder), ranks=1, device="cpu", dtype=dtype, threads=1))
    layers = min(LAYERS, config.layers - 1)
    stage = stage_ranges((layers, config.layers - layers))[0]
    prompt = random.Random(0).choices(range(config.vocab), k=PROMPT_TOKENS)
    found: dict[str, list[tuple[float, float]]] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for number in range(LOADS):
                progress("CPU time of the engine", number, LOADS)
                works, fixed = (
                    _works(stage_decoder(folder, used, stage), prompt),
                    _Work(READS, torch.ones(READ_FLOATS).sum),
                )
                before_s = fixed.cpu_s()
                for _ in range(rounds):
                    for name, work in works.items():
                        work_s, after_s = work.cpu_s(), fixed.cpu_s()
                        found.setdefault(name, []).append((1e3 * work_s, 2 / (before_s + after_s)))
                        before_s = after_s
    finally:
        torch.set_num_threads(threads)
    parts = (PacePart(name, *zip(*pairs, strict=True)) for name, pairs in found.items())
    return Pace(model, dtype, layers, tuple(parts))


def _works(decoder: "Decoder | NativeDecoder", prompt: Sequence[int]) -> Mapping[str, _Work]:
    """Return what is measured, done once."""
    from qubic_lab.model.decoder import Segment

    decoder.reset(SLOTS)

    def answer_prompt(slot: int = 0) -> None:
        decoder.forward(decoder.embed(prompt), [Segment(slot, 0, PROMPT_TOKENS)], prompt=True)

    def decode() -> None:
        segments = [Segment(slot, PROMPT_TOKENS, 1) for slot in range(SLOTS)]
        decoder.forward(decoder.embed(prompt[:SLOTS]), segments, prompt=False)

    for slot in range(SLOTS):
        answer_prompt(slot)
    works = {
        f"decode_step_{SLOTS}_requests": _Work(8, decode),
        f"prompt_of_{PROMPT_TOKENS}": _Work(3, answer_prompt),
    }
    for work in works.values():
        work.cpu_s()
    return works
