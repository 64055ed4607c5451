"""Speed of the pipeline beside transformers' generate: prefill and decode, in tokens/s, at equal total threads.

A machine's memory bandwidth drifts, so figures are compared within a repeat: each repeat measures every setup once, one
after the other, and a ratio is the median of the repeats' own ratios.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any, Literal, Protocol

from qubic_lab.core import Request, SamplingParams
from qubic_lab.errors import check_at_least, check_choice, check_range
from qubic_lab.evals.compare import Progress
from qubic_lab.evals.reference import library
from qubic_lab.model.config import check_context, load_config
from qubic_lab.model.layout import DTYPE_BYTES
from qubic_lab.model.resolve import resolve_whole
from qubic_lab.pipeline import Pipeline, PipelineConfig
from qubic_lab.pipeline.config import resolve_config
from qubic_lab.pipeline.message import MAX_SLOTS
from qubic_lab.provenance import machine, source_commit, usable_cores

PROBE_BYTES = 512 * 2**20
"""Read at once by the bandwidth probe: more than caches hold."""
PROBE_PASSES = 5


@dataclass(frozen=True)
class Setup:
    """What is measured: a runner, its ranks (as many lanes), and the requests that decode together in each lane."""

    runner: Literal["pipeline", "transformers"]
    ranks: int
    batch: int

    @property
    def requests(self) -> int:
        """Requests under way at once."""
        return self.ranks * self.batch


@dataclass(frozen=True)
class Sample:
    """One measurement of a setup, over all its requests."""

    decode_tokens_per_s: float
    prefill_tokens_per_s: float


@dataclass(frozen=True)
class Pairing:
    """Two setups to compare in what `of` takes from their samples; `name`, `batch` and `ranks` label the ratio."""

    name: str
    batch: int
    ranks: int
    above: Setup
    below: Setup
    of: Callable[[Sample], float]


@dataclass(frozen=True)
class Spread:
    """The median over the repeats, the lowest and the highest."""

    median: float
    low: float
    high: float


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
class Ratio:
    """How many times as fast one setup is as another: the median, lowest and highest of the repeats' own ratios."""

    name: str
    batch: int
    ranks: int
    dtype: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class EngineResult:
    """All speeds and ratios, and what they were measured on; `threads` are a setup's in all."""

    setups: tuple[SetupResult, ...]
    ratios: tuple[Ratio, ...]
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
    machine: str
    commit: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


class Runner(Protocol):
    """Something that answers a batch of requests."""

    def measure(self, batch: int) -> Sample:
        """Answer `batch` requests a lane once."""


@dataclass(frozen=True)
class _Plan:
    """What will be measured, checked before anything is."""

    folder: Path
    base: PipelineConfig
    device: str
    meaningless: bool
    ranks: tuple[int, ...]
    batches: tuple[int, ...]
    dtypes: tuple[str, ...]
    threads: int
    prompts: tuple[tuple[int, ...], ...]
    new_tokens: int
    repeat: int


