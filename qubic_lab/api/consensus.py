"""Routes that hold votes and show their history: `/api/ai/…` and `/api/consensus/…`."""

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response
from fastapi import Query as Parameter
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from qubic_lab.api.responses import STREAMED, EventStream, as_lines, count_answer, read_answer, until_done
from qubic_lab.api.schemas import MOST_DEADLINE_S, MOST_PROMPT_CHARACTERS, ConsensusResponse, Prompt, Query
from qubic_lab.api.vote_page import render_live, render_vote
from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.consensus.aggregate import VotingConfig
from qubic_lab.consensus.certificate import DEFAULT_ERROR, LEAST_ERROR, Certificate
from qubic_lab.core import attributes
from qubic_lab.errors import InputError
from qubic_lab.votes.history import CURSOR, MOST_PAGE, ModeMetrics, VotePage
from qubic_lab.votes.live import LiveEvent
from qubic_lab.votes.service import VoteResult, VoteService
from qubic_lab.votes.voters import VoteRequest

MOST_NODES, MOST_SAMPLES, MOST_BALLOTS = 8, 16, 32
DEFAULT_NODES = 3
MOST_ANALYZED = 32
MOST_ID = 64
DEFAULT_TEMPERATURE = 0.7
"""Above 0, because greedy answers of one model are copies of each other and count as one vote."""
RuleName = Annotated[Literal["majority", "super-majority", "weighted"], Field(description="how ballots are counted")]
VoteId = Annotated[
    str, Path(max_length=MOST_ID, pattern="^[0-9A-Za-z_-]+$", description="id of a vote, from /api/consensus/history")
]
Limit = Annotated[int, Parameter(ge=1, le=MOST_PAGE, description="the most votes of a page")]
Cursor = Annotated[str | None, Parameter(pattern=CURSOR, description="next_cursor of the page before")]


Trail = dict[str, Any]
"""The trail of a vote: question, decision, voters, similarities, groups (`votes.trail`)."""


