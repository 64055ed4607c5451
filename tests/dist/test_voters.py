"""Votes of three nodes that are processes of their own, while one is too slow, wrong, killed in mid-answer, or all."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from clusters import Process, processes, until
from forked_python import PYTHON
from saying_node import BEGUN

from qubic_lab.bench.local_cluster import free_ports
from qubic_lab.cluster.redis_server import RedisServer

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.anyio]

RIGHT, WRONG = "The answer is 12.", "The answer is 13."
DEADLINE_S = 10.0
LATE_S = 60.0
"""After each word: far beyond the deadline."""
TESTS = str(Path(__file__).resolve().parents[1])
SURE = ("answer", "answer with a note")
"""The levels of a confidence of 75 % or more, and of a decision by the rule."""


class Voters:
    """A coordinator and the nodes of the vote that is held."""

    def __init__(self, folder: Path, start: Callable[..., Process], http: httpx2.AsyncClient) -> None:
        self._folder, self._start, self._http = folder, start, http
        self._nodes: dict[str, Process] = {}
        self._starts = 0

    async def have(self, **said: tuple[str, float]) -> None:
        """Let these nodes run, each saying its text with a pause after each word, and no others."""
        for name in list(self._nodes.keys() - said.keys()):
            process = self._nodes.pop(name)
            process.send(signal.SIGTERM)
            await process.status()
        for name in said.keys() - self._nodes.keys():
            self._starts += 1
            text, pause_s = said[name]
            self._nodes[name] = self._start(
                *(self._folder, name, "saying_node", "--name", name, "--text", text, "--pause-s", str(pause_s)),
                *("--coordinator", f"unix:{self._folder}/nodes.sock"),
                *("--listen", f"unix:{self._folder}/{self._starts}.sock"),
                PYTHONPATH=TESTS,
            )

        async def are_open() -> bool:
            with suppress(httpx2.TransportError):  # the coordinator may still be starting
                status = (await self._http.get("/api/consensus/status")).json()
                return sorted(status["voters"]) == sorted(said)
            return False

        await until(are_open)

    async def vote(self, killed: str | None = None) -> dict[str, Any]:
        """Return the verdict on the question; the node `killed` is killed once it has said a word."""
        query = {"prompt": "What is 5 + 7?", "deadline_s": DEADLINE_S, "mode": "consensus"}
        asked = asyncio.ensure_future(self._http.post("/api/ai/consensus_query", json=query))
        if killed is not None:
            await until(lambda: BEGUN in self._nodes[killed].log)
            self._nodes.pop(killed).send(signal.SIGKILL)
        response = await asked
        assert response.status_code == 200, response.text
        verdict: dict[str, Any] = response.json()
        kept = await self._http.get(f"/api/consensus/history/{verdict['vote_id']}")
        assert kept.json() == verdict["trail"]
        return verdict


def fates(verdict: dict[str, Any]) -> dict[str, str]:
    """Return what became of each voter of the first round: its text, or why it has none."""
    trail = verdict["trail"]
    return {each["node"]: each["text"] for each in trail["voters"]} | {
        each["voter"].partition("#")[0]: each["why"] for each in trail["absences"]
    }


@pytest.fixture
async def voters(tmp_path: Path) -> AsyncIterator[Voters]:
    """A coordinator that is a process, without nodes."""
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with RedisServer(tmp_path / "redis") as server, processes(PYTHON) as start:
        start(
            *(tmp_path, "coordinator", "qubic_lab.cli.main", "coordinator", "--listen", f"127.0.0.1:{port}"),
            *("--nodes", f"unix:{tmp_path}/nodes.sock"),
            QUBIC_LAB_REDIS_URL=server.url,
            QUBIC_LAB_DATA=str(tmp_path / "data"),
        )
        async with httpx2.AsyncClient(base_url=url, timeout=100.0, trust_env=False) as http:
            yield Voters(tmp_path, start, http)


async def test_one_fault_changes_nothing_and_three_end_in_caution(voters: Voters) -> None:
    faults = {"wrong": (WRONG, 0.0), "late": (RIGHT, LATE_S), "lost": (RIGHT, 0.5)}
    for name, fault in faults.items():
        await voters.have(a=(RIGHT, 0.0), b=(RIGHT, 0.1), **{name: fault})
        verdict = await voters.vote(killed="lost" if name == "lost" else None)
        assert (verdict["text"], verdict["level"] in SURE) == (RIGHT, True)
        assert fates(verdict)["a"] == RIGHT != fates(verdict)[name]

    await voters.have(**faults)
    verdict = await voters.vote(killed="lost")
    assert verdict["level"] not in SURE and verdict["text"] != WRONG
    assert verdict["conflict"], "nobody has a majority"
    assert set(faults) == set(fates(verdict))
    assert fates(verdict)["late"] != RIGHT, "the vote did not wait"
