"""What a comparison of predictions with measurements found."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from qubic_lab.bench.attained import Attained
from qubic_lab.bench.result import ModelResult, Table, interval_text

Quantity = Literal["tokens_per_s", "latency_ms"]


@dataclass(frozen=True)
class PredictionCell:
    """One prediction and its measurements, as medians over the repeats; `error` is predicted / measured − 1.

    `tokens_per_s` is the total of all lanes; `latency_ms` is the time between two tokens while one lane runs alone.
    `low` and `high` are the lowest and the highest of the repeats' errors. Of pairs that others disturbed, `left_out`
    are not among them.
    """

    quantity: Quantity
    ranks: int
    batch: int
    strategy: str
    layers: tuple[int, ...]
    predicted: float
    measured: float
    measurements: tuple[float, ...]
    error: float
    low: float
    high: float
    left_out: int = 0
    weights: str = ""
    answer: str = ""
    """The kind of text that was answered with drafts, one request alone; empty without drafts."""


@dataclass(frozen=True)
class MemoryCell:
    """The memory of a rank while `requests` were answered at once, in bytes; `error` is predicted / resident − 1."""

    weights: str
    ranks: int
    rank: int
    requests: int
    predicted: int
    resident: int
    error: float


@dataclass(frozen=True)
class LayerCosts:
    """Calibrated costs in ms for a number of ranks, a batch and a number of lanes."""

    ranks: int
    batch: int
    lanes: int
    layers: tuple[int, ...]
    layer_ms: float
    head_ms: float
    overhead_ms: tuple[float, ...]
    hop_ms: float
    prefill_layer_ms: float
    weights: str = ""


@dataclass(frozen=True)
class PredictionResult(ModelResult):
    """All predictions and costs; `median_error` is of the absolute errors, `within` is the share below 20 %.

    `threads` are those of all ranks.
    """

    cells: tuple[PredictionCell, ...]
    costs: tuple[LayerCosts, ...]
    median_error: float
    within: float
    prompt_tokens: int
    new_tokens: int
    repeat: int
    memory: tuple[MemoryCell, ...] = ()
    median_memory_error: float | None = None
    attained: tuple[Attained, ...] = ()

    def report(self) -> Iterator[Table | str]:
        rows = [
            (
                c.weights or self.dtype,
                *(f"{c.ranks}", f"{c.batch}", c.strategy, "/".join(map(str, c.layers)), c.answer),
                "tokens/s" if c.quantity == "tokens_per_s" else "ms a token, alone",
                f"{c.predicted:.1f}",
                interval_text(c.measured, min(c.measurements), max(c.measurements), ".1f"),
                interval_text(c.error, c.low, c.high, "+.1%"),
            )
            for c in self.cells
        ]
        header = ("weights", "ranks", "batch", "strategy", "layers", "with drafts", "quantity", "predicted", "measured")
        yield Table((*header, "error"), rows)
        yield f"median error {self.median_error:.1%}, {self.within:.0%} of {len(self.cells)} predictions below 20 %"
        if self.median_memory_error is None:
            return
        sizes = [(f"{m.predicted / 2**20:.0f}", f"{m.resident / 2**20:.0f}", f"{m.error:+.1%}") for m in self.memory]
        of = [(m.weights or self.dtype, f"{m.ranks}", f"{m.rank}", f"{m.requests}") for m in self.memory]
        columns = ("weights", "ranks", "rank", "requests", "predicted MiB", "resident MiB", "error")
        yield Table(columns, [(*left, *right) for left, right in zip(of, sizes, strict=True)])
        yield f"median error of memory {self.median_memory_error:.1%}"
        for each in self.attained:
            yield f"{each.weights or self.dtype}, a rank of {each.ranks}: {each.text()}"
