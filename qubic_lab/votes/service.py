"""Holds votes on a cluster: asks voters, counts, asks again if the vote is too close, and keeps the trail."""

import asyncio
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from math import ceil
from statistics import fmean
from typing import Any

from prometheus_client import Counter as MetricCounter
from prometheus_client import Histogram
from prometheus_client.registry import Collector

from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.consensus.aggregate import Consensus, VoteContext, VotingConfig
from qubic_lab.consensus.bands import ConfidenceLevel
from qubic_lab.consensus.certificate import Certificate
from qubic_lab.consensus.confidence import VoteCalibration
from qubic_lab.consensus.dependence import error_correlation
from qubic_lab.consensus.similarity import Embed
from qubic_lab.consensus.stopping import ballots_to_ask, reason_to_stop
from qubic_lab.consensus.voting import Absence, AbsenceReason, AnswerSource, Ballot, Vote
from qubic_lab.consensus.weights import NO_RECORD, weigh
from qubic_lab.core import MAX_SEED, SamplingParams
from qubic_lab.errors import ContextError, QubicLabError, RankError
from qubic_lab.metrics import NAMESPACE, SECONDS
from qubic_lab.model.embeddings import Embedder
from qubic_lab.tracing import exemplar, span
from qubic_lab.votes.certify import certificate_of, certify
from qubic_lab.votes.collect import CollectedVotes, Voter, collect
from qubic_lab.votes.counting import Counting
from qubic_lab.votes.history import Grading, VoteHistory, VoteSummary
from qubic_lab.votes.live import LiveVote
from qubic_lab.votes.trail import round_of, standings_of, trail_of
from qubic_lab.votes.voters import CERTIFIED, EXPERT, VoteRequest, choose_voters, is_busy, question_of
from qubic_lab.wire import pipeline_pb2
from qubic_lab.wire.cluster_pb2 import Capabilities

CANCEL_S = 5.0
COUNTING_SHARE, MOST_COUNTING_S = 0.1, 1.0
"""The part of a deadline that is reserved for comparing, counting and storing."""
# Apart from each other, so that votes need not wait for what clients want compared.
_VOTES = Counting(workers=2)
_ANALYSES = Counting(workers=1, most_waiting=4)


@dataclass(frozen=True)
class VoteResult:
    """A vote that was held: its id in the history, its result and its cost; `tokens` sums all voters' new tokens."""

    id: str
    result: Consensus
    certificate: Certificate
    rounds: int
    tokens: int
    tokens_saved: int
    seconds: float
    trail: Mapping[str, Any]


@dataclass
class _State:
    """The rounds so far; `rows` has the names of all voters in the order asked, each row one of each node.

    `course` is what was known after each round, and `live` tells it while the vote is held.
    """

    live: LiveVote
    course: list[dict[str, Any]] = field(default_factory=list)
    votes: list[Vote] = field(default_factory=list)
    absences: list[Absence] = field(default_factory=list)
    tokens_saved: int = 0
    rounds: int = 0
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, collected: CollectedVotes) -> None:
        self.votes += collected.votes
        self.absences += collected.absences
        self.tokens_saved += collected.tokens_saved

    def skip(self, names: Sequence[str], why: str) -> None:
        """Add voters that need not be asked any more, and the tokens that this saves, by the mean of the votes."""
        self.absences += [Absence(name, AbsenceReason.STOPPED, why) for name in names]
        self.tokens_saved += round(len(names) * fmean(vote.new_tokens for vote in self.votes)) if self.votes else 0

    def asked(self) -> Mapping[str, int]:
        voters = [vote.voter for vote in self.votes] + [each.voter for each in self.absences]
        return Counter(voter.partition("#")[0] for voter in voters)


