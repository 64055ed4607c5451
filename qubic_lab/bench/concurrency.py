"""Measures one pipeline with several numbers of concurrent clients: latency, throughput, and whether answers change.

Clients are closed loops: each sends its next request when it has its answer. A block asks every question once. Each
repeat runs one block for every number of clients, so that drift of the machine affects all of them alike.
"""

import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from qubic_lab.bench.noise import NoiseWatch
from qubic_lab.bench.result import ModelResult, Percentiles, Spread, Table, interval_text, quantile, settings_of
from qubic_lab.core import Progress, Request, SamplingParams, no_progress
from qubic_lab.errors import InputError, check_at_least, check_range
from qubic_lab.model.config import check_context, load_config
from qubic_lab.model.split import text_folder
from qubic_lab.pipeline.calls import PipelineAnswer
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import MOST_WAITING, PipelineConfig, ResolvedConfig, resolve_config
from qubic_lab.trace import read_trace, request_times

if TYPE_CHECKING:
    import pandas as pd

LEVELS = (1, 2, 4, 8, 10, 16)
FEWEST_PROMPT_TOKENS = 8
FEWEST_NEW_TOKENS = 2
TEMPERATURES = (0.0, 0.7, 1.0)


@dataclass(frozen=True)
class ClientRequest:
    """A request as its client saw it: index of the question, latency in seconds, and the answer."""

    index: int
    latency_s: float
    answer: PipelineAnswer


@dataclass(frozen=True)
class ClientBlock:
    """All questions asked once by some clients; `finished` counts the requests that the pipeline finished meanwhile."""

    clients: int
    seconds: float
    asked: tuple[ClientRequest, ...]
    finished: int

    @property
    def numbers(self) -> tuple[int, ...]:
        """The pipeline's numbers of the requests."""
        return tuple(each.answer.number for each in self.asked)

    @property
    def tokens_per_s(self) -> float:
        """New tokens of all answers, divided by the block's time."""
        return sum(len(each.answer.completion.token_ids) for each in self.asked) / self.seconds


@dataclass(frozen=True)
class ConcurrencyLevel:
    """All blocks of one number of clients.

    Percentiles are of the latencies that clients saw (see `Percentiles`). `compute_shares` is the share of a block's
    time in which each rank computed or sampled, as the median over blocks. `answered` counts the requests that the
    pipeline finished; `changed` lists the questions whose answer differs from the one given alone.
    """

    clients: int
    requests: int
    p50_s: float
    p50_low_s: float | None
    p50_high_s: float | None
    p95_s: float
    p95_low_s: float | None
    p95_high_s: float | None
    p99_s: float
    p99_low_s: float | None
    p99_high_s: float | None
    ttft_p50_s: float
    ttft_p95_s: float
    queue_p50_s: float
    queue_p95_s: float
    tokens_per_s: float
    tokens_per_s_samples: tuple[float, ...]
    compute_shares: tuple[float, ...]
    answered: int
    changed: tuple[int, ...]
    answers_unchanged: bool
    latencies_s: tuple[float, ...]


@dataclass(frozen=True)
class ConcurrencyResult(ModelResult):
    """All levels; `requests` are those of a block, `slots` those of a lane."""

    levels: tuple[ConcurrencyLevel, ...]
    ranks: int
    lanes: int
    slots: int
    requests: int
    repeat: int
    most_prompt_tokens: int
    most_new_tokens: int

    def report(self) -> Iterator[Table | str]:
        rows = [
            (
                *(f"{level.clients}", f"{level.requests}", f"{level.p50_s:.2f}"),
                interval_text(level.p95_s, level.p95_low_s, level.p95_high_s, ".2f"),
                *(f"{level.p99_s:.2f}", f"{level.ttft_p50_s:.2f}", f"{level.queue_p50_s:.2f}"),
                Spread.of(level.tokens_per_s_samples).text(".1f"),
                " / ".join(f"{share:.0%}" for share in level.compute_shares),
                "same" if level.answers_unchanged else f"{len(level.changed)} changed",
            )
            for level in self.levels
        ]
        times = ("p50 s", "p95 s (95 % interval)", "p99 s", "first token s", "queue s")
        yield Table(("clients", "requests", *times, "tokens/s", "ranks at work", "answers"), rows)


