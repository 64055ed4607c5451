"""Measures pipelines over slow links: with drafted tokens, with packed hidden states, and beside one process.

A relay between the ranks delays and slows down what they send. All ways take turns within each pair.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from qubic_lab.bench.result import (
    FEWEST_PAIRS,
    ModelResult,
    Table,
    interval_text,
    median_interval,
    seconds_of,
    settings_of,
)
from qubic_lab.bench.speculation import TEXTS, given
from qubic_lab.core import Completion, Progress, Request, no_progress
from qubic_lab.errors import check_at_least, check_range
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig
from qubic_lab.pipeline.relay import relayed
from qubic_lab.pipeline.text import Tokenizer

DELAYS_MS = (0, 1, 5, 20)
RATES_MBPS = (10, 100)
KINDS = ("code", "free")
MOST_DELAY_MS, MOST_MBPS = 1000, 1_000_000
_PLAIN, _DRAFTED, _PACKED = "plain", "drafted", "packed"


class Link(NamedTuple):
    """What is made of each hop: ms added one way, and the most 10⁶ bits/s (0: no limit)."""

    delay_ms: int
    mbps: int


class Times(NamedTuple):
    """How many times as fast, the median over pairs with its 95 % interval."""

    median: float
    low: float
    high: float

    def text(self) -> str:
        """Return it for a table."""
        return interval_text(*self, ".2f")


@dataclass(frozen=True)
class LinkPoint:
    """Answers of one kind over one link, so many at once.

    `tokens_per_s` is the median without drafts, prompts included. `drafted` and `packed` compare with that; `of_one`
    and `drafted_of_one` compare with one process of as many threads, both without or both with drafts. Hidden states
    are packed only where the bandwidth is limited. `predicted` is a predicted time divided by the measured one, without
    drafts, for one answer at a time and added delays: the time without delay, and for each token as many hops more as
    there are ranks.
    """

    delay_ms: int
    mbps: int
    kind: str
    requests: int
    tokens_per_s: float
    drafted: Times
    packed: Times | None
    of_one: Times
    drafted_of_one: Times
    predicted: float | None


@dataclass(frozen=True)
class BreakEven:
    """The added delay of a hop up to which a pipeline is at least as fast as one process; None if it never is.

    `found` says whether it is slower with a longer one.
    """

    kind: str
    requests: int
    drafted: bool
    delay_ms: float | None
    found: bool

    def text(self) -> str:
        """Return it as a sentence."""
        what = f"{self.kind}, {self.requests} at once, {'with' if self.drafted else 'without'} drafts: "
        if self.delay_ms is None:
            return f"{what}slower than one process over each link"
        return f"{what}at least as fast as one process up to +{self.delay_ms:.2g} ms a hop" + (
            "" if self.found else ", the longest delay"
        )


@dataclass(frozen=True)
class SlowLinkResult(ModelResult):
    """Speeds over all links; `equal_tokens` says whether all ways gave the same."""

    points: tuple[LinkPoint, ...]
    break_even: tuple[BreakEven, ...]
    equal_tokens: bool
    pairs: int
    ranks: int
    new_tokens: int

    def report(self) -> Iterator[Table | str]:
        rows = [
            (
                *(f"+{each.delay_ms:g}", f"{each.mbps:g}" if each.mbps else "no limit", each.kind),
                *(f"{each.requests}", f"{each.tokens_per_s:.1f}", each.drafted.text()),
                each.packed.text() if each.packed else "",
                *(each.of_one.text(), each.drafted_of_one.text()),
                "" if each.predicted is None else f"{each.predicted:.2f}",
            )
            for each in self.points
        ]
        header = ("ms a hop", "Mbit/s", "answer", "at once", "tokens/s", "with drafts", "packed")
        yield Table((*header, "of one process", "both with drafts", "predicted"), rows)
        yield f"times as fast, 95 % intervals of {self.pairs} pairs; tokens/s without drafts, prompts included"
        yield from (each.text() for each in self.break_even)
        yield "no token changes" if self.equal_tokens else "TOKENS CHANGE"


def bench_slow_links(
    config: PipelineConfig,
    delays_ms: Sequence[int] = DELAYS_MS,
    rates_mbps: Sequence[int] = RATES_MBPS,
    requests: int = 4,
    pairs: int = 6,
    new_tokens: int = 48,
    progress: Progress = no_progress,
) -> SlowLinkResult:
    """Ask for given answers (`bench.speculation`), one and several at once, over each delay and each bandwidth.

    Raises:
        InputError: a number is out of range, or as for Pipeline.launch.
        ModelError, RankError: as for Pipeline.launch.
    """
    check_at_least("ranks", config.ranks or 1, 2)
    check_at_least("pairs", pairs, FEWEST_PAIRS)
    check_at_least("requests", requests, 2)
    for delay_ms in delays_ms:
        check_range("delay in ms", delay_ms, 0, MOST_DELAY_MS)
    for mbps in rates_mbps:
        check_range("10⁶ bits/s", mbps, 1, MOST_MBPS)
    links = [*(Link(each, 0) for each in sorted({0, *delays_ms})), *(Link(0, each) for each in rates_mbps)]
    taken_s: dict[tuple[Link | None, str, str, int], list[float]] = {}
    chosen: dict[str, set[tuple[int, ...]]] = {}

    def ask(pipeline: Pipeline, link: Link | None, way: str) -> None:
        for kind, request in asked.items():
            for count in (1, requests):
                answers: list[Completion] = []
                call = partial(_answer, pipeline, [request] * count, answers)
                taken_s.setdefault((link, way, kind, count), []).append(seconds_of(call))
                chosen.setdefault(kind, set()).update(each.token_ids for each in answers)

    with relayed() as relay, Pipeline.launch(_of(config, _DRAFTED)) as pipeline:
        used = pipeline.config
        alone = replace(config, ranks=1, strategy=None, threads=used.threads * used.ranks, slots=requests)
        tokenizer = Tokenizer(used.folder)
        asked = {kind: given(tokenizer, *TEXTS[kind], new_tokens) for kind in KINDS}
        with Pipeline.launch(alone) as one:
            for pair in range(-1, pairs):  # the first is the warm-up
                for way in (_PLAIN, _DRAFTED):
                    one.configure(_of(alone, way))
                    ask(one, None, way)
                for link in links:
                    ways = [_PLAIN, _DRAFTED, *([_PACKED] if link.mbps else [])]
                    for way in ways if pair % 2 == 0 else reversed(ways):
                        relay.shape(0, 0)
                        pipeline.configure(_of(config, way))
                        relay.shape(*link)
                        ask(pipeline, link, way)
                progress("pairs", pair + 1, pairs)

    def times(link: Link, way: str, of: Link | None, other: str, kind: str, count: int) -> Times:
        ours, theirs = taken_s[link, way, kind, count][1:], taken_s[of, other, kind, count][1:]
        return Times(*median_interval([b / a for a, b in zip(ours, theirs, strict=True)]))

    def predicted(link: Link, kind: str) -> float:
        at_once_s, over_link_s = (median(taken_s[each, _PLAIN, kind, 1][1:]) for each in (Link(0, 0), link))
        return (at_once_s + new_tokens * used.ranks * link.delay_ms / 1e3) / over_link_s

    points = tuple(
        LinkPoint(
            *link,
            kind,
            count,
            tokens_per_s=count * new_tokens / median(taken_s[link, _PLAIN, kind, count][1:]),
            drafted=times(link, _DRAFTED, link, _PLAIN, kind, count),
            packed=times(link, _PACKED, link, _PLAIN, kind, count) if link.mbps else None,
            of_one=times(link, _PLAIN, None, _PLAIN, kind, count),
            drafted_of_one=times(link, _DRAFTED, None, _DRAFTED, kind, count),
            predicted=predicted(link, kind) if link.delay_ms and count == 1 else None,
        )
        for link in links
        for kind in asked
        for count in (1, requests)
    )
    return SlowLinkResult(
        points=points,
        break_even=tuple(
            BreakEven(kind, count, drafted, *break_even(_speeds(points, kind, count, drafted)))
            for kind in asked
            for count in (1, requests)
            for drafted in (False, True)
        ),
        equal_tokens=all(len(each) == 1 for each in chosen.values()),
        pairs=pairs,
        new_tokens=new_tokens,
        **settings_of(used, "ranks"),
    )


def break_even(speeds: Sequence[tuple[float, float]]) -> tuple[float | None, bool]:
    """Return delay and `found` of BreakEven from pairs of delay and speed, by lines between them."""
    ordered = sorted(speeds)
    if not ordered or ordered[0][1] < 1.0:
        return None, bool(ordered)
    for (delay, speed), (next_delay, next_speed) in pairwise(ordered):
        if next_speed < 1.0:
            return delay + (next_delay - delay) * (speed - 1.0) / (speed - next_speed), True
    return ordered[-1][0], False


def _speeds(points: Sequence[LinkPoint], kind: str, count: int, drafted: bool) -> list[tuple[float, float]]:
    of_kind = [each for each in points if (each.kind, each.requests, each.mbps) == (kind, count, 0)]
    return [(each.delay_ms, (each.drafted_of_one if drafted else each.of_one).median) for each in of_kind]


def _of(config: PipelineConfig, way: str) -> PipelineConfig:
    return replace(
        config,
        speculation="lookup" if way == _DRAFTED else None,
        compression="lossless" if way == _PACKED else None,
    )


def _answer(pipeline: Pipeline, requests: list[Request], answers: list[Completion]) -> None:
    answers += [each.completion for each in pipeline.answer_all(requests)]
