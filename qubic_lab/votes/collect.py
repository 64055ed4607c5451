"""Asks several voters concurrently until all have answered, the decision is certain, or the deadline has passed.

The caller supplies `ask`, which yields a voter's votes as they arrive. Voters without a vote are named with a reason.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from statistics import fmean

from qubic_lab.consensus.voting import Absence, AbsenceReason, Vote
from qubic_lab.errors import QubicLabError


@dataclass(frozen=True)
class Voter:
    """A node to ask for `samples` answers with the seeds `seed`, `seed + 1`, ….

    `before` is the number of votes it gave in earlier rounds. `prompt` and `temperature` replace those of the question.
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

    def names(self) -> list[str]:
        """Return the names of all votes it is asked for."""
        return [self.name(sample) for sample in range(self.samples)]


@dataclass(frozen=True)
class CollectedVotes:
    """All votes in order of arrival, and the voters that gave none.

    `tokens_saved` estimates what early stopping saved: the mean tokens of a vote times the votes that were stopped.
    """

    votes: tuple[Vote, ...]
    absences: tuple[Absence, ...]
    seconds: float
    tokens_saved: int


Ask = Callable[[Voter], AsyncGenerator[Vote, None]]
Certain = Callable[[Sequence[Vote], Sequence[str], Sequence[str]], bool]


@dataclass
class _Collection:
    """The votes and failures so far."""

    voters: Sequence[Voter]
    votes: list[Vote] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """Return the names of votes that have neither arrived nor failed."""
        done = {vote.voter for vote in self.votes} | set(self.failed)
        return [name for voter in self.voters for name in voter.names() if name not in done]


async def collect(voters: Sequence[Voter], ask: Ask, deadline_s: float, certain: Certain) -> CollectedVotes:
    """Return the votes of all voters, each of a different node, until `deadline_s` from now.

    `ask` yields a voter's votes as they arrive; a QubicLabError fails the votes that have not arrived. `certain` says
    whether the decision can no longer change, given the votes so far and the names of failed and of missing votes.
    """
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
    """Add a voter's votes as they arrive; votes that have not arrived when it ends have failed."""
    why = "it ended without an answer"
    try:
        async with aclosing(ask(voter)) as votes:
            async for vote in votes:
                collection.votes.append(vote)
                news.put_nowait(None)
    except QubicLabError as error:
        why = str(error)
    arrived = {vote.voter for vote in collection.votes}
    collection.failed |= {name: why for name in voter.names() if name not in arrived}
    news.put_nowait(None)


def _result(collection: _Collection, stopped: bool, deadline_s: float, seconds: float) -> CollectedVotes:
    missing = collection.missing()
    if stopped:
        why, detail = AbsenceReason.STOPPED, "the decision was certain"
        saved = round(len(missing) * fmean(vote.new_tokens for vote in collection.votes))
    else:
        why, detail = AbsenceReason.LATE, f"after {deadline_s:g} s"
        saved = 0
    absences = [Absence(name, AbsenceReason.FAILED, text) for name, text in collection.failed.items()]
    absences += [Absence(name, why, detail) for name in missing]
    return CollectedVotes(tuple(collection.votes), tuple(absences), seconds, saved)
