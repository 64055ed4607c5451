"""How a vote is held on a cluster: who is asked, when they are asked again, and what is kept of it."""

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from math import ceil
from typing import Any, TypeVar

from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.cluster.fleet import NodeView
from qubic_lab.consensus.aggregate import Known, Reply, Rules, deliberate, is_certain
from qubic_lab.consensus.collect import Absence, Absent, Collected, Vote, Voter, collect
from qubic_lab.consensus.confidence import Calibration, Level
from qubic_lab.consensus.dependence import Source, error_correlation
from qubic_lab.consensus.history import VoteHistory, VoteSummary
from qubic_lab.consensus.similarity import Embed
from qubic_lab.consensus.stopping import ONLY_CERTAIN, StopRule
from qubic_lab.consensus.trail import trail_of
from qubic_lab.consensus.weights import WeightParts, weigh
from qubic_lab.core import MAX_SEED, SamplingParams
from qubic_lab.errors import BusyError, QubicLabError, RankError
from qubic_lab.model.embeddings import Embedder
from qubic_lab.wire import pipeline_pb2

EXPERT = "expert"
"""Type of the nodes that are asked last, where the others disagree."""
SEED_STRIDE = 1_009
"""Seeds of two nodes, and of two rounds, are so far apart: no two samples are drawn alike."""
BUSY_TASKS_A_SLOT = 1.0
"""With so many waiting tasks for each slot, a question that leaves it open is answered by one node."""
CANCEL_S = 5.0
COUNTING_SHARE, MOST_COUNTING_S = 0.1, 1.0
"""Of a deadline, so much is for comparing, counting and keeping: votes that come later are late."""
T = TypeVar("T")


@dataclass(frozen=True)
class Ballot:
    """What a client asks to be voted on, and how.

    Attributes:
        request: the question and how each voter samples; its seed is that of the first.
        nodes: so many nodes are asked, or as many as there are.
        samples: answers of each; where there are fewer nodes, they give more.
        rounds: at most; after the first, voters are asked again where the vote is too close.
        deadline_s: of the whole vote.
        rules: how votes are counted.
        question_type: says which calibration fits.
        prompts: the question in other words: nodes, and rounds, take them in turns; none: all get the question.
        temperatures: of the nodes in turns; none: the request's.
        stop: when votes that have not come are no longer waited for.
    """

    request: pipeline_pb2.GenerateRequest
    nodes: int
    samples: int
    rounds: int
    deadline_s: float
    rules: Rules
    question_type: str
    prompts: tuple[str, ...] = ()
    temperatures: tuple[float, ...] = ()
    stop: StopRule = ONLY_CERTAIN


@dataclass(frozen=True)
class Held:
    """A vote that was held: its id in the history, the reply, and what it took; `tokens` are new ones of all voters."""

    id: str
    reply: Reply
    rounds: int
    tokens: int
    tokens_saved: int
    seconds: float
    trail: Mapping[str, Any]


@dataclass
class _State:
    """A vote under way."""

    votes: list[Vote] = field(default_factory=list)
    absences: list[Absence] = field(default_factory=list)
    tokens_saved: int = 0
    rounds: int = 0

    def add(self, collected: Collected) -> None:
        """Take over a round."""
        self.votes += collected.votes
        self.absences += collected.absences
        self.tokens_saved += collected.tokens_saved
        self.rounds += 1


def is_busy(pending: int, views: Sequence[NodeView]) -> bool:
    """Tell whether too many tasks wait for a vote to be held without need; where no node may be asked, none is held."""
    slots = sum(view.record.registration.capabilities.slots for view in views if view.gate is None)
    return slots > 0 and pending >= BUSY_TASKS_A_SLOT * slots


def choose_voters(views: Sequence[NodeView], ballot: Ballot, before: Mapping[str, int]) -> list[Voter]:
    """Return who is asked in a round: the healthiest nodes, models of different kinds first.

    Args:
        views: all nodes; those behind a gate and experts are not asked.
        ballot: how many are wanted.
        before: how many votes each node gave in earlier rounds.

    Raises:
        BusyError: no node may be asked.
    """
    free = sorted(
        (view for view in views if view.gate is None and view.record.registration.type != EXPERT),
        key=lambda view: (-view.score, view.record.id),
    )
    if not free:
        raise BusyError(f"none of {len(views)} nodes can vote now: /api/cluster/nodes says why", 5.0)
    hashes = [view.record.registration.capabilities.model_hash for view in free]
    first_of = {hash: hashes.index(hash) for hash in hashes}
    ranked = sorted(range(len(free)), key=lambda index: (first_of[hashes[index]] != index, index))
    chosen = [free[index] for index in ranked[: ballot.nodes]]
    samples = ceil(ballot.nodes * ballot.samples / len(chosen))
    asked = sum(map(bool, before.values()))
    seed, round_seed = ballot.request.sampling.seed, SEED_STRIDE * ballot.nodes * asked
    return [
        Voter(
            view.record.id,
            samples,
            seed=(seed + round_seed + SEED_STRIDE * number + before.get(view.record.id, 0)) % (MAX_SEED + 1),
            before=before.get(view.record.id, 0),
            prompt=_in_turn(ballot.prompts, asked + number),
            temperature=_in_turn(ballot.temperatures, asked + number),
        )
        for number, view in enumerate(chosen)
    ]


