"""Ask several voters at once until all have answered, the decision is certain, or the deadline has passed.

Who answers how is the caller's: a voter is a node, or one node asked several times, and `ask` yields its votes as they
come. Whoever did not vote is named, with the reason.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import fmean

from qubic_lab.consensus.dependence import Source
from qubic_lab.errors import InputError, QubicLabError


@dataclass(frozen=True)
class Voter:
    """Who is asked, and how: `samples` answers of one node, with the seeds `seed`, `seed + 1`, ….

    `before`: how many votes it gave in earlier rounds. `prompt` and `temperature`: in place of the question's own.
    """

    node: str
    samples: int = 1
    seed: int = 0
    before: int = 0
    prompt: str | None = None
    temperature: float | None = None

    def name(self, sample: int) -> str:
        """Return the name of one of its votes."""
        number = self.before + sample + 1
        return self.node if self.samples == number == 1 else f"{self.node}#{number}"


@dataclass(frozen=True)
class Vote:
    """An answer: whose, by which model, what it follows from, its text, and what it took.

    `seconds` from when it was asked to its last token; `mean_logprob` of its tokens in nats, None where unknown.
    """

    voter: str
    node: str
    model: str
    source: Source
    text: str
    finish_reason: str
    new_tokens: int
    seconds: float
    mean_logprob: float | None = None


class Absent(StrEnum):
    """Why a voter gave no vote."""

    LATE = "late"
    FAILED = "failed"
    STOPPED = "not needed"


@dataclass(frozen=True)
class Absence:
    """A voter without a vote."""

    voter: str
    why: Absent
    detail: str

    @property
    def counts(self) -> bool:
        """Whether it counts among the ballots, for no group: those that were not needed do not."""
        return self.why is not Absent.STOPPED


@dataclass(frozen=True)
class Collected:
    """All votes in their order of arrival, and who is missing.

    `tokens_saved`: by stopping early, estimated: what a vote took on average, for each that was stopped.
    """

    votes: tuple[Vote, ...]
    absences: tuple[Absence, ...]
    seconds: float
    tokens_saved: int

    @property
    def new_tokens(self) -> int:
        """Tokens of all votes."""
        return sum(vote.new_tokens for vote in self.votes)


Ask = Callable[[Voter], AsyncGenerator[Vote, None]]
Certain = Callable[[Sequence[Vote], Sequence[str], Sequence[str]], bool]


@dataclass
class _Collection:
    """What has come so far."""

    voters: Sequence[Voter]
    votes: list[Vote] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """Return the names of votes that have neither come nor failed."""
        done = {vote.voter for vote in self.votes} | set(self.failed)
        names = [voter.name(sample) for voter in self.voters for sample in range(voter.samples)]
        return [name for name in names if name not in done]


async def collect(voters: Sequence[Voter], ask: Ask, deadline_s: float, certain: Certain) -> Collected:
    """Return what the voters say.

    Args:
        voters: who is asked; at least one, no two of the same node.
        ask: yields a voter's votes as they come; a QubicLabError is the failure of those that have not come.
        deadline_s: of all votes, from now.
        certain: whether the votes so far decide, so that no more are needed; is also given the names of the voters
            that have failed and of those that are still to come.

    Raises:
        InputError: no voter, or two of one node.
    """
    if not voters:
        raise InputError("no voter is given: ask at least one node")
    if len({voter.node for voter in voters}) < len(voters):
        raise InputError("two voters are the same node: give it more samples in place of that")
    loop = asyncio.get_running_loop()
    started, collection = loop.time(), _Collection(voters)
    news: asyncio.Queue[None] = asyncio.Queue()
    asking = [asyncio.ensure_future(_ask(voter, ask, collection, news)) for voter in voters]
    stopped = False
    try:
        async with asyncio.timeout(deadline_s):
            while collection.missing() and not stopped:
                await news.get()
                missing = collection.missing()
                stopped = bool(missing) and certain(collection.votes, list(collection.failed), missing)
    except TimeoutError:
        pass
    finally:
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    return _result(collection, stopped, deadline_s, loop.time() - started)


async def _ask(voter: Voter, ask: Ask, collection: _Collection, news: "asyncio.Queue[None]") -> None:
    """Take over a voter's votes; when it ends, those that have not come have failed."""
    why = "it ended without an answer"
    try:
        async with aclosing(ask(voter)) as votes:
            async for vote in votes:
                collection.votes.append(vote)
                news.put_nowait(None)
    except QubicLabError as error:
        why = str(error)
    come = {vote.voter for vote in collection.votes}
    for sample in range(voter.samples):
        if (name := voter.name(sample)) not in come:
            collection.failed[name] = why
    news.put_nowait(None)


def _result(collection: _Collection, stopped: bool, deadline_s: float, seconds: float) -> Collected:
    missing = collection.missing()
    why, detail = (Absent.STOPPED, "the decision was certain") if stopped else (Absent.LATE, f"after {deadline_s:g} s")
    absences = [Absence(name, Absent.FAILED, text) for name, text in collection.failed.items()]
    absences += [Absence(name, why, detail) for name in missing]
    saved = round(len(missing) * fmean(vote.new_tokens for vote in collection.votes)) if stopped else 0
    return Collected(tuple(collection.votes), tuple(absences), seconds, saved)
