"""Compares the speed that a plan predicts from the costs of single layers with the measured speed.

The costs come from a calibrating pipeline with another split: as many ranks, as busy, each pinned to its own cores.
Memory bandwidth drifts, so the calibrating pipeline runs a few steps (a probe) right before and after each measured
run, and the costs are scaled by what a layer took then. Such a pair of prediction and measurement counts if others left
the cores alone meanwhile (`noise`); where too few did, more are made.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import Literal, TypeVar

import psutil

from qubic_lab.bench.engine import SpeedGrid, decode_tokens_per_s
from qubic_lab.bench.noise import QUIET, NoiseWatch
from qubic_lab.bench.result import ModelResult, Spread, Table, interval_text
from qubic_lab.bench.step_times import StepTimes, median_times, scaled, step_times
from qubic_lab.core import Progress, no_progress
from qubic_lab.errors import InputError, check_at_least
from qubic_lab.model.cost import PartTimes, model_cost
from qubic_lab.model.plan import STRATEGIES, balanced_layers, equal_counts, plan_layers
from qubic_lab.model.predict import pipeline_speed, stage_seconds
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig
from qubic_lab.provenance import usable_cores
from qubic_lab.trace import read_trace

Quantity = Literal["tokens_per_s", "latency_ms"]
Watched = TypeVar("Watched", "Probe", "_Pair")

CALIBRATIONS = 3
PROBE_S = 1.0
"""Approximate time of a probe, which has at least FEWEST_NEW_TOKENS and at most as many tokens as a measured run."""
FEWEST_QUIET = 4
"""Pairs of a cell that others left alone: with fewer, all pairs count."""
PROMPT_TOKENS = 16
FEWEST_NEW_TOKENS = 12
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
class Probe:
    """The costs of a step's parts that a probe found, and the share of the cores that others used since the last."""

    times: StepTimes
    others: float

    @property
    def quiet(self) -> bool:
        """Whether others left the cores alone."""
        return self.others <= QUIET


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
    watch = NoiseWatch()
    cells: list[PredictionCell] = []
    costs: list[LayerCosts] = []
    for place, number in enumerate(grid.ranks):

        def report(what: str, share: float, place: int = place) -> None:
            progress(what, round(100 * (place + share)), 100 * len(grid.ranks))

        report(f"calibrating, ranks: {number}", 0.0)
        with _Bench(grid, base, number, replicas, watch) as bench:
            bench.calibrate()
            cells += _measure(grid, bench, report)
            costs += bench.layer_costs()
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
        noise=watch.noise(),
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
    stage_s = [stage + times.wait_s for stage in stage_seconds(times.ranks, way.layers)]
    speed = pipeline_speed(stage_s, times.hop_s, lanes, batch)
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
class _Pair:
    """A measurement and the probes before and after it, from which its prediction is made."""

    before: Probe
    measured: float
    after: Probe

    @property
    def quiet(self) -> bool:
        """Whether others left the cores alone."""
        return self.before.quiet and self.after.quiet


@dataclass(frozen=True)
class _Run:
    """One cell to measure: a way at a batch, with all lanes for throughput or one lane for latency."""

    way: Way
    batch: int
    lanes: int
    pairs: list[_Pair] = field(default_factory=list)


class _Bench:
    """The pipelines for one number of ranks: one to calibrate and probe, one to measure, and the replicas.

    All of them stay up while the block runs; idle ones only wait.
    """

    def __init__(self, grid: SpeedGrid, base: PipelineConfig, ranks: int, replicas: bool, watch: NoiseWatch) -> None:
        self.ranks = ranks
        self.replicas = replicas and ranks > 1
        self.calibrating_layers = calibrating_layers(grid.config.layers, ranks)
        self._grid, self._base, self._watch = grid, base, watch
        self._probes: dict[tuple[int, int], list[Probe]] = {}
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

    def calibrate(self) -> None:
        """Probe each number of lanes and batch."""
        self._watch.lap()
        for lanes in dict.fromkeys((self.ranks, 1)):
            for batch in batches_on(self._grid, self.ranks):
                for _ in range(CALIBRATIONS):
                    self.probe(lanes, batch)

    def probe(self, lanes: int, batch: int) -> Probe:
        """Return the current costs of the parts of a step, and keep them."""
        known = self._probes.setdefault((lanes, batch), [])
        new_tokens = self._grid.new_tokens
        if len(known) >= CALIBRATIONS:
            step_s = sum(stage_seconds(known[-1].times.ranks, self.calibrating_layers))
            new_tokens = min(new_tokens, max(FEWEST_NEW_TOKENS, round(PROBE_S / step_s)))
        config = self._config(self.calibrating_layers, batch, lanes)
        self._calibrating.configure(replace(config, trace=self._trace))
        decode_tokens_per_s(self._calibrating, self._grid.prompts[: lanes * batch], new_tokens)
        self._calibrating.describe()  # makes the ranks flush their traces
        times = step_times(read_trace(self._trace), self.calibrating_layers)
        known.append(Probe(times, self._watch.lap()))
        return known[-1]

    def costs(self, lanes: int, batch: int) -> StepTimes:
        """Return the costs of the parts by all probes so far."""
        return median_times([probe.times for probe in undisturbed(self._probes[lanes, batch], CALIBRATIONS)])

    def layer_costs(self) -> list[LayerCosts]:
        """Return the costs of each number of lanes and batch."""
        return [_costs(self, shape, self.costs(*shape)) for shape in self._probes]

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


