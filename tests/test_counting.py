"""Answers are read in other processes: with the same result, within limits, while the coordinator goes on."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx2
import numpy as np
import psutil
import pytest
from clusters import StartCluster, until
from saying_node import Saying

from qubic_lab.api.serve import create_app
from qubic_lab.cluster.replica import Replica
from qubic_lab.consensus.aggregate import Consensus, VoteContext, VotingConfig, deliberate
from qubic_lab.consensus.voting import Absence, AbsenceReason, AnswerSource, Vote
from qubic_lab.core import SamplingParams
from qubic_lab.database import open_database
from qubic_lab.errors import BusyError, DeadlineError
from qubic_lab.model.embeddings import Embedded
from qubic_lab.votes import counting, service
from qubic_lab.votes.counting import Counting
from qubic_lab.votes.history import VoteHistory
from qubic_lab.votes.service import VoteService
from qubic_lab.votes.trail import trail_of

pytestmark = pytest.mark.anyio
QUESTION = "Why is the sky blue, in one sentence?"
HOSTILE = "[this cannot be read]"
MOST_HEALTH_S = 5.0
"""Of this process's time between two answers, however fast the machine is; reading the attacks takes longer."""


@asynccontextmanager
async def asking(start_cluster: StartCluster, nodes: dict[str, Replica]) -> AsyncIterator[httpx2.AsyncClient]:
    """Yield a client of a coordinator that holds votes."""
    async with start_cluster(nodes=nodes) as running:
        engine = open_database(f"sqlite:///{running.folder / 'lab.db'}")
        app = create_app(running.coordinator, votes=VoteService(running.coordinator, lambda: VoteHistory(engine)))
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as http:
            yield http
        engine.dispose()


def votes_of(*texts: str) -> list[Vote]:
    source = AnswerSource("hash", QUESTION, SamplingParams(temperature=0.7))
    return [
        Vote(f"v{n}", f"v{n}", "m", replace(source, sampling=SamplingParams(seed=n)), text, "stop", 9, 0.5, -0.1)
        for n, text in enumerate(texts)
    ]


def embed(texts: Sequence[str]) -> Embedded:
    vectors_ND = np.array([[1.0, len(text) % 7, len(text) % 5] for text in texts], np.float32).reshape(len(texts), 3)
    return Embedded(vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True), (False,) * len(texts))


async def count(processes: Counting, *texts: str) -> list[int | None]:
    result = await processes.deliberate("Why?", votes_of(*texts), (), VoteContext(), VotingConfig())
    return [each.group for each in result.voters]


@pytest.fixture(scope="module")
def processes() -> Counting:
    return Counting(workers=1, most_waiting=1)


def worker_of(processes: Counting) -> psutil.Process:
    [worker] = processes._pool._workers
    return psutil.Process(worker.process.pid)


@pytest.mark.parametrize("embedded", [True, False])
@pytest.mark.parametrize(
    "texts",
    [
        ("The answer is 1/3.", "1/3", "It is 0.33.", "", "x = 2 km", "7" * 5_000, "10^5000"),
        ("Air scatters blue light most.", "Because air scatters blue light.", "因为空气散射蓝光。", "I cannot answer."),
        (),
    ],
)
async def test_the_result_is_that_of_this_process(processes: Counting, texts: tuple[str, ...], embedded: bool) -> None:
    context = VoteContext(rho=0.2, embed=embed if embedded else None)
    asked = QUESTION, votes_of(*texts), [Absence("late", AbsenceReason.LATE, "")], context, VotingConfig(merge=True)
    found, wanted = await processes.deliberate(*asked), deliberate(*asked)
    assert trail_of(found) == trail_of(wanted)
    assert [each.final for each in found.voters] == [each.final for each in wanted.voters]
    assert (found.ballots, found.bonds) == (wanted.ballots, wanted.bonds)


async def test_answers_are_graded(processes: Counting) -> None:
    answers = [("The answer is 12.", False), ("13", False), ("It depends.", False), ("It is 1", True)]
    assert await processes.grade("What is 5 + 7?", "12", answers) == (True, False, None, False)


