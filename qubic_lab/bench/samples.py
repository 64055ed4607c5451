"""Measures the cost of further samples of one prompt: k samples against one sample, and against k requests."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import Any

from qubic_lab.bench.result import ModelResult, Spread, Table, seconds_of, settings_of
from qubic_lab.core import Progress, Request, SamplingParams, no_progress
from qubic_lab.errors import check_at_least, check_range
from qubic_lab.model.config import check_context, load_config
from qubic_lab.model.split import text_folder
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig, ResolvedConfig

TIMES_LIMIT = 2.0
"""Limit for the time of all samples, as a multiple of the time of one."""
TEMPERATURE = 0.7
_FIRST_TOKEN = 10
"""Lower ids are often special tokens."""


@dataclass(frozen=True)
class SampleTimes(Spread):
    """Seconds, or their ratio to the time of one sample in the same repeat; `all` holds every measurement."""

    all: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "SampleTimes":
        return cls(median(values), min(values), max(values), tuple(values))


@dataclass(frozen=True)
class SamplesResult(ModelResult):
    """Times of one sample, of k samples of one prompt, and of k requests with different prompts.

    `times` and `requests_times` are multiples of the time of one sample; `limit` is that of the median of `times`.
    """

    samples: int
    one_s: SampleTimes
    samples_s: SampleTimes
    requests_s: SampleTimes
    times: SampleTimes
    requests_times: SampleTimes
    limit: float
    within_limit: bool
    layers: tuple[int, ...]
    lanes: int
    slots: int
    prompt_tokens: int
    new_tokens: int

    def report(self) -> Iterator[Table | str]:
        count = self.samples
        rows = [
            ("one sample", self.one_s.text(), "1"),
            (f"{count} samples of one prompt", self.samples_s.text(), self.times.text()),
            (f"{count} requests", self.requests_s.text(), self.requests_times.text()),
        ]
        yield Table(("", "seconds", "times one sample"), rows)
        yield (
            f"{count} samples take {'no more' if self.within_limit else 'more'} than {self.limit:g} times one; "
            f"{len(self.times.all)} repeats, median (lowest to highest)"
        )


def bench_samples(
    config: PipelineConfig,
    samples: int = 4,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    repeat: int = 5,
    progress: Progress = no_progress,
) -> SamplesResult:
    """Measure the three times in turn, `repeat` times, each time with new prompts.

    The pipeline's lanes must have slots for all samples. Prompts are random with a fixed seed; end tokens are ignored.

    Raises:
        InputError: a number is out of range, or the model cannot be found.
        RankError: a rank was lost.
    """
    check_at_least("samples", samples, 2)
    check_at_least("repeat", repeat, 1)
    check_range("prompt tokens", prompt_tokens, 1, 100_000)
    taken: dict[str, list[float]] = {"one": [], "samples": [], "requests": []}
    with Pipeline.launch(config) as pipeline:
        used = pipeline.config
        check_range("samples", samples, 2, used.lanes * used.slots)
        check_context(load_config(text_folder(used.folder)), prompt_tokens, new_tokens)
        prompts = _random_requests(used, prompt_tokens, new_tokens)
        work: dict[str, Callable[[], Any]] = {
            "one": lambda: pipeline.answer(next(prompts)),
            "samples": lambda: pipeline.samples(next(prompts), samples),
            "requests": lambda: list(pipeline.answer_all(list(islice(prompts, samples)))),
        }
        for ask in work.values():  # warm-up
            ask()
        for number in range(repeat):
            for name, ask in work.items():
                taken[name].append(seconds_of(ask))
            progress("measuring", number + 1, repeat)

    def ratios(name: str) -> SampleTimes:
        return SampleTimes.of([several / one for several, one in zip(taken[name], taken["one"], strict=True)])

    times = ratios("samples")
    return SamplesResult(
        samples=samples,
        one_s=SampleTimes.of(taken["one"]),
        samples_s=SampleTimes.of(taken["samples"]),
        requests_s=SampleTimes.of(taken["requests"]),
        times=times,
        requests_times=ratios("requests"),
        limit=TIMES_LIMIT,
        within_limit=times.median <= TIMES_LIMIT,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        **settings_of(used, "layers", "lanes", "slots"),
    )


def _random_requests(used: ResolvedConfig, prompt_tokens: int, new_tokens: int) -> Iterator[Request]:
    """Yield requests, each with a new random prompt."""
    draw = random.Random(0)
    vocabulary = load_config(text_folder(used.folder)).vocab
    sampling = SamplingParams(max_new_tokens=new_tokens, temperature=TEMPERATURE, ignore_eos=True)
    while True:
        ids = tuple(draw.randrange(_FIRST_TOKEN, vocabulary) for _ in range(prompt_tokens))
        yield Request(token_ids=ids, sampling=sampling)
