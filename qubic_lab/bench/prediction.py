"""Compares the speed that a plan predicts from the costs of single layers with the measured speed.

The costs come from a calibrating pipeline with another split: as many ranks, as busy, each pinned to its own cores.
Memory bandwidth drifts, so the calibrating pipeline runs a few steps (a probe) right before and after each measured
run, and the costs are scaled by what a layer took then.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Literal

import psutil

from qubic_lab.bench.engine import SpeedGrid, decode_tokens_per_s
from qubic_lab.bench.result import ModelResult, Spread, Table, interval_text
from qubic_lab.core import Progress, no_progress
from qubic_lab.errors import InputError, check_at_least
from qubic_lab.model.cost import PartTimes, model_cost
from qubic_lab.model.plan import STRATEGIES, balanced_layers, equal_counts, plan_layers
from qubic_lab.model.predict import pipeline_speed, stage_seconds
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig
from qubic_lab.provenance import usable_cores
from qubic_lab.trace import read_trace

if TYPE_CHECKING:
    import pandas as pd

Quantity = Literal["tokens_per_s", "latency_ms"]

CALIBRATIONS = 3
PROBE_S = 1.0
"""Approximate time of a probe, which has at least FEWEST_NEW_TOKENS and at most as many tokens as a measured run."""
PROMPT_TOKENS = 16
FEWEST_NEW_TOKENS = 12
FEWEST_STEPS = 4
"""Steps of each rank that a mean of calibrated costs needs."""
GOOD_ERROR = 0.2
"""Prediction errors below this are within bounds."""
ROOM = 1.3
"""Upper bound of a pipeline's memory per byte of its weights, with caches, buffers and libraries."""


@dataclass(frozen=True)
class Way:
    """One way to spread a model over the ranks; `strategies` are all that give this split, as in 'A = B'.

    Strategy D has the whole model on each rank; `layers` are then those of each replica.
    """

    strategies: str
    layers: tuple[int, ...]

    @property
    def replicas(self) -> bool:
        """Whether this is strategy D."""
        return self.strategies == "D"


@dataclass(frozen=True)
class StepTimes:
    """Times in seconds of one step of a lane: the parts on each rank, and a message between two ranks.

    A rank's `head_s` is 0 unless it has the head. The overhead is the rank's time in a step without layers, head and
    waiting; it includes the embedding. `hop_s` can be measured only while one lane runs alone and is 0 otherwise,
    because other lanes hide it. `prefill_layer_s` is the time of one layer for one prompt.
    """

    ranks: tuple[PartTimes, ...]
    hop_s: float
    prefill_layer_s: float