def bench_concurrency(
    config: PipelineConfig,
    levels: Sequence[int] = LEVELS,
    requests: int = 16,
    repeat: int = 5,
    most_prompt_tokens: int = 64,
    most_new_tokens: int = 16,
    progress: Progress = no_progress,
) -> ConcurrencyResult:
    """Ask the same questions with several numbers of clients, and compare the answers with those given alone.

    Each of the `levels` is a number of clients; with more of them than lanes × slots, requests wait for a slot.
    `requests` are the questions of a block, at least one for each client, `repeat` the blocks of a level. Prompts have
    8 random tokens or more, answers 2 or more, and end tokens are ignored.

    Raises:
        InputError: a value is out of range; nothing was run.
        ModelError, RankError: as for Pipeline.launch.
    """
    resolved = resolve_config(config)
    _check(resolved, levels, requests, repeat, most_prompt_tokens, most_new_tokens)
    vocab = load_config(text_folder(resolved.folder)).vocab
    questions = make_questions(vocab, requests, most_prompt_tokens, most_new_tokens)
    blocks: list[ClientBlock] = []
    watch = NoiseWatch()
    with tempfile.TemporaryDirectory() as folder, Pipeline.launch(replace(config, trace=Path(folder))) as pipeline:
        alone = ask(pipeline, questions, range(requests), clients=1)  # also warms the pipeline up
        for clients, order in plan_blocks(levels, requests, repeat):
            progress(f"{clients} at once", len(blocks), repeat * len(levels))
            blocks.append(ask(pipeline, questions, order, clients))
        noise = watch.noise()
        pipeline.describe()  # makes the ranks flush their traces
        spans = read_trace(Path(folder))
    expected = {each.index: each.answer.completion.token_ids for each in alone.asked}
    queue_s = (request_times(spans)["queue_ms"].xs(0, level="rank") / 1000).to_dict()
    shares = {block: compute_shares(spans, block.numbers, resolved.ranks) for block in blocks}
    return ConcurrencyResult(
        levels=tuple(
            summarize([block for block in blocks if block.clients == clients], expected, queue_s, shares)
            for clients in levels
        ),
        requests=requests,
        repeat=repeat,
        most_prompt_tokens=most_prompt_tokens,
        most_new_tokens=most_new_tokens,
        noise=noise,
        **settings_of(resolved, "ranks", "lanes", "slots"),
    )


def make_questions(vocab: int, count: int, most_prompt_tokens: int, most_new_tokens: int) -> tuple[Request, ...]:
    """Return requests of random tokens and mixed lengths, greedy and sampled; the same arguments give the same ones."""
    draw = random.Random(0)
    return tuple(
        Request(
            token_ids=tuple(draw.choices(range(vocab), k=draw.randint(FEWEST_PROMPT_TOKENS, most_prompt_tokens))),
            sampling=SamplingParams(
                max_new_tokens=draw.randint(FEWEST_NEW_TOKENS, most_new_tokens),
                temperature=TEMPERATURES[index % len(TEMPERATURES)],
                seed=index,
                ignore_eos=True,
            ),
        )
        for index in range(count)
    )


def plan_blocks(levels: Sequence[int], requests: int, repeat: int) -> Iterator[tuple[int, list[int]]]:
    """Yield the number of clients and the order of questions for each block; each repeat has another order."""
    for number in range(repeat):
        for clients in levels:
            yield clients, random.Random(number).sample(range(requests), requests)


