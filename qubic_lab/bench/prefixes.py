"""Measures what a common beginning of many questions costs with and without prefix caching."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from qubic_lab.bench.result import (
    FEWEST_PAIRS,
    ModelResult,
    Table,
    interval_text,
    median_interval,
    settings_of,
)
from qubic_lab.core import Progress, Request, SamplingParams, no_progress
from qubic_lab.errors import check_at_least
from qubic_lab.model.config import check_context, load_config
from qubic_lab.model.split import text_folder
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig

_FIRST_TOKEN = 10
"""Lower ids are often special tokens."""


@dataclass(frozen=True)
class PrefixesResult(ModelResult):
    """Seconds for the first tokens of all questions, and how many times as fast they come with prefix caching.

    `speedup_low` and `speedup_high` enclose the median with 95 % confidence; `cached_share` is the share of the
    prompts' tokens that were not computed, `same` whether all first tokens are the same.
    """

    questions: int
    common_tokens: int
    own_tokens: int
    whole_s: tuple[float, ...]
    cached_s: tuple[float, ...]
    speedup: float
    speedup_low: float
    speedup_high: float
    cached_share: float
    same: bool
    layers: tuple[int, ...]
    slots: int

    def report(self) -> Iterator[Table | str]:
        def row(name: str, times: tuple[float, ...], share: float) -> tuple[str, ...]:
            return name, f"{sorted(times)[len(times) // 2]:.2f}", f"{share:.0%}"

        rows = [row("without", self.whole_s, 0.0), row("with", self.cached_s, self.cached_share)]
        yield Table(("prefix caching", "seconds", "prompt tokens not computed"), rows)
        yield (
            f"{self.questions} questions of {self.common_tokens} common and {self.own_tokens} own tokens: first tokens "
            f"come {interval_text(self.speedup, self.speedup_low, self.speedup_high, '.2f')} times as fast with prefix "
            f"caching ({len(self.whole_s)} pairs), and they are {'the same' if self.same else 'DIFFERENT'}"
        )


def bench_prefixes(
    config: PipelineConfig,
    questions: int = 100,
    common_tokens: int = 512,
    own_tokens: int = 32,
    repeat: int = 7,
    progress: Progress = no_progress,
) -> PrefixesResult:
    """Ask questions that begin alike, for one token each, in turn with and without prefix caching.

    Each repeat has new random tokens, so nothing is known of the one before.

    Raises:
        InputError: a number is out of range, or the model cannot be found.
        RankError: a rank was lost.
    """
    for name, value in (("questions", questions), ("common tokens", common_tokens), ("own tokens", own_tokens)):
        check_at_least(name, value, 1)
    check_at_least("repeat", repeat, FEWEST_PAIRS)
    draw = random.Random(0)
    times: dict[bool, list[float]] = {True: [], False: []}
    same, cached = True, 0
    with Pipeline.launch(config) as pipeline:
        used = pipeline.config
        model = load_config(text_folder(used.folder))
        check_context(model, common_tokens + own_tokens, 1)

        def tokens(count: int) -> tuple[int, ...]:
            return tuple(draw.randrange(_FIRST_TOKEN, model.vocab) for _ in range(count))

        for number in range(repeat):
            common = tokens(common_tokens)
            asked = [
                Request(token_ids=(*common, *tokens(own_tokens)), sampling=SamplingParams(1)) for _ in range(questions)
            ]
            first: dict[bool, list[tuple[int, ...]]] = {}
            for caching in (False, True) if number % 2 else (True, False):
                pipeline.configure(replace(config, prefix_caching=caching))
                pipeline.generate(Request(token_ids=tokens(own_tokens), sampling=SamplingParams(1)))  # warm-up
                started = time.perf_counter()
                answers = [each.completion for each in pipeline.answer_all(asked)]
                times[caching].append(time.perf_counter() - started)
                first[caching] = [each.token_ids for each in answers]
                cached += sum(each.cached_tokens for each in answers)
            same = same and first[True] == first[False]
            progress("measuring", number + 1, repeat)
    speedup, low, high = median_interval(
        [whole / known for whole, known in zip(times[False], times[True], strict=True)]
    )
    return PrefixesResult(
        questions=questions,
        common_tokens=common_tokens,
        own_tokens=own_tokens,
        whole_s=tuple(times[False]),
        cached_s=tuple(times[True]),
        speedup=speedup,
        speedup_low=low,
        speedup_high=high,
        cached_share=cached / (repeat * questions * (common_tokens + own_tokens)),
        same=same,
        **settings_of(used, "layers", "slots"),
    )
