"""Compares the pipeline's prefill and decode speed with transformers' `generate`, at equal total threads.

The memory bandwidth of a machine drifts, so speeds are compared within a repeat: each repeat measures every setup once,
and a ratio is the median of the repeats' own ratios.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any, Literal

from qubic_lab.bench.result import MeasuredResult, Spread, Table, counted, interval_text, seconds_of
from qubic_lab.core import Progress, Request, SamplingParams, no_progress
from qubic_lab.errors import check_at_least, check_choice, check_range
from qubic_lab.model.config import ModelConfig, check_context, load_config
from qubic_lab.model.layout import DTYPE_BYTES
from qubic_lab.model.resolve import resolve_whole
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig, resolve_config
from qubic_lab.pipeline.message import MAX_SLOTS
from qubic_lab.provenance import reference_library, usable_cores

PROBE_BYTES = 512 * 2**20
"""Size of the bandwidth probe: more than the caches hold."""
PROBE_PASSES = 5


@dataclass(frozen=True)
class EngineSetup:
    """What is measured: a runner, its ranks (and as many lanes), and the requests that decode together in a lane."""

    runner: Literal["pipeline", "transformers"]
    ranks: int
    batch: int

    @property
    def requests(self) -> int:
        return self.ranks * self.batch


@dataclass(frozen=True)
class EngineSpeed:
    """One measurement of a setup, over all its requests."""

    decode_tokens_per_s: float
    prefill_tokens_per_s: float


@dataclass(frozen=True)
class Pairing:
    """Two setups whose speeds, read by `of`, are divided; `name`, `batch` and `ranks` label the ratio."""

    name: str
    batch: int
    ranks: int
    numerator: EngineSetup
    denominator: EngineSetup
    of: Callable[[EngineSpeed], float]


@dataclass(frozen=True)
class SetupResult:
    """The speed of one setup in one dtype."""

    runner: str
    ranks: int
    batch: int
    requests: int
    dtype: str
    threads_a_rank: int
    decode_tokens_per_s: Spread
    prefill_tokens_per_s: Spread


@dataclass(frozen=True)
class SpeedRatio:
    """Speed of one setup divided by another's: the median, lowest and highest of the repeats' own ratios."""

    name: str
    batch: int
    ranks: int
    dtype: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class EngineResult(MeasuredResult):
    """All speeds and ratios; `threads` are the total threads of a setup."""

    setups: tuple[SetupResult, ...]
    ratios: tuple[SpeedRatio, ...]
    bandwidth_before_gb_per_s: float
    bandwidth_after_gb_per_s: float
    model: str
    meaningless: bool
    device: str
    threads: int
    prompt_tokens: int
    new_tokens: int
    repeat: int
    library: str

    def report(self) -> Iterator[Table | str]:
        setups = [
            (
                *(s.runner, f"{s.ranks} × {s.threads_a_rank}", f"{s.batch}", f"{s.requests}", s.dtype),
                *(speed.text(".1f") for speed in (s.decode_tokens_per_s, s.prefill_tokens_per_s)),
            )
            for s in self.setups
        ]
        header = ("runner", "ranks × threads", "batch", "requests", "dtype", "decode tokens/s", "prefill tokens/s")
        yield Table(header, setups)
        ratios = [
            (r.name, f"{r.ranks}", f"{r.batch}", r.dtype, interval_text(r.value, r.low, r.high, ".2f"))
            for r in self.ratios
        ]
        yield Table(("ratio", "ranks", "batch", "dtype", "median (low to high)"), ratios)


Runner = Callable[[int], EngineSpeed]
"""Answers a batch of requests in each lane once."""


@dataclass(frozen=True)
class SpeedGrid:
    """What is measured at equal total threads: numbers of ranks, and requests that decode together in a lane (batches).

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
        """Return the grid of a model, with random prompts.

        Raises:
            InputError: a value is out of range.
        """
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
    dtypes: Sequence[str] = ("bf16",),
    prompt_tokens: int = 64,
    new_tokens: int = 32,
    repeat: int = 5,
    progress: Progress = no_progress,
) -> EngineResult:
    """Measure the pipeline with several numbers of ranks, and transformers, in turn and at equal total threads.

    Prompts are random with a fixed seed, and end tokens are ignored. A pipeline has as many lanes as ranks, and
    `batches` are the requests that decode together in a lane. One rank is always measured too, for comparison.

    Raises:
        InputError: a value is out of range; nothing was run.
        RankError, NonFiniteError: a run failed.
    """
    import torch

    for dtype in dtypes:
        check_choice("dtype", dtype, DTYPE_BYTES)
    check_at_least("new_tokens", new_tokens, 2)  # the first token belongs to the prefill
    grid = SpeedGrid.of(model, (1, *ranks), batches, prompt_tokens, new_tokens, repeat)
    configs = _configs(model, grid)
    setups, pairings = plan_setups(grid.ranks, grid.batches), plan_ratios(grid.ranks, grid.batches)
    chosen = tuple(dict.fromkeys(dtypes))
    report = counted(progress, len(chosen) * (repeat * len(setups) + len(grid.ranks) + 1))
    torch.set_num_threads(grid.threads)
    before = read_bandwidth_gb_per_s()
    results, ratios = list[SetupResult](), list[SpeedRatio]()
    with ExitStack() as stack:
        pipelines = {  # side by side; idle ones only wait
            number: stack.enter_context(Pipeline.launch(replace(config, dtype=chosen[0])))
            for number, config in configs.items()
        }
        device = pipelines[1].config.device
        for dtype in chosen:
            runners = {("transformers", 1): _transformers_runner(grid, device, dtype)}
            for number, config in configs.items():
                config = replace(config, dtype=dtype)
                runners["pipeline", number] = partial(_run_pipeline, grid, pipelines[number], config)
            samples = _measure(setups, runners, grid, dtype, report)
            results += [_setup_result(setup, samples[setup], dtype, grid.threads) for setup in setups]
            ratios += [ratio(pairing, samples, dtype) for pairing in pairings]
    return EngineResult(
        setups=tuple(results),
        ratios=tuple(ratios),
        bandwidth_before_gb_per_s=before,
        bandwidth_after_gb_per_s=read_bandwidth_gb_per_s(),
        model=model,
        meaningless=grid.config.meaningless,
        device=device,
        threads=grid.threads,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeat=repeat,
        library=reference_library(),
    )