def bench_engine(
    model: str = "smollm2",
    ranks: Sequence[int] = (1, 2),
    batches: Sequence[int] = (1, 4, 8),
    dtypes: Sequence[str] = ("bf16",),
    prompt_tokens: int = 64,
    new_tokens: int = 32,
    repeat: int = 5,
    progress: Progress | None = None,
) -> EngineResult:
    """Measure the pipeline at several numbers of ranks and transformers, all in turn and at equal total threads.

    Args:
        model: alias, hub id, folder or GGUF file.
        ranks: numbers of ranks; one rank is always measured too, to compare with.
        batches: requests that decode together in a lane; a pipeline has as many lanes as ranks.
        dtypes: `fp32`, `bf16`, `fp16`.
        prompt_tokens: tokens of each prompt, random with a fixed seed.
        new_tokens: tokens of each answer, whatever its end tokens.
        repeat: measurements of each setup.
        progress: called after each measurement.

    Raises:
        InputError: a value is wrong, before anything runs.
        RankError, NonFiniteError: a run failed.
    """
    import torch

    plan = _plan(model, ranks, batches, dtypes, prompt_tokens, new_tokens, repeat)
    setups, pairings = plan_setups(plan.ranks, plan.batches), plan_ratios(plan.ranks, plan.batches)
    steps = len(plan.dtypes) * (repeat * len(setups) + len(plan.ranks) + 1)
    done = 0

    def report(what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(what, done, steps)

    torch.set_num_threads(plan.threads)
    before = read_bandwidth_gb_per_s()
    results: list[SetupResult] = []
    ratios: list[Ratio] = []
    with _pipelines(plan) as pipelines:
        for dtype in plan.dtypes:
            samples = _measure(setups, _runners(plan, pipelines, dtype), plan, dtype, report)
            results += [_setup_result(setup, samples[setup], dtype, plan.threads) for setup in setups]
            ratios += [ratio(pairing, samples, dtype) for pairing in pairings]
    return EngineResult(
        setups=tuple(results),
        ratios=tuple(ratios),
        bandwidth_before_gb_per_s=before,
        bandwidth_after_gb_per_s=read_bandwidth_gb_per_s(),
        model=model,
        meaningless=plan.meaningless,
        device=plan.device,
        threads=plan.threads,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeat=repeat,
        library=library(),
        machine=str(machine()),
        commit=str(source_commit()),
    )


def total_threads(cores: int, ranks: Sequence[int]) -> int:
    """Return the most threads, at least one a rank, that each number of ranks can share out evenly."""
    unit = math.lcm(*ranks)
    return max(unit, cores - cores % unit)


def plan_setups(ranks: Sequence[int], batches: Sequence[int]) -> tuple[Setup, ...]:
    """Return what a repeat measures, in order: what is compared stands close together."""
    setups: dict[Setup, None] = {}
    for batch in batches:
        setups[Setup("transformers", 1, batch)] = None
        for number in ranks:
            setups[Setup("pipeline", number, batch)] = None
            setups[Setup("pipeline", 1, number * batch)] = None
    return tuple(setups)


def plan_ratios(ranks: Sequence[int], batches: Sequence[int]) -> tuple[Pairing, ...]:
    """Return which setups are compared: one rank with transformers, and several ranks with one."""
    decode, prefill = attrgetter("decode_tokens_per_s"), attrgetter("prefill_tokens_per_s")
    pairings = []
    for batch in batches:
        one, reference = Setup("pipeline", 1, batch), Setup("transformers", 1, batch)
        pairings += [
            Pairing("one_rank_over_transformers", batch, 1, one, reference, decode),
            Pairing("one_rank_over_transformers_prefill", batch, 1, one, reference, prefill),
        ]
        for number in ranks:
            if number > 1:
                several, same_requests = Setup("pipeline", number, batch), Setup("pipeline", 1, number * batch)
                pairings += [
                    Pairing("ranks_over_one_rank_same_batch", batch, number, several, one, decode),
                    Pairing("ranks_over_one_rank_same_requests", batch, number, several, same_requests, decode),
                ]
    return tuple(pairings)


def spread(values: Sequence[float]) -> Spread:
    """Return the median, the lowest and the highest of at least one value."""
    return Spread(median(values), min(values), max(values))


def ratio(pairing: Pairing, samples: Mapping[Setup, Sequence[Sample]], dtype: str) -> Ratio:
    """Compare two setups repeat by repeat; `samples` holds one sample a repeat for each."""
    pairs = zip(samples[pairing.above], samples[pairing.below], strict=True)
    found = spread([pairing.of(above) / pairing.of(below) for above, below in pairs])
    return Ratio(pairing.name, pairing.batch, pairing.ranks, dtype, found.median, found.low, found.high)


def read_bandwidth_gb_per_s() -> float:
    """Return how fast torch's current threads read memory, in 10⁹ bytes/s: the median of a few sums over 512 MiB."""
    import torch

    block = torch.ones(PROBE_BYTES // 4, dtype=torch.float32)
    seconds = []
    for _ in range(PROBE_PASSES):
        started = time.perf_counter()
        block.sum()
        seconds.append(time.perf_counter() - started)
    return PROBE_BYTES / median(seconds) / 1e9


def random_prompts(vocab: int, count: int, tokens: int) -> tuple[tuple[int, ...], ...]:
    """Return `count` prompts of random token ids, always the same ones."""
    draw = random.Random(0)
    return tuple(tuple(draw.choices(range(vocab), k=tokens)) for _ in range(count))


def decode_tokens_per_s(pipeline: Pipeline, prompts: Sequence[tuple[int, ...]], new_tokens: int) -> float:
    """Answer all prompts at once and return the new tokens of all of them together a second, while all decode.

    That is the rate of the request whose first token came last, times the requests: from then on no prompt is
    computed, every slot gets a token in every round of the lanes, and a step costs the same when a neighbour has ended,
    since a lane always has its full number of rows.
    """
    answers = pipeline.answer_all(_requests(prompts, new_tokens))
    last = max((answer.completion for answer in answers), key=lambda completion: completion.ttft_ms)
    return len(prompts) * last.tokens_per_s


def _plan(
    model: str,
    ranks: Sequence[int],
    batches: Sequence[int],
    dtypes: Sequence[str],
    prompt_tokens: int,
    new_tokens: int,
    repeat: int,
) -> _Plan:
    for number in ranks:
        check_at_least("ranks", number, 1)
    for batch in batches:
        check_at_least("batch", batch, 1)
        check_range("batch × ranks", batch * max(ranks), 1, MAX_SLOTS)
    for dtype in dtypes:
        check_choice("dtype", dtype, DTYPE_BYTES)
    check_at_least("prompt_tokens", prompt_tokens, 1)
    check_at_least("new_tokens", new_tokens, 2)  # the first is the prefill's
    check_at_least("repeat", repeat, 1)
    folder = resolve_whole(model)
    config = load_config(folder)
    check_context(config, prompt_tokens, new_tokens)
    largest = resolve_config(PipelineConfig(model=model, ranks=max(ranks)))
    return _Plan(
        folder=folder,
        # All on the device that has room for the most ranks: else one rank on a GPU would be compared with two on CPUs.
        base=PipelineConfig(model=model, device=largest.device),
        device=largest.device,
        meaningless=largest.meaningless,
        ranks=tuple(dict.fromkeys((1, *ranks))),
        batches=tuple(dict.fromkeys(batches)),
        dtypes=tuple(dict.fromkeys(dtypes)),
        threads=total_threads(usable_cores(), ranks),
        prompts=random_prompts(config.vocab, max(ranks) * max(batches), prompt_tokens),
        new_tokens=new_tokens,
        repeat=repeat,
    )


@contextmanager
def _pipelines(plan: _Plan) -> Iterator[dict[int, Pipeline]]:
    """Run a pipeline for each number of ranks, side by side; one that has no request only waits."""
    with ExitStack() as stack:
        yield {
            number: stack.enter_context(
                Pipeline.launch(replace(plan.base, ranks=number, threads=plan.threads // number, dtype=plan.dtypes[0]))
            )
            for number in plan.ranks
        }


def _runners(plan: _Plan, pipelines: Mapping[int, Pipeline], dtype: str) -> dict[tuple[str, int], Runner]:
    """Return what measures a setup, by the setup's runner and ranks."""
    runners: dict[tuple[str, int], Runner] = {("transformers", 1): _TransformersRunner(plan, dtype)}
    for number, pipeline in pipelines.items():
        config = replace(plan.base, ranks=number, threads=plan.threads // number, dtype=dtype)
        runners["pipeline", number] = _PipelineRunner(plan, pipeline, config)
    return runners


def _measure(
    setups: Sequence[Setup],
    runners: Mapping[tuple[str, int], Runner],
    plan: _Plan,
    dtype: str,
    report: Callable[[str], None],
) -> dict[Setup, list[Sample]]:
    """Measure each setup once a repeat, after a round for nothing: what runs first also pays for loading."""
    for (name, number), runner in runners.items():
        runner.measure(min(plan.batches))
        report(f"warming up {name}, ranks: {number}, {dtype}")
    samples: dict[Setup, list[Sample]] = {setup: [] for setup in setups}
    for _ in range(plan.repeat):
        for setup in setups:
            samples[setup].append(runners[setup.runner, setup.ranks].measure(setup.batch))
            report(f"{setup.runner}, ranks: {setup.ranks}, batch {setup.batch}, {dtype}")
    return samples


def _setup_result(setup: Setup, samples: Sequence[Sample], dtype: str, threads: int) -> SetupResult:
    return SetupResult(
        runner=setup.runner,
        ranks=setup.ranks,
        batch=setup.batch,
        requests=setup.requests,
        dtype=dtype,
        threads_a_rank=threads // setup.ranks,
        decode_tokens_per_s=spread([sample.decode_tokens_per_s for sample in samples]),
        prefill_tokens_per_s=spread([sample.prefill_tokens_per_s for sample in samples]),
    )


class _PipelineRunner:
    """Answers through a running pipeline; prefill is the time of answers of one token."""

    def __init__(self, plan: _Plan, pipeline: Pipeline, config: PipelineConfig) -> None:
        self._plan = plan
        self._pipeline = pipeline
        self._config = config

    def measure(self, batch: int) -> Sample:
        self._pipeline.configure(replace(self._config, slots=batch))
        prompts = self._plan.prompts[: batch * self._pipeline.config.lanes]
        started = time.perf_counter()
        list(self._pipeline.answer_all(_requests(prompts, 1)))
        prefill_s = time.perf_counter() - started
        return Sample(
            decode_tokens_per_s=decode_tokens_per_s(self._pipeline, prompts, self._plan.new_tokens),
            prefill_tokens_per_s=sum(map(len, prompts)) / prefill_s,
        )


class _TransformersRunner:
    """Answers with transformers' generate in this process; prefill ends and decode starts with the first token."""

    def __init__(self, plan: _Plan, dtype: str) -> None:
        from transformers import AutoModelForCausalLM, GenerationConfig
        from transformers.utils import logging as transformers_logging

        from qubic_lab.model.decoder import torch_dtype

        transformers_logging.disable_progress_bar()
        self._plan = plan
        loader: Any = AutoModelForCausalLM  # its types know nothing of devices by name
        model = loader.from_pretrained(str(plan.folder), dtype=torch_dtype(dtype), local_files_only=True)
        self._model = model.to(plan.device)
        # A fresh config: the model's own may ask for sampling, and has end tokens.
        self._model.generation_config = GenerationConfig(max_new_tokens=plan.new_tokens, pad_token_id=0)

    def measure(self, batch: int) -> Sample:
        import torch

        prompts = torch.tensor(self._plan.prompts[:batch], device=self._plan.device)
        arrivals = _Arrivals()
        started = time.perf_counter()
        with torch.inference_mode():
            self._model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False, streamer=arrivals)
        _, first, *_, last = arrivals.times  # the prompt itself comes before the first token
        return Sample(
            decode_tokens_per_s=batch * (self._plan.new_tokens - 1) / (last - first),
            prefill_tokens_per_s=prompts.numel() / (first - started),
        )


class _Arrivals:
    """A streamer for transformers' generate that notes when each step's tokens come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, token_ids: object) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _requests(prompts: Sequence[tuple[int, ...]], new_tokens: int) -> list[Request]:
    sampling = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
    return [Request(token_ids=prompt, sampling=sampling) for prompt in prompts]