class VoteService:
    """Holds votes on a coordinator's nodes and keeps them in a history, which is opened when it is first needed.

    Without an embedder only words and structure count. It is loaded with the first vote, while the nodes answer.
    `running` are the votes that are being held, by id.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        open_history: Callable[[], VoteHistory],
        calibrations: tuple[VoteCalibration, ...] = (),
        embedder: Embedder | None = None,
    ) -> None:
        self.embedder = embedder
        self.running: dict[str, LiveVote] = {}
        self._loading: asyncio.Future[None] | None = None
        self._coordinator, self._calibrations = coordinator, calibrations
        self._open_history, self._opening = cache(open_history), threading.Lock()
        self.held = MetricCounter(
            "votes", "Votes by the level of their confidence.", ["level"], NAMESPACE, registry=None
        )
        self.conflicts = MetricCounter("vote_conflicts", "Votes with a conflict.", [], NAMESPACE, registry=None)
        self.seconds = Histogram(
            "vote_seconds", "Time of a vote, all rounds.", [], NAMESPACE, registry=None, buckets=SECONDS
        )

    @property
    def metrics(self) -> tuple[Collector, ...]:
        """What it counts as votes end."""
        return self.held, self.conflicts, self.seconds

    @property
    def history(self) -> VoteHistory:
        """The history of votes; the first access opens it, which blocks."""
        with self._opening:
            return self._open_history()

    def start(self) -> None:
        """Start what reads answers, before it is needed; returns at once."""
        _VOTES.start()
        _ANALYSES.start()

    def end(self) -> None:
        """End what reads answers, for good."""
        _VOTES.end()
        _ANALYSES.end()

    async def is_busy(self) -> bool:
        """Return whether the cluster is too busy for an optional vote."""
        return is_busy((await self._coordinator.counts()).pending, self._coordinator.nodes())

    async def embed(self, within_s: float | None = None) -> Embed | None:
        """Return the embedder's function; None if there is no embedder or it is not loaded in time.

        Raises:
            ModelError: as `Embedder.load`.
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

    async def hold(self, vote: VoteRequest) -> VoteResult:
        """Hold a vote in one or more rounds, ask an expert if it stays too close, and store the result.

        Raises:
            BusyError: no node can be asked.
            ContextError: the question is too long for every voter.
            ModelError: as `embed`.
        """
        live = LiveVote(uuid.uuid4().hex, vote.question)
        self.running[live.id] = live
        try:
            with span("vote", vote=live.id) as attributes:
                held = await self._hold(vote, _State(live))
                attributes |= {"rounds": held.rounds, "level": str(held.result.level)}
            return held
        finally:
            del self.running[live.id]
            live.note("end", {"id": live.id})

    async def _hold(self, vote: VoteRequest, state: _State) -> VoteResult:
        started_s = time.perf_counter()
        asking_s = vote.deadline_s - min(COUNTING_SHARE * vote.deadline_s, MOST_COUNTING_S)

        def left_s() -> float:
            return asking_s - (time.perf_counter() - started_s)

        await self.embed(within_s=0.0)  # starts loading it
        context = await asyncio.to_thread(self._context, vote)
        result: Consensus | None = None
        while result is None or (result.level is ConfidenceLevel.RECOMPUTE and state.rounds < vote.rounds):
            if result is not None and left_s() <= 0:
                break
            voters = choose_voters(self._coordinator.nodes(), vote, state.asked())
            await self._hold_round(vote, voters, state, context, left_s)
            context = replace(context, embed=await self.embed(max(0.0, left_s())))
            result = await self._deliberate(vote, state, context)
            if vote.stop_rule == CERTIFIED:
                result = _noted(result, certify(result, state.rows, vote).certificate)
            state.course.append(round_of(state.rounds, result))
            state.live.note("round", state.course[-1])
        if result.level is ConfidenceLevel.RECOMPUTE:
            result = await self._ask_expert(vote, state, result, left_s())
        return await self._keep(vote, state, result, time.perf_counter() - started_s)

    async def analyze(self, question: str, answers: Sequence[str], config: VotingConfig) -> dict[str, Any]:
        """Count answers that the client already has, each as an independent vote, and return the trail.

        Raises:
            QubicLabError: as `Counting.deliberate`.
        """
        votes = [
            Vote(
                voter=(name := f"answer {number + 1:02}"),
                node=name,
                model="",
                source=AnswerSource("", "", SamplingParams(temperature=1.0, seed=number)),
                text=text,
                finish_reason="stop",
                new_tokens=len(text.split()),
                seconds=0.0,
            )
            for number, text in enumerate(answers)
        ]
        context = VoteContext(embed=await self.embed())
        return trail_of(await _ANALYSES.deliberate(question, votes, (), context, config))

    async def grade(self, vote_id: str, reference: str) -> dict[str, bool | None]:
        """Grade a stored vote by the right answer, store who was right, and return it by voter.

        An answer that can be read is right or wrong. None: it cannot be read, or no rule can compare it with the
        reference; it is not stored.

        Raises:
            NotFoundError: there is no such vote.
            QubicLabError: as `Counting.grade`.
        """
        trail = await asyncio.to_thread(lambda: self.history.trail(vote_id))
        answers = [(each["text"], each["finish_reason"] == "length") for each in trail["voters"]]
        graded = await _ANALYSES.grade(trail["question"], reference, answers)
        right = {each["voter"]: verdict for each, verdict in zip(trail["voters"], graded, strict=True)}
        gradings = [
            Grading(each["voter"], each["node"], each["group"], verdict)
            for each, verdict in zip(trail["voters"], right.values(), strict=True)
            if verdict is not None
        ]
        await asyncio.to_thread(lambda: self.history.grade(vote_id, gradings, datetime.now(UTC)))
        return right

    def _context(self, vote: VoteRequest) -> VoteContext:
        records = self.history.records()
        views = self._coordinator.nodes()
        correlation = error_correlation(self.history.past_votes(), resamples=100)
        hashes = {view.record.registration.capabilities.model_hash for view in views if view.gate is None}
        weights = {
            view.record.id: weigh(
                record=records.get(view.record.id, NO_RECORD),
                response_s=view.response_s,
                health_score=view.score,
                parameters=view.record.registration.capabilities.parameters or None,
            )
            for view in views
        }
        return VoteContext(
            weights=weights,
            rho=correlation.rho if correlation else None,
            calibrations=self._calibrations,
            model=hashes.pop() if len(hashes) == 1 else "",
            question_type=vote.question_type,
        )

    async def _hold_round(
        self,
        vote: VoteRequest,
        voters: Sequence[Voter],
        state: _State,
        context: VoteContext,
        left_s: Callable[[], float],
    ) -> None:
        """Ask voters for their samples, in waves if a certificate ends the vote.

        A wave has the fewest samples with which the vote could end, so that none is begun in vain.
        """
        state.rounds += 1
        later: Sequence[Voter] = voters
        taken, total = 0, voters[0].samples
        stopped: str | None = None
        while taken < total and not stopped and (taken == 0 or left_s() > 0):
            wave = total
            if vote.stop_rule == CERTIFIED:
                with suppress(QubicLabError):
                    result = await self._count(vote, state, context)
                    certifier = certify(result, state.rows, vote)
                    ballots = ballots_to_ask(result.ballots, (total - taken) * len(voters), certifier)
                    wave = ceil(ballots / len(voters))
            wave = min(wave, total - taken)
            now = [each.part(taken, wave) for each in voters]
            taken += wave
            later = [each.part(taken, total - taken) for each in voters]
            stopped = await self._collect(vote, now, later, state, context, max(0.1, left_s()))
        if stopped:
            state.skip([name for voter in later for name in voter.names()], stopped)

    async def _collect(
        self,
        vote: VoteRequest,
        voters: Sequence[Voter],
        later: Sequence[Voter],
        state: _State,
        context: VoteContext,
        deadline_s: float,
    ) -> str | None:
        """Collect a wave; stop early if the missing votes and the later ones are not needed, and return why."""
        weights = {name: context.weight(voter.node).weight for voter in (*voters, *later) for name in voter.names()}
        later_names = [name for voter in later for name in voter.names()]
        state.rows += [tuple(voter.name(sample) for voter in voters) for sample in range(voters[0].samples)]

        async def enough(votes: Sequence[Vote], failed: Sequence[str], missing: Sequence[str]) -> str | None:
            try:
                result = await self._count(vote, state, context, votes, failed)
            except QubicLabError:
                return None
            answered, left = len(result.voters), len(missing) + len(later_names)
            state.live.note("count", {"answered": answered, "missing": left, "standings": standings_of(result)})
            to_come = [Ballot(name, None, weights[name]) for name in (*missing, *later_names)]
            rules = vote.voting.rule, vote.voting.fallback
            certifier = certify(result, state.rows, vote) if vote.stop_rule == CERTIFIED else None
            return reason_to_stop(result.ballots, to_come, vote.stop_at, *rules, certifier)

        collected = await collect(voters, lambda voter: self._ask(voter, vote.request), deadline_s, enough)
        state.add(collected)
        stopped = (each.detail for each in collected.absences if each.why is AbsenceReason.STOPPED)
        return next(stopped, None) or await enough((), (), ())

    async def _deliberate(self, vote: VoteRequest, state: _State, context: VoteContext) -> Consensus:
        """Return the result of all votes; those that cannot be read in time count as failed.

        Raises:
            QubicLabError: the others cannot be counted, either.
        """
        question = vote.question
        try:
            with span("count", votes=len(state.votes)):
                return await _VOTES.deliberate(question, state.votes, state.absences, context, vote.voting)
        except QubicLabError:
            state.votes, unread = await _VOTES.readable(question, state.votes)
            state.absences += unread
            return await _VOTES.deliberate(question, state.votes, state.absences, context, vote.voting)

    async def _count(
        self,
        vote: VoteRequest,
        state: _State,
        context: VoteContext,
        votes: Sequence[Vote] = (),
        failed: Sequence[str] = (),
    ) -> Consensus:
        """Return the result of the votes so far, without embeddings.

        Raises:
            QubicLabError: as `Counting.deliberate`.
        """
        absences = [*state.absences, *(Absence(name, AbsenceReason.FAILED, "") for name in failed)]
        without = replace(context, embed=None)
        cast = [*state.votes, *votes]
        return await _VOTES.deliberate(vote.question, cast, absences, without, vote.voting, quick=True)

    async def _ask(self, voter: Voter, question: pipeline_pb2.GenerateRequest) -> AsyncGenerator[Vote, None]:
        """Yield a node's votes as they arrive, of which it makes as many at once as it has slots.

        Closing the generator cancels the node's task.
        """
        capabilities = self._capabilities(voter.node)
        slots = max(1, capabilities.slots) if capabilities else voter.samples
        for first in range(0, voter.samples, slots):
            async with aclosing(self._ask_some(voter, first, min(slots, voter.samples - first), question)) as votes:
                async for vote in votes:
                    yield vote

    async def _ask_some(
        self, voter: Voter, first: int, samples: int, question: pipeline_pb2.GenerateRequest
    ) -> AsyncGenerator[Vote, None]:
        """Yield some of a node's votes, from the number `first` on."""
        request = pipeline_pb2.GenerateRequest()
        request.CopyFrom(question)
        request.sampling.seed, request.samples = voter.part(first, samples).seed, samples
        request.sampling.logprobs = True
        if voter.prompt is not None:
            request.prompt = voter.prompt
        if voter.temperature is not None:
            request.sampling.temperature = voter.temperature
        started_s = time.perf_counter()
        task_id = await self._coordinator.submit(request, node=voter.node)
        ended = False
        try:
            async with aclosing(self._coordinator.follow(task_id)) as followed:
                seen: set[int] = set()
                tokens, logprob = 0, 0.0
                async for progress in followed:
                    seconds = time.perf_counter() - started_s
                    for item in progress.items:
                        if "sample" not in item:
                            tokens, logprob = tokens + 1, logprob + item.get("logprob", 0.0)
                        elif item["sample"] not in seen:  # a retry repeats some samples
                            seen.add(item["sample"])
                            yield self._vote(voter, request, first, item, seconds)
                    if progress.outcome is not None:
                        ended = True
                        if progress.outcome.state != "completed":
                            too_long = progress.outcome.code == ContextError.code
                            raise (ContextError if too_long else RankError)(progress.outcome.why)
                        if not seen:
                            counted = {"sample": 0, "tokens": tokens, "logprob": logprob}
                            whole = {**(progress.outcome.result or {}), **counted}
                            yield self._vote(voter, request, first, whole, seconds)
        finally:
            if not ended:
                await asyncio.shield(self._cancel(task_id))

    async def _cancel(self, task_id: str) -> None:
        try:
            async with asyncio.timeout(CANCEL_S):
                await self._coordinator.cancel(task_id)
        except (QubicLabError, TimeoutError):
            return  # the task or Redis is gone: its lease ends it

    def _capabilities(self, node: str) -> Capabilities | None:
        found = (view.record.registration for view in self._coordinator.nodes() if view.record.id == node)
        return next((each.capabilities for each in found), None)

    def _vote(
        self, voter: Voter, request: pipeline_pb2.GenerateRequest, first: int, item: Mapping[str, Any], seconds: float
    ) -> Vote:
        capabilities = self._capabilities(voter.node)
        sample, s = first + int(item["sample"]), request.sampling
        sampling = SamplingParams(
            s.max_new_tokens, s.temperature, s.top_p, s.top_k, (voter.seed + sample) % (MAX_SEED + 1)
        )
        count = int(item["tokens"])
        return Vote(
            voter=voter.name(sample),
            node=voter.node,
            model=capabilities.model if capabilities else "",
            source=AnswerSource(capabilities.model_hash if capabilities else "", question_of(request), sampling),
            text=str(item["text"]),
            finish_reason=str(item["finish_reason"]),
            new_tokens=count,
            seconds=seconds,
            mean_logprob=item["logprob"] / count if count else None,
            prompt_tokens=int(item["prompt_tokens"]),
        )

    async def _ask_expert(self, vote: VoteRequest, state: _State, result: Consensus, left_s: float) -> Consensus:
        """Let an expert node decide a vote that stayed too close; without one the answer is a cautious one."""
        experts = [
            view.record.id
            for view in self._coordinator.nodes()
            if view.gate is None and view.record.registration.type == EXPERT
        ]
        if experts and left_s > 0:
            voter = Voter(min(experts), seed=vote.request.sampling.seed)
            asked = await collect([voter], lambda each: self._ask(each, vote.request), left_s, _never)
            if asked.votes:
                state.votes += asked.votes
                return replace(result, text=asked.votes[0].text.strip(), how=f"expert node {voter.node}")
        return result.cautious()

    async def _keep(self, vote: VoteRequest, state: _State, result: Consensus, seconds: float) -> VoteResult:
        tokens = sum(each.new_tokens for each in state.votes)
        self.held.labels(str(result.level)).inc()
        self.conflicts.inc(bool(result.conflict))
        self.seconds.observe(seconds, exemplar())
        certificate = certificate_of(result, state.rows, vote)
        trail = trail_of(result) | {
            "certificate": asdict(certificate) | {"text": str(certificate)},
            "rounds": state.rounds,
            "course": state.course,
            "tokens": tokens,
            "tokens_saved": state.tokens_saved,
            "seconds": seconds,
            "question_type": vote.question_type,
        }
        summary = VoteSummary(
            id=state.live.id,
            created_utc=datetime.now(UTC),
            mode="consensus",
            question=vote.question,
            level=str(result.level),
            confidence=result.confidence.probability,
            conflict=result.conflict,
            voters=result.decision.ballots,
            tokens=tokens,
            seconds=seconds,
        )
        await asyncio.to_thread(lambda: self.history.add(summary, trail))
        return VoteResult(summary.id, result, certificate, state.rounds, tokens, state.tokens_saved, seconds, trail)


async def _never(*_: Sequence[object]) -> str | None:
    """Return that a vote goes on."""
    return None


def _noted(result: Consensus, certificate: Certificate) -> Consensus:
    """Return it with a note in place of a new round if its winner is certified, though not by the vote's rule."""
    is_certified = certificate.winner is not None and certificate.winner == result.decision.winner
    if is_certified and result.confidence.level is None and result.level is ConfidenceLevel.RECOMPUTE:
        return replace(result, level=ConfidenceLevel.NOTE)
    return result