def ask(pipeline: Pipeline, questions: Sequence[Request], order: Sequence[int], clients: int) -> ClientBlock:
    """Ask all questions once; each client takes the next question when it has its answer."""

    def ask_one(index: int) -> ClientRequest:
        started = time.perf_counter()
        answer = pipeline.answer(questions[index])
        return ClientRequest(index, time.perf_counter() - started, answer)

    finished = pipeline.stats().finished
    with ThreadPoolExecutor(clients) as pool:
        started = time.perf_counter()
        asked = tuple(pool.map(ask_one, order))
        seconds = time.perf_counter() - started
    return ClientBlock(clients, seconds, asked, pipeline.stats().finished - finished)


def compute_shares(spans: "pd.DataFrame", numbers: Sequence[int], ranks: int) -> tuple[float, ...]:
    """Return the share of a block's time in which each rank computed or sampled.

    The block, whose requests have these `numbers`, takes from its first submission to the end of its last work.
    """
    own = spans[spans["requests"].map(lambda requests: bool(requests) and requests[0] in numbers)]
    work = own[own["kind"].isin(["compute", "sample"])]
    worked_ms = (work["end_ms"] - work["start_ms"]).groupby(work["rank"]).sum()
    all_ms = work["end_ms"].max() - own[own["kind"] == "queue"]["start_ms"].min()
    return tuple(float(worked_ms[rank] / all_ms) for rank in range(ranks))


def summarize(
    blocks: Sequence[ClientBlock],
    expected: Mapping[int, tuple[int, ...]],
    queue_s: Mapping[int, float],
    shares: Mapping[ClientBlock, Sequence[float]],
) -> ConcurrencyLevel:
    """Summarize the blocks of one level.

    `expected` are the tokens of the answer that each question got alone; `queue_s` is the time from submission to the
    first work, by the request's number; `shares` is the share of each block's time in which each rank computed.
    """
    asked = [each for block in blocks for each in block.asked]
    completions = [each.answer.completion for each in asked]
    latencies_s = tuple(sorted(each.latency_s for each in asked))
    ttfts_s = [completion.ttft_ms / 1000 for completion in completions]
    waits_s = [queue_s[number] for block in blocks for number in block.numbers]
    rates = [block.tokens_per_s for block in blocks]
    changed = sorted({each.index for each in asked if each.answer.completion.token_ids != expected[each.index]})
    percentiles: dict[str, Any] = {f"{name}_s": value for name, value in vars(Percentiles.of(latencies_s)).items()}
    return ConcurrencyLevel(
        clients=blocks[0].clients,
        requests=len(asked),
        **percentiles,
        ttft_p50_s=quantile(ttfts_s, 0.5),
        ttft_p95_s=quantile(ttfts_s, 0.95),
        queue_p50_s=quantile(waits_s, 0.5),
        queue_p95_s=quantile(waits_s, 0.95),
        tokens_per_s=median(rates),
        tokens_per_s_samples=tuple(rates),
        compute_shares=tuple(median(ranks) for ranks in zip(*(shares[block] for block in blocks), strict=True)),
        answered=sum(block.finished for block in blocks),
        changed=tuple(changed),
        answers_unchanged=not changed,
        latencies_s=latencies_s,
    )


def _check(
    resolved: ResolvedConfig,
    levels: Sequence[int],
    requests: int,
    repeat: int,
    most_prompt_tokens: int,
    most_new_tokens: int,
) -> None:
    most = resolved.lanes * resolved.slots + MOST_WAITING
    for clients in levels:
        check_range("clients", clients, 1, most)
    if not levels or len(set(levels)) < len(levels):
        raise InputError(f"clients are {list(levels)}: give at least one number, each once")
    if requests < max(levels):
        raise InputError(f"requests is {requests}: {max(levels)} clients need at least one each")
    check_at_least("repeat", repeat, 1)
    check_at_least("most_prompt_tokens", most_prompt_tokens, FEWEST_PROMPT_TOKENS)
    check_at_least("most_new_tokens", most_new_tokens, FEWEST_NEW_TOKENS)
    check_context(load_config(text_folder(resolved.folder)), most_prompt_tokens, most_new_tokens)