def _in_turn(given: Sequence[T], number: int) -> T | None:
    return given[number % len(given)] if given else None


class Votes:
    """Holds votes on a coordinator's nodes, and keeps them.

    Args:
        coordinator: whose nodes vote.
        open_history: opens what votes are kept in, at the first one.
        calibrations: of confidences; those that fit model and type of question are used.
        embedder: for similarity, or None: words and structure count then. The first vote that needs it has it loaded,
            while its nodes answer.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        open_history: Callable[[], VoteHistory],
        calibrations: tuple[Calibration, ...] = (),
        embedder: Embedder | None = None,
    ) -> None:
        self.embedder = embedder
        self._loading: asyncio.Future[None] | None = None
        self._coordinator, self._open_history, self._calibrations = coordinator, open_history, calibrations
        self._opening = threading.Lock()

    @cached_property
    def _opened(self) -> VoteHistory:
        return self._open_history()

    @property
    def history(self) -> VoteHistory:
        """What votes are kept in; opened when it is asked for first, which blocks."""
        with self._opening:
            return self._opened

    async def is_busy(self) -> bool:
        """Tell whether the cluster is too busy for a vote without need."""
        return is_busy((await self._coordinator.counts()).pending, self._coordinator.nodes())

    async def embed(self, within_s: float | None = None) -> Embed | None:
        """Return what turns texts into vectors; None where there is nothing, or it is not loaded in time.

        Raises:
            ModelError: as of `Embedder.load`.
        """
        if self.embedder is None:
            return None
        if self._loading is None:
            self._loading = asyncio.ensure_future(asyncio.to_thread(self.embedder.load))
        loaded, _ = await asyncio.wait([self._loading], timeout=within_s)
        if not loaded:
            return None
        self._loading.result()
        return self.embedder.embed

    async def hold(self, ballot: Ballot) -> Held:
        """Ask, count, ask again where it is too close, and at last an expert; keep what came of it.

        Raises:
            BusyError: no node may be asked.
            ModelError: as of `embed`.
        """
        started_s = time.perf_counter()

        asking_s = ballot.deadline_s - min(COUNTING_SHARE * ballot.deadline_s, MOST_COUNTING_S)

        def left_s() -> float:
            return asking_s - (time.perf_counter() - started_s)

        await self.embed(within_s=0.0)  # begins to load it
        known = await asyncio.to_thread(self._known, ballot)
        state, reply = _State(), None
        while reply is None or (reply.level is Level.RECOMPUTE and state.rounds < ballot.rounds):
            if reply is not None and left_s() <= 0:
                break
            before: dict[str, int] = {}
            for name in [vote.voter for vote in state.votes] + [each.voter for each in state.absences]:
                node = name.partition("#")[0]
                before[node] = before.get(node, 0) + 1
            voters = choose_voters(self._coordinator.nodes(), ballot, before)
            state.add(await self._collect(ballot, voters, state, known, max(0.1, left_s())))
            known = replace(known, embed=await self.embed(max(0.0, left_s())))
            reply = await asyncio.to_thread(
                deliberate, ballot.request.prompt, state.votes, state.absences, known, ballot.rules
            )
        if reply.level is Level.RECOMPUTE:
            reply = await self._ask_expert(ballot, state, reply, left_s())
        return await self._keep(ballot, state, reply, time.perf_counter() - started_s)

    def _known(self, ballot: Ballot) -> Known:
        records = self.history.records()
        views = self._coordinator.nodes()
        correlation = error_correlation(self.history.past_votes(), resamples=100)
        hashes = {view.record.registration.capabilities.model_hash for view in views if view.gate is None}
        return Known(
            weights={view.record.id: _weight(view, records) for view in views},
            rho=correlation.rho if correlation else None,
            calibrations=self._calibrations,
            model=hashes.pop() if len(hashes) == 1 else "",
            question_type=ballot.question_type,
        )

    async def _collect(
        self, ballot: Ballot, voters: Sequence[Voter], state: _State, known: Known, deadline_s: float
    ) -> Collected:
        """Collect one round's votes; it ends early where no more of them can change the decision."""
        nodes = {voter.name(sample): voter.node for voter in voters for sample in range(voter.samples)}
        quick = replace(known, embed=None)

        def certain(votes: Sequence[Vote], failed: Sequence[str], missing: Sequence[str]) -> bool:
            absences = [*state.absences, *(Absence(name, Absent.FAILED, "") for name in failed)]
            reply = deliberate(ballot.request.prompt, [*state.votes, *votes], absences, quick, ballot.rules)
            return is_certain(reply, {name: nodes[name] for name in missing}, quick, ballot.rules, ballot.stop)

        return await collect(voters, lambda voter: self._ask(voter, ballot.request), deadline_s, certain)

    async def _ask(self, voter: Voter, question: pipeline_pb2.GenerateRequest) -> AsyncGenerator[Vote, None]:
        """Yield a node's votes as they come; leaving off ends its work."""
        request = pipeline_pb2.GenerateRequest()
        request.CopyFrom(question)
        request.sampling.seed, request.samples, request.sampling.logprobs = voter.seed, voter.samples, True
        if voter.prompt is not None:
            request.prompt = voter.prompt
        if voter.temperature is not None:
            request.sampling.temperature = voter.temperature
        started_s = time.perf_counter()
        task_id = await self._coordinator.submit(request, node=voter.node)
        ended = False
        try:
            async with aclosing(self._coordinator.follow(task_id)) as followed:
                samples: dict[int, dict[str, Any]] = {}
                tokens: list[dict[str, Any]] = []
                async for progress in followed:
                    seconds = time.perf_counter() - started_s
                    for item in progress.items:
                        if "sample" not in item:
                            tokens.append(item)
                        elif item["sample"] not in samples:  # a second try gives some again
                            samples[item["sample"]] = item
                            yield self._vote(voter, request, item, seconds)
                    if progress.outcome is not None:
                        ended = True
                        if progress.outcome.state != "completed":
                            raise RankError(progress.outcome.why)
                        if not samples:
                            whole = {**(progress.outcome.result or {}), "sample": 0, "tokens": len(tokens)}
                            whole["logprob"] = sum(item.get("logprob", 0.0) for item in tokens)
                            yield self._vote(voter, request, whole, seconds)
        finally:
            if not ended:
                await asyncio.shield(self._cancel(task_id))

    async def _cancel(self, task_id: str) -> None:
        try:
            async with asyncio.timeout(CANCEL_S):
                await self._coordinator.cancel(task_id)
        except (QubicLabError, TimeoutError):
            return  # the task is gone, or Redis is: its lease ends it

    def _vote(
        self, voter: Voter, request: pipeline_pb2.GenerateRequest, item: Mapping[str, Any], seconds: float
    ) -> Vote:
        capabilities = next(
            (v.record.registration.capabilities for v in self._coordinator.nodes() if v.record.id == voter.node), None
        )
        sample, s = int(item["sample"]), request.sampling
        sampling = SamplingParams(
            s.max_new_tokens, s.temperature, s.top_p, s.top_k, (voter.seed + sample) % (MAX_SEED + 1)
        )
        count = int(item["tokens"])
        return Vote(
            voter=voter.name(sample),
            node=voter.node,
            model=capabilities.model if capabilities else "",
            source=Source(capabilities.model_hash if capabilities else "", request.prompt, sampling),
            text=str(item["text"]),
            finish_reason=str(item["finish_reason"]),
            new_tokens=count,
            seconds=seconds,
            mean_logprob=item["logprob"] / count if count else None,
        )

    async def _ask_expert(self, ballot: Ballot, state: _State, reply: Reply, left_s: float) -> Reply:
        """Let an expert node decide a vote that stayed too close; without one the answer is a cautious one."""
        experts = [
            view.record.id
            for view in self._coordinator.nodes()
            if view.gate is None and view.record.registration.type == EXPERT
        ]
        if experts and left_s > 0:
            voter = Voter(min(experts), seed=ballot.request.sampling.seed)
            asked = await collect([voter], lambda each: self._ask(each, ballot.request), left_s, lambda *_: False)
            if asked.votes:
                state.votes += asked.votes
                return replace(reply, text=asked.votes[0].text.strip(), how=f"expert node {voter.node}")
        return reply.cautious()

    async def _keep(self, ballot: Ballot, state: _State, reply: Reply, seconds: float) -> Held:
        tokens = sum(vote.new_tokens for vote in state.votes)
        id = uuid.uuid4().hex
        trail = trail_of(reply) | {
            "rounds": state.rounds,
            "tokens": tokens,
            "tokens_saved": state.tokens_saved,
            "seconds": seconds,
            "question_type": ballot.question_type,
        }
        summary = VoteSummary(
            id=id,
            created_utc=datetime.now(UTC),
            mode="consensus",
            question=ballot.request.prompt,
            level=str(reply.level),
            confidence=reply.confidence.probability,
            conflict=reply.conflict,
            voters=reply.decision.ballots,
            tokens=tokens,
            seconds=seconds,
        )
        await asyncio.to_thread(lambda: self.history.add(summary, trail))
        return Held(id, reply, state.rounds, tokens, state.tokens_saved, seconds, trail)


def _weight(view: NodeView, records: Mapping[str, Any]) -> WeightParts:
    parameters = view.record.registration.capabilities.parameters or None
    answered = view.response_s or None
    options = {"record": records[view.record.id]} if view.record.id in records else {}
    return weigh(response_s=answered, health_score=view.score, parameters=parameters, **options)
