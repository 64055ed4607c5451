"""Routes that ask several voters, and that tell of votes: `/api/ai/…` and `/api/consensus/…`."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi import Query as Parameter
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from qubic_lab.api.answers import read_answer
from qubic_lab.api.hang_up import until_done
from qubic_lab.api.schemas import MOST_PROMPT_CHARACTERS, Query
from qubic_lab.api.vote_page import render_vote
from qubic_lab.api.votes import Ballot, Held, Votes
from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.consensus.aggregate import Known, Rules, deliberate
from qubic_lab.consensus.answers import final_answer, same
from qubic_lab.consensus.collect import Vote
from qubic_lab.consensus.dependence import Source
from qubic_lab.consensus.history import MOST_PAGE, Grading
from qubic_lab.consensus.stopping import StopRule
from qubic_lab.consensus.trail import trail_of
from qubic_lab.core import SamplingParams
from qubic_lab.errors import InputError

MOST_NODES, MOST_SAMPLES, MOST_BALLOTS = 8, 16, 32
MOST_ANALYZED = 32
DEFAULT_TEMPERATURE = 0.7
"""Greedy answers of one model are copies of each other, and count as one vote."""
RuleName = Literal["majority", "super-majority", "weighted"]


class ConsensusQuery(Query):
    """A question that several voters answer; the sampling fields are each voter's."""

    temperature: Annotated[
        float, Field(ge=0.0, le=100.0, description="0 is greedy: copies of a model are one vote")
    ] = DEFAULT_TEMPERATURE
    stream: Literal[False] = False
    mode: Annotated[
        Literal["auto", "consensus", "single"], Field(description="auto: by one node while the cluster is busy")
    ] = "auto"
    nodes: Annotated[int, Field(ge=1, le=MOST_NODES, description="nodes to ask, or as many as there are")] = 3
    samples: Annotated[int, Field(ge=1, le=MOST_SAMPLES, description="answers of each node")] = 1
    prompts: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=MOST_PROMPT_CHARACTERS)], ...],
        Field(max_length=MOST_NODES, description="the question in other words, for the nodes in turns"),
    ] = ()
    temperatures: Annotated[
        tuple[Annotated[float, Field(ge=0.0, le=100.0)], ...],
        Field(max_length=MOST_NODES, description="of the nodes in turns, in place of temperature"),
    ] = ()
    rounds: Annotated[int, Field(ge=1, le=3, description="at most; voters are asked again where it is too close")] = 2
    rule: RuleName = "majority"
    stop_at: Annotated[
        float | None,
        Field(gt=0.5, le=1.0, description="no more are waited for where the leader is ahead with this probability"),
    ] = None
    merge: Annotated[
        bool, Field(description="give an explanation that won with what others that agree with it add")
    ] = False
    question_type: Annotated[str, Field(max_length=40, description="says which calibration fits")] = "any"
    deadline_s: Annotated[float, Field(gt=0.0, le=3_600.0, description="of the whole vote")] = 120.0

    def to_ballot(self) -> Ballot:
        """Return what is voted on.

        Raises:
            InputError: too many answers in all.
        """
        if self.nodes * self.samples > MOST_BALLOTS:
            raise InputError(f"{self.nodes} nodes with {self.samples} samples: at most {MOST_BALLOTS} answers in all")
        return Ballot(
            self.to_message(),
            self.nodes,
            self.samples,
            self.rounds,
            self.deadline_s,
            Rules(self.rule, self.merge),
            self.question_type,
            self.prompts,
            self.temperatures,
            StopRule(self.stop_at),
        )


class Verdict(BaseModel):
    """What a vote came to; `trail` says who said what, how alike, who won and why.

    `mode` is single where one node answered, with the reason in `mode_reason`; then there was no vote. `confidence` is
    a probability, or None where nothing is calibrated for this model and type of question.
    """

    mode: Literal["consensus", "single"]
    mode_reason: str
    vote_id: str | None
    text: str
    level: str
    confidence: float | None
    confidence_note: str
    conflict: bool
    disagreement: float | None
    rounds: int
    tokens: int
    tokens_saved: int
    seconds: float
    page: str | None
    trail: dict[str, Any] | None


class Analysis(BaseModel):
    """Answers that a client has, to be compared and voted on; nobody is asked."""

    model_config = ConfigDict(extra="forbid")

    question: Annotated[str, Field(min_length=1, max_length=MOST_PROMPT_CHARACTERS)]
    answers: Annotated[list[Annotated[str, Field(max_length=MOST_PROMPT_CHARACTERS)]], Field(max_length=MOST_ANALYZED)]
    rule: RuleName = "majority"
    merge: bool = False


class Reference(BaseModel):
    """The right answer to a question that was voted on."""

    model_config = ConfigDict(extra="forbid")

    answer: Annotated[str, Field(min_length=1, max_length=10_000)]


class Graded(BaseModel):
    """Who was right; None of a voter whose answer rules cannot compare with the reference: it does not count."""

    vote_id: str
    right: dict[str, bool | None]


