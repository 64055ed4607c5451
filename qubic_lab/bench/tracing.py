"""Measures the cost of tracing: the time spent in trace calls, and runs with tracing against runs without."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from qubic_lab.bench.memory import fixed_request
from qubic_lab.bench.result import (
    FEWEST_PAIRS,
    ModelResult,
    Table,
    interval_text,
    median_interval,
    seconds_of,
    settings_of,
)
from qubic_lab.errors import check_at_least
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig
from qubic_lab.trace import read_trace, trace_cost


@dataclass(frozen=True)
class TracingResult(ModelResult):
    """The cost of tracing, as medians over pairs.

    `cost` is the share of the worst rank's working time that it spends in trace calls. `ratio` is the time with tracing
    divided by the time without; `low` to `high` is its 95 % interval.
    """

    cost: float
    ratio: float
    low: float
    high: float
    ratios: tuple[float, ...]
    ranks: int
    lanes: int
    slots: int
    new_tokens: int

    def report(self) -> Iterator[Table | str]:
        ratio = interval_text(self.ratio, self.low, self.high, ".3f")
        yield f"tracing takes {self.cost:.2%} of a rank's work"
        yield f"time with tracing divided by time without: {ratio}, 95 % interval, {len(self.ratios)} pairs"


def bench_tracing(config: PipelineConfig, pairs: int = 20, new_tokens: int = 32) -> TracingResult:
    """Answer the same requests, one in every slot, with and without tracing; the order alternates between pairs.

    Raises:
        InputError: too few pairs, or as for Pipeline.launch.
        ModelError, RankError: as for Pipeline.launch.
    """
    check_at_least("pairs", pairs, FEWEST_PAIRS)
    off = replace(config, trace=None)
    costs, ratios = [], []
    with Pipeline.launch(off) as pipeline, tempfile.TemporaryDirectory() as folder:
        on = replace(config, trace=Path(folder))
        _answer_s(pipeline, off, new_tokens)  # warm-up
        for pair in range(pairs):
            order = (on, off) if pair % 2 == 0 else (off, on)
            taken_s = {each: _answer_s(pipeline, each, new_tokens) for each in order}
            ratios.append(taken_s[on] / taken_s[off])
            costs.append(trace_cost(read_trace(Path(folder))))
        used = pipeline.config
    ratio, low, high = median_interval(ratios)
    return TracingResult(
        cost=median(costs),
        ratio=ratio,
        low=low,
        high=high,
        ratios=tuple(ratios),
        new_tokens=new_tokens,
        **settings_of(used, "ranks", "lanes", "slots"),
    )


def _answer_s(pipeline: Pipeline, config: PipelineConfig, new_tokens: int) -> float:
    """Return the time that one request in every slot takes, in seconds."""
    pipeline.configure(config)
    requests = [fixed_request(new_tokens)] * (pipeline.config.lanes * pipeline.config.slots)
    taken_s = seconds_of(lambda: list(pipeline.answer_all(requests)))
    pipeline.describe()  # makes the ranks flush their traces
    return taken_s