def _runs(grid: SpeedGrid, bench: _Bench) -> list[_Run]:
    """Return the cells of a number of ranks: each way with all lanes, and with one lane if there are several."""
    runs, ranks = [], bench.ranks
    for batch in batches_on(grid, ranks):
        given = {s: plan_layers(grid.config, ranks, s) for s in STRATEGIES if s in ("B", "C") or ranks <= 2}
        given["C"] = balanced_layers(bench.costs(ranks, batch).ranks, grid.config.layers)
        for way in find_ways(grid.config.layers, given, bench.replicas):
            all_lanes = (ranks,) if way.replicas else dict.fromkeys((ranks, 1))
            runs += [_Run(way, batch, lanes) for lanes in all_lanes]
    return sorted(runs, key=lambda run: (run.batch, run.lanes))


def _measure(grid: SpeedGrid, bench: _Bench, report: Callable[[str, float], None]) -> list[PredictionCell]:
    """Measure every cell once per repeat between two probes; consecutive runs of one shape share a probe.

    Cells with too few quiet pairs are measured again, at most as often once more, unless none was quiet at all.
    """
    runs = _runs(grid, bench)
    needed = min(grid.repeat, FEWEST_QUIET)
    for repeat in range(2 * grid.repeat):
        lacking = runs
        if repeat >= grid.repeat:
            lacking = [run for run in runs if sum(pair.quiet for pair in run.pairs) < needed]
            if not any(pair.quiet for run in lacking for pair in run.pairs):
                break
        last: tuple[tuple[int, int], Probe] | None = None
        for run in lacking:
            shape = (run.lanes, run.batch)
            before = last[1] if last and last[0] == shape else bench.probe(*shape)
            measured = bench.measure(run.way, run.batch, run.lanes)
            after = bench.probe(*shape)
            last = (shape, after)
            run.pairs.append(_Pair(before, measured, after))
            what = f"{run.way.strategies}, ranks: {bench.ranks}, lanes: {run.lanes}, batch {run.batch}"
            done = sum(len(each.pairs) for each in runs) / (len(runs) * grid.repeat)
            report(what, min(1.0, done))
    return [_cell(run, bench, needed) for run in runs]


def _cell(run: _Run, bench: _Bench, needed: int) -> PredictionCell:
    pairs = undisturbed(run.pairs, needed)
    costs = bench.costs(run.lanes, run.batch)
    probed = [scaled(costs, (pair.before.times, pair.after.times)) for pair in pairs]
    predicted = [predict(run.way, times, bench.ranks, run.batch, run.lanes) for times in probed]
    measured = [pair.measured for pair in pairs]
    error = Spread.of([each / real - 1 for each, real in zip(predicted, measured, strict=True)])
    return PredictionCell(
        quantity="tokens_per_s" if run.lanes == bench.ranks else "latency_ms",
        ranks=bench.ranks,
        batch=run.batch,
        strategy=run.way.strategies,
        layers=run.way.layers,
        predicted=median(predicted),
        measured=median(measured),
        measurements=tuple(measured),
        error=error.median,
        low=error.low,
        high=error.high,
        left_out=len(run.pairs) - len(pairs),
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


def undisturbed(found: Sequence[Watched], fewest: int) -> Sequence[Watched]:
    """Return what others left alone; everything, where that are fewer than `fewest`."""
    quiet = [each for each in found if each.quiet]
    return quiet if len(quiet) >= fewest else found


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