async def test_a_worker_that_ends_is_replaced_and_nothing_is_lost(processes: Counting) -> None:
    assert await count(processes, "12", "13", "12") == [0, 1, 0]
    first = worker_of(processes)
    first.kill()
    first.wait()
    assert await count(processes, "12", "13", "12") == [0, 1, 0]
    second = worker_of(processes)
    second.send_signal(signal.SIGSTOP)
    asked = asyncio.ensure_future(count(processes, "12", "13", "12"))
    await until(lambda: processes._pool._places.qsize() == 0)
    second.kill()
    assert await asked == [0, 1, 0]
    assert worker_of(processes) not in (first, second)


async def test_what_takes_too_long_is_an_error_and_the_next_question_is_answered(
    processes: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await count(processes, "12") == [0]
    worker_of(processes).send_signal(signal.SIGSTOP)
    with monkeypatch.context() as hurried:
        hurried.setattr(counting, "SECONDS", 0.3)
        with pytest.raises(DeadlineError, match=r"not read \(it took longer than 0\.3 s\): send fewer or shorter"):
            await count(processes, "12" * 2**20)  # more than the pipe holds
    assert await count(processes, "12") == [0]


class Choosy(Counting):
    """Cannot read one answer."""

    async def deliberate(
        self,
        question: str,
        votes: Sequence[Vote],
        absences: Sequence[Absence],
        context: VoteContext,
        config: VotingConfig,
        quick: bool = False,
    ) -> Consensus:
        if any(HOSTILE in vote.text for vote in votes):
            raise DeadlineError("it took longer than 20 s")
        return await super().deliberate(question, votes, absences, context, config, quick)


@pytest.mark.usefixtures("hurried")
async def test_an_answer_that_cannot_be_read_fails_and_the_vote_is_held(
    start_cluster: StartCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_VOTES", Choosy(workers=1))
    nodes = {"a": Saying((HOSTILE,)), "b": Saying(("The answer is 12.",)), "c": Saying(("12",))}
    async with asking(start_cluster, nodes) as http:
        query = {"prompt": "What is 5 + 7?", "rule": "super-majority", "rounds": 1, "deadline_s": 60.0}
        verdict = (await http.post("/api/ai/consensus_query", json=query)).json()
    trail = verdict["trail"]
    assert [each["voter"] for each in trail["voters"]] == ["b", "c"]
    assert [(each["voter"], each["why"], each["detail"]) for each in trail["absences"]] == [
        ("a", "failed", "it took longer than 20 s")
    ]
    assert "12" in verdict["text"]


@pytest.mark.usefixtures("hurried")
async def test_hostile_answers_are_read_elsewhere_and_hold_up_nobody(
    start_cluster: StartCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("deliberate", "final_answer", "judge"):
        monkeypatch.setattr(counting, name, None)  # in this process
    attacks = [[("pi+" * repeats) + "é", "12"] for repeats in (26, 52, 100_000)]
    attacks.append([(f"(x+{n})^{{{n}}}" + "*(x+y+z)^(99)" * 30)[:300] for n in range(32)])
    attacks.append(["a b " * 120_000, "pi+ 3 " * 80_000])
    async with asking(start_cluster, {}) as http:

        async def analyze(answers: list[str]) -> int:
            return (await http.post("/api/ai/analyze", json={"question": QUESTION, "answers": answers})).status_code

        assert await analyze(["The answer is 12.", "12"]) == 200
        analyzing = [asyncio.ensure_future(analyze(answers)) for answers in attacks]
        took_s = []
        while not all(each.done() for each in analyzing):
            started_s = time.process_time()
            assert (await http.get("/health")).status_code == 200
            await asyncio.sleep(0.02)
            took_s.append(time.process_time() - started_s)
        assert {each.result() for each in analyzing} <= {200, 504}
        assert max(took_s) < MOST_HEALTH_S


async def test_only_so_many_wait(processes: Counting) -> None:
    asked = [asyncio.ensure_future(processes.grade("", "12", [("12", False)] * 50)) for _ in range(4)]
    ended = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(each, BusyError) for each in ended] == [False, False, True, True]