def make_routes(coordinator: Coordinator, votes: Votes) -> APIRouter:
    """Return the routes of a coordinator whose votes are held by `votes`."""
    routes = APIRouter(tags=["consensus"])

    @routes.post("/api/ai/consensus_query")
    async def ask(query: ConsensusQuery, request: Request) -> Verdict:
        """Ask several nodes, or one several times; compare, vote, and answer with a confidence and the whole trail.

        A client that hangs up ends the voters' work.
        """
        ballot = query.to_ballot()
        busy = query.mode == "auto" and await votes.is_busy()
        if query.mode == "single" or busy:
            reason = "the cluster is busy: one node answered" if busy else "asked for"
            return await until_done(request, _single(coordinator, query, reason))
        return _verdict(await until_done(request, votes.hold(ballot)))

    @routes.post("/api/ai/analyze")
    async def analyze(analysis: Analysis) -> dict[str, Any]:
        """Compare and vote on answers that the client has; returns the trail."""
        given = [_given(number, text) for number, text in enumerate(analysis.answers)]
        known, rules = Known(embed=await votes.embed()), Rules(analysis.rule, analysis.merge)
        return trail_of(await asyncio.to_thread(deliberate, analysis.question, given, (), known, rules))

    @routes.get("/api/consensus/status")
    async def status() -> dict[str, Any]:
        """Tell whether votes can be held now, and by whom."""
        views = [view for view in coordinator.nodes() if view.gate is None]
        return {
            "ready": bool(views),
            "busy": await votes.is_busy(),
            "voters": [view.record.id for view in views],
            "models": sorted({view.record.registration.capabilities.model for view in views}),
            "embeddings": votes.embedder is not None,
        }

    @routes.get("/api/consensus/metrics")
    async def metrics() -> list[dict[str, Any]]:
        """Tell what came of the votes of each mode."""
        return [asdict(each) for each in await asyncio.to_thread(lambda: votes.history.metrics())]

    @routes.get("/api/consensus/history")
    async def history(
        limit: Annotated[int, Parameter(ge=1, le=MOST_PAGE)] = 50, cursor: str | None = None
    ) -> dict[str, Any]:
        """List votes, the newest first; `next_cursor` leads to the next page."""
        return asdict(await asyncio.to_thread(lambda: votes.history.page(limit, cursor)))

    @routes.get("/api/consensus/conflicts")
    async def conflicts(
        limit: Annotated[int, Parameter(ge=1, le=MOST_PAGE)] = 50, cursor: str | None = None
    ) -> dict[str, Any]:
        """List votes in which no answer had more than half of the ballots."""
        return asdict(await asyncio.to_thread(lambda: votes.history.page(limit, cursor, conflicts=True)))

    @routes.get("/api/consensus/history/{vote_id}")
    async def trail(vote_id: str) -> dict[str, Any]:
        """Return a vote's whole trail."""
        return await asyncio.to_thread(lambda: votes.history.trail(vote_id))

    @routes.get("/api/consensus/history/{vote_id}/page", response_class=HTMLResponse)
    async def page(vote_id: str) -> Response:
        """Show a vote: voters, similarity, groups, decision."""
        found = await asyncio.to_thread(lambda: votes.history.trail(vote_id))
        return HTMLResponse(render_vote(vote_id, found))

    @routes.post("/api/consensus/history/{vote_id}/reference")
    async def grade(vote_id: str, reference: Reference) -> Graded:
        """Tell the right answer: nodes' records, and so their weights, follow from it."""
        found = await asyncio.to_thread(lambda: votes.history.trail(vote_id))
        right = await asyncio.to_thread(judge, found, reference.answer)
        gradings = [
            Grading(each["voter"], each["node"], each["group"], right[each["voter"]] is True)
            for each in found["voters"]
            if right[each["voter"]] is not None
        ]
        await asyncio.to_thread(lambda: votes.history.grade(vote_id, gradings, datetime.now(UTC)))
        return Graded(vote_id=vote_id, right=right)

    return routes


def judge(trail: Mapping[str, Any], reference: str) -> dict[str, bool | None]:
    """Return of each voter whether its answer is the reference's; None where rules cannot tell."""
    question = trail["question"]
    wanted = final_answer(f"The answer is {reference}", question)
    return {each["voter"]: same(final_answer(each["text"], question), wanted) for each in trail["voters"]}


async def _single(coordinator: Coordinator, query: ConsensusQuery, reason: str) -> Verdict:
    """Let one node answer."""
    started_s = time.perf_counter()
    task_id = await coordinator.submit(query.to_message(), query.priority)
    ended = False
    try:
        async with asyncio.timeout(query.deadline_s):
            answer = await read_answer(coordinator, task_id, started_s)
        ended = True
    finally:
        if not ended:
            await asyncio.shield(coordinator.cancel(task_id))
    return Verdict(
        mode="single",
        mode_reason=reason,
        vote_id=None,
        text=answer.text,
        level="answer with a note",
        confidence=None,
        confidence_note="uncalibrated: one answer is no vote",
        conflict=False,
        disagreement=None,
        rounds=0,
        tokens=len(answer.token_ids),
        tokens_saved=0,
        seconds=time.perf_counter() - started_s,
        page=None,
        trail=None,
    )


def _verdict(held: Held) -> Verdict:
    reply = held.reply
    return Verdict(
        mode="consensus",
        mode_reason="a vote was held",
        vote_id=held.id,
        text=reply.text,
        level=str(reply.level),
        confidence=reply.confidence.probability,
        confidence_note=reply.confidence.note,
        conflict=reply.conflict,
        disagreement=reply.disagreement,
        rounds=held.rounds,
        tokens=held.tokens,
        tokens_saved=held.tokens_saved,
        seconds=held.seconds,
        page=f"/api/consensus/history/{held.id}/page",
        trail=dict(held.trail),
    )


def _given(number: int, text: str) -> Vote:
    """Return an answer that somebody has as a vote of its own."""
    name = f"answer {number + 1:02}"
    source = Source("", "", SamplingParams(temperature=1.0, seed=number))
    return Vote(name, name, "", source, text, "stop", len(text.split()), 0.0)
