"""Consensus as a model: `consensus` and `consensus/5` answer by a vote over nodes, or over samples of one pipeline."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from qubic_lab.api.openai.answerer import Answerer, ClientInfo
from qubic_lab.api.openai.errors import FieldError
from qubic_lab.api.openai.forms import Answer, event_of
from qubic_lab.api.problems import problem_of
from qubic_lab.api.responses import EventStream, count_answer, until_done
from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.consensus.aggregate import Consensus, VotingConfig
from qubic_lab.core import Completion, FinishReason, StreamedToken
from qubic_lab.core import Request as LabRequest
from qubic_lab.errors import InputError, QubicLabError, RankError
from qubic_lab.pipeline.calls import generate_message
from qubic_lab.votes.counting import Counting
from qubic_lab.votes.samples import hold_sampled_vote
from qubic_lab.votes.service import VoteService
from qubic_lab.votes.trail import standings_of
from qubic_lab.votes.voters import VoteRequest

if TYPE_CHECKING:
    from qubic_lab.api.openai.routes import Asked, Head

CONSENSUS = "consensus"
DEFAULT_VOTERS, FEWEST_VOTERS, MOST_VOTERS = 5, 2, 32
DEADLINE_S = 600.0
ROUNDS = 2
NO_KEY = "each vote is held anew"
SIGN, SIGN_S = ": the vote is held\n\n", 5.0
"""The sign of life before a streamed answer, a comment that clients skip, and its interval."""
_WORDS = re.compile(r"\S+\s*|\s+")


@dataclass(frozen=True)
class Verdict:
    """The answer of a vote; the tokens are those of all voters, and `vote` says who said what."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    new_tokens: int
    vote: dict[str, Any]

    @property
    def usage(self) -> dict[str, int]:
        """The numbers of tokens in OpenAI's form."""
        total = self.prompt_tokens + self.new_tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.new_tokens, "total_tokens": total}

    @property
    def qubic(self) -> dict[str, Any]:
        """What OpenAI's form has no place for."""
        return {"vote": self.vote}


class Elector(Protocol):
    """What holds the votes."""

    async def hold(self, request: LabRequest, voters: int) -> Verdict:
        """Hold a vote of this number of answers; cancelling it ends the work.

        Raises:
            QubicLabError: as for the votes of its kind.
        """


class SampleElector:
    """Votes over samples of what answers here, as `qubic-lab generate --vote` does."""

    def __init__(self, answerer: Answerer) -> None:
        self._answerer, self._counting = answerer, Counting(workers=1)

    async def hold(self, request: LabRequest, voters: int) -> Verdict:
        started_s = time.perf_counter()

        async def ask(asked: LabRequest, count: int) -> Sequence[Completion]:
            async with aclosing(self._answerer.answer(asked, count, client=ClientInfo(), whole=True)) as pieces:
                completions = {sample: piece async for sample, piece in pieces if isinstance(piece, Completion)}
            if len(completions) < count:
                raise RankError(f"the pipeline gave {len(completions)} of {count} samples")
            return [completions[sample] for sample in range(count)]

        vote = await hold_sampled_vote(ask, self._counting, request, voters)
        about = {"certificate": str(vote.certificate), "rounds": 1, "tokens_saved": vote.tokens_saved, "page": None}
        return _verdict(vote.result, about | {"seconds": time.perf_counter() - started_s})

    def end(self) -> None:
        """End what reads the answers, for good."""
        self._counting.end()


class ClusterElector:
    """Votes over the nodes of a coordinator, as `/api/ai/consensus_query` does."""

    def __init__(self, coordinator: Coordinator, votes: VoteService) -> None:
        self._coordinator, self._votes = coordinator, votes

    async def hold(self, request: LabRequest, voters: int) -> Verdict:
        message = generate_message(request, "", 0.0, whole=False)
        vote = VoteRequest(message, voters, 1, ROUNDS, DEADLINE_S, VotingConfig(), question_type="any")
        held = await self._votes.hold(vote)
        count_answer(self._coordinator, "consensus", False, held.seconds, held.tokens)
        about = {"certificate": str(held.certificate), "rounds": held.rounds, "tokens_saved": held.tokens_saved}
        page = f"/api/consensus/history/{held.id}/page"
        return _verdict(held.result, about | {"page": page, "seconds": held.seconds})


def voters_of(model: str) -> int | None:
    """Return how many voters the name of a model asks for; None: it is not the consensus.

    Raises:
        InputError: it asks for too few or too many.
    """
    name, slash, number = model.partition("/")
    if name != CONSENSUS:
        return None
    if not slash:
        return DEFAULT_VOTERS
    if not (number.isascii() and number.isdecimal() and FEWEST_VOTERS <= int(number[:4]) <= MOST_VOTERS):
        asked = f"{CONSENSUS}/{DEFAULT_VOTERS}, with {FEWEST_VOTERS} to {MOST_VOTERS} voters"
        raise InputError(f"model is {model[:40]!r}: ask for {CONSENSUS}, or {asked}")
    return int(number)


