"""Measures how much faster answers come with drafted tokens, on texts that repeat themselves and on free ones."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

from qubic_lab.bench.result import ModelResult, Table, interval_text, quantile_interval, seconds_of, settings_of
from qubic_lab.core import Progress, Request, SamplingParams, no_progress
from qubic_lab.errors import check_at_least
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig
from qubic_lab.pipeline.text import Tokenizer

FEWEST_PAIRS = 6
_METHODS = "".join(
    f"""
    def add_{fruit}(self, count):
        \"\"\"Add {fruit} to the shop.\"\"\"
        if count < 0:
            raise ValueError("count must not be negative")
        self.{fruit} = self.{fruit} + count
        return self.{fruit}
"""
    for fruit in ("apples", "pears")
)
_REPORT = (
    "We measured the river on Monday and again on Friday. On Monday it was two metres deep below the bridge. On "
    "Friday, after the storm, it was four metres deep, and the ferry did not run. The school at the river was closed."
)
_STORY = (
    "Once there was a dog who wanted to see the moon from near by. Each night he climbed the hill behind the mill and "
    "barked until the owls complained. An old woman heard him, laughed, and built him a small rocket out of milk cans, "
    "tape and a bicycle bell. It flew no higher than the church, but from up there he saw the sea for the first time, "
    "with all the stars lying in it, and he forgot what he had come for."
)
TEXTS = {
    "code": (f"Rename count to number:\n{_METHODS}", f"Here it is:\n{_METHODS.replace('count', 'number')}"),
    "quoting": (
        f"{_REPORT}\nWhat does the report say?",
        f'The report says: "{_REPORT}" It says nothing about Tuesday.',
    ),
    "arithmetic": (
        "Write the multiplication table of 12.",
        "\n".join(f"{n} times 12 is {12 * n}, because {n} times 10 is {10 * n}." for n in range(1, 11)),
    ),
    "free": ("Tell a story about a dog who wants to travel to the moon.", _STORY),
}
"""Questions and answers, by how much of an answer stands in it or in its question already."""
OWN = "the model's own, free"
_FREE = SamplingParams(max_new_tokens=128, temperature=0.7, seed=1, ignore_eos=True)


@dataclass(frozen=True)
class SpeculationPoint:
    """Answers of one kind.

    `ratio` is the time without drafts divided by the time with them, the median over pairs; `low` to `high` is its 95 %
    interval. `ms_per_token` is the median without drafts, prompt included.
    """

    kind: str
    tokens: int
    ms_per_token: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class SpeculationResult(ModelResult):
    """Answers with and without drafts, one at a time; `equal_tokens` says whether the model's own were the same."""

    points: tuple[SpeculationPoint, ...]
    equal_tokens: bool
    pairs: int
    ranks: int

    def report(self) -> Iterator[Table | str]:
        rows = [
            (
                *(each.kind, f"{each.tokens}", f"{each.ms_per_token:.1f}"),
                interval_text(each.ratio, each.low, each.high, ".2f"),
            )
            for each in self.points
        ]
        yield Table(("answer", "tokens", "ms a token without drafts", "times as fast with drafts"), rows)
        yield f"one request at a time, {self.pairs} pairs, 95 % intervals"
        yield "no token changes" if self.equal_tokens else "TOKENS CHANGE"


def bench_speculation(config: PipelineConfig, pairs: int = 10, progress: Progress = no_progress) -> SpeculationResult:
    """Answer with and without drafts in turns.

    The answers of TEXTS are given, as forced tokens: they go through the steps of a model that says just that. So the
    result depends on the texts and on the speed of the machine, and not on whether a small model does as it is told.

    Raises:
        InputError: too few pairs, or as for Pipeline.launch.
        ModelError, RankError: as for Pipeline.launch.
    """
    check_at_least("pairs", pairs, FEWEST_PAIRS)
    ways = {each: replace(config, speculation=each) for each in (None, "lookup")}
    taken_s: dict[tuple[str, str | None], list[float]] = {}
    own: set[tuple[int, ...]] = set()
    with Pipeline.launch(ways["lookup"]) as pipeline:
        used = pipeline.config
        tokenizer = Tokenizer(used.folder)
        asked = {kind: given(tokenizer, *texts) for kind, texts in TEXTS.items()}
        asked[OWN] = Request(TEXTS["free"][0], sampling=_FREE)
        for pair in range(-1, pairs):  # the first is the warm-up
            for way in (None, "lookup") if pair % 2 == 0 else ("lookup", None):
                pipeline.configure(ways[way])
                for kind, request in asked.items():
                    taken_s.setdefault((kind, way), []).append(seconds_of(partial(pipeline.answer, request)))
                own.add(pipeline.answer(asked[OWN]).completion.token_ids)
            progress("pairs", pair + 1, pairs)
    return SpeculationResult(
        points=tuple(
            _point(kind, request.sampling.max_new_tokens, taken_s[kind, None][1:], taken_s[kind, "lookup"][1:])
            for kind, request in asked.items()
        ),
        equal_tokens=len(own) == 1,
        pairs=pairs,
        **settings_of(used, "ranks"),
    )


def given(tokenizer: Tokenizer, question: str, answer: str, most: int | None = None) -> Request:
    """Return the request for the first tokens of a given answer, and one token more: at most this many in all."""
    tokens = tuple(tokenizer.encode_text(answer, special=False))[: most and most - 1]
    sampling = SamplingParams(len(tokens) + 1, ignore_eos=True)
    return Request(question, raw=True, sampling=sampling, forced_token_ids=tokens)


def _point(kind: str, tokens: int, without_s: list[float], with_s: list[float]) -> SpeculationPoint:
    ratios = [without / with_drafts for without, with_drafts in zip(without_s, with_s, strict=True)]
    low, high = quantile_interval(ratios, 0.5)
    assert low is not None and high is not None  # there are enough pairs
    return SpeculationPoint(kind, tokens, 1e3 * median(without_s) / tokens, median(ratios), low, high)
