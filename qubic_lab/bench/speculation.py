"""Measures how much faster answers come with drafted tokens, on texts that repeat themselves and on free ones."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median

from qubic_lab.bench.result import ModelResult, Table, interval_text, quantile_interval, settings_of
from qubic_lab.core import Progress, Request, SamplingParams, no_progress
from qubic_lab.errors import check_at_least
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig

FEWEST_PAIRS = 6
CODE = """def area(x, y):
    x = x * 2
    y = y + x
    for i in range(10):
        x = x + i
        y = y - x
    return x * y
"""
ROUTE = "The bus stops at the station, the school, the market, the bridge, the harbour, the museum and the park."
PROMPTS = {
    "code": (f"Add a comment to every line of this function:\n\n{CODE}", f"Rename x to width in:\n\n{CODE}"),
    "quoting": (f"Repeat this text word for word, five times: {ROUTE}", f"Quote this, then translate it: {ROUTE}"),
    "arithmetic": ("Write the multiplication table of 7 up to 7 * 20.", "Count from 1 to 60, one number a line."),
    "free": ("Tell a story about a dog who travels to the moon.", "Why is the sky blue? Explain it to a child."),
}
"""Kinds of text, by how much of an answer stands in it or in its question already."""


@dataclass(frozen=True)
class SpeculationPoint:
    """Answers to one kind of prompt at one temperature.

    `ratio` is tokens/s with drafts divided by tokens/s without, the median over pairs; `low` to `high` is its 95 %
    interval. `drafted` is the share of tokens that took no step of their own.
    """

    kind: str
    temperature: float
    tokens_per_s: float
    drafted: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class SpeculationResult(ModelResult):
    """Answers of one request at a time, with and without drafts; `equal_tokens` says whether all were the same."""

    points: tuple[SpeculationPoint, ...]
    equal_tokens: bool
    pairs: int
    ranks: int
    new_tokens: int

    def report(self) -> Iterator[Table | str]:
        rows = [
            (
                *(each.kind, f"{each.temperature:g}", f"{each.tokens_per_s:.1f}", f"{each.drafted:.0%}"),
                interval_text(each.ratio, each.low, each.high, ".2f"),
            )
            for each in self.points
        ]
        head = ("text", "temperature", "tokens/s without drafts", "drafted tokens", "times as fast with drafts")
        yield Table(head, rows)
        yield f"one request at a time, {self.new_tokens} new tokens, {self.pairs} pairs, 95 % intervals"
        yield "no token changes" if self.equal_tokens else "TOKENS CHANGE"


def bench_speculation(
    config: PipelineConfig, pairs: int = 10, new_tokens: int = 128, progress: Progress = no_progress
) -> SpeculationResult:
    """Answer prompts of each kind with and without drafts in turns, greedily and at temperature 0.7.

    Raises:
        InputError: too few pairs, or as for Pipeline.launch.
        ModelError, RankError: as for Pipeline.launch.
    """
    check_at_least("pairs", pairs, FEWEST_PAIRS)
    ways = {each: replace(config, speculation=each) for each in (None, "lookup")}
    requests = {
        (kind, temperature): [
            Request(text, sampling=SamplingParams(new_tokens, temperature, seed=1, ignore_eos=True)) for text in texts
        ]
        for kind, texts in PROMPTS.items()
        for temperature in (0.0, 0.7)
    }
    speeds = {(*key, way): list[float]() for key in requests for way in ways}
    drafted: Counter[tuple[str, float]] = Counter()
    answers: defaultdict[Request, set[tuple[int, ...]]] = defaultdict(set)
    with Pipeline.launch(ways["lookup"]) as pipeline:
        used = pipeline.config
        for pair in range(-1, pairs):  # the first is the warm-up
            for way in (None, "lookup") if pair % 2 == 0 else ("lookup", None):
                pipeline.configure(ways[way])
                for key, asked in requests.items():
                    done = [pipeline.answer(request).completion for request in asked]
                    for request, completion in zip(asked, done, strict=True):
                        answers[request].add(completion.token_ids)
                    if pair >= 0:
                        speeds[*key, way].append(len(done) / sum(1 / each.tokens_per_s for each in done))
                        drafted[key] += sum(each.drafted_tokens for each in done)
            progress("pairs", pair + 1, pairs)
    return SpeculationResult(
        points=tuple(
            _point(*key, speeds[*key, None], speeds[*key, "lookup"], drafted[key] / (pairs * len(asked) * new_tokens))
            for key, asked in requests.items()
        ),
        equal_tokens=all(len(found) == 1 for found in answers.values()),
        pairs=pairs,
        new_tokens=new_tokens,
        **settings_of(used, "ranks"),
    )


def _point(
    kind: str, temperature: float, without: list[float], with_drafts: list[float], drafted: float
) -> SpeculationPoint:
    ratios = [drafting / plain for drafting, plain in zip(with_drafts, without, strict=True)]
    low, high = quantile_interval(ratios, 0.5)
    assert low is not None and high is not None  # there are enough pairs
    return SpeculationPoint(kind, temperature, median(without), drafted, median(ratios), low, high)
