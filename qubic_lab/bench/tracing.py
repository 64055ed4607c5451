"""What tracing costs: the time spent in trace calls, and answers with the trace on against off in pairs."""

import tempfile
import time
from dataclasses import asdict, dataclass, replace
from math import comb
from pathlib import Path
from statistics import median
from typing import Any

from qubic_lab.core import Request, SamplingParams
from qubic_lab.errors import check_at_least
from qubic_lab.pipeline import Pipeline, PipelineConfig
from qubic_lab.provenance import machine, source_commit
from qubic_lab.trace import read_trace, trace_cost

PROMPT_TOKENS = 64
FEWEST_PAIRS = 6
"""With fewer, not even the smallest and the largest ratio enclose the median with 95 % confidence."""


@dataclass(frozen=True)
class TracingResult:
    """What tracing costs, as shares of 1.

    `cost` is the time spent in trace calls over the time at work, of the worst rank, median over pairs. `ratio` is the
    median over pairs of the time on over the time off; `low` to `high` holds it with 95 % confidence.
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
    machine: str
    commit: str

    def __str__(self) -> str:
        return (
            f"tracing takes {self.cost:.2%} of a rank's work; on against off {self.ratio:.3f} "
            f"({self.low:.3f} to {self.high:.3f} with 95 % confidence, {len(self.ratios)} pairs)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def bench_tracing(config: PipelineConfig, pairs: int = 20, new_tokens: int = 32) -> TracingResult:
    """Answer the same requests, one in every slot, with the trace on and off; every other pair begins with off.

    Raises:
        InputError: too few pairs, or as of Pipeline.launch.
        ModelError, RankError: as of Pipeline.launch.
    """
    check_at_least("pairs", pairs, FEWEST_PAIRS)
    off = replace(config, trace=None)
    costs, ratios = [], []
    with Pipeline.launch(off) as pipeline, tempfile.TemporaryDirectory() as folder:
        on = replace(config, trace=Path(folder))
        _answer_s(pipeline, off, new_tokens)  # the first answers are slower
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
        machine=str(machine()),
        commit=str(source_commit()),
    )


def _answer_s(pipeline: Pipeline, config: PipelineConfig, new_tokens: int) -> float:
    """Return the seconds that one request in every slot takes."""
    pipeline.configure(config)
    prompt = tuple(range(1, PROMPT_TOKENS + 1))
    request = Request(token_ids=prompt, sampling=SamplingParams(max_new_tokens=new_tokens, ignore_eos=True))
    started = time.perf_counter()
    list(pipeline.answer_all([request] * (pipeline.config.lanes * pipeline.config.slots)))
    taken_s = time.perf_counter() - started
    pipeline.describe()  # the ranks write out what they have noted
    return taken_s


def _median_interval(values: list[float]) -> tuple[float, float]:
    """Return two of at least FEWEST_PAIRS values that enclose the median with 95 % confidence, whatever they are like.

    The number of values below the median is binomial with p = 1/2 (the sign test's interval).
    """
    ordered, count = sorted(values), len(values)
    below = 0
    while sum(comb(count, k) for k in range(below + 2)) / 2**count <= 0.025:
        below += 1
    return ordered[below], ordered[count - 1 - below]