async def respond_by_vote(
    elector: Elector, voters: int, asked: "Asked", head: "Head", request: Request, client: ClientInfo
) -> Response:
    """Answer a request by a vote: whole, or as a stream that begins with signs of life.

    Raises:
        InputError: something is asked for that a vote does not have.
        QubicLabError: as `Elector.hold`.
    """
    check_votable(asked, client)
    holding = elector.hold(asked.requests[0], voters)
    if asked.stream:
        return EventStream(_lines(holding, asked, head))
    verdict = await until_done(request, holding)
    whole = Completion("", verdict.text, (), verdict.finish_reason, verdict.prompt_tokens, 0.0, 0.0)
    choices = [asked.form.choice(0, Answer(completion=whole))]
    return JSONResponse(head.show(asked.form.whole, choices, usage=verdict.usage, qubic=head.qubic() | verdict.qubic))


def check_votable(asked: "Asked", client: ClientInfo) -> None:
    """Raise a FieldError that names what is asked for and a vote does not have."""
    request = asked.requests[0]
    refused = {
        "n": (asked.kept * asked.copies > 1, "a vote has one answer, and what each voter said is in qubic.vote"),
        "best_of": (asked.samples > asked.kept, "the vote chooses among the voters' answers"),
        "logprobs": (request.sampling.logprobs, "the answer of a vote has no tokens of its own"),
        "echo": (asked.echo, "only an answer is voted on"),
        "max_tokens": (request.prompt_logprobs is not None, "without tokens there is nothing to vote on"),
        "Idempotency-Key": (bool(client.key), NO_KEY),
        "prompt": (len(asked.requests) > 1 or bool(request.token_ids), "a vote is about one text"),
    }
    for name, (is_asked, why) in refused.items():
        if is_asked:
            raise FieldError(f"{name} is not supported by the model {CONSENSUS}: {why}", name)


async def tell(holding: Coroutine[Any, Any, Verdict]) -> AsyncGenerator[str | Verdict | None, None]:
    """Yield None as a sign of life while a vote is held, then its answer word by word, then the verdict.

    Closing the generator ends the vote.
    """
    held = asyncio.ensure_future(holding)
    try:
        while not held.done():
            yield None
            await asyncio.wait({held}, timeout=SIGN_S)
        verdict = held.result()
        for word in _WORDS.findall(verdict.text):
            yield word
        yield verdict
    finally:
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)


async def _lines(holding: Coroutine[Any, Any, Verdict], asked: "Asked", head: "Head") -> AsyncGenerator[str, None]:
    form, no_usage, begun = asked.form, {"usage": None} if asked.with_usage else {}, False

    def line(choice: dict[str, Any], **more: Any) -> str:
        return event_of(head.show(form.chunk, [choice], **no_usage, **more))

    try:
        async with aclosing(tell(holding)) as told:
            async for part in told:
                if part is None:
                    yield SIGN
                    continue
                if not begun and (opening := form.first(0, "")) is not None:
                    yield line(opening)
                begun = True
                if isinstance(part, str):
                    yield line(form.next(0, StreamedToken(0, part)))
                    continue
                yield line(form.last(0, part.finish_reason), qubic=head.qubic() | part.qubic)
                if asked.with_usage:
                    yield event_of(head.show(form.chunk, [], usage=part.usage))
    except QubicLabError as error:
        yield event_of(problem_of(error).openai)
    yield "data: [DONE]\n\n"


def _verdict(result: Consensus, about: dict[str, Any]) -> Verdict:
    votes = [each.vote for each in result.voters]
    said = [vote.finish_reason for vote in votes if vote.text.strip() == result.text]
    return Verdict(
        text=result.text,
        finish_reason="length" if said and "stop" not in said else "stop",
        prompt_tokens=sum(vote.prompt_tokens for vote in votes),
        new_tokens=sum(vote.new_tokens for vote in votes),
        vote={
            "level": str(result.level),
            "confidence": result.confidence.probability,
            "confidence_note": result.confidence.note,
            "conflict": result.conflict,
            "disagreement": result.disagreement,
            "why": result.decision.why,
            **about,
            "standings": standings_of(result),
            "voters": [
                {
                    "voter": each.vote.voter,
                    "model": each.vote.model,
                    "text": each.vote.text,
                    "answer": each.final.text,
                    "finish_reason": each.vote.finish_reason,
                    "tokens": each.vote.new_tokens,
                    "group": each.group,
                    "dropped": each.dropped,
                }
                for each in result.voters
            ],
            "absences": [asdict(each) for each in result.absences],
        },
    )
