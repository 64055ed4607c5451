"""Votes of three nodes that are processes of their own, while one is too slow, wrong, killed in mid-answer, or all."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from clusters import Process, free_port, processes, run, until
from saying_node import BEGUN

from qubic_lab.cluster.redis_server import RedisServer, connect

pytestmark = [pytest.mark.dist, pytest.mark.slow]

RIGHT, WRONG = "The answer is 12.", "The answer is 13."
DEADLINE_S = 3.0
LATE_S = 20.0
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
            status = (await self._http.get("/api/consensus/status")).json()
            return sorted(status["voters"]) == sorted(said)

        await until(are_open)

    def kill(self, name: str) -> None:
        """End a node as a power cut does."""
        self._nodes.pop(name).send(signal.SIGKILL)

    async def vote(self, meanwhile: Callable[[], Awaitable[None]] | None = None) -> dict[str, Any]:
        """Return the verdict on the question; `meanwhile` is done while it is answered."""
        query = {"prompt": "What is 5 + 7?", "deadline_s": DEADLINE_S, "mode": "consensus"}
        asked = asyncio.ensure_future(self._http.post("/api/ai/consensus_query", json=query))
        if meanwhile is not None:
            await meanwhile()
        response = await asked
        assert response.status_code == 200, response.text
        verdict: dict[str, Any] = response.json()
        kept = await self._http.get(f"/api/consensus/history/{verdict['vote_id']}")
        assert kept.json() == verdict["trail"]
        assert verdict["seconds"] < DEADLINE_S
        return verdict

    async def kill_in_mid_answer(self, name: str) -> None:
        """Kill a node as soon as it has said a word."""
        await until(lambda: BEGUN in self._nodes[name].log)
        self.kill(name)


def fates(verdict: dict[str, Any]) -> dict[str, str]:
    """Return what became of each voter of the first round: its text, or why it has none."""
    trail = verdict["trail"]
    return {each["node"]: each["text"] for each in trail["voters"]} | {
        each["voter"].partition("#")[0]: each["why"] for each in trail["absences"]
    }


async def hold_votes(voters: Voters) -> None:
    sound = {"a": (RIGHT, 0.0), "b": (RIGHT, 0.1)}

    await voters.have(**sound, wrong=(WRONG, 0.0))
    verdict = await voters.vote()
    assert (verdict["text"], verdict["level"] in SURE) == (RIGHT, True)
    assert fates(verdict)["a"] == RIGHT

    await voters.have(**sound, late=(RIGHT, LATE_S))
    verdict = await voters.vote()
    assert (verdict["text"], verdict["level"] in SURE) == (RIGHT, True)
    assert fates(verdict)["late"] != RIGHT

    await voters.have(**sound, lost=(RIGHT, 0.5))
    verdict = await voters.vote(lambda: voters.kill_in_mid_answer("lost"))
    assert (verdict["text"], verdict["level"] in SURE) == (RIGHT, True)
    assert fates(verdict)["lost"] != RIGHT

    await voters.have(late=(RIGHT, LATE_S), wrong=(WRONG, 0.0), lost=(RIGHT, 0.5))
    verdict = await voters.vote(lambda: voters.kill_in_mid_answer("lost"))
    assert verdict["level"] not in SURE and verdict["text"] != WRONG
    assert verdict["conflict"], "nobody has a majority"
    assert {"late", "wrong", "lost"} == set(fates(verdict))


def test_one_fault_changes_nothing_and_three_end_in_caution(tmp_path: Path) -> None:
    async def test(client: redis.Redis, url: str) -> None:
        with processes() as start:
            port = free_port()
            start(
                *(tmp_path, "coordinator", "qubic_lab.cli.main", "coordinator", "--listen", f"127.0.0.1:{port}"),
                *("--nodes", f"unix:{tmp_path}/nodes.sock"),
                QUBIC_LAB_REDIS_URL=url,
                QUBIC_LAB_DATA=str(tmp_path / "data"),
            )
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30.0, trust_env=False) as http:

                async def is_up() -> bool:
                    try:
                        return (await http.get("/health")).status_code == 200
                    except httpx2.TransportError:
                        return False

                await until(is_up)
                await hold_votes(Voters(tmp_path, start, http))

    with RedisServer(tmp_path / "redis") as server, connect(server.url) as client:
        run(test(client, server.url))