def _most_ballots() -> list[Any]:
    """Return the limits of nodes and samples of which one must hold, so that there are not too many answers in all."""
    return [
        {
            "properties": {
                "nodes": {"maximum": nodes},
                "samples": {"maximum": min(MOST_SAMPLES, MOST_BALLOTS // nodes)},
            },
            "required": ["nodes"] if nodes < DEFAULT_NODES else [],
        }
        for nodes in range(1, MOST_NODES + 1)
    ]


class ConsensusQuery(Query):
    """A question for several voters; each voter uses the sampling fields."""

    model_config = ConfigDict(json_schema_extra={"anyOf": _most_ballots()})

    temperature: Annotated[
        float, Field(ge=0.0, le=100.0, description="0 is greedy; greedy copies of a model count as one vote")
    ] = DEFAULT_TEMPERATURE
    stream: Annotated[Literal[False], Field(description="a vote has no stream")] = False
    mode: Annotated[
        Literal["auto", "consensus", "single"], Field(description="auto: one node answers if the cluster is busy")
    ] = "auto"
    nodes: Annotated[int, Field(ge=1, le=MOST_NODES, description="nodes to ask, or all if there are fewer")] = (
        DEFAULT_NODES
    )
    samples: Annotated[int, Field(ge=1, le=MOST_SAMPLES, description="answers per node")] = 1
    prompts: Annotated[
        tuple[Prompt, ...],
        Field(max_length=MOST_NODES, description="other wordings of the question, taken by the nodes in turn"),
    ] = ()
    temperatures: Annotated[
        tuple[Annotated[float, Field(ge=0.0, le=100.0)], ...],
        Field(max_length=MOST_NODES, description="taken by the nodes in turn, instead of temperature"),
    ] = ()
    rounds: Annotated[
        int, Field(ge=1, le=3, description="the maximum; voters are asked again if the vote is too close")
    ] = 2
    rule: RuleName = "majority"
    stop_at: Annotated[
        float | None, Field(gt=0.5, le=1.0, description="stop when the leader is ahead with at least this probability")
    ] = None
    stop_rule: Annotated[
        Literal["certain", "certified"],
        Field(description="certified: ask in waves, until the most frequent answer is known, but for stop_error"),
    ] = "certain"
    stop_error: Annotated[float, Field(ge=LEAST_ERROR, le=0.5, description="error of the certificate")] = DEFAULT_ERROR
    stop_correlation: Annotated[
        float,
        Field(ge=0.0, le=1.0, description="of answers to one question, by causes that other voters would not share"),
    ] = 0.0
    merge: Annotated[bool, Field(description="add sentences of agreeing answers to a winning explanation")] = False
    question_type: Annotated[str, Field(max_length=40, description="selects the calibration")] = "any"
    deadline_s: Annotated[float, Field(gt=0.0, le=3_600.0, description="for the whole vote")] = 120.0

    @classmethod
    def of(cls, query: Query) -> "ConsensusQuery":
        """Return a vote on a plain question, with the settings that its client gave and the defaults of votes."""
        return cls(**query.model_dump(include=query.model_fields_set - {"stream"}))

    def to_vote(self) -> VoteRequest:
        """Return the vote to hold.

        Raises:
            InputError: too many answers in all.
        """
        if self.nodes * self.samples > MOST_BALLOTS:
            raise InputError(f"{self.nodes} nodes with {self.samples} samples: at most {MOST_BALLOTS} answers in all")
        same = {field.name: getattr(self, field.name) for field in fields(VoteRequest) if hasattr(self, field.name)}
        return VoteRequest(request=self.to_message(), voting=VotingConfig(self.rule, self.merge), **same)


class AnalysisRequest(BaseModel):
    """Answers that the client already has, to compare and count; no node is asked."""

    model_config = ConfigDict(extra="forbid")

    question: Annotated[str, Field(min_length=1, max_length=MOST_PROMPT_CHARACTERS, description="what was asked")]
    answers: Annotated[
        list[Annotated[str, Field(max_length=MOST_PROMPT_CHARACTERS)]],
        Field(max_length=MOST_ANALYZED, description="one of each voter"),
    ]
    rule: RuleName = "majority"
    merge: Annotated[bool, Field(description="add sentences of agreeing answers to a winning explanation")] = False


class GradeRequest(BaseModel):
    """The right answer to the question of a vote."""

    model_config = ConfigDict(extra="forbid")

    answer: Annotated[str, Field(min_length=1, max_length=10_000, description="the right answer")]


class GradeResponse(BaseModel):
    """Which voters were right."""

    vote_id: Annotated[str, Field(description="id of the vote")]
    right: Annotated[
        dict[str, bool | None],
        Field(description="by voter; null: rules cannot compare this answer with the reference, so it does not count"),
    ]


class RunningVote(BaseModel):
    """A vote that is being held."""

    id: Annotated[str, Field(description="id that it will have in the history")]
    question: Annotated[str, Field(description="what is asked")]


class VoteStatus(BaseModel):
    """Whether votes can be held now, and which nodes can vote."""

    ready: Annotated[bool, Field(description="whether a node is available")]
    busy: Annotated[bool, Field(description="whether mode auto lets one node answer now")]
    voters: Annotated[list[str], Field(description="names of the available nodes")]
    running: list[RunningVote]
    models: Annotated[list[str], Field(description="their models")]
    embeddings: Annotated[bool, Field(description="whether answers are compared by embeddings, too")]


@dataclass(frozen=True)
class ModeCounts(ModeMetrics):
    """Counts and means of all answers of one mode."""

    auto: Annotated[int, Field(description="of these, since the coordinator's start, whose mode the load decided")] = 0


def make_routes(coordinator: Coordinator, votes: VoteService) -> APIRouter:
    """Return the routes of a coordinator whose votes are held by `votes`."""
    routes = APIRouter(tags=["consensus"])
    _add_queries(routes, coordinator, votes)
    _add_history(routes, coordinator, votes)
    return routes


def _add_queries(routes: APIRouter, coordinator: Coordinator, votes: VoteService) -> None:
    @routes.post("/api/ai/consensus_query")
    async def ask(query: ConsensusQuery, request: Request) -> ConsensusResponse:
        """Ask several nodes, or one node several times; compare the answers, vote, and return confidence and trail.

        The voters stop when the client disconnects.
        """
        return await answer_query(coordinator, votes, query, request)

    @routes.post("/api/ai/analyze")
    async def analyze(analysis: AnalysisRequest, request: Request) -> Trail:
        """Compare and count answers that the client already has; returns the trail."""
        config = VotingConfig(analysis.rule, analysis.merge)
        return await until_done(request, votes.analyze(analysis.question, analysis.answers, config))

    @routes.get("/api/consensus/status")
    async def status() -> VoteStatus:
        """Return whether votes can be held now, and the available voters."""
        views = [view for view in coordinator.nodes() if view.gate is None]
        return VoteStatus(
            ready=bool(views),
            busy=await votes.is_busy(),
            voters=[view.record.id for view in views],
            running=[RunningVote(id=each.id, question=each.question) for each in votes.running.values()],
            models=sorted({view.record.registration.capabilities.model for view in views}),
            embeddings=votes.embedder is not None,
        )


def _add_history(routes: APIRouter, coordinator: Coordinator, votes: VoteService) -> None:
    @routes.get("/api/consensus/metrics")
    async def metrics() -> list[ModeCounts]:
        """Return counts and means of each mode: of all votes, and of this coordinator's single answers since its start.

        `auto` counts those, since its start, whose mode the load decided.
        """
        held, given = await asyncio.to_thread(lambda: votes.history.metrics()), coordinator.answers
        if count := round(given["single votes"]):
            means = given["single seconds"] / count, given["single tokens"] / count
            held.append(ModeMetrics("single", count, 0, None, *means, levels={}))
        return [ModeCounts(**asdict(each), auto=round(given[f"{each.mode} auto"])) for each in held]

    @routes.get("/api/consensus/history")
    async def history(limit: Limit = 50, cursor: Cursor = None) -> VotePage:
        """List votes, the newest first; `next_cursor` leads to the next page."""
        return await asyncio.to_thread(lambda: votes.history.page(limit, cursor))

    @routes.get("/api/consensus/conflicts")
    async def conflicts(limit: Limit = 50, cursor: Cursor = None) -> VotePage:
        """List votes in which no answer had more than half of the ballots."""
        return await asyncio.to_thread(lambda: votes.history.page(limit, cursor, conflicts=True))

    @routes.get("/api/consensus/history/{vote_id}")
    async def trail(vote_id: VoteId) -> Trail:
        """Return a vote's whole trail."""
        return await asyncio.to_thread(lambda: votes.history.trail(vote_id))

    @routes.get("/api/consensus/history/{vote_id}/page", response_class=HTMLResponse)
    async def page(vote_id: VoteId) -> Response:
        """Show a vote as a page: voters, similarity, groups and decision; while it is held, its course."""
        if live := votes.running.get(vote_id):
            return HTMLResponse(render_live(live.id, live.question))
        return HTMLResponse(render_vote(vote_id, await trail(vote_id)))

    @routes.get("/api/consensus/history/{vote_id}/events", response_class=Response, responses=STREAMED)
    async def events(vote_id: VoteId) -> Response:
        """Follow a vote while it is held, as server-sent events: count after each answer, round, and end."""
        if live := votes.running.get(vote_id):
            return EventStream(as_lines(live.follow(), MOST_DEADLINE_S))
        await trail(vote_id)
        return EventStream(as_lines(_ended(vote_id), MOST_DEADLINE_S))

    @routes.post("/api/consensus/history/{vote_id}/reference")
    async def grade(vote_id: VoteId, reference: GradeRequest) -> GradeResponse:
        """Grade a vote by the right answer; the nodes' accuracies, and so their weights, follow from it."""
        return GradeResponse(vote_id=vote_id, right=await votes.grade(vote_id, reference.answer))


async def answer_query(
    coordinator: Coordinator, votes: VoteService, query: ConsensusQuery, request: Request
) -> ConsensusResponse:
    """Hold a vote, or let one node answer if that is asked for, or if the mode is auto and the cluster is busy."""
    vote = query.to_vote()
    is_auto = query.mode == "auto"
    busy = is_auto and await votes.is_busy()
    if query.mode == "single" or busy:
        reason = "the cluster is busy: one node answered" if busy else "asked for"
        return await until_done(request, _single(coordinator, query, reason))
    result = await until_done(request, votes.hold(vote))
    count_answer(coordinator, "consensus", is_auto, result.seconds, result.tokens)
    return _response(result)


async def _ended(vote_id: str) -> AsyncGenerator[LiveEvent, None]:
    yield "end", 1, {"id": vote_id}


async def _single(coordinator: Coordinator, query: ConsensusQuery, reason: str) -> ConsensusResponse:
    """Return the answer of one node."""
    started_s = time.perf_counter()
    task_id = await coordinator.submit(query.to_message(), query.priority, whole=True)
    answer = await read_answer(coordinator, task_id, started_s, query.deadline_s, is_auto=query.mode == "auto")
    return ConsensusResponse(
        mode="single",
        mode_reason=reason,
        vote_id=None,
        text=answer.text,
        level="answer with a note",
        confidence=None,
        confidence_note="uncalibrated: one answer is not a vote",
        certificate=str(Certificate(None, query.stop_error, 1)),
        conflict=False,
        disagreement=None,
        rounds=0,
        tokens=len(answer.token_ids),
        tokens_saved=0,
        seconds=time.perf_counter() - started_s,
        page=None,
        trail=None,
    )


def _response(vote: VoteResult) -> ConsensusResponse:
    result = vote.result
    return ConsensusResponse(
        mode="consensus",
        mode_reason="a vote was held",
        vote_id=vote.id,
        level=str(result.level),
        confidence=result.confidence.probability,
        confidence_note=result.confidence.note,
        certificate=str(vote.certificate),
        **attributes(result, "text", "conflict", "disagreement"),
        **attributes(vote, "rounds", "tokens", "tokens_saved", "seconds"),
        page=f"/api/consensus/history/{vote.id}/page",
        trail=dict(vote.trail),
    )
