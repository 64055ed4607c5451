"""Measures the cost of further samples of one prompt: k samples against one sample, and against k requests."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from qubic_lab.bench.result import MeasuredResult, Spread, Table
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


@dataclass(frozen=True)
class SamplesResult(MeasuredResult):
    """Times of one sample, of k samples of one prompt, and of k requests with different prompts.

    Attributes:
        times: time of k samples as a multiple of the time of one.
        requests_times: time of k requests as a multiple of the time of one sample.
        within_limit: whether the median of `times` is at most `limit`.
    """

    samples: int
    one_s: SampleTimes
    samples_s: SampleTimes
    requests_s: SampleTimes
    times: SampleTimes
    requests_times: SampleTimes
    limit: float
    within_limit: bool
    model: str
    meaningless: bool
    layers: tuple[int, ...]
    lanes: int
    slots: int
    dtype: str
    device: str
    threads: int
    prompt_tokens: int
    new_tokens: int

    def report(self) -> Iterator[Table | str]:
        """Yield the three times."""
        count = self.samples
        rows = [
            ("one sample", self.one_s.text(), "1"),
            (f"{count} samples of one prompt", self.samples_s.text(), self.times.text()),
            (f"{count} requests", self.requests_s.text(), self.requests_times.text()),
        ]
        yield Table(("", "seconds", "times one sample"), rows)
        yield (
            f"{count} samples take {'no more' if self.within_limit else 'more'} than {self.limit:g} times one. "
            f"{len(self.times.all)} repeats, median (lowest to highest); {self.prompt_tokens} prompt tokens, "
            f"{self.new_tokens} new ones; {self.model}, layers {','.join(map(str, self.layers))}, {self.lanes} lanes "
            f"of {self.slots}, {self.dtype}, {self.device}, {self.threads} threads a rank, {self.machine}, "
            f"commit {self.commit}"
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

    Args:
        config: the pipeline; its lanes must have slots for all samples.
        samples: number of samples of one prompt.
        prompt_tokens: tokens of each prompt, random with a fixed seed.
        new_tokens: tokens of each sample; end tokens are ignored.
        repeat: measurements of each time.
        progress: called after each repeat.

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
        prompts = _Prompts(used, prompt_tokens, new_tokens)
        work: dict[str, Callable[[], Any]] = {
            "one": lambda: pipeline.answer(prompts.next()),
            "samples": lambda: pipeline.samples(prompts.next(), samples),
            "requests": lambda: list(pipeline.answer_all([prompts.next() for _ in range(samples)])),
        }
        for ask in work.values():  # warm-up
            ask()
        for number in range(repeat):
            for name, ask in work.items():
                started_s = time.perf_counter()
                ask()
                taken[name].append(time.perf_counter() - started_s)
            progress("measuring", number + 1, repeat)
    return _result(used, taken, samples, prompt_tokens, new_tokens)


class _Prompts:
    """Requests with random prompts."""

    def __init__(self, used: ResolvedConfig, prompt_tokens: int, new_tokens: int) -> None:
        self._draw = random.Random(0)
        self._vocabulary = load_config(text_folder(used.folder)).vocab
        self._tokens = prompt_tokens
        self._sampling = SamplingParams(max_new_tokens=new_tokens, temperature=TEMPERATURE, ignore_eos=True)

    def next(self) -> Request:
        """Return a request with a new prompt."""
        ids = tuple(self._draw.randrange(_FIRST_TOKEN, self._vocabulary) for _ in range(self._tokens))
        return Request(token_ids=ids, sampling=self._sampling)


def _result(
    used: ResolvedConfig, taken: dict[str, list[float]], samples: int, prompt_tokens: int, new_tokens: int
) -> SamplesResult:
    def ratios(name: str) -> SampleTimes:
        return _times([several / one for several, one in zip(taken[name], taken["one"], strict=True)])

    times = ratios("samples")
    return SamplesResult(
        samples=samples,
        one_s=_times(taken["one"]),
        samples_s=_times(taken["samples"]),
        requests_s=_times(taken["requests"]),
        times=times,
        requests_times=ratios("requests"),
        limit=TIMES_LIMIT,
        within_limit=times.median <= TIMES_LIMIT,
        model=used.model,
        meaningless=used.meaningless,
        layers=used.layers,
        lanes=used.lanes,
        slots=used.slots,
        dtype=used.dtype,
        device=used.device,
        threads=used.threads,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
    )


def _times(taken: list[float]) -> SampleTimes:
    return SampleTimes(median(taken), min(taken), max(taken), tuple(taken))
