"""Measures what a vote costs on top of its answers: reading, comparing and grouping them, and deciding."""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from qubic_lab.bench.result import MeasuredResult, Table
from qubic_lab.consensus.answers import final_answer
from qubic_lab.consensus.similarity import Embed, bonds, compare, group
from qubic_lab.consensus.voting import Ballot, decide
from qubic_lab.errors import check_range
from qubic_lab.model.embeddings import Embedder

LIMIT_MS = {False: 5.0, True: 20.0}
"""Limits for 16 answers of at most 200 tokens: without embeddings (False), and with cached embeddings (True)."""
MOST_ANSWERS = 64
STEPS = ("final answers", "similarity", "bonds", "groups", "decision")

SUM = "A shop sells pens and books. How many dollars do the pens and the books cost in total?"
WHY = "Why is the sea salty?"
_REASONS = (  # each in two wordings
    ("Rain takes up carbon dioxide and so becomes a weak acid.", "Rain water is slightly acidic, as it absorbs CO2."),
    (
        "As it runs over rocks it dissolves small amounts of minerals.",
        "Flowing over land it washes minerals out of stone.",
    ),
    ("Rivers carry sodium and chloride down to the sea.", "Streams bring these salts into the oceans year after year."),
    ("Hot springs on the ocean floor add more dissolved minerals.", "Hydrothermal vents are a second source of them."),
    ("Volcanoes under the sea release chlorine and sulphur.", "Submarine eruptions contribute chlorine as well."),
    ("When water evaporates from the surface, the salts stay behind.", "The sun lifts pure water only; salt remains."),
    (
        "That water falls as rain again, and the cycle begins anew.",
        "Clouds rain down on land, and all of it starts over.",
    ),
    ("Over hundreds of millions of years the salts have built up.", "Since the first oceans their share has grown."),
    ("Some of them are taken out again by living things.", "Shells and sediments remove a part of the calcium."),
    ("Today what is added and what is removed are in balance.", "By now the salt content hardly changes any more."),
    ("A litre of sea water holds about 35 grams of salt.", "On average 3.5 percent of its weight is dissolved salt."),
    ("Most of it is sodium chloride, the salt that we eat.", "Table salt makes up the largest part."),
    ("Lakes without an outlet become salty in the same way.", "The Dead Sea shows what happens where nothing drains."),
    ("Lakes that a river drains stay fresh.", "Where a river leaves a lake, the salts flow on with it."),
)


@dataclass(frozen=True)
class VotingTime:
    """Time of one kind of vote: the median over votes, each on new answers, and the medians of its steps."""

    kind: str
    with_embeddings: bool
    median_ms: float
    fastest_ms: float
    slowest_ms: float
    steps_ms: dict[str, float]
    limit_ms: float
    within_limit: bool


@dataclass(frozen=True)
class VotingResult(MeasuredResult):
    """Times of votes on `answers` answers; embeddings were cached, and took `embedding_ms` an answer (median)."""

    times: tuple[VotingTime, ...]
    answers: int
    votes: int
    embedding_ms: float | None

    def report(self) -> Iterator[Table | str]:
        rows = [
            (
                *(each.kind, "cached" if each.with_embeddings else "none", f"{each.median_ms:.1f}"),
                f"{each.fastest_ms:.1f} to {each.slowest_ms:.1f}",
                *(f"{taken:.1f}" for taken in each.steps_ms.values()),
                f"{'within' if each.within_limit else 'over'} {each.limit_ms:g}",
            )
            for each in self.times
        ]
        yield Table(("answers", "embeddings", "median ms", "fastest to slowest", *STEPS, "limit ms"), rows)


