"""Compares the pipeline's prefill and decode speed with that of other engines, at equal total threads.

The memory bandwidth of a machine drifts, so two sides are measured in turn, A B A B, each between two probes of the
bandwidth, and a ratio is the median of the pairs' own ratios. The other engines are in `peers.py`.
"""

import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from qubic_lab.bench.noise import NoiseWatch
from qubic_lab.bench.peer_driver import decode_rate, prefill_rate
from qubic_lab.bench.peers import PEER_NAMES, PEERS, EngineSpeed, Peer, PeerError, PeerModel, PeerProcess
from qubic_lab.bench.result import ModelResult, Spread, Table, counted, seconds_of
from qubic_lab.checked_yaml import STRICT
from qubic_lab.core import Progress, Request, SamplingParams, no_progress
from qubic_lab.errors import InputError, check_at_least, check_choice, check_range
from qubic_lab.model.config import ModelConfig, check_context, load_config
from qubic_lab.model.cost import model_cost
from qubic_lab.model.layout import DTYPE_BYTES, QUANTIZATIONS
from qubic_lab.model.resolve import resolve_whole
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig, resolve_config
from qubic_lab.pipeline.message import MAX_SLOTS
from qubic_lab.provenance import usable_cores
from qubic_lab.trace import read_trace

if TYPE_CHECKING:
    import pandas as pd
    import torch

PROBE_BYTES = 512 * 2**20
"""Size of the bandwidth probe: more than the caches hold."""
PROBE_PASSES = 5
OURS, OURS_BY_TORCH = "ours", "ours by torch"
ALONE, PIPELINE, EXACT = "alone", "pipeline_vs_whole", "exact_vs_fastest"


@dataclass(frozen=True)
class Sample:
    """One measurement, with the mean of the bandwidths that were probed before and after it."""

    speed: EngineSpeed
    bandwidth_gb_per_s: float

    @property
    def decode(self) -> float:
        """Decode speed in tokens/s."""
        return self.speed.decode_tokens_per_s

    @property
    def prefill(self) -> float:
        """Prefill speed in tokens/s."""
        return self.speed.prefill_tokens_per_s


@dataclass(frozen=True)
class Side:
    """What is measured: a system, its ranks, and the requests that are in flight at once."""

    system: str
    ranks: int
    requests: int
    measure: Callable[[], EngineSpeed] = field(repr=False, compare=False)


@dataclass(frozen=True)
class SetupResult:
    """The speed of a side in a comparison."""

    comparison: str
    system: str
    ranks: int
    threads_a_rank: int
    requests: int
    decode_tokens_per_s: Spread
    prefill_tokens_per_s: Spread
    bandwidth_gb_per_s: Spread


@dataclass(frozen=True)
class SpeedRatio(Spread):
    """The median, lowest and highest of the pairs' own ratios; or shares, of the same form.

    `batch` is the slots per lane for `pipeline_vs_whole` and `compute_share`, else the requests in flight.
    """

    model: str
    ranks: int
    batch: int


@dataclass(frozen=True)
class EngineResult(ModelResult):
    """All speeds and ratios; `threads` are the total threads of a side.

    `ratios` are by name; what is missing there has its reason in `not_measured`. `versions` are those of the peers.
    """

    __pydantic_config__ = STRICT
    setups: tuple[SetupResult, ...]
    ratios: Mapping[str, tuple[SpeedRatio, ...]]
    not_measured: Mapping[str, str]
    versions: Mapping[str, str]
    prompt_tokens: int
    new_tokens: int
    repeat: int
    measured_utc: str

    def report(self) -> Iterator[Table | str]:
        header = ("comparison", "system", "ranks × threads", "requests", "decode tokens/s", "prefill tokens/s", "GB/s")
        speeds = attrgetter("decode_tokens_per_s", "prefill_tokens_per_s", "bandwidth_gb_per_s")
        rows = [
            (
                s.comparison,
                s.system,
                f"{s.ranks} × {s.threads_a_rank}",
                f"{s.requests}",
                *(x.text(".1f") for x in speeds(s)),
            )
            for s in self.setups
        ]
        yield Table(header, rows)
        ratios = [
            (name, f"{each.ranks}", f"{each.batch}", each.text())
            for name, found in self.ratios.items()
            for each in found
        ]
        yield Table(("ratio", "ranks", "batch", "median (low to high)"), ratios)
        yield from (f"not measured: {name}: {reason}" for name, reason in self.not_measured.items())
        yield from (f"{peer}: {version}" for peer, version in self.versions.items())


