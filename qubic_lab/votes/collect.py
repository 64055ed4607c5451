"""Asks several voters concurrently until all have answered, the decision is certain, or the deadline has passed.

The caller supplies `ask`, which yields a voter's votes as they arrive. Voters without a vote are named with a reason.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from statistics import fmean

from qubic_lab.consensus.voting import Absence, AbsenceReason, Vote
from qubic_lab.core import MAX_SEED
from qubic_lab.errors import ContextError, QubicLabError


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

    def part(self, first: int, samples: int) -> "Voter":
        """Return a voter for `samples` of its answers from the number `first` on, with their seeds."""
        return replace(self, samples=samples, seed=(self.seed + first) % (MAX_SEED + 1), before=self.before + first)


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
Certain = Callable[[Sequence[Vote], Sequence[str], Sequence[str]], Awaitable[str | None]]


async def collect(voters: Sequence[Voter], ask: Ask, deadline_s: float, certain: Certain) -> CollectedVotes:
    """Return the votes of all voters, each of a different node, until `deadline_s` from now.

    `ask` yields a voter's votes as they arrive; a QubicLabError fails the votes that have not arrived. `certain` says
    why the missing votes are not needed, or None if they are, given the votes so far and the names of failed and of
    missing votes.

    Raises:
        ContextError: the question is too long for every voter.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    votes: list[Vote] = []
    failed: dict[str, str] = {}
    too_long: list[ContextError] = []
    news: asyncio.Queue[None] = asyncio.Queue()

    def missing() -> list[str]:
        """Return the names of votes that have neither arrived nor failed."""
        done = {vote.voter for vote in votes} | failed.keys()
        return [name for voter in voters for name in voter.names() if name not in done]

    async def follow(voter: Voter) -> None:
        """Add a voter's votes as they arrive; votes that have not arrived when it ends have failed."""
        why = "it ended without an answer"
        try:
            async with aclosing(ask(voter)) as answers:
                async for vote in answers:
                    votes.append(vote)
                    news.put_nowait(None)
        except QubicLabError as error:
            why = str(error)
            too_long.extend([error] if isinstance(error, ContextError) else [])
        failed.update({name: why for name in missing() if name in voter.names()})
        news.put_nowait(None)

    asking = [asyncio.ensure_future(follow(voter)) for voter in voters]
    stopped: str | None = None
    try:
        async with asyncio.timeout(deadline_s):
            while missing() and not stopped:
                await news.get()
                stopped = await certain(votes, list(failed), missing()) if missing() else None
    except TimeoutError:
        pass
    finally:
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    if len(too_long) == len(voters) and not votes:
        raise too_long[0]
    late = AbsenceReason.LATE, f"after {deadline_s:g} s"
    why, detail = (AbsenceReason.STOPPED, stopped) if stopped else late
    absences = [Absence(name, AbsenceReason.FAILED, text) for name, text in failed.items()]
    absences += [Absence(name, why, detail) for name in missing()]
    saved = round(len(missing()) * fmean(vote.new_tokens for vote in votes)) if stopped else 0
    return CollectedVotes(tuple(votes), tuple(absences), loop.time() - started, saved)
