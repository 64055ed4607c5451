"""Measures the cost of tracing: the time spent in trace calls, and runs with tracing against runs without."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import comb
from pathlib import Path
from statistics import median

from qubic_lab.bench.result import MeasuredResult, Table, interval_text
from qubic_lab.core import Request, SamplingParams
from qubic_lab.errors import check_at_least
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig
from qubic_lab.trace import read_trace, trace_cost

PROMPT_TOKENS = 64
FEWEST_PAIRS = 6
"""With fewer pairs, not even the lowest and the highest ratio enclose the median with 95 % confidence."""


@dataclass(frozen=True)
class TracingResult(MeasuredResult):
    """The cost of tracing.

    `cost` is the share of the worst rank's working time that it spends in trace calls, as the median over pairs.
    `ratio` is the time with tracing divided by the time without, as the median over pairs; `low` to `high` is its 95 %
    interval.
    """

    cost: float
    ratio: float
    low: float
    high: float
    ratios: tuple[float, ...]
    model: str
    ranks: int
    lanes: int
    slots: int
    dtype: str
    threads: int
    new_tokens: int

    def report(self) -> Iterator[Table | str]:
        """Yield cost and ratio."""
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
    low, high = _median_interval(ratios)
    return TracingResult(
        cost=median(costs),
        ratio=median(ratios),
        low=low,
        high=high,
        ratios=tuple(ratios),
        model=used.model,
        ranks=used.ranks,
        lanes=used.lanes,
        slots=used.slots,
        dtype=used.dtype,
        threads=used.threads,
        new_tokens=new_tokens,
    )


def _answer_s(pipeline: Pipeline, config: PipelineConfig, new_tokens: int) -> float:
    """Return the time that one request in every slot takes, in seconds."""
    pipeline.configure(config)
    prompt = tuple(range(1, PROMPT_TOKENS + 1))
    request = Request(token_ids=prompt, sampling=SamplingParams(max_new_tokens=new_tokens, ignore_eos=True))
    started = time.perf_counter()
    list(pipeline.answer_all([request] * (pipeline.config.lanes * pipeline.config.slots)))
    taken_s = time.perf_counter() - started
    pipeline.describe()  # makes the ranks flush their traces
    return taken_s


def _median_interval(values: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median of at least FEWEST_PAIRS values, by the sign test.

    The number of values below the median is binomial with p = 1/2.
    """
    ordered, count = sorted(values), len(values)
    below = 0
    while sum(comb(count, k) for k in range(below + 2)) / 2**count <= 0.025:
        below += 1
    return ordered[below], ordered[count - 1 - below]