@dataclass(frozen=True)
class SpeedGrid:
    """What is measured at equal total threads: numbers of ranks, and requests that decode together (batches).

    The setups share `threads`; `prompts` are enough for the largest of them.
    """

    folder: Path
    config: ModelConfig
    ranks: tuple[int, ...]
    batches: tuple[int, ...]
    threads: int
    prompts: tuple[tuple[int, ...], ...]
    new_tokens: int
    repeat: int

    @classmethod
    def of(
        cls, model: str, ranks: Sequence[int], batches: Sequence[int], prompt_tokens: int, new_tokens: int, repeat: int
    ) -> "SpeedGrid":
        """Return the grid of a model, with random prompts; an InputError if a value is out of range."""
        for number in ranks:
            check_at_least("ranks", number, 1)
        for batch in batches:
            check_at_least("batch", batch, 1)
            check_range("batch × ranks", batch * max(ranks), 1, MAX_SLOTS)
        check_at_least("prompt_tokens", prompt_tokens, 1)
        check_at_least("repeat", repeat, 1)
        folder = resolve_whole(model)
        config = load_config(folder)
        check_context(config, prompt_tokens, new_tokens)
        draw = random.Random(0)
        return cls(
            folder=folder,
            config=config,
            ranks=tuple(dict.fromkeys(ranks)),
            batches=tuple(dict.fromkeys(batches)),
            threads=total_threads(usable_cores(), ranks),
            prompts=tuple(
                tuple(draw.choices(range(config.vocab), k=prompt_tokens)) for _ in range(max(ranks) * max(batches))
            ),
            new_tokens=new_tokens,
            repeat=repeat,
        )


def bench_engine(
    model: str = "smollm2",
    ranks: Sequence[int] = (1, 2),
    batches: Sequence[int] = (1, 4, 8),
    dtype: str = "bf16",
    prompt_tokens: int = 64,
    new_tokens: int = 32,
    repeat: int = 7,
    peers: Sequence[str] = ("transformers",),
    quantizations: Sequence[str] = (),
    progress: Progress = no_progress,
) -> EngineResult:
    """Measure the pipeline with several numbers of ranks against one rank, and against other engines.

    Prompts are random with a fixed seed, and end tokens are ignored. `peers` are packages or single settings of
    `peers.PEERS`; what cannot be measured of them is left out, with its reason in the result. Ours are compared with
    each other only if 1 is one of the `ranks`. One rank with weights of these `quantizations` is compared with one
    whose weights are as they are, and with peers of the same form.

    Raises:
        InputError: a value is out of range; nothing was run.
        RankError, NonFiniteError: a run of ours failed.
    """
    import torch

    check_choice("dtype", dtype, DTYPE_BYTES)
    for name in peers:
        check_choice("peer", name, PEER_NAMES)
    for name in quantizations:
        check_choice("quantization", name, QUANTIZATIONS)
    check_at_least("new_tokens", new_tokens, 2)  # the first token belongs to the prefill
    grid = SpeedGrid.of(model, ranks, batches, prompt_tokens, new_tokens, repeat)
    watch = NoiseWatch()
    configs = _configs(model, grid, dtype)
    asked = [
        peer
        for peer in PEERS
        if {peer.package, peer.name} & set(peers) and (not peer.quantization or peer.quantization in quantizations)
    ]
    count = _sides(grid, configs, asked) + 2 * len(quantizations)
    report = counted(progress, count * len(grid.batches) * repeat)
    torch.set_num_threads(grid.threads)  # of the probe
    with ExitStack() as stack:
        trace = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pipelines = {  # side by side; idle ones only wait
            number: stack.enter_context(Pipeline.launch(config)) for number, config in configs.items()
        }
        bench = EngineBench(grid, configs, pipelines, trace, report)
        if 1 in grid.ranks:
            for number in _wide(grid):
                bench.compare_with_whole(number)
            bench.compare_paths()
        for peer in asked:
            if not peer.quantization:
                bench.compare_with_peer(peer)
        for name in quantizations:
            bench.compare_quantized(name, [peer for peer in asked if peer.quantization == name])
    bench.add_bandwidth_fractions()
    return EngineResult(
        setups=tuple(bench.setups),
        ratios={name: tuple(found) for name, found in bench.ratios.items()},
        not_measured=bench.not_measured,
        versions=bench.versions,
        model=model,
        meaningless=grid.config.meaningless,
        dtype=dtype,
        device=bench.device,
        threads=grid.threads,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeat=repeat,
        measured_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        noise=watch.noise(),
    )


