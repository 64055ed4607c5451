"""Measures the CPU time that one thread of the engine takes for its work, in turn with a fixed computation.

Other processes change CPU time far less than time, and what they do change (caches, the cores' clock) changes the fixed
computation too. So a slower program is told from a busy machine: see `runs/change.py`. Two layers are measured, whose
weights stay in a cache: the speed of memory depends too much on others, and on where the weights come to lie.
"""

import random
import time
from collections.abc import Callable, Sequence
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
LOADS = 10
"""Times that the weights are read anew: where they come to lie matters."""
READ_FLOATS, READS, SQUARE, PRODUCTS = 2**21, 7, 256, 5
"""Of the fixed computation: sums of as much memory as the layers have, and products that take twice as long."""
PROMPT_TOKENS = 64
SLOTS = 8
STEPS = 5


@dataclass(frozen=True)
class Pace:
    """CPU times of the engine's work, and how many fixed computations a second of the CPU was worth beside each.

    The work is STEPS decode steps of SLOTS requests and a prompt, about half of the time for each.
    """

    model: str
    dtype: str
    layers: int
    cpu_ms: tuple[float, ...]
    fixed_per_s: tuple[float, ...]


def bench_pace(model: str = "smollm2", dtype: str = "bf16", rounds: int = 12, progress: Progress = no_progress) -> Pace:
    """Measure the work in LAYERS layers on one thread of a CPU, in each of the rounds of LOADS loads.

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
    found: list[tuple[float, float]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for number in range(LOADS):
                progress("CPU time of the engine", number, LOADS)
                work, fixed = _work(stage_decoder(folder, used, stage), prompt), _fixed()
                before_s = _cpu_s(fixed)
                for _ in range(rounds):
                    work_s, after_s = _cpu_s(work), _cpu_s(fixed)
                    found.append((1e3 * work_s, 2 / (before_s + after_s)))
                    before_s = after_s
    finally:
        torch.set_num_threads(threads)
    return Pace(model, dtype, layers, *map(tuple, zip(*found, strict=True)))


def _fixed() -> Callable[[], None]:
    """Return a computation that no change of the project changes."""
    import torch

    memory, square = torch.ones(READ_FLOATS), torch.full((SQUARE, SQUARE), 1 / SQUARE)

    def compute() -> None:
        for _ in range(READS):
            memory.sum()
        for _ in range(PRODUCTS):
            square @ square

    return compute


def _work(decoder: "Decoder | NativeDecoder", prompt: Sequence[int]) -> Callable[[], None]:
    """Return what is measured, done once."""
    from qubic_lab.model.decoder import Segment

    decoder.reset(SLOTS)
    segments = [Segment(slot, PROMPT_TOKENS, 1) for slot in range(SLOTS)]

    def answer_prompt(slot: int = 0) -> None:
        decoder.forward(decoder.embed(prompt), [Segment(slot, 0, PROMPT_TOKENS)], prompt=True)

    def work() -> None:
        for _ in range(STEPS):
            decoder.forward(decoder.embed(prompt[:SLOTS]), segments, prompt=False)
        answer_prompt()

    for slot in range(SLOTS):
        answer_prompt(slot)
    work()
    return work


def _cpu_s(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
