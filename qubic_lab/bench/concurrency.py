"""Many clients at one pipeline: how long answers take, how much comes out in all, and whether any answer changes.

Clients are closed loops: each asks its next question when its answer has come. A block asks every question once; each
repeat takes every number of clients in turn, so that a machine's drift meets all of them alike.
"""

import math
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from qubic_lab.core import Request, SamplingParams
from qubic_lab.errors import InputError, check_at_least, check_range
from qubic_lab.evals.compare import Progress
from qubic_lab.model.config import check_context, load_config
from qubic_lab.model.split import text_folder
from qubic_lab.pipeline import Pipeline, PipelineConfig
from qubic_lab.pipeline.calls import Answer
from qubic_lab.pipeline.config import ResolvedConfig, resolve_config
from qubic_lab.pipeline.server import MOST_WAITING
from qubic_lab.provenance import machine, source_commit
from qubic_lab.trace import read_trace, request_times

if TYPE_CHECKING:
    import pandas as pd

LEVELS = (1, 2, 4, 8, 10, 16)
FEWEST_PROMPT_TOKENS = 8
FEWEST_NEW_TOKENS = 2
TEMPERATURES = (0.0, 0.7, 1.0)
CONFIDENCE = 0.95
ROUNDING = 1e-9
"""0.95 × 20 is a little more than 19 in floating point; its rank is 19."""


@dataclass(frozen=True)
class Asked:
    """A request as its client saw it: the question's index, times in seconds, and the answer that came."""

    index: int
    latency_s: float
    answer: Answer


@dataclass(frozen=True)
class Block:
    """All questions asked once by some clients: what came, how long it took in all, what the pipeline finished."""

    clients: int
    seconds: float
    asked: tuple[Asked, ...]
    finished: int

    @property
    def numbers(self) -> tuple[int, ...]:
        """The requests' numbers on the pipeline."""
        return tuple(each.answer.number for each in self.asked)

    @property
    def tokens_per_s(self) -> float:
        """New tokens of all answers over the block's time."""
        return sum(len(each.answer.completion.token_ids) for each in self.asked) / self.seconds