def _wide(grid: SpeedGrid) -> list[int]:
    return [number for number in grid.ranks if number > 1]


def _sides(grid: SpeedGrid, configs: Mapping[int, PipelineConfig], asked: Sequence[Peer]) -> int:
    """Return how many measurements a repeat has for each batch."""
    sides = 2 * sum(peer.ranks in grid.ranks for peer in asked)
    if 1 in grid.ranks:
        sides += 2 * len(_wide(grid)) + (2 if configs[1].kernels == "native" else not _wide(grid))
    return sides


class EngineBench:
    """Our pipelines, and what was measured so far."""

    def __init__(
        self,
        grid: SpeedGrid,
        configs: Mapping[int, PipelineConfig],
        pipelines: Mapping[int, Pipeline],
        trace: Path,
        report: Callable[[str], None],
    ) -> None:
        self.setups: list[SetupResult] = []
        self.ratios: dict[str, list[SpeedRatio]] = {}
        self.not_measured: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self._grid, self._configs, self._pipelines = grid, configs, pipelines
        self._trace = trace
        self._running: dict[Pipeline, PipelineConfig] = {}
        self._report = report
        self._alone: dict[int, list[Sample]] = {batch: [] for batch in grid.batches}
        self._block = bandwidth_block()
        self._used = next(iter(configs.values()))  # all share model, dtype and device
        self.device = str(self._used.device)

    def compare_with_whole(self, ranks: int) -> None:
        """Compare ranks that have a lane each with one rank that has one, at the same slots per lane."""
        for batch in self._grid.batches:
            sides = [self._ours(ranks, ranks * batch, trace=self._trace), self._ours(1, batch)]
            found = self._measure(PIPELINE, sides)
            self._add(PIPELINE, ranks, batch, quotients(attrgetter("decode"), *found))
            self._add_compute_share(ranks, batch, found[0])

    def compare_paths(self) -> None:
        """Compare one rank's own kernels with torch's, the other path of ours; if there is none, measure one rank."""
        config = replace(self._configs[1], kernels="torch")
        if config == self._configs[1]:
            self.not_measured[EXACT] = "torch's kernels are the only ones that run here"
            for batch in self._grid.batches if len(self._grid.ranks) == 1 else ():
                self._measure(ALONE, [self._ours(1, batch)])
            return
        with Pipeline.launch(config) as by_torch:
            for batch in self._grid.batches:
                other = self._side(OURS_BY_TORCH, by_torch, replace(config, slots=batch), batch)
                found = self._measure(EXACT, [self._ours(1, batch), other])
                self._add(EXACT, 1, batch, quotients(attrgetter("decode"), *found))

    def compare_quantized(self, quantization: str, peers: Sequence[Peer]) -> None:
        """Compare one rank with quantized weights with one that has them as they are, and with peers of that form."""
        name = f"{quantization}_vs_{self._used.dtype}"
        if 1 not in self._grid.ranks:
            self.not_measured[name] = "it is that of one rank, which was not measured"
            return
        config = replace(self._configs[1], quantization=quantization)
        with Pipeline.launch(config) as pipeline:

            def ours(batch: int) -> Side:
                return self._side(f"{OURS} {quantization}", pipeline, replace(config, slots=batch), batch)

            for batch in self._grid.batches:
                found = self._measure(name, [ours(batch), self._ours(1, batch)])
                self._add(name, 1, batch, quotients(attrgetter("decode"), *found))
                self._add(f"prefill_{name}", 1, batch, quotients(attrgetter("prefill"), *found))
            for peer in peers:
                self.compare_with_peer(peer, ours)

    def compare_with_peer(self, peer: Peer, ours: Callable[[int], Side] | None = None) -> None:
        """Compare `ours`, by default as many ranks as the peer has, with it, at the same requests in flight."""
        decode, prefill = f"vs_{peer.name}", f"prefill_vs_{peer.name}"
        names = (decode, prefill) if peer.ranks == 1 else (decode,)
        grid = self._grid
        context = len(grid.prompts[0]) + grid.new_tokens
        model = PeerModel(grid.folder, self._used.dtype, self.device, grid.threads, context)
        try:
            if peer.ranks not in grid.ranks:
                raise PeerError(f"it runs on {peer.ranks} ranks: measure as many")
            with PeerProcess(peer, model) as process:
                self.versions[peer.name] = process.version
                for batch in grid.batches:
                    mine = ours(batch) if ours else self._ours(peer.ranks, batch)
                    sides = [mine, self._theirs(peer, process, batch)]
                    found = self._measure(decode, sides)
                    self._add(decode, peer.ranks, batch, quotients(attrgetter("decode"), *found))
                    if prefill in names:
                        self._add(prefill, peer.ranks, batch, quotients(attrgetter("prefill"), *found))
        except PeerError as error:
            self.not_measured |= dict.fromkeys(names, str(error))

    def add_bandwidth_fractions(self) -> None:
        """Compare the weights that one rank's decode steps use, at full size, with the bandwidth probed beside them."""
        cost = model_cost(self._grid.config, self._used.dtype)
        read_gb = (cost.layers * cost.layer.decode_bytes + cost.head.decode_bytes) / 1e9
        for batch, samples in self._alone.items():
            if not samples:
                self.not_measured["bandwidth_fraction"] = "it is that of one rank, which was not measured"
                continue
            shares = [read_gb * each.decode / batch / each.bandwidth_gb_per_s for each in samples]
            self._add("bandwidth_fraction", 1, batch, shares)

    def _add(self, name: str, ranks: int, batch: int, values: Sequence[float]) -> None:
        found = SpeedRatio(**vars(Spread.of(values)), model=self._used.model, ranks=ranks, batch=batch)
        self.ratios.setdefault(name, []).append(found)

    def _add_compute_share(self, ranks: int, batch: int, samples: Sequence[Sample]) -> None:
        self._pipelines[ranks].describe()  # makes the ranks flush their traces
        spans = read_trace(self._trace)
        try:
            shares = [compute_share(spans, each.speed.requests) for each in samples]
        except InputError as error:
            self.not_measured["compute_share"] = str(error)
        else:
            self._add("compute_share", ranks, batch, shares)

    def _ours(self, ranks: int, requests: int, **changes: Any) -> Side:
        """Return the side of our ranks, with changes of their configuration; by default all slots are in use."""
        config = replace(self._configs[ranks], **{"slots": -(-requests // ranks), **changes})
        return self._side(OURS, self._pipelines[ranks], config, requests)

    def _side(self, system: str, pipeline: Pipeline, config: PipelineConfig, requests: int) -> Side:
        prompts = self._grid.prompts[:requests]

        def measure() -> EngineSpeed:
            if self._running.get(pipeline) != config:
                pipeline.configure(config)
                self._running[pipeline] = config
            return our_speed(pipeline, prompts, self._grid.new_tokens)

        return Side(system, pipeline.config.ranks, requests, measure)

    def _theirs(self, peer: Peer, process: PeerProcess, requests: int) -> Side:
        prompts, new_tokens = self._grid.prompts[:requests], self._grid.new_tokens
        return Side(peer.name, peer.ranks, requests, lambda: process.measure(prompts, new_tokens))

    def _measure(self, comparison: str, sides: Sequence[Side]) -> list[list[Sample]]:
        """Measure sides in turn, after one run of each for warm-up; return the samples of each."""
        samples: list[list[Sample]] = [[] for _ in sides]
        for side in sides:
            side.measure()
        for _ in range(self._grid.repeat):
            for side, found in zip(sides, samples, strict=True):
                before = read_bandwidth_gb_per_s(self._block)
                speed = side.measure()
                found.append(Sample(speed, mean((before, read_bandwidth_gb_per_s(self._block)))))
                self._report(f"{side.system}, ranks: {side.ranks}, requests: {side.requests}")
        for side, found in zip(sides, samples, strict=True):
            self.setups.append(_setup_result(comparison, side, found, self._grid.threads))
            if (side.system, side.ranks) == (OURS, 1):
                self._alone[side.requests] += found
        return samples


def our_speed(pipeline: Pipeline, prompts: Sequence[tuple[int, ...]], new_tokens: int) -> EngineSpeed:
    """Answer all prompts at once with a running pipeline."""
    started = time.perf_counter()
    _, first = token_times(pipeline, prompts, 1)
    prefill = prefill_rate(prompts, first, started)
    numbers, times = token_times(pipeline, prompts, new_tokens)
    return EngineSpeed(decode_rate(times), prefill, numbers)


def decode_tokens_per_s(pipeline: Pipeline, prompts: Sequence[tuple[int, ...]], new_tokens: int) -> float:
    """Answer all prompts at once and return the total decode speed in tokens/s while all of them decode."""
    return decode_rate(token_times(pipeline, prompts, new_tokens)[1])


def token_times(
    pipeline: Pipeline, prompts: Sequence[tuple[int, ...]], new_tokens: int
) -> tuple[tuple[int, ...], list[list[float]]]:
    """Answer all prompts at once; return the requests' numbers, and the times in seconds at which their tokens came."""
    sampling = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)

    def answer(prompt: tuple[int, ...]) -> tuple[int, list[float]]:
        stream = pipeline.stream(Request(token_ids=prompt, sampling=sampling))
        times = [time.perf_counter() for _ in stream]
        return stream.answer().number, times

    with ThreadPoolExecutor(len(prompts)) as pool:
        numbers, times = zip(*pool.map(answer, prompts), strict=True)
    return numbers, list(times)


def quotients(of: Callable[[Sample], float], above: Sequence[Sample], below: Sequence[Sample]) -> list[float]:
    """Divide the speeds of two sides pair by pair."""
    return [of(ours) / of(theirs) for ours, theirs in zip(above, below, strict=True)]


def compute_share(spans: "pd.DataFrame", requests: Sequence[int]) -> float:
    """Return the share of time in which the rank that works least computes, head and sampling included.

    `spans` are those of `trace.read_trace`; what counts is the time while all of these requests decode.

    Raises:
        InputError: a request ended before all of them decoded.
    """
    each = spans[spans["kind"].isin(["compute", "sample"])].explode("requests")
    each = each[each["requests"].isin(requests)]
    decoding = each[each["phase"] == "decode"].groupby("requests")
    begin_ms, end_ms = decoding["start_ms"].min().max(), decoding["end_ms"].max().min()
    if not begin_ms < end_ms:
        raise InputError("a request ended before all of them decoded: give more --new-tokens")
    work = spans[spans["kind"].isin(["compute", "sample"])]
    clipped_ms = work["end_ms"].clip(begin_ms, end_ms) - work["start_ms"].clip(begin_ms, end_ms)
    return float(clipped_ms.groupby(work["rank"]).sum().min() / (end_ms - begin_ms))


def total_threads(cores: int, ranks: Sequence[int]) -> int:
    """Return the most threads, at least one per rank, that divide evenly by each number of ranks."""
    unit = math.lcm(*ranks)
    return max(unit, cores - cores % unit)


def bandwidth_block() -> "torch.Tensor":
    """Return the memory that `read_bandwidth_gb_per_s` reads."""
    import torch

    return torch.ones(PROBE_BYTES // 4, dtype=torch.float32)


def read_bandwidth_gb_per_s(block: "torch.Tensor") -> float:
    """Return the memory bandwidth of torch's current threads in 10⁹ bytes/s: the median of a few sums of a block."""
    return block.nbytes / median(seconds_of(block.sum) for _ in range(PROBE_PASSES)) / 1e9


def _configs(model: str, grid: SpeedGrid, dtype: str) -> dict[int, PipelineConfig]:
    """Return a pipeline for each number of ranks.

    All are on the device that has room for the most ranks, so that GPU and CPU are never compared.
    """
    used = resolve_config(PipelineConfig(model=model, ranks=max(grid.ranks), dtype=dtype))
    common = PipelineConfig(model=model, device=used.device, dtype=dtype, kernels=used.kernels)
    return {number: replace(common, ranks=number, threads=grid.threads // number) for number in grid.ranks}


def _setup_result(comparison: str, side: Side, samples: Sequence[Sample], threads: int) -> SetupResult:
    return SetupResult(
        comparison=comparison,
        system=side.system,
        ranks=side.ranks,
        threads_a_rank=threads // side.ranks,
        requests=side.requests,
        decode_tokens_per_s=Spread.of([each.decode for each in samples]),
        prefill_tokens_per_s=Spread.of([each.prefill for each in samples]),
        bandwidth_gb_per_s=Spread.of([each.bandwidth_gb_per_s for each in samples]),
    )
