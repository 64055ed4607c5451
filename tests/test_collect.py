"""Collecting votes: all of them, until it is certain, or until the deadline; whoever is missing is named."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from virtual import run_virtually

from qubic_lab.consensus.voting import Absence, AbsenceReason, AnswerSource, Vote
from qubic_lab.core import SamplingParams
from qubic_lab.errors import RankError
from qubic_lab.votes.collect import CollectedVotes, Voter, collect


def vote_of(voter: Voter, sample: int, text: str = "4", tokens: int = 10) -> Vote:
    source = AnswerSource("hash", "question", SamplingParams(temperature=0.7, seed=voter.seed + sample))
    return Vote(voter.name(sample), voter.node, "model", source, text, "stop", tokens, 0.0)


async def answering(voter: Voter) -> AsyncGenerator[Vote, None]:
    """A node by its name: `slow` never answers, `lost` fails after its first sample, all others answer."""
    for sample in range(voter.samples):
        if voter.node == "slow":
            await asyncio.Future()
        if voter.node == "lost" and sample == 1:
            raise RankError("rank 1 was lost")
        await asyncio.sleep(0)
        yield vote_of(voter, sample)


def collected(*voters: Voter, deadline_s: float = 5.0, certain_from: int = 10**9) -> CollectedVotes:
    async def certain(votes: Sequence[Vote], *_: object) -> str | None:
        return "two are enough" if len(votes) >= certain_from else None

    return run_virtually(collect(voters, answering, deadline_s, certain))


def test_all_votes_come_and_nobody_is_missing() -> None:
    found = collected(Voter("a"), Voter("b", samples=3, seed=7))
    assert sorted(vote.voter for vote in found.votes) == ["a", "b#1", "b#2", "b#3"]
    assert sorted(vote.source.sampling.seed for vote in found.votes if vote.node == "b") == [7, 8, 9]
    assert found.absences == ()


def test_the_late_and_the_failed_are_named() -> None:
    found = collected(Voter("slow"), Voter("lost", samples=3), Voter("a"), deadline_s=0.2)
    assert sorted(vote.voter for vote in found.votes) == ["a", "lost#1"]
    assert set(found.absences) == {
        Absence("lost#2", AbsenceReason.FAILED, "rank 1 was lost"),
        Absence("lost#3", AbsenceReason.FAILED, "rank 1 was lost"),
        Absence("slow", AbsenceReason.LATE, "after 0.2 s"),
    }
    assert found.tokens_saved == 0


def test_who_is_not_needed_is_stopped_and_its_tokens_are_counted() -> None:
    found = collected(Voter("a"), Voter("b"), Voter("slow", samples=2), certain_from=2)
    assert sorted(vote.voter for vote in found.votes) == ["a", "b"]
    assert {(each.why, each.detail) for each in found.absences} == {(AbsenceReason.STOPPED, "two are enough")}
    assert found.tokens_saved == 20


def test_whoever_is_asked_is_cancelled_with_the_collection() -> None:
    ended = []

    async def hanging(voter: Voter) -> AsyncGenerator[Vote, None]:
        try:
            await asyncio.Future()
            yield vote_of(voter, 0)
        finally:
            ended.append(voter.node)

    async def never(*_: object) -> None:
        return None

    async def cancelled() -> None:
        collecting = asyncio.ensure_future(collect([Voter("a"), Voter("b")], hanging, 60.0, never))
        await asyncio.sleep(0.05)
        collecting.cancel()
        await asyncio.gather(collecting, return_exceptions=True)

    run_virtually(cancelled())
    assert sorted(ended) == ["a", "b"]
