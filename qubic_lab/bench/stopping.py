"""Checks certified votes against simulated voters whose shares are known: are winners wrong, and what is saved?

Each question has 1 to 6 answers with shares from a Dirichlet distribution. An answer is right with the probability of
its share, as if voters knew how often they are right. Voters correlate as in `bench.consensus`: each copies a common
answer with probability √ρ, with ρ uniform from 0 to `correlation`. What the same voters would go on to say has other
shares then: √ρ more for the common answer.
The certificates are the real ones, looked at after every ballot: a question counts as wrong if any of them is.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from qubic_lab import stats
from qubic_lab.bench.result import BenchResult, Table, counted, interval_text
from qubic_lab.consensus.certificate import DEFAULT_ERROR, MOST_BALLOTS, Certifier
from qubic_lab.consensus.stopping import LIKELY, lead_probability
from qubic_lab.core import Progress, no_progress
from qubic_lab.errors import InputError, check_range

OPTIONS, MOST_QUESTIONS, LONGEST = 6, 100_000, 64
CONCENTRATION = 0.5
"""Of the Dirichlet distribution: below 1, most questions have an answer with a large share."""
SOURCES = 4
CLOSE = 0.51
"""The share of the more frequent of two answers in a close race."""

Answers = NDArray[np.int64]
Shares = stats.Floats


@dataclass(frozen=True)
class StoppedVotes:
    """Votes that stop when their winner is certified, or likely with no certificate to come, with 95 % intervals.

    `wrong` is the share of questions with a wrong certificate at any ballot: it is `promised` to be at most the error,
    or is a warning. `saved` is the share of ballots that were not cast, and `difference` the right answers of these
    votes less those of all ballots.
    """

    name: str
    promised: bool
    questions: int
    wrong: float
    wrong_interval: tuple[float, float]
    certified: float
    saved: float
    saved_interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]

    def cells(self) -> tuple[str, ...]:
        return (
            *(self.name, "yes" if self.promised else "no", interval_text(self.wrong, *self.wrong_interval, ".2%")),
            *(f"{self.certified:.1%}", interval_text(self.saved, *self.saved_interval, ".1%")),
            interval_text(self.difference, *self.difference_interval, "+.2%"),
        )


@dataclass(frozen=True)
class StoppingResult(BenchResult):
    """Certified votes in several settings; `votes` are the ballots of a vote that does not stop."""

    questions: int
    votes: int
    correlation: float
    concentration: float
    error: float
    seed: int
    settings: tuple[StoppedVotes, ...]
    simulated: bool = True

    def report(self) -> Iterator[Table | str]:
        certified = f"certified wrongly, at most {self.error:.0%} promised"
        header = ("votes", "promised", certified, "certified", "ballots saved", "right, less all ballots")
        yield Table(header, [each.cells() for each in self.settings])


def bench_stopping(
    questions: int = 10_000,
    votes: int = MOST_BALLOTS,
    correlation: float = 0.6,
    concentration: float = CONCENTRATION,
    error: float = DEFAULT_ERROR,
    seed: int = 0,
    progress: Progress = no_progress,
) -> StoppingResult:
    """Hold certified votes of up to `votes` ballots on simulated questions; equal seeds give equal results.

    Raises:
        InputError: a value is out of range.
    """
    _check(questions, votes, correlation, concentration)
    Certifier(error)  # checks it
    draw, step = np.random.default_rng(seed), counted(progress, 6)

    def judge(
        name: str,
        answers_QN: Answers,
        truth_QO: Shares,
        rho_Q: stats.Floats | None = None,
        block: int = 1,
        **more: bool,
    ) -> StoppedVotes:
        step(name)
        return _judge(name, answers_QN, truth_QO, rho_Q, block, error, seed, **more)

    shares_QO = _shares(draw, questions, concentration)
    rho_Q = draw.uniform(0, correlation, questions)
    common_Q = _draw(draw, shares_QO[:, None, :])[:, 0]
    own_QN = _draw(draw, np.repeat(shares_QO[:, None, :], votes, axis=1))
    copy_Q = np.sqrt(rho_Q)
    correlated_QN = np.where(draw.random((questions, votes)) < copy_Q[:, None], common_Q[:, None], own_QN)
    same_QO = (1 - copy_Q)[:, None] * shares_QO + copy_Q[:, None] * np.eye(OPTIONS)[common_Q]
    source_QSO = _of_sources(draw, shares_QO)
    of_sources_QN = _draw(draw, source_QSO[:, np.arange(votes) % SOURCES, :])
    close_QO = np.tile([CLOSE, 1 - CLOSE], (questions, 1))
    close_QN = _draw(draw, np.repeat(close_QO[:, None, :], votes, axis=1))
    rho = f"{correlation:g}"
    return StoppingResult(
        questions=questions,
        votes=votes,
        correlation=correlation,
        concentration=concentration,
        error=error,
        seed=seed,
        settings=(
            judge("independent", own_QN, shares_QO),
            judge(f"two answers, {CLOSE:.0%} and {1 - CLOSE:.0%}", close_QN, close_QO),
            judge(f"of {SOURCES} models in blocks", of_sources_QN, source_QSO.mean(axis=1), block=SOURCES),
            judge(f"correlated, 0 to {rho}: of the same voters", correlated_QN, same_QO),
            judge(f"correlated, 0 to {rho}, told: of others", correlated_QN, shares_QO, rho_Q),
            judge(f"correlated, 0 to {rho}, not told: of others", correlated_QN, shares_QO, promised=False),
        ),
    )


def _check(questions: int, votes: int, correlation: float, concentration: float) -> None:
    check_range("questions", questions, 100, MOST_QUESTIONS)
    check_range("votes", votes, 1, LONGEST)
    if not 0.0 <= correlation <= 1.0:
        raise InputError(f"correlation is {correlation}: it must lie between 0 and 1")
    if not concentration > 0:
        raise InputError(f"concentration is {concentration}: give one above 0")


def _shares(draw: np.random.Generator, questions: int, concentration: float) -> Shares:
    """Return the shares of 1 to OPTIONS answers; the others have 0."""
    used_QO = np.arange(OPTIONS) < draw.integers(1, OPTIONS + 1, questions)[:, None]
    # A gamma variate of shape a is one of a + 1 times a power of a uniform one; its logarithm cannot underflow.
    uniform_QO = np.log(draw.random((questions, OPTIONS))) / concentration
    logs_QO = np.where(used_QO, np.log(draw.gamma(concentration + 1, size=used_QO.shape)) + uniform_QO, -np.inf)
    parts_QO = np.exp(logs_QO - logs_QO.max(axis=1, keepdims=True))
    shares: Shares = parts_QO / parts_QO.sum(axis=1, keepdims=True)
    return shares


def _of_sources(draw: np.random.Generator, shares_QO: Shares) -> Shares:
    """Return the shares of each source: the common ones mixed with those of a random answer."""
    questions, options = shares_QO.shape
    liked_QSO = np.eye(options)[draw.integers(0, options, (questions, SOURCES))]
    mixed: Shares = 0.6 * shares_QO[:, None, :] + 0.4 * liked_QSO
    return mixed


def _draw(draw: np.random.Generator, shares_QNO: Shares) -> Answers:
    """Return an answer for each of N ballots of each question."""
    below_QNO = np.cumsum(shares_QNO, axis=-1)[..., :-1]
    answers: Answers = (draw.random(shares_QNO.shape[:-1])[..., None] >= below_QNO).sum(axis=-1)
    return answers


@dataclass(frozen=True)
class _Followed:
    """A vote that was looked at after each block: where it stopped, its winners, and all that were ever certified."""

    taken: int
    winner: int
    full_winner: int
    certified: bool
    ever: frozenset[int]


def follow(answers: tuple[int, ...], error: float, correlation: float = 0.0, block: int = 1) -> _Followed:
    """Stop a vote by plurality as `stopping.reason_to_stop` does."""
    certifier, counts, ever = Certifier(error, correlation, len(answers)), Counter[int](), set[int]()
    taken, winner, certified = 0, answers[0], False
    for first in range(0, len(answers), block):
        cast = answers[first : first + block]
        if len(cast) == block:
            certifier.add(cast)
        counts.update(cast)
        found = certifier.certificate.winner
        ever |= set() if found is None else {int(found)}
        (leader, most), (_, next_most) = [*counts.most_common(2), (0, 0)][:2]
        rest = len(answers) - first - len(cast)
        is_likely = certifier.is_hopeless(rest) and lead_probability(most, next_most) >= LIKELY
        if not taken and (found == leader or most - next_most > rest or is_likely or not rest):
            taken, winner, certified = first + len(cast), leader, found == leader
    return _Followed(taken, winner, counts.most_common(1)[0][0], certified, frozenset(ever))


def _judge(
    name: str,
    answers_QN: Answers,
    truth_QO: Shares,
    rho_Q: stats.Floats | None,
    block: int,
    error: float,
    seed: int,
    promised: bool = True,
) -> StoppedVotes:
    known = cache(follow)
    told = [0.0] * len(answers_QN) if rho_Q is None else rho_Q.tolist()
    votes = [known(tuple(row), error, rho, block) for row, rho in zip(answers_QN.tolist(), told, strict=True)]
    wrong = sum(bool(vote.ever - {mode}) for vote, mode in zip(votes, truth_QO.argmax(axis=1).tolist(), strict=True))
    winner_Q, full_Q = (np.array([getattr(vote, name) for vote in votes]) for name in ("winner", "full_winner"))
    saved_Q = 1 - np.array([vote.taken for vote in votes]) / answers_QN.shape[1]
    places = np.arange(len(votes))
    gain_Q = truth_QO[places, winner_Q] - truth_QO[places, full_Q]

    def interval(values_Q: stats.Floats) -> tuple[float, float]:
        return stats.bootstrap_interval(lambda rows: float(values_Q[rows].mean()), len(values_Q), seed=seed)

    return StoppedVotes(
        name=name,
        promised=promised,
        questions=len(votes),
        wrong=wrong / len(votes),
        wrong_interval=stats.wilson_interval(wrong, len(votes)),
        certified=sum(vote.certified for vote in votes) / len(votes),
        saved=float(saved_Q.mean()),
        saved_interval=interval(saved_Q),
        difference=float(gain_Q.mean()),
        difference_interval=interval(gain_Q),
    )
