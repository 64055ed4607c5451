"""Reads answers in worker processes (`counting_worker`): compares and counts them, and grades them by the right one.

Answers come from models and clients. One that the rules read slowly would hold a thread, and with it the whole
process, for as long as it takes; a worker is killed after a while.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from qubic_lab.consensus.aggregate import Consensus, VoteContext, VotingConfig, deliberate
from qubic_lab.consensus.answer_readers import PROSE
from qubic_lab.consensus.answers import final_answer, same
from qubic_lab.consensus.conclusions import without_thoughts
from qubic_lab.consensus.voting import Absence, AbsenceReason, Vote
from qubic_lab.errors import BusyError, DeadlineError, InputError, QubicLabError
from qubic_lab.evals.questions import Question
from qubic_lab.evals.scoring import judge
from qubic_lab.killable import WorkerPool
from qubic_lab.model.embeddings import Embedded

SECONDS = 20.0
QUICK_SECONDS = 5.0
"""Time limit of a count that only decides whether to go on."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CountQuestion:
    """A vote to count; `vectors` are those of the texts of `to_embed`, and `cut` says which were truncated.

    Without `shown` what only a trail shows is left out.
    """

    question: str
    votes: tuple[Vote, ...]
    absences: tuple[Absence, ...]
    context: VoteContext
    config: VotingConfig
    shown: bool
    vectors: tuple[tuple[float, ...], ...] | None = None
    cut: tuple[bool, ...] = ()

    def to_embed(self) -> list[str]:
        """Return the texts whose vectors the count needs."""
        return list(dict.fromkeys([self.question, *(without_thoughts(vote.text) for vote in self.votes)]))


@dataclass(frozen=True)
class GradeQuestion:
    """Answers to grade by the right one, each with whether it may have been cut."""

    question: str
    reference: str
    answers: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class CountAnswer:
    """The answer to one of these questions; `edit_rows` holds `Similarities.edit_NN`, `failure` a traceback."""

    result: Consensus | None = None
    edit_rows: list[list[float]] | None = None
    right: tuple[bool | None, ...] = ()
    failure: str = ""


QUESTION = TypeAdapter[CountQuestion | GradeQuestion](CountQuestion | GradeQuestion)
ANSWER = TypeAdapter(CountAnswer)