@dataclass(frozen=True)
class PredictionCell:
    """One prediction and its measurements, as medians over the repeats; `error` is predicted / measured − 1.

    `tokens_per_s` is the total of all lanes; `latency_ms` is the time between two tokens while one lane runs alone.
    `low` and `high` are the lowest and the highest of the repeats' errors.
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

    def report(self) -> Iterator[Table | str]:
        rows = [
            (
                *(f"{c.ranks}", f"{c.batch}", c.strategy, "/".join(map(str, c.layers))),
                "tokens/s" if c.quantity == "tokens_per_s" else "ms a token, alone",
                f"{c.predicted:.1f}",
                interval_text(c.measured, min(c.measurements), max(c.measurements), ".1f"),
                interval_text(c.error, c.low, c.high, "+.1%"),
            )
            for c in self.cells
        ]
        yield Table(("ranks", "batch", "strategy", "layers", "quantity", "predicted", "measured", "error"), rows)
        yield f"median error {self.median_error:.1%}, {self.within:.0%} of {len(self.cells)} predictions below 20 %"


def bench_prediction(
    model: str = "smollm2",
    ranks: Sequence[int] = (1, 2),
    batches: Sequence[int] = (1, 4, 8),
    dtype: str = "bf16",
    new_tokens: int = 32,
    repeat: int = 5,
    replicas: bool = True,
    progress: Progress = no_progress,
) -> PredictionResult:
    """Predict and measure every way to spread a model over this machine's cores, at equal total threads.

    `batches` are the requests that decode together in a lane; one rank also gets as many as several ranks have in all
    lanes. End tokens are ignored. Each measurement is made between two probes. With `replicas` strategy D is measured
    too, the whole model on each rank.

    Raises:
        InputError: a value is out of range, there are more ranks than cores, or too little memory.
        RankError, NonFiniteError: a run failed.
    """
    for number in ranks:
        if number > usable_cores():
            raise InputError(
                f"ranks is {number}, but there are {usable_cores()} cores: ranks that share a core show whether a "
                "split is correct (qubic-lab compare), not how fast it is"
            )
    check_at_least("new_tokens", new_tokens, FEWEST_NEW_TOKENS)
    grid = SpeedGrid.of(model, ranks, batches, PROMPT_TOKENS, new_tokens, repeat)
    _check_memory(grid, model, dtype, replicas)
    base = PipelineConfig(model=model, device="cpu", dtype=dtype)
    cells: list[PredictionCell] = []
    costs: list[LayerCosts] = []
    for place, number in enumerate(grid.ranks):

        def report(what: str, share: float, place: int = place) -> None:
            progress(what, round(100 * (place + share)), 100 * len(grid.ranks))

        report(f"calibrating, ranks: {number}", 0.0)
        with _Bench(grid, base, number, replicas) as bench:
            shapes = [(lanes, batch) for lanes in dict.fromkeys((number, 1)) for batch in batches_on(grid, number)]
            found = {shape: bench.calibrate(*shape) for shape in shapes}
            costs += [_costs(bench, shape, times) for shape, times in found.items()]
            cells += _measure(grid, bench, found, report)
    errors = [abs(cell.error) for cell in cells]
    return PredictionResult(
        cells=tuple(cells),
        costs=tuple(costs),
        median_error=median(errors),
        within=mean(float(error) < GOOD_ERROR for error in errors),
        model=model,
        meaningless=grid.config.meaningless,
        dtype=dtype,
        device="cpu",
        threads=grid.threads,
        prompt_tokens=PROMPT_TOKENS,
        new_tokens=new_tokens,
        repeat=repeat,
    )


def pin(pipeline: Pipeline, first_core: int, threads: int) -> None:
    """Pin each rank to `threads` cores of its own, starting at the `first_core`-th usable core (Linux only)."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    for rank in pipeline.describe():
        first = (first_core + rank.rank * threads) % len(cores)
        for task in Path(f"/proc/{rank.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores[first : first + threads])


def find_ways(layers: int, given: Mapping[str, tuple[int, ...]], replicas: bool) -> tuple[Way, ...]:
    """Return the distinct splits among the strategies, with strategy D last."""
    by_layers: dict[tuple[int, ...], list[str]] = {}
    for strategy, division in given.items():
        by_layers.setdefault(division, []).append(strategy)
    ways = [Way(" = ".join(strategies), division) for division, strategies in by_layers.items()]
    return (*ways, Way("D", (layers,))) if replicas else tuple(ways)


def predict(way: Way, times: StepTimes, ranks: int, batch: int, lanes: int) -> float:
    """Return the total tokens/s of all lanes, or with one lane on several ranks the ms between two tokens."""
    if way.replicas:
        return sum(batch / stage_seconds([_whole(times, rank)], way.layers)[0] for rank in range(ranks))
    speed = pipeline_speed(stage_seconds(times.ranks, way.layers), times.hop_s, lanes, batch)
    return speed.tokens_per_s if lanes == ranks else speed.idle_latency_ms


def batches_on(grid: SpeedGrid, ranks: int) -> tuple[int, ...]:
    """Return the batches to measure; one rank also gets batches with as many requests as several ranks have."""
    if ranks > 1:
        return grid.batches
    return tuple(sorted({number * batch for number in (1, *grid.ranks) for batch in grid.batches}))


def _check_memory(grid: SpeedGrid, model: str, dtype: str, replicas: bool) -> None:
    most = max(grid.ranks)
    copies = 2 + (most if replicas and most > 1 else 0)
    needed = ROOM * copies * model_cost(grid.config, dtype).weight_bytes
    if needed > (free := psutil.virtual_memory().available):
        raise InputError(
            f"{copies} copies of model {model!r} take about {needed / 2**30:.0f} GiB, but {free / 2**30:.0f} GiB are "
            f"free: {'leave out the replicas or ' if replicas else ''}give a smaller model"
        )


@dataclass(frozen=True)
class _Run:
    """One cell to measure: a way at a batch, with all lanes for throughput or one lane for latency."""

    way: Way
    batch: int
    lanes: int
    predicted: list[float] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)


