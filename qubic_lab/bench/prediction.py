"""Compares the speed that a plan predicts from the costs of single layers, and memory, with what is measured.

The costs come from a calibrating pipeline with another split: as many ranks, as busy, each pinned to its own cores.
Memory bandwidth drifts, so the calibrating pipeline runs a few steps (a probe) right before and after each measured
run, and the costs are scaled by what a layer took then. Such a pair of prediction and measurement counts if others left
the cores alone meanwhile (`noise`); where too few did, more are made.
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from statistics import mean, median
from typing import TypeVar

import numpy as np
import psutil

from qubic_lab.bench.attained import Attained, attained
from qubic_lab.bench.engine import SpeedGrid, decode_tokens_per_s
from qubic_lab.bench.memory import predicted_bytes, resident_bytes
from qubic_lab.bench.noise import QUIET, NoiseWatch
from qubic_lab.bench.prediction_result import LayerCosts, MemoryCell, PredictionCell, PredictionResult
from qubic_lab.bench.result import Spread, seconds_of
from qubic_lab.bench.speculation import TEXTS, accepted_share, given
from qubic_lab.bench.step_times import StepTimes, median_times, periods_by_rows, scaled, slowdown, step_times
from qubic_lab.core import Progress, Request, no_progress
from qubic_lab.errors import InputError, check_at_least, check_choice
from qubic_lab.model.cost import PartTimes, model_cost
from qubic_lab.model.layout import QUANTIZATIONS
from qubic_lab.model.plan import STRATEGIES, balanced_layers, equal_counts, plan_layers
from qubic_lab.model.predict import drafted_step, pipeline_speed, stage_seconds
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig
from qubic_lab.pipeline.text import Tokenizer
from qubic_lab.provenance import usable_cores
from qubic_lab.trace import read_trace

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
AS_IT_IS = "none"
"""In place of a quantization: weights stay in the dtype."""
DRAFTED = ("quoting", "free")
"""Texts of `bench speculation` that are answered with drafts."""
LEARNED = ("code", "arithmetic")
"""Other texts of it: what steps take by their rows is learned from them."""
MOST_DRAFTED_TOKENS = 64
"""Of such an answer."""
DRAFTED_TIMES = 5
"""How often such an answer is timed in a measurement, which is the median: one is too short to be exact."""
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


def bench_prediction(
    model: str = "smollm2",
    ranks: Sequence[int] = (1, 2),
    batches: Sequence[int] = (1, 4, 8),
    dtype: str = "bf16",
    new_tokens: int = 32,
    repeat: int = 5,
    replicas: bool = True,
    progress: Progress = no_progress,
    weights: Sequence[str] = (AS_IT_IS,),
    strategies: Sequence[str] = STRATEGIES,
    drafts: bool = False,
) -> PredictionResult:
    """Predict and measure every way to spread a model over this machine's cores, at equal total threads.

    `batches` are the requests that decode together in a lane; one rank also gets as many as several ranks have in all
    lanes. End tokens are ignored. Each measurement is made between two probes. With `replicas` strategy D is measured
    too, the whole model on each rank. All is done with each form of the `weights`; with `drafts` one request alone also
    answers DRAFTED texts; what steps take by their rows is learned from LEARNED ones.

    Raises:
        InputError: a value is out of range, a name is unknown, there are more ranks than cores, or too little memory.
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
    for name in weights:
        check_choice("weights", name, (AS_IT_IS, *QUANTIZATIONS))
    for name in strategies:
        check_choice("strategy", name, STRATEGIES)
    base = PipelineConfig(model=model, device="cpu", dtype=dtype)
    watch = NoiseWatch()
    cells: list[PredictionCell] = []
    costs: list[LayerCosts] = []
    memory: list[MemoryCell] = []
    figures: list[Attained] = []
    steps = [(form if form in QUANTIZATIONS else "", number) for form in weights for number in grid.ranks]
    for place, (form, number) in enumerate(steps):

        def report(what: str, share: float, place: int = place) -> None:
            progress(what, round(100 * (place + share)), 100 * len(steps))

        report(f"calibrating, ranks: {number}", 0.0)
        with _Bench(grid, replace(base, quantization=form or None), number, replicas, watch) as bench:
            memory += bench.memory()
            bench.calibrate(drafts)
            cells += _measure(grid, bench, report, strategies, drafts)
            costs += bench.layer_costs()
            layer_s = {each.batch: each.layer_ms / 1e3 for each in bench.layer_costs() if each.lanes == number}
            cost = model_cost(grid.config, dtype, PROMPT_TOKENS + new_tokens // 2, form, packed=True)
            if found := attained(layer_s, cost.layer, form, number):
                figures.append(found)
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
        memory=tuple(memory),
        attained=tuple(figures),
        median_memory_error=median(abs(cell.error) for cell in memory) if memory else None,
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


def by_rows(known_ms: Mapping[int, float]) -> Callable[[int], float]:
    """Return the ms of a step by its rows: interpolated linearly, and beyond the most rows with the mean slope.

    More rows never take less time: where a measurement says so, it is noise.
    """
    rows = sorted(known_ms)
    ms = [*accumulate((known_ms[each] for each in rows), max)]
    slope = (ms[-1] - ms[0]) / max(1, rows[-1] - rows[0])
    return lambda count: float(np.interp(count, rows, ms)) + slope * max(0, count - rows[-1])


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
    answer: str = ""
    """A kind of DRAFTED, for a request that is answered with drafts."""


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
        self._drafted: dict[str, tuple[Request, float]] = {}
        self.rows_ms: dict[int, float] = {}
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

    @property
    def weights(self) -> str:
        """The quantization of the weights, or nothing."""
        return self._base.quantization or ""

    def memory(self) -> list[MemoryCell]:
        """Return the memory of each rank of a pipeline that was just loaded and answers the largest batch in each lane.

        Empty where the planner has no figure.
        """
        batch = max(self._grid.batches)
        self._measured.configure(self._config(self.calibrating_layers, batch, self.ranks))
        requests = self.ranks * batch
        decode_tokens_per_s(self._measured, self._grid.prompts[:requests], self._grid.new_tokens)
        expected = predicted_bytes(self._measured.config, requests, PROMPT_TOKENS + self._grid.new_tokens)
        return [
            MemoryCell(self.weights, self.ranks, rank, requests, predicted, resident, predicted / resident - 1)
            for rank, (predicted, resident) in enumerate(zip(expected, resident_bytes(self._measured), strict=True))
            if predicted is not None
        ]

    def calibrate(self, drafts: bool) -> None:
        """Probe each number of lanes and batch, and with `drafts` the steps of one request by their rows."""
        self._watch.lap()
        for lanes in dict.fromkeys((self.ranks, 1)):
            for batch in batches_on(self._grid, self.ranks):
                for _ in range(CALIBRATIONS):
                    self.probe(lanes, batch)
        if drafts:
            self._probe_rows()

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

    def _probe_rows(self) -> None:
        """Learn the ms of a step of one request by its rows, from the traces of LEARNED texts."""
        config = replace(self._config(self.calibrating_layers, 1, 1), speculation="lookup", trace=self._trace)
        found: dict[int, list[float]] = {}
        for kind in CALIBRATIONS * LEARNED:
            self._calibrating.configure(config)
            self._calibrating.answer(self.drafted(kind)[0])
            self._calibrating.describe()  # makes the ranks flush their traces
            for rows, period_ms in periods_by_rows(read_trace(self._trace)):
                found.setdefault(rows, []).append(period_ms)
        self.rows_ms = {rows: median(each) for rows, each in found.items() if len(each) >= CALIBRATIONS}

    def drafted(self, kind: str) -> tuple[Request, float]:
        """Return the request whose answer is that of a kind, and the chance of its drafted tokens to be right."""
        if kind not in self._drafted:
            tokenizer = Tokenizer(self._grid.folder)
            request = given(tokenizer, *TEXTS[kind], MOST_DRAFTED_TOKENS)
            share = accepted_share(tokenizer.encode(request), request.forced_token_ids)
            self._drafted[kind] = request, share
        return self._drafted[kind]

    def measure_drafted(self, way: Way, kind: str) -> float:
        """Return the ms of a token, without the prompt and the first one, of an answer alone, with drafts."""
        self._measured.configure(replace(self._config(way.layers, 1, 1), speculation="lookup"))
        whole, _ = self.drafted(kind)
        first = replace(whole, forced_token_ids=(), sampling=replace(whole.sampling, max_new_tokens=1))
        timed = [
            [seconds_of(partial(self._measured.answer, each)) for each in (first, whole)] for _ in range(DRAFTED_TIMES)
        ]
        return 1e3 * median(whole_s - first_s for first_s, whole_s in timed) / (whole.sampling.max_new_tokens - 1)

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


def _runs(grid: SpeedGrid, bench: _Bench, strategies: Sequence[str], drafts: bool) -> list[_Run]:
    """Return the cells of a number of ranks: each way with all lanes, and with one lane if there are several.

    With `drafts` the last way with one lane also answers DRAFTED texts.
    """
    runs, ranks = [], bench.ranks
    for batch in batches_on(grid, ranks):
        splits = {s: plan_layers(grid.config, ranks, s) for s in strategies if s in ("B", "C") or ranks <= 2}
        if "C" in splits:
            splits["C"] = balanced_layers(bench.costs(ranks, batch).ranks, grid.config.layers)
        for way in find_ways(grid.config.layers, splits, bench.replicas):
            all_lanes = (ranks,) if way.replicas else dict.fromkeys((ranks, 1))
            runs += [_Run(way, batch, lanes) for lanes in all_lanes]
    if drafts:
        last = [run for run in runs if run.batch == min(grid.batches) and not run.way.replicas][-1]
        runs += [_Run(last.way, 1, 1, answer=kind) for kind in DRAFTED]
    return sorted(runs, key=lambda run: (run.batch, run.lanes))


def _measure(
    grid: SpeedGrid,
    bench: _Bench,
    report: Callable[[str, float], None],
    strategies: Sequence[str] = STRATEGIES,
    drafts: bool = False,
) -> list[PredictionCell]:
    """Measure every cell once per repeat between two probes; consecutive runs of one shape share a probe.

    Cells with too few quiet pairs are measured again, at most as often once more, unless none was quiet at all.
    """
    runs = _runs(grid, bench, strategies, drafts)
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
            if run.answer:
                measured = bench.measure_drafted(run.way, run.answer)
            else:
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
    predicted = [_predicted(run, bench, (pair.before.times, pair.after.times)) for pair in pairs]
    measured = [pair.measured for pair in pairs]
    error = Spread.of([each / real - 1 for each, real in zip(predicted, measured, strict=True)])
    return PredictionCell(
        quantity="tokens_per_s" if run.lanes == bench.ranks and not run.answer else "latency_ms",
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
        weights=bench.weights,
        answer=run.answer,
    )


def _predicted(run: _Run, bench: _Bench, probes: Sequence[StepTimes]) -> float:
    """Return what is predicted of a cell by its costs, and the probes before and after its measurement."""
    costs = bench.costs(run.lanes, run.batch)
    if not run.answer:
        return predict(run.way, scaled(costs, probes), bench.ranks, run.batch, run.lanes)
    factor = slowdown(costs, probes)
    return factor * drafted_step(bench.drafted(run.answer)[1], by_rows(bench.rows_ms))[1]


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
        weights=bench.weights,
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