def _configs(model: str, grid: SpeedGrid) -> dict[int, PipelineConfig]:
    """Return a pipeline for each number of ranks.

    All are on the device that has room for the most ranks, so that GPU and CPU are never compared.
    """
    device = resolve_config(PipelineConfig(model=model, ranks=max(grid.ranks))).device
    return {
        number: PipelineConfig(model=model, device=device, ranks=number, threads=grid.threads // number)
        for number in grid.ranks
    }


def total_threads(cores: int, ranks: Sequence[int]) -> int:
    """Return the most threads, at least one per rank, that divide evenly by each number of ranks."""
    unit = math.lcm(*ranks)
    return max(unit, cores - cores % unit)


def plan_setups(ranks: Sequence[int], batches: Sequence[int]) -> tuple[EngineSetup, ...]:
    """Return the setups of a repeat in the order of measurement, with those that are compared next to each other."""
    setups: dict[EngineSetup, None] = {}
    for batch in batches:
        setups[EngineSetup("transformers", 1, batch)] = None
        for number in ranks:
            setups[EngineSetup("pipeline", number, batch)] = None
            setups[EngineSetup("pipeline", 1, number * batch)] = None
    return tuple(setups)


def plan_ratios(ranks: Sequence[int], batches: Sequence[int]) -> tuple[Pairing, ...]:
    """Return the comparisons: one rank with transformers, and several ranks with one."""
    decode, prefill = attrgetter("decode_tokens_per_s"), attrgetter("prefill_tokens_per_s")
    pairings = []
    for batch in batches:
        one, reference = EngineSetup("pipeline", 1, batch), EngineSetup("transformers", 1, batch)
        pairings += [
            Pairing("one_rank_over_transformers", batch, 1, one, reference, decode),
            Pairing("one_rank_over_transformers_prefill", batch, 1, one, reference, prefill),
        ]
        for number in ranks:
            if number > 1:
                several = EngineSetup("pipeline", number, batch)
                same_requests = EngineSetup("pipeline", 1, number * batch)
                pairings += [
                    Pairing("ranks_over_one_rank_same_batch", batch, number, several, one, decode),
                    Pairing("ranks_over_one_rank_same_requests", batch, number, several, same_requests, decode),
                ]
    return tuple(pairings)


def ratio(pairing: Pairing, samples: Mapping[EngineSetup, Sequence[EngineSpeed]], dtype: str) -> SpeedRatio:
    """Divide the speeds of two setups repeat by repeat; `samples` holds one measurement per repeat of each setup."""
    pairs = zip(samples[pairing.numerator], samples[pairing.denominator], strict=True)
    found = Spread.of([pairing.of(above) / pairing.of(below) for above, below in pairs])
    return SpeedRatio(pairing.name, pairing.batch, pairing.ranks, dtype, found.median, found.low, found.high)


def read_bandwidth_gb_per_s() -> float:
    """Return the memory bandwidth of torch's current threads in 10⁹ bytes/s: the median of a few sums over 512 MiB."""
    import torch

    block = torch.ones(PROBE_BYTES // 4, dtype=torch.float32)
    return PROBE_BYTES / median(seconds_of(block.sum) for _ in range(PROBE_PASSES)) / 1e9


def decode_tokens_per_s(pipeline: Pipeline, prompts: Sequence[tuple[int, ...]], new_tokens: int) -> float:
    """Answer all prompts at once and return the total decode speed in tokens/s while all of them decode.

    This is the rate of the request whose first token came last, times the number of requests: from then on there is no
    prefill, and every slot gets a token in every round of the lanes. A step costs the same after a neighbour has ended,
    because a lane always has its full number of rows.
    """
    answers = pipeline.answer_all(_requests(prompts, new_tokens))
    last = max((answer.completion for answer in answers), key=lambda completion: completion.ttft_ms)
    return len(prompts) * last.tokens_per_s


def _measure(
    setups: Sequence[EngineSetup],
    runners: Mapping[tuple[str, int], Runner],
    grid: SpeedGrid,
    dtype: str,
    report: Callable[[str], None],
) -> dict[EngineSetup, list[EngineSpeed]]:
    """Measure each setup once per repeat, after a warm-up round."""
    for (name, number), runner in runners.items():
        runner(min(grid.batches))
        report(f"warming up {name}, ranks: {number}, {dtype}")
    samples: dict[EngineSetup, list[EngineSpeed]] = {setup: [] for setup in setups}
    for _ in range(grid.repeat):
        for setup in setups:
            samples[setup].append(runners[setup.runner, setup.ranks](setup.batch))
            report(f"{setup.runner}, ranks: {setup.ranks}, batch {setup.batch}, {dtype}")
    return samples


def _setup_result(setup: EngineSetup, samples: Sequence[EngineSpeed], dtype: str, threads: int) -> SetupResult:
    return SetupResult(
        **vars(setup),
        requests=setup.requests,
        dtype=dtype,
        threads_a_rank=threads // setup.ranks,
        decode_tokens_per_s=Spread.of([each.decode_tokens_per_s for each in samples]),
        prefill_tokens_per_s=Spread.of([each.prefill_tokens_per_s for each in samples]),
    )


def _run_pipeline(grid: SpeedGrid, pipeline: Pipeline, config: PipelineConfig, batch: int) -> EngineSpeed:
    """Answer with a running pipeline; the prefill speed is that of answers of one token."""
    pipeline.configure(replace(config, slots=batch))
    prompts = grid.prompts[: batch * pipeline.config.lanes]
    prefill_s = seconds_of(lambda: list(pipeline.answer_all(_requests(prompts, 1))))
    return EngineSpeed(
        decode_tokens_per_s=decode_tokens_per_s(pipeline, prompts, grid.new_tokens),
        prefill_tokens_per_s=sum(map(len, prompts)) / prefill_s,
    )


def _transformers_runner(grid: SpeedGrid, device: str, dtype: str) -> Runner:
    """Return a runner that answers with transformers' `generate` in this process; prefill ends with the first token."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging as transformers_logging

    from qubic_lab.model.decoder import torch_dtype

    transformers_logging.disable_progress_bar()
    loader: Any = AutoModelForCausalLM  # its type hints do not allow device names
    model = loader.from_pretrained(str(grid.folder), dtype=torch_dtype(dtype), local_files_only=True).to(device)
    # The model's own config may ask for sampling, and has end tokens.
    model.generation_config = GenerationConfig(max_new_tokens=grid.new_tokens, pad_token_id=0)

    def run(batch: int) -> EngineSpeed:
        prompts = torch.tensor(grid.prompts[:batch], device=device)
        arrivals = _Arrivals()
        started = time.perf_counter()
        with torch.inference_mode():
            model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False, streamer=arrivals)
        _, first, *_, last = arrivals.times  # the streamer also gets the prompt
        return EngineSpeed(
            decode_tokens_per_s=batch * (grid.new_tokens - 1) / (last - first),
            prefill_tokens_per_s=prompts.numel() / (first - started),
        )

    return run


class _Arrivals:
    """A streamer for transformers' `generate` that records the time of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, token_ids: object) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _requests(prompts: Sequence[tuple[int, ...]], new_tokens: int) -> list[Request]:
    sampling = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
    return [Request(token_ids=prompt, sampling=sampling) for prompt in prompts]