class Counting:
    """Workers that count and grade; beside those that work, at most `most_waiting` questions wait for one."""

    def __init__(self, workers: int, most_waiting: float = float("inf")) -> None:
        self._pool = WorkerPool("qubic_lab.votes.counting_worker", workers)
        # Threads of their own: others must not wait because these wait for workers.
        self._threads = ThreadPoolExecutor(workers, "counting")
        self._waiting, self._most_waiting = 0, workers + most_waiting

    def start(self) -> None:
        """Let a worker start before it is needed; does not wait for it."""
        self._threads.submit(self._pool.start)

    def end(self) -> None:
        """Kill the workers; questions that they are asked fail."""
        self._pool.end()

    async def deliberate(
        self,
        question: str,
        votes: Sequence[Vote],
        absences: Sequence[Absence],
        context: VoteContext,
        config: VotingConfig,
        quick: bool = False,
    ) -> Consensus:
        """Return the result of a vote, as `aggregate.deliberate`; unless `quick`, also its `Similarities.edit_NN`.

        Raises:
            BusyError: too many questions wait.
            DeadlineError: it takes too long.
            InputError: it takes too much memory.
            QubicLabError: there is no worker, or a fault of ours.
        """
        asked = CountQuestion(question, tuple(votes), tuple(absences), replace(context, embed=None), config, not quick)
        if context.embed is not None:
            embedded = await asyncio.to_thread(context.embed, asked.to_embed())
            asked = replace(asked, vectors=tuple(map(tuple, embedded.vectors_ND.tolist())), cut=embedded.cut)
        answer = await self._ask(asked, QUICK_SECONDS if quick else SECONDS)
        assert answer.result is not None
        if answer.edit_rows is not None:
            vars(answer.result.similarities)["edit_NN"] = np.array(answer.edit_rows)
        return answer.result

    async def readable(self, question: str, votes: Sequence[Vote]) -> tuple[list[Vote], list[Absence]]:
        """Return the votes that can be counted together in time, the shortest first, and the others as failed."""
        kept: list[Vote] = []
        unread: list[Absence] = []
        for vote in sorted(votes, key=lambda vote: len(vote.text)):
            try:
                await self.deliberate(question, [*kept, vote], (), VoteContext(), VotingConfig(), quick=True)
                kept.append(vote)
            except QubicLabError as error:
                _LOG.warning("the answer of %s does not count: %s", vote.voter, error)
                unread.append(Absence(vote.voter, AbsenceReason.FAILED, str(error)))
        return kept, unread

    async def grade(
        self, question: str, reference: str, answers: Sequence[tuple[str, bool]]
    ) -> tuple[bool | None, ...]:
        """Return which answers are right; None: one cannot be read, or no rule can compare it with the reference.

        Each answer comes with whether it may have been cut.

        Raises:
            QubicLabError: as `deliberate`.
        """
        return (await self._ask(GradeQuestion(question, reference, tuple(answers)), SECONDS)).right

    async def _ask(self, question: CountQuestion | GradeQuestion, seconds: float) -> CountAnswer:
        if self._waiting >= self._most_waiting:
            raise BusyError(f"{self._waiting} comparisons of answers are under way: try again later", SECONDS)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._answer, question, seconds)
        finally:
            self._waiting -= 1

    def _answer(self, question: CountQuestion | GradeQuestion, seconds: float) -> CountAnswer:
        try:
            answer = ANSWER.validate_python(self._pool.ask(QUESTION.dump_python(question, mode="json"), seconds))
        except TimeoutError as error:
            raise DeadlineError(f"the answers were not read ({error}): send fewer or shorter ones") from error
        except OSError as error:
            raise QubicLabError(f"the answers were not read: {error}") from error
        if answer.failure.rstrip().endswith(("MemoryError", "RecursionError")):
            raise InputError("the answers take too much memory to read: send fewer or shorter ones")
        if answer.failure:
            raise QubicLabError(f"the answers were not read: {answer.failure}")
        return answer


def answer_to(question: CountQuestion | GradeQuestion) -> CountAnswer:
    """Answer a question, in the worker."""
    if isinstance(question, GradeQuestion):
        return CountAnswer(right=tuple(_is_right(question, text, cut) for text, cut in question.answers))
    context = replace(question.context, embed=_known_vectors(question) if question.vectors is not None else None)
    result = deliberate(question.question, question.votes, question.absences, context, question.config)
    return CountAnswer(result, result.similarities.edit_NN.tolist() if question.shown else None)


def _is_right(asked: GradeQuestion, text: str, cut: bool) -> bool | None:
    found, wanted = (final_answer(each, asked.question) for each in (text, f"The answer is {asked.reference}"))
    alike = same(found, wanted)
    right = judge(Question("vote", asked.question, asked.reference), text, cut)
    if alike or right is None:
        return alike
    return right if right or found.kind != PROSE else None


def _known_vectors(question: CountQuestion) -> Callable[[Sequence[str]], Embedded]:
    assert question.vectors is not None
    width = len(question.vectors[0])
    known = dict(zip(question.to_embed(), zip(question.vectors, question.cut, strict=True), strict=True))

    def embed(texts: Sequence[str]) -> Embedded:
        found = [known[text] for text in texts]
        vectors_ND = np.array([vector for vector, _ in found], np.float32)
        return Embedded(vectors_ND.reshape(len(found), width), tuple(cut for _, cut in found))

    return embed


def encoded(answer: CountAnswer) -> Any:
    """Return an answer as values for JSON."""
    return ANSWER.dump_python(answer, mode="json")