class _Bench:
    """The pipelines for one number of ranks: one to calibrate and probe, one to measure, and the replicas.

    All of them stay up while the block runs; idle ones only wait.
    """

    def __init__(self, grid: SpeedGrid, base: PipelineConfig, ranks: int, replicas: bool) -> None:
        self.ranks = ranks
        self.replicas = replicas and ranks > 1
        self.calibrating_layers = calibrating_layers(grid.config.layers, ranks)
        self._grid, self._base = grid, base
        self._stack = ExitStack()

    def __enter__(self) -> "_Bench":
        with ExitStack() as stack:
            self._trace = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._calibrating = self._launch(stack, self.calibrating_layers)
            self._measured = self._launch(stack, self.calibrating_layers)
            whole, cores = (self._grid.config.layers,), range(self.ranks if self.replicas else 0)
            self._replicas = [self._launch(stack, whole, core) for core in cores]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def calibrate(self, lanes: int, batch: int) -> StepTimes:
        """Return the costs of a batch in each of the lanes."""
        return median_times([self.probe(lanes, batch, self._grid.new_tokens) for _ in range(CALIBRATIONS)])

    def probe(self, lanes: int, batch: int, new_tokens: int) -> StepTimes:
        """Return the current costs of the parts of a step."""
        config = self._config(self.calibrating_layers, batch, lanes)
        self._calibrating.configure(replace(config, trace=self._trace))
        decode_tokens_per_s(self._calibrating, self._grid.prompts[: lanes * batch], new_tokens)
        self._calibrating.describe()  # makes the ranks flush their traces
        return step_times(read_trace(self._trace), self.calibrating_layers)

    def measure(self, way: Way, batch: int, lanes: int) -> float:
        """Return the total tokens/s, or with one lane on several ranks the ms between two tokens."""
        if way.replicas:
            return self._measure_replicas(batch)
        self._measured.configure(self._config(way.layers, batch, lanes))
        rate = decode_tokens_per_s(self._measured, self._grid.prompts[: lanes * batch], self._grid.new_tokens)
        return rate if lanes == self.ranks else 1000 * batch / rate

    def _measure_replicas(self, batch: int) -> float:
        for replica in self._replicas:
            replica.configure(self._config((self._grid.config.layers,), batch, lanes=1))
        prompts, new_tokens = self._grid.prompts[:batch], self._grid.new_tokens
        with ThreadPoolExecutor(self.ranks) as pool:
            return sum(pool.map(lambda replica: decode_tokens_per_s(replica, prompts, new_tokens), self._replicas))

    def _launch(self, stack: ExitStack, layers: tuple[int, ...], first_core: int = 0) -> Pipeline:
        pipeline = stack.enter_context(Pipeline.launch(self._config(layers, batch=1, lanes=1)))
        pin(pipeline, first_core, self._grid.threads // self.ranks)
        return pipeline

    def _config(self, layers: tuple[int, ...], batch: int, lanes: int) -> PipelineConfig:
        threads = self._grid.threads // self.ranks  # the replicas share the threads as the ranks do
        return replace(self._base, layers=layers, threads=threads, slots=batch, lanes=lanes)


def _runs(grid: SpeedGrid, bench: _Bench, costs: Mapping[tuple[int, int], StepTimes]) -> list[_Run]:
    """Return the cells of a number of ranks: each way with all lanes, and with one lane if there are several."""
    runs, ranks = [], bench.ranks
    for batch in batches_on(grid, ranks):
        times = costs[ranks, batch].ranks
        given = {s: plan_layers(grid.config, ranks, s) for s in STRATEGIES if s in ("B", "C") or ranks <= 2}
        given["C"] = balanced_layers(times, grid.config.layers)
        for way in find_ways(grid.config.layers, given, bench.replicas):
            all_lanes = (ranks,) if way.replicas else dict.fromkeys((ranks, 1))
            runs += [_Run(way, batch, lanes) for lanes in all_lanes]
    return runs


def _measure(
    grid: SpeedGrid, bench: _Bench, costs: Mapping[tuple[int, int], StepTimes], report: Callable[[str, float], None]
) -> list[PredictionCell]:
    """Measure every cell once per repeat between two probes; consecutive runs of one shape share a probe."""
    runs = sorted(_runs(grid, bench, costs), key=lambda run: (run.batch, run.lanes))
    for repeat in range(grid.repeat):
        last: tuple[tuple[int, int], StepTimes] | None = None
        for number, run in enumerate(runs):
            shape = (run.lanes, run.batch)
            tokens = _probe_tokens(grid, bench, costs[shape])
            before = last[1] if last and last[0] == shape else bench.probe(*shape, tokens)
            run.measured.append(bench.measure(run.way, run.batch, run.lanes))
            after = bench.probe(*shape, tokens)
            last = (shape, after)
            times = scaled(costs[shape], (before, after))
            run.predicted.append(predict(run.way, times, bench.ranks, run.batch, run.lanes))
            what = f"{run.way.strategies}, ranks: {bench.ranks}, lanes: {run.lanes}, batch {run.batch}"
            report(what, (len(runs) * repeat + number + 1) / (len(runs) * grid.repeat))
    return [_cell(run, bench.ranks) for run in runs]


def _probe_tokens(grid: SpeedGrid, bench: _Bench, times: StepTimes) -> int:
    step_s = sum(stage_seconds(times.ranks, bench.calibrating_layers))
    return min(grid.new_tokens, max(FEWEST_NEW_TOKENS, round(PROBE_S / step_s)))


def _cell(run: _Run, ranks: int) -> PredictionCell:
    pairs = zip(run.predicted, run.measured, strict=True)
    error = Spread.of([predicted / measured - 1 for predicted, measured in pairs])
    return PredictionCell(
        quantity="tokens_per_s" if run.lanes == ranks else "latency_ms",
        ranks=ranks,
        batch=run.batch,
        strategy=run.way.strategies,
        layers=run.way.layers,
        predicted=median(run.predicted),
        measured=median(run.measured),
        measurements=tuple(run.measured),
        error=error.median,
        low=error.low,
        high=error.high,
    )


def _whole(times: StepTimes, rank: int) -> PartTimes:
    """Return the costs of the whole model on a rank: the time of its own layers, and the last rank's head."""
    return replace(times.ranks[rank], head_s=times.ranks[-1].head_s, overhead_s=times.ranks[0].overhead_s)


def _costs(bench: _Bench, shape: tuple[int, int], times: StepTimes) -> LayerCosts:
    lanes, batch = shape
    return LayerCosts(
        ranks=bench.ranks,
        batch=batch,
        lanes=lanes,
        layers=bench.calibrating_layers,
        layer_ms=1000 * mean(part.layer_s for part in times.ranks),
        head_ms=1000 * times.ranks[-1].head_s,
        overhead_ms=tuple(1000 * part.overhead_s for part in times.ranks),
        hop_ms=1000 * times.hop_s,
        prefill_layer_ms=1000 * times.prefill_layer_s,
    )


def step_times(spans: "pd.DataFrame", layers: Sequence[int]) -> StepTimes:
    """Return the mean times of the steps in which every lane was decoding and no prompt was computed.

    The trace (`trace.read_trace`) is of answers of equal length, one in each slot; `layers` are those of each rank.

    Raises:
        InputError: the trace has too few such steps.
    """
    begin_ms, end_ms = _steady(spans)
    steady = spans[spans["start_ms"].between(begin_ms, end_ms)]
    parts, periods_s = zip(*(_rank_parts(steady[steady["rank"] == r], n) for r, n in enumerate(layers)), strict=True)
    busy_s = sum(part.layer_s * n + part.head_s + part.overhead_s for part, n in zip(parts, layers, strict=True))
    alone = len(layers) > 1 and steady["lane"].nunique() == 1
    prefill = spans[(spans["phase"] == "prefill") & (spans["kind"] == "compute")]
    prefill_ms = (prefill["end_ms"] - prefill["start_ms"]).groupby(prefill["rank"]).median().sum()
    return StepTimes(
        ranks=parts,
        hop_s=max(0.0, periods_s[0] - busy_s) / len(layers) if alone else 0.0,
        prefill_layer_s=float(prefill_ms) / 1e3 / sum(layers),
    )


def scaled(times: StepTimes, probes: Sequence[StepTimes]) -> StepTimes:
    """Scale the costs to the memory speed during the probes."""
    reference = sum(part.layer_s for part in times.ranks)
    factor = mean(sum(part.layer_s for part in probe.ranks) for probe in probes) / reference
    ranks = [replace(part, layer_s=part.layer_s * factor, head_s=part.head_s * factor) for part in times.ranks]
    return replace(times, ranks=tuple(ranks))


def median_times(found: Sequence[StepTimes]) -> StepTimes:
    """Return the medians of several calibrations, part by part."""
    ranks = [
        PartTimes(
            embedding_s=0.0,
            layer_s=median(part.layer_s for part in same_rank),
            head_s=median(part.head_s for part in same_rank),
            overhead_s=median(part.overhead_s for part in same_rank),
        )
        for same_rank in zip(*(times.ranks for times in found), strict=True)
    ]
    hop_s = median(times.hop_s for times in found)
    return StepTimes(tuple(ranks), hop_s, median(times.prefill_layer_s for times in found))


def calibrating_layers(layers: int, ranks: int) -> tuple[int, ...]:
    """Return a nearly even split, which keeps all ranks busy but differs from the even one of strategies A and B.

    Raises:
        InputError: too few layers.
    """
    if ranks == 1:
        return (layers,)
    even = equal_counts(layers, ranks)
    shifted = (even[0] + 1, *even[1:-1], even[-1] - 1)
    if shifted[-1] < 1:
        raise InputError(f"ranks is {ranks}: a model of {layers} layers has too few layers to calibrate with")
    return shifted


def _steady(spans: "pd.DataFrame") -> tuple[float, float]:
    """Return start and end in ms of the time in which every lane decodes and no prompt is computed."""
    compute = spans[spans["kind"] == "compute"]
    steps = compute[compute["phase"] == "decode"].groupby("lane")
    prompts_end_ms = compute.loc[compute["phase"] == "prefill", "end_ms"].max()
    return max(prompts_end_ms, steps["start_ms"].min().max()), steps["end_ms"].max().min()


def _rank_parts(spans: "pd.DataFrame", layers: int) -> tuple[PartTimes, float]:
    """Return the parts of a rank's step, and the time from one step to the next in seconds."""
    starts_ms = spans.loc[spans["kind"] == "compute", "start_ms"]
    steps = len(starts_ms) - 1
    if steps < FEWEST_STEPS:
        raise InputError(f"the trace has {max(0, steps)} steps of all lanes, of {FEWEST_STEPS}: ask for more tokens")
    window = spans[spans["start_ms"].between(starts_ms.min(), starts_ms.max(), inclusive="left")]
    sums_ms = (window["end_ms"] - window["start_ms"]).groupby(window["kind"]).sum()
    spent_s = {kind: float(ms) / 1e3 / steps for kind, ms in sums_ms.items()}
    compute_s, sample_s, wait_s = (spent_s.get(kind, 0.0) for kind in ("compute", "sample", "receive"))
    period_s = float(starts_ms.max() - starts_ms.min()) / 1e3 / steps
    overhead_s = max(0.0, period_s - compute_s - sample_s - wait_s)
    return PartTimes(embedding_s=0.0, layer_s=compute_s / layers, head_s=sample_s, overhead_s=overhead_s), period_s
