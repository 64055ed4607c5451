"""Analyses a model part by part: parameters, bytes, operations, and how long a decode step takes in each."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qubic_lab.bench.result import MeasuredResult, Spread, Table
from qubic_lab.core import Progress, no_progress
from qubic_lab.errors import check_at_least, check_range
from qubic_lab.model.config import load_config, resolve_shape
from qubic_lab.model.cost import PartCost, model_cost
from qubic_lab.model.layout import StageRange, stage_ranges
from qubic_lab.model.resolve import resolve_whole
from qubic_lab.pipeline.config import PipelineConfig, ResolvedConfig, resolve_config

if TYPE_CHECKING:
    import torch

    from qubic_lab.model.decoder import Decoder
    from qubic_lab.model.native import NativeDecoder

WARM_UP = 2
"""Steps that do not count."""


@dataclass(frozen=True)
class LayerFigures:
    """A part of a model: the embedding, a layer, or the head with the final norm.

    `flops` and `time_ms` are those of one decode step of one sequence; the time is None where it was not measured.
    """

    part: str
    parameters: int
    weight_bytes: int
    flops: int
    time_ms: Spread | None

    def cells(self) -> tuple[str, ...]:
        time_ms = "-" if self.time_ms is None else self.time_ms.text(".3f")
        return self.part, f"{self.parameters:,}", f"{self.weight_bytes / 1e6:,.1f}", f"{self.flops / 1e6:,.1f}", time_ms


@dataclass(frozen=True, kw_only=True)
class LayerAnalysis(MeasuredResult):
    """All parts of a model in their order, and their sum; the time of the `whole` is that of steps, not of sums.

    `device` is empty and `threads` None where no time was measured.
    """

    parts: tuple[LayerFigures, ...]
    whole: LayerFigures
    model: str
    meaningless: bool
    dtype: str
    context: int
    repeat: int
    device: str = ""
    threads: int | None = None

    def report(self) -> Iterator[Table | str]:
        header = ("part", "parameters", "weights MB", "MFLOP a token", "ms a token (least to most)")
        yield Table(header, [each.cells() for each in (*self.parts, self.whole)])
        yield f"A token of one sequence with {self.context:,} tokens in the KV cache. MB: 10⁶ bytes."
        if self.parts[-1].parameters < self.parts[0].parameters:
            yield "The head reads the embedding's matrix, which counts once."


def analyse_layers(
    model: str = "smollm2",
    dtype: str = "bf16",
    context: int = 256,
    repeat: int = 20,
    threads: int = 1,
    timed: bool = True,
    progress: Progress = no_progress,
) -> LayerAnalysis:
    """Return the figures of each part, with its times over `repeat` decode steps on this machine if `timed`.

    `context` tokens are in the KV cache in each step. With more `threads` than one, times include waking them for each
    layer, which whole steps do once. Without times no weights are needed: the model may be an alias or a folder with a
    config.json.

    Raises:
        InputError: a value is out of range.
        ModelError: the model cannot be found, or its files are damaged.
    """
    check_at_least("repeat", repeat, 1)
    folder = resolve_whole(model) if timed else None
    config = load_config(folder) if folder else resolve_shape(model)
    check_range("context", context, 1, config.max_positions)
    cost = model_cost(config, dtype, context)
    layers = [(f"layer {number}", cost.layer) for number in range(config.layers)]
    costs = [("embedding", cost.embedding), *layers, ("head", cost.head)]
    costs += [("whole model", PartCost(cost.parameters, cost.weight_bytes, 0, sum(part.flops for _, part in costs)))]
    times_ms: list[Spread | None] = [None] * len(costs)
    used = None
    if folder:
        used = resolve_config(PipelineConfig(str(folder), ranks=1, dtype=dtype, threads=threads))
        steps = _time_steps(folder, used, context, repeat, progress)
        times_ms = [Spread.of(times) for times in zip(*steps, strict=True)]
    parts = [
        LayerFigures(name, part.parameters, part.weight_bytes, part.flops, time_ms)
        for (name, part), time_ms in zip(costs, times_ms, strict=True)
    ]
    return LayerAnalysis(
        parts=tuple(parts[:-1]),
        whole=parts[-1],
        model=model,
        meaningless=config.meaningless,
        dtype=dtype,
        context=context,
        repeat=repeat if timed else 0,
        device=used.device if used else "",
        threads=used.threads if used else None,
    )


def _time_steps(
    folder: Path, used: ResolvedConfig, context: int, repeat: int, progress: Progress
) -> Iterator[tuple[float, ...]]:
    """Yield the ms of the embedding, each layer, the head and all of them together, for each of `repeat` steps.

    Each layer is a decoder of its own. They run in turn, as in a real step, so none finds its weights in a cache that
    holds fewer than all of them.
    """
    import torch

    from qubic_lab.model.decoder import Segment

    decoders = []
    for number, stage in enumerate(stage_ranges((1,) * used.layers[0])):
        decoders.append(stage_decoder(folder, used, stage))
        progress("reading layers", number + 1, used.layers[0])
    first, last, token = decoders[0], decoders[-1], [Segment(0, context - 1, 1)]
    torch.set_num_threads(used.threads)

    def timed(compute: "Callable[[], torch.Tensor]") -> "tuple[torch.Tensor, float]":
        if used.device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        result = compute()
        if used.device == "cuda":
            torch.cuda.synchronize()
        return result, 1e3 * (time.perf_counter() - started)

    for step in range(-WARM_UP, repeat):
        with torch.inference_mode():
            hidden, took_ms = timed(lambda: first.embed([0]))
            times_ms = [took_ms]
            for decoder in decoders:
                hidden, took_ms = timed(lambda x=hidden, each=decoder: each.forward(x, token, prompt=False))  # type: ignore[misc]
                times_ms.append(took_ms)
            _, took_ms = timed(lambda x=hidden: last.logits(x))  # type: ignore[misc]
        if step >= 0:
            progress("timing steps", step + 1, repeat)
            yield (*times_ms, took_ms, sum(times_ms) + took_ms)


def stage_decoder(folder: Path, used: ResolvedConfig, stage: StageRange) -> "Decoder | NativeDecoder":
    """Return a decoder of a stage, with the kernels that a rank would use."""
    import torch

    from qubic_lab.model.checkpoint import Checkpoint
    from qubic_lab.model.decoder import Decoder, torch_dtype
    from qubic_lab.model.native import NativeDecoder

    checkpoint, dtype = Checkpoint.open(folder, stage), torch_dtype(used.dtype)
    if used.kernels == "native":
        return NativeDecoder(checkpoint, stage, dtype, used.threads, used.quantization or "")
    return Decoder(checkpoint, stage, dtype, torch.device(used.device))