@dataclass(frozen=True)
class Level:
    """What a number of clients at once was like, over all its blocks.

    Quantiles are order statistics of `requests` latencies, end to end as clients saw them, each with a 95 % interval;
    an end that so few requests cannot give is None. `p99_s` is the slowest request where there are fewer than 100.
    `compute_shares` is the share of a block's time that each rank computed or sampled, the median of blocks.
    `answered` counts the requests that the pipeline finished, `changed` are the questions whose answer was another than
    the one that they got alone.
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
class ConcurrencyResult:
    """All levels, and what they were measured on; `requests` of a block, `threads` of a rank, `slots` of a lane."""

    levels: tuple[Level, ...]
    model: str
    meaningless: bool
    ranks: int
    lanes: int
    slots: int
    dtype: str
    device: str
    threads: int
    requests: int
    repeat: int
    most_prompt_tokens: int
    most_new_tokens: int
    machine: str
    commit: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def bench_concurrency(
    config: PipelineConfig,
    levels: Sequence[int] = LEVELS,
    requests: int = 16,
    repeat: int = 5,
    most_prompt_tokens: int = 64,
    most_new_tokens: int = 16,
    progress: Progress | None = None,
) -> ConcurrencyResult:
    """Ask the same questions by several numbers of clients at once, and compare each answer with the one it got alone.

    Args:
        config: the pipeline; where there are more clients than lanes × slots, requests wait for a slot.
        levels: numbers of clients.
        requests: questions in a block, at least as many as clients.
        repeat: blocks of each level.
        most_prompt_tokens: prompts have from 8 to so many random tokens.
        most_new_tokens: answers have from 2 to so many tokens, whatever the end tokens.
        progress: called after each block.

    Raises:
        InputError: a value is wrong, before anything runs.
        ModelError, RankError: as of Pipeline.launch.
    """
    resolved = resolve_config(config)
    _check(resolved, levels, requests, repeat)
    vocab = _vocab(resolved, most_prompt_tokens, most_new_tokens)
    questions = make_questions(vocab, requests, most_prompt_tokens, most_new_tokens)
    blocks: list[Block] = []
    with tempfile.TemporaryDirectory() as folder, Pipeline.launch(replace(config, trace=Path(folder))) as pipeline:
        alone = ask(pipeline, questions, range(requests), clients=1)  # what a pipeline's first answers pay for, too
        for clients, order in plan_blocks(levels, requests, repeat):
            if progress is not None:
                progress(f"{clients} at once", len(blocks), repeat * len(levels))
            blocks.append(ask(pipeline, questions, order, clients))
        pipeline.describe()  # the ranks write out what they have noted
        spans = read_trace(Path(folder))
    expected = {each.index: each.answer.completion.token_ids for each in alone.asked}
    queue_s = (request_times(spans)["queue_ms"].xs(0, level="rank") / 1000).to_dict()
    shares = {block: compute_shares(spans, block.numbers, resolved.ranks) for block in blocks}
    return ConcurrencyResult(
        levels=tuple(
            summarize([block for block in blocks if block.clients == clients], expected, queue_s, shares)
            for clients in levels
        ),
        model=config.model,
        meaningless=resolved.meaningless,
        ranks=resolved.ranks,
        lanes=resolved.lanes,
        slots=resolved.slots,
        dtype=resolved.dtype,
        device=resolved.device,
        threads=resolved.threads,
        requests=requests,
        repeat=repeat,
        most_prompt_tokens=most_prompt_tokens,
        most_new_tokens=most_new_tokens,
        machine=str(machine()),
        commit=str(source_commit()),
    )


def make_questions(vocab: int, count: int, most_prompt_tokens: int, most_new_tokens: int) -> tuple[Request, ...]:
    """Return the same requests for the same numbers: random tokens, mixed lengths, greedy and sampled, own seeds."""
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
    """Yield the clients of each block and the order of its questions: another in each repeat, for other neighbours."""
    for number in range(repeat):
        for clients in levels:
            yield clients, random.Random(number).sample(range(requests), requests)


def ask(pipeline: Pipeline, questions: Sequence[Request], order: Sequence[int], clients: int) -> Block:
    """Ask all questions once by so many clients, each of which takes the next one when its answer has come."""

    def ask_one(index: int) -> Asked:
        started = time.perf_counter()
        answer = pipeline.answer(questions[index])
        return Asked(index, time.perf_counter() - started, answer)

    finished = pipeline.stats().finished
    with ThreadPoolExecutor(clients) as pool:
        started = time.perf_counter()
        asked = tuple(pool.map(ask_one, order))
        seconds = time.perf_counter() - started
    return Block(clients, seconds, asked, pipeline.stats().finished - finished)


def compute_shares(spans: "pd.DataFrame", numbers: Sequence[int], ranks: int) -> tuple[float, ...]:
    """Return the share of time that each rank computed or sampled while some requests, and no others, ran.

    The time is from the first one's submission to the end of the last work on any.
    """
    own = spans[spans["requests"].map(lambda requests: bool(requests) and requests[0] in numbers)]
    work = own[own["kind"].isin(["compute", "sample"])]
    worked_ms = (work["end_ms"] - work["start_ms"]).groupby(work["rank"]).sum()
    all_ms = work["end_ms"].max() - own[own["kind"] == "queue"]["start_ms"].min()
    return tuple(float(worked_ms[rank] / all_ms) for rank in range(ranks))


def summarize(
    blocks: Sequence[Block],
    expected: Mapping[int, tuple[int, ...]],
    queue_s: Mapping[int, float],
    shares: Mapping[Block, Sequence[float]],
) -> Level:
    """Sum up the blocks of one level.

    Args:
        blocks: at least one, all of the same clients.
        expected: the tokens that each question got alone.
        queue_s: the time from submission to the first work, by a request's number.
        shares: each rank's share of computing in a block.
    """
    asked = [each for block in blocks for each in block.asked]
    completions = [each.answer.completion for each in asked]
    latencies_s = sorted(each.latency_s for each in asked)
    ttfts_s = [completion.ttft_ms / 1000 for completion in completions]
    waits_s = [queue_s[number] for block in blocks for number in block.numbers]
    rates = [block.tokens_per_s for block in blocks]
    changed = sorted({each.index for each in asked if each.answer.completion.token_ids != expected[each.index]})
    p50_low_s, p50_high_s = quantile_interval(latencies_s, 0.5)
    p95_low_s, p95_high_s = quantile_interval(latencies_s, 0.95)
    p99_low_s, p99_high_s = quantile_interval(latencies_s, 0.99)
    return Level(
        clients=blocks[0].clients,
        requests=len(asked),
        p50_s=quantile(latencies_s, 0.5),
        p50_low_s=p50_low_s,
        p50_high_s=p50_high_s,
        p95_s=quantile(latencies_s, 0.95),
        p95_low_s=p95_low_s,
        p95_high_s=p95_high_s,
        p99_s=quantile(latencies_s, 0.99),
        p99_low_s=p99_low_s,
        p99_high_s=p99_high_s,
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
        latencies_s=tuple(latencies_s),
    )


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least a share of the values does not exceed (the nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values) - ROUNDING) - 1)]


def quantile_interval(
    values: Sequence[float], share: float, confidence: float = CONFIDENCE
) -> tuple[float | None, float | None]:
    """Return two of the values that enclose a quantile, whatever the distribution; None where too few values are there.

    The number of values below the quantile is binomial with p = share. Source: W. J. Conover, "Practical Nonparametric
    Statistics", 3rd edition (1999), section 3.2.
    """
    ordered, count = sorted(values), len(values)
    tail = (1 - confidence) / 2
    below = list(accumulate(_binomial(count, k, share) for k in range(count + 1)))  # below[k] = P(at most k)
    lows = [k for k in range(count) if below[k] <= tail]
    highs = [k for k in range(count) if 1 - below[k] <= tail]
    return (ordered[lows[-1]] if lows else None), (ordered[highs[0]] if highs else None)


def _binomial(count: int, k: int, p: float) -> float:
    """Return the probability of k successes; by logarithms, since the coefficients overflow."""
    ways = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
    return math.exp(ways + k * math.log(p) + (count - k) * math.log(1 - p))


def _check(resolved: ResolvedConfig, levels: Sequence[int], requests: int, repeat: int) -> None:
    most = resolved.lanes * resolved.slots + MOST_WAITING
    for clients in levels:
        check_range("clients", clients, 1, most)
    if not levels or len(set(levels)) < len(levels):
        raise InputError(f"clients are {list(levels)}: give at least one number, each once")
    if requests < max(levels):
        raise InputError(f"requests is {requests}: {max(levels)} clients need at least one each")
    check_at_least("repeat", repeat, 1)


def _vocab(resolved: ResolvedConfig, most_prompt_tokens: int, most_new_tokens: int) -> int:
    """Return the number of the model's tokens, once it is sure that the longest request fits."""
    config = load_config(text_folder(resolved.folder))
    check_at_least("most_prompt_tokens", most_prompt_tokens, FEWEST_PROMPT_TOKENS)
    check_at_least("most_new_tokens", most_new_tokens, FEWEST_NEW_TOKENS)
    check_context(config, most_prompt_tokens, most_new_tokens)
    return config.vocab
