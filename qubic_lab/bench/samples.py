"""What further samples of a question cost: k samples of one prompt beside one sample, and beside k requests."""

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from qubic_lab.core import Request, SamplingParams
from qubic_lab.errors import check_at_least, check_range
from qubic_lab.evals.compare import Progress
from qubic_lab.model.config import check_context, load_config
from qubic_lab.model.split import text_folder
from qubic_lab.pipeline import Pipeline, PipelineConfig
from qubic_lab.pipeline.config import ResolvedConfig
from qubic_lab.provenance import machine, source_commit

TIMES_LIMIT = 2.0
"""Set beforehand: so many times what one sample takes, at most."""
TEMPERATURE = 0.7
_FIRST_TOKEN = 10
"""Ids below are often special."""


@dataclass(frozen=True)
class Times:
    """Seconds, or their ratio to one sample's of the same repeat: the median, lowest and highest, and all."""

    median: float
    low: float
    high: float
    all: tuple[float, ...]


@dataclass(frozen=True)
class SamplesResult:
    """How long one sample takes, k samples of one prompt, and k requests with prompts of their own.

    Attributes:
        times: k samples as a multiple of one sample.
        requests_times: k requests as a multiple of one sample.
        within_limit: whether the median of `times` is at most `limit`.
    """

    samples: int
    one_s: Times
    samples_s: Times
    requests_s: Times
    times: Times
    requests_times: Times
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
    machine: str
    commit: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def bench_samples(
    config: PipelineConfig,
    samples: int = 4,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    repeat: int = 5,
    progress: Progress | None = None,
) -> SamplesResult:
    """Time the three in turn, `repeat` times, each time with prompts that were not seen before.

    Args:
        config: of the pipeline; its lanes must have slots for all samples.
        samples: of one prompt.
        prompt_tokens: of each prompt, drawn by chance with a fixed seed.
        new_tokens: of each sample, whatever its end tokens.
        repeat: measurements of each.
        progress: called after each measurement.

    Raises:
        InputError: a number is out of its range, or the model cannot be found.
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
        for ask in work.values():  # what a process does once is not measured
            ask()
        for number in range(repeat):
            for name, ask in work.items():
                started_s = time.perf_counter()
                ask()
                taken[name].append(time.perf_counter() - started_s)
            if progress is not None:
                progress("measuring", number + 1, repeat)
    return _result(used, taken, samples, prompt_tokens, new_tokens)


class _Prompts:
    """Requests with a prompt of their own each."""

    def __init__(self, used: ResolvedConfig, prompt_tokens: int, new_tokens: int) -> None:
        self._draw = random.Random(0)
        self._vocabulary = load_config(text_folder(used.folder)).vocab
        self._tokens = prompt_tokens
        self._sampling = SamplingParams(max_new_tokens=new_tokens, temperature=TEMPERATURE, ignore_eos=True)

    def next(self) -> Request:
        """Return the next one."""
        ids = tuple(self._draw.randrange(_FIRST_TOKEN, self._vocabulary) for _ in range(self._tokens))
        return Request(token_ids=ids, sampling=self._sampling)


def _result(
    used: ResolvedConfig, taken: dict[str, list[float]], samples: int, prompt_tokens: int, new_tokens: int
) -> SamplesResult:
    def ratios(name: str) -> Times:
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
        machine=str(machine()),
        commit=str(source_commit()),
    )


def _times(taken: list[float]) -> Times:
    return Times(median(taken), min(taken), max(taken), tuple(taken))