def bench_voting(answers: int = 16, votes: int = 15, embedder: Embedder | None = None) -> VotingResult:
    """Measure votes on calculations with a numeric result, on differing explanations, and on near copies of one.

    Answers have 100 to 200 tokens each. There are `votes` of each kind, and without an embedder none with embeddings.

    Raises:
        InputError: a number is out of range.
        ModelError: the embedder cannot be loaded.
    """
    check_range("answers", answers, 1, MOST_ANSWERS)
    check_range("votes", votes, 1, 1000)
    work = {"calculations": (SUM, calculations), "explanations": (WHY, explanations), "near copies": (WHY, near_copies)}
    embeds: list[Embed | None] = [None] if embedder is None else [None, embedder.embed]
    times: list[VotingTime] = []
    embedding_ms: list[float] = []
    for kind, (question, write) in work.items():
        for embed in embeds:
            taken: list[dict[str, float]] = []
            draw = random.Random(f"{kind} {embed is None}")
            for vote in range(votes + 1):
                texts = write(draw, answers)
                if embed is not None:
                    started = time.perf_counter()
                    embed(texts)
                    embedding_ms.append((time.perf_counter() - started) * 1e3 / answers)
                steps = _vote(question, texts, embed)
                taken += [steps] if vote else []  # the first vote also parses the question
            times.append(_time(kind, embed is not None, taken))
    return VotingResult(
        times=tuple(times), answers=answers, votes=votes, embedding_ms=median(embedding_ms) if embedding_ms else None
    )


def _vote(question: str, texts: Sequence[str], embed: Embed | None) -> dict[str, float]:
    clock = [time.perf_counter()]
    finals = [final_answer(text, question) for text in texts]
    clock.append(time.perf_counter())
    similarities = compare(texts, embed)
    clock.append(time.perf_counter())
    table = bonds(finals, similarities)
    clock.append(time.perf_counter())
    classes = group(similarities, table)
    clock.append(time.perf_counter())
    decide([Ballot(str(voter), number) for number, members in enumerate(classes) for voter in members], "plurality")
    clock.append(time.perf_counter())
    return {step: (end - start) * 1e3 for step, (start, end) in zip(STEPS, pairwise(clock), strict=True)}


def _time(kind: str, with_embeddings: bool, taken: Sequence[dict[str, float]]) -> VotingTime:
    totals = [sum(steps.values()) for steps in taken]
    limit_ms = LIMIT_MS[with_embeddings]
    return VotingTime(
        kind=kind,
        with_embeddings=with_embeddings,
        median_ms=median(totals),
        fastest_ms=min(totals),
        slowest_ms=max(totals),
        steps_ms={step: median(steps[step] for steps in taken) for step in STEPS},
        limit_ms=limit_ms,
        within_limit=median(totals) < limit_ms,
    )


def calculations(draw: random.Random, answers: int) -> list[str]:
    """Return answers to SUM: calculations, some of them with a wrong total."""
    price, pens, books = draw.randint(2, 99), draw.randint(2, 99), draw.randint(2, 99)
    right = price * pens + 12 * books
    totals = draw.choices((right, right + 10, right - 1), weights=(3, 1, 1), k=answers)
    checks = draw.choices(("Let me check that.", "We can verify this.", "A quick check follows."), k=answers)
    return [
        f"Let us work through this step by step. First come the pens: each of them costs {price} dollars and there are "
        f"{pens} of them, so the pens cost {price} * {pens} = {price * pens} dollars. Next come the books: each costs "
        f"12 dollars and there are {books} of them, which makes {books} * 12 = {books * 12} dollars. We add the two "
        f"amounts together: {price * pens} + {books * 12} = {total} dollars. {check} The order in which we add is "
        "of no matter, no discount is mentioned in the question, and the shop's prices hold the taxes already, so that "
        f"nothing has to be added. The answer is {total} dollars."
        for total, check in zip(totals, checks, strict=True)
    ]


def explanations(draw: random.Random, answers: int) -> list[str]:
    """Return answers to WHY: 11 of the 14 reasons in random order, each in one of its two wordings."""
    return [" ".join(draw.choice(wordings) for wordings in draw.sample(_REASONS, 11)) for _ in range(answers)]


def near_copies(draw: random.Random, answers: int) -> list[str]:
    """Return answers to WHY that differ by one sentence, so that every pair is checked for contradictions."""
    text = [draw.choice(wordings) for wordings in draw.sample(_REASONS, len(_REASONS))]
    left_out = draw.choices(range(len(text)), k=answers)
    return [" ".join(text[:place] + text[place + 1 :]) for place in left_out]
