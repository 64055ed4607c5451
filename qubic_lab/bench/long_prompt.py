"""Measures what a long prompt does to short requests that are answered at the same time."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from qubic_lab.bench.noise import NoiseWatch
from qubic_lab.bench.result import (
    FEWEST_PAIRS,
    ModelResult,
    Table,
    interval_text,
    median_interval,
    quantile,
    settings_of,
)
from qubic_lab.core import Progress, Request, SamplingParams, no_progress
from qubic_lab.errors import RequestCancelled, check_at_least
from qubic_lab.model.config import check_context, load_config
from qubic_lab.model.split import text_folder
from qubic_lab.pipeline.client import Pipeline, Stream
from qubic_lab.pipeline.config import PipelineConfig

TIMES_LIMIT = 2.0


@dataclass(frozen=True)
class LongPromptResult(ModelResult):
    """Times between tokens of short requests, as their clients saw them.

    `p95_ms` and `p95_with_ms` are medians over pairs of the 95th percentile without and with the long prompt; `times`
    is the median of their ratios, with its 95 % interval from `low` to `high`. `finished_early` counts the pairs in
    which the long prompt was read before the last short answer ended.
    """

    p95_ms: float
    p95_with_ms: float
    times: float
    low: float
    high: float
    within_limit: bool
    answers_unchanged: bool
    short: int
    long_prompt_tokens: int
    prompt_tokens: int
    new_tokens: int
    pairs: int
    finished_early: int
    ranks: int

    def report(self) -> Iterator[Table | str]:
        rows = [
            ("alone", f"{self.p95_ms:.1f}", ""),
            (
                f"with a prompt of {self.long_prompt_tokens:,}",
                f"{self.p95_with_ms:.1f}",
                interval_text(self.times, self.low, self.high, ".2f"),
            ),
        ]
        yield Table((f"{self.short} short requests", "p95 ms between tokens", "times (95 % interval)"), rows)
        yield (
            f"{'within' if self.within_limit else 'above'} {TIMES_LIMIT:g} times; {self.pairs} pairs; the long prompt "
            f"was read before the last short answer ended in {self.finished_early} of them"
        )
        yield "no answer changes" if self.answers_unchanged else "ANSWERS CHANGE"


def bench_long_prompt(
    config: PipelineConfig,
    long_prompt_tokens: int = 16_000,
    short: int = 50,
    prompt_tokens: int = 32,
    new_tokens: int = 48,
    pairs: int = 6,
    progress: Progress = no_progress,
) -> LongPromptResult:
    """Answer short requests at once, in turns without and with a long prompt that is sent just before them.

    When the short ones are answered, the long one is cancelled. The pipeline's lanes must have slots for all.

    Raises:
        InputError: a value is out of range, or as for Pipeline.launch.
        ModelError, RankError: as for Pipeline.launch.
    """
    check_at_least("pairs", pairs, FEWEST_PAIRS)
    check_at_least("short requests", short, 1)
    check_at_least("prompt tokens", min(prompt_tokens, long_prompt_tokens), 1)
    check_at_least("new tokens", new_tokens, 2)
    watch = NoiseWatch()
    p95_ms: dict[bool, list[float]] = {False: [], True: []}
    answers: list[set[tuple[int, ...]]] = [set() for _ in range(short)]
    early = 0
    with Pipeline.launch(config) as pipeline, ThreadPoolExecutor(short + 1) as pool:
        used = pipeline.config
        shape = load_config(text_folder(used.folder))
        check_context(shape, long_prompt_tokens, 1)
        draw = Random(0)

        def request(count: int, new: int, seed: int) -> Request:
            ids = tuple(draw.choices(range(shape.vocab), k=count))
            return Request(token_ids=ids, sampling=SamplingParams(new, temperature=1.0, seed=seed, ignore_eos=True))

        asked = [request(prompt_tokens, new_tokens, seed) for seed in range(short)]
        long = request(long_prompt_tokens, 1, short)
        for pair in range(-1, pairs):  # the first is the warm-up
            for with_long in (False, True) if pair % 2 else (True, False):
                reading = pool.submit(_read, stream := pipeline.stream(long)) if with_long else None
                gaps_ms: list[float] = []
                for number, (tokens, times_s) in enumerate(pool.map(_read, map(pipeline.stream, asked))):
                    answers[number].add(tokens)
                    gaps_ms += [1e3 * (b - a) for a, b in pairwise(times_s)]
                if reading is not None:
                    early += reading.done() and pair >= 0
                    stream.cancel()
                    with suppress(RequestCancelled):
                        reading.result()
                if pair >= 0:
                    p95_ms[with_long].append(quantile(gaps_ms, 0.95))
            progress("pairs", pair + 1, pairs)
        noise = watch.noise()
    times, low, high = median_interval([b / a for a, b in zip(p95_ms[False], p95_ms[True], strict=True)])
    return LongPromptResult(
        p95_ms=quantile(p95_ms[False], 0.5),
        p95_with_ms=quantile(p95_ms[True], 0.5),
        times=times,
        low=low,
        high=high,
        within_limit=times <= TIMES_LIMIT,
        answers_unchanged=all(len(each) == 1 for each in answers),
        short=short,
        long_prompt_tokens=long_prompt_tokens,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        pairs=pairs,
        finished_early=early,
        noise=noise,
        **settings_of(used, "ranks"),
    )


def _read(stream: Stream) -> tuple[tuple[int, ...], list[float]]:
    """Return an answer's tokens, and when each came."""
    came = [(token.id, time.perf_counter()) for token in stream]
    return tuple(token for token, _ in came), [time_s for _, time_s in came]
