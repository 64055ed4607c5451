"""How a recommendation depends on context length, concurrent requests, and requests per second. Pure."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby, pairwise

from qubic_lab.model.candidates import MOST_BATCH, TIE, Plan, Setup, candidates, choose, with_fewer

SHORTEST_CONTEXT = 256
CONTEXT_STEP = 256
"""Resolution in tokens of the border between two recommendations."""


@dataclass(frozen=True)
class ContextRange:
    """The recommendation for a range of context lengths, with `batch` requests per lane; None: no plan fits."""

    batch: int
    context_from: int
    context_to: int
    recommendation: str | None


@dataclass(frozen=True)
class RateRange:
    """The recommendation for a range of requests per second; None: no plan can answer that many."""

    requests_per_s_from: float
    requests_per_s_to: float | None
    recommendation: str | None


def context_ranges(setup: Setup, goal: str) -> tuple[ContextRange, ...]:
    """Return the recommendations from 256 tokens to the model's limit, for 1, 2, 4 … 64 requests per lane.

    Contexts are tried in powers of two, and between two different recommendations to within 256 tokens.
    """
    return tuple(
        part for batch in _powers(1, MOST_BATCH) for part in _context_ranges(replace(setup, batch=batch), goal)
    )


def _context_ranges(setup: Setup, goal: str) -> list[ContextRange]:
    @cache
    def best_at(context: int) -> str | None:
        there = replace(setup, context=context)
        plans, _ = candidates(there)
        best = choose(plans, with_fewer(there, goal, plans), goal)
        return best.strategy if best else None

    tried = list(_powers(SHORTEST_CONTEXT, setup.config.max_positions))
    contexts = [c for low, high in pairwise(tried) for c in _closer_at_changes(best_at, low, high)] + tried[-1:]
    ranges: list[ContextRange] = []
    for context in contexts:
        if ranges and ranges[-1].recommendation == best_at(context):
            ranges[-1] = replace(ranges[-1], context_to=context)
        else:
            ranges.append(ContextRange(setup.batch, context, context, best_at(context)))
    return ranges


def _closer_at_changes(best_at: Callable[[int], str | None], low: int, high: int) -> list[int]:
    """Return contexts from `low` to before `high`, at most CONTEXT_STEP apart where the recommendation changes."""
    if high - low <= CONTEXT_STEP or best_at(low) == best_at(high):
        return [low]
    middle = (low + high) // 2
    return [*_closer_at_changes(best_at, low, middle), *_closer_at_changes(best_at, middle, high)]


def rate_ranges(
    plans: Sequence[Plan], goal: str, answer_tokens: int, alone: Sequence[Plan] = ()
) -> tuple[RateRange, ...]:
    """Return the recommendations by request rate: the best plan for the goal, or device `alone`, that keeps up.

    A plan keeps up with `most_tokens_per_s` ÷ `answer_tokens` requests per second; prompts are not counted.
    """
    ranges: list[RateRange] = []
    reached = 0.0

    def able(some: Sequence[Plan]) -> list[Plan]:
        return [plan for plan in some if plan.most_tokens_per_s / answer_tokens > reached * (1 + TIE)]

    while best := choose(able(plans), able(alone), goal):
        most = best.most_tokens_per_s / answer_tokens
        ranges.append(RateRange(reached, most, best.strategy))
        reached = most
    return (*ranges, RateRange(reached, None, None))


def context_sentences(ranges: Sequence[ContextRange]) -> list[str]:
    """Describe the recommendations by context, with equal ones of several batches together."""
    rows = [
        (batch, [(part.context_from, part.context_to, part.recommendation) for part in parts])
        for batch, parts in groupby(ranges, key=lambda part: part.batch)
    ]
    sentences = []
    for parts, same in groupby(rows, key=lambda row: row[1]):
        batches = [batch for batch, _ in same]
        span = f"{batches[0]} to {batches[-1]} requests" if len(batches) > 1 else _requests(batches[0])
        sentences.append(f"With {span} a lane: {_contexts(parts)}.")
    return sentences


def _contexts(parts: Sequence[tuple[int, int, str | None]]) -> str:
    if len(parts) == 1:
        first, last, name = parts[0]
        return f"{f'{name} at every' if name else 'nothing fits at any'} context from {first:,} to {last:,} tokens"
    texts = [f"{name or 'nothing fits'} up to {last:,} tokens" for _, last, name in parts[:-1]]
    return ", ".join([*texts, f"{parts[-1][2] or 'nothing fits'} beyond"])


def rate_sentence(ranges: Sequence[RateRange], answer_tokens: int) -> str:
    """Describe the recommendations by request rate."""
    texts = [f"{part.recommendation} up to {part.requests_per_s_to:.3g}" for part in ranges[:-1]]
    return (
        f"By requests a second of {answer_tokens:,} tokens each, with as many at once as memory allows: "
        f"{', '.join(texts)}; beyond, these devices cannot keep up."
    )


def _requests(count: int) -> str:
    return f"{count} request{'s' if count > 1 else ''}"


def _powers(first: int, last: int) -> Iterator[int]:
    """Yield first, 2 · first, 4 · first … and `last` itself."""
    while first < last:
        yield first
        first *= 2
    yield last
