"""Votes on a cluster: slow, wrong and lost voters, rounds, an expert, busy clusters, what is kept, and bad input."""

import asyncio
import json
import math
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from clusters import Cluster, cluster, until
from saying_node import Saying

from qubic_lab.api.serve import create_app
from qubic_lab.api.vote_page import render_vote
from qubic_lab.cluster.fleet import NodeView
from qubic_lab.cluster.health import Gate
from qubic_lab.cluster.registry import NodeRecord
from qubic_lab.consensus.aggregate import VotingConfig
from qubic_lab.database import open_database
from qubic_lab.errors import BusyError
from qubic_lab.model.embeddings import Embedder
from qubic_lab.votes.history import VoteHistory
from qubic_lab.votes.service import VoteService
from qubic_lab.votes.voters import VoteRequest, choose_voters, is_busy
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import pipeline_pb2

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("hurried")]
ASK = "/api/ai/consensus_query"
QUESTION = "What is 5 + 7?"
RIGHT, WRONG = "The answer is 12.", "The answer is 13."
LONG = "France is a country in the west of Europe with many old cities, wide rivers and high mountains."


@asynccontextmanager
async def voting(
    client: redis.Redis, folder: Path, nodes: dict[str, Saying], embedder: Embedder | None = None
) -> AsyncIterator[tuple[Cluster, httpx2.AsyncClient]]:
    """Run a cluster of nodes that say things, and yield it with a client of its interface."""
    async with cluster(client, folder, nodes=dict(nodes)) as running:
        engine = open_database(f"sqlite:///{folder / 'lab.db'}")
        app = create_app(
            running.coordinator, votes=VoteService(running.coordinator, lambda: VoteHistory(engine), (), embedder)
        )
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            yield running, http
        engine.dispose()


async def ask(http: httpx2.AsyncClient, **query: Any) -> dict[str, Any]:
    """Return the response to the question."""
    response = await http.post(ASK, json={"prompt": QUESTION, "deadline_s": 60.0, **query})
    assert response.status_code == 200, response.text
    return response.json()


async def held(client: redis.Redis, folder: Path, said_by: dict[str, Saying], /, **query: Any) -> dict[str, Any]:
    """Return the response of a cluster of these nodes to the question."""
    async with voting(client, folder, said_by) as (_, http):
        return await ask(http, **query)


def names(trail: dict[str, Any], why: str) -> list[str]:
    return [each["voter"] for each in trail["absences"] if each["why"] == why]


async def test_the_majority_is_told_with_its_trail(client: redis.Redis, tmp_path: Path) -> None:
    verdict = await held(client, tmp_path, {"a": Saying((RIGHT,)), "b": Saying((WRONG,)), "c": Saying(("5 + 7 = 12",))})
    assert verdict["text"] in (RIGHT, "5 + 7 = 12")
    assert (verdict["mode"], verdict["level"], verdict["conflict"]) == ("consensus", "answer with a note", False)
    trail = verdict["trail"]
    assert sorted(each["voter"] for each in trail["voters"] + trail["absences"]) == ["a", "b", "c"]
    assert all(each["mean_logprob"] == pytest.approx(-0.1) for each in trail["voters"])
    assert len({each["seed"] for each in trail["voters"]}) == len(trail["voters"])


@pytest.mark.parametrize("faulty", [{"waits": 600.0}, {"is_lost": True}], ids=["slow", "lost"])
async def test_one_fault_of_three_does_not_change_the_answer(client: redis.Redis, tmp_path: Path, faulty: Any) -> None:
    nodes = {"a": Saying((RIGHT,)), "b": Saying((RIGHT,), **faulty), "c": Saying((RIGHT,))}
    verdict = await held(client, tmp_path, nodes)
    assert (verdict["text"], verdict["level"]) == (RIGHT, "answer with a note")


async def test_all_faults_at_once_end_in_a_cautious_answer(client: redis.Redis, tmp_path: Path) -> None:
    nodes = {"a": Saying((RIGHT,), waits=600.0), "b": Saying((WRONG,)), "c": Saying((RIGHT,), is_lost=True)}
    verdict = await held(client, tmp_path, nodes, deadline_s=5.0)
    assert (verdict["level"], verdict["conflict"]) == ("fallback", True)
    assert verdict["text"].startswith("There is no certain answer")
    assert "a" in names(verdict["trail"], "late") and "c" in names(verdict["trail"], "failed")


async def test_a_vote_does_not_wait_beyond_its_deadline_for_the_embedder(
    client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder, may_load = Embedder(), threading.Event()
    monkeypatch.setattr(embedder, "load", may_load.wait)
    nodes = {"a": Saying((RIGHT,)), "b": Saying(("It is 12.",)), "c": Saying((RIGHT,))}
    async with voting(client, tmp_path, nodes, embedder) as (_, http):
        verdict = await ask(http, deadline_s=5.0)
        may_load.set()  # otherwise its thread keeps the loop from ending
    assert verdict["text"] in (RIGHT, "It is 12.")
    assert "embeddings do not count: no embedder is loaded" in verdict["trail"]["notes"]


async def test_one_node_is_asked_several_times(client: redis.Redis, tmp_path: Path) -> None:
    verdict = await held(client, tmp_path, {"a": Saying((WRONG, RIGHT, RIGHT, RIGHT))}, nodes=1, samples=4)
    assert verdict["text"] == RIGHT
    assert {each["voter"] for each in verdict["trail"]["voters"]} == {"a#1", "a#2", "a#3", "a#4"}


async def test_who_is_not_needed_is_stopped_and_its_slot_is_free(client: redis.Redis, tmp_path: Path) -> None:
    nodes = {"a": Saying((RIGHT,)), "b": Saying((RIGHT,)), "c": Saying((RIGHT,), waits=600.0)}
    async with voting(client, tmp_path, nodes) as (running, http):
        verdict = await ask(http)
        assert verdict["tokens_saved"] == 4
        assert names(verdict["trail"], "not needed") == ["c"]
        await until(lambda: running.view("c") and running.view("c").outstanding_requests == 0)


async def test_a_lead_that_is_likely_enough_ends_the_vote(client: redis.Redis, tmp_path: Path) -> None:
    nodes = {name: Saying((RIGHT,)) for name in "ab"} | {name: Saying((WRONG,), waits=600.0) for name in "cde"}
    verdict = await held(client, tmp_path, nodes, nodes=5, stop_at=0.8, rounds=1)
    assert verdict["text"] == RIGHT
    assert sorted(names(verdict["trail"], "not needed")) == ["c", "d", "e"]
    assert verdict["tokens_saved"] > 0


async def test_a_certified_vote_asks_in_waves_and_says_that_it_is(client: redis.Redis, tmp_path: Path) -> None:
    node = Saying((RIGHT, RIGHT, WRONG, *(RIGHT,) * 13), slots=16)
    verdict = await held(client, tmp_path, {"a": node}, nodes=1, samples=16, stop_rule="certified")
    told = (verdict["text"], verdict["certificate"], verdict["level"])
    assert told == (RIGHT, "certified at 5 %", "answer with a note")
    assert node.asked == len(verdict["trail"]["voters"]) == 9, "five, and four for the wrong one"
    assert len({each["seed"] for each in verdict["trail"]["voters"]}) == 9
    assert len(names(verdict["trail"], "not needed")) == 7
    assert verdict["tokens_saved"] == 7 * 4
    assert verdict["trail"]["certificate"]["text"] == verdict["certificate"]


async def test_what_cannot_be_certified_is_asked_in_full(client: redis.Redis, tmp_path: Path) -> None:
    node = Saying((RIGHT, WRONG, "The answer is 14."), slots=16)
    verdict = await held(client, tmp_path, {"a": node}, nodes=1, samples=9, rounds=1, stop_rule="certified")
    assert (verdict["certificate"], node.asked) == ("not certified after 9", 9)


async def test_more_samples_than_a_node_has_slots_come_one_part_after_the_other(
    client: redis.Redis, tmp_path: Path
) -> None:
    nodes = {"a": Saying((RIGHT, WRONG), slots=2), "b": Saying((RIGHT, WRONG), slots=3)}
    verdict = await held(client, tmp_path, nodes, nodes=2, samples=5, rounds=1)
    voters = verdict["trail"]["voters"]
    assert {each["voter"] for each in voters} == {f"{node}#{number}" for node in nodes for number in range(1, 6)}
    assert len({each["seed"] for each in voters}) == 10


async def test_a_vote_that_is_too_close_is_held_again(client: redis.Redis, tmp_path: Path) -> None:
    nodes = {"a": Saying((RIGHT,)), "b": Saying((WRONG, RIGHT))}
    verdict = await held(client, tmp_path, nodes, nodes=2, rounds=2)
    assert (verdict["rounds"], verdict["text"], verdict["trail"]["decision"]["ballots"]) == (2, RIGHT, 4)
    assert len(verdict["trail"]["voters"]) + len(names(verdict["trail"], "not needed")) == 4


async def test_an_expert_decides_what_the_others_cannot(client: redis.Redis, tmp_path: Path) -> None:
    nodes = {"a": Saying((RIGHT,)), "b": Saying((WRONG,))}
    async with voting(client, tmp_path, nodes) as (running, http):
        expert = pb.NodeRegistration()
        record = next(view.record for view in running.coordinator.nodes() if view.record.id == "a")
        expert.CopyFrom(record.registration)
        expert.node, expert.type = "the expert", "expert"
        session = await running.coordinator.call(running.coordinator.registry.register, expert)
        state = pb.NodeState(ready=True)
        await running.coordinator.call(running.coordinator.registry.beat, "the expert", session, state)
        await until(lambda: running.gates("the expert") == {None})
        verdict = await ask(http, nodes=2, rounds=1)
        assert (verdict["trail"]["how"], verdict["text"]) == ("expert node the expert", RIGHT)
        assert verdict["conflict"]


async def test_a_busy_cluster_answers_by_one_node_and_says_so(client: redis.Redis, tmp_path: Path) -> None:
    nodes = {"a": Saying((RIGHT,), waits=0.3, slots=1)}
    async with voting(client, tmp_path, nodes) as (running, http):
        request = pipeline_pb2.GenerateRequest(prompt="x", sampling=pipeline_pb2.Sampling(max_new_tokens=1, top_p=1.0))
        for _ in range(4):
            await running.coordinator.submit(request)
        verdict = (await http.post(ASK, json={"prompt": QUESTION})).json()
        assert (verdict["mode"], verdict["text"]) == ("single", RIGHT)
        assert "busy" in verdict["mode_reason"]


async def test_a_vote_is_listed_shown_graded_and_read_back_after_a_restart(client: redis.Redis, tmp_path: Path) -> None:
    nodes = {"a": Saying((RIGHT,)), "b": Saying((WRONG,)), "c": Saying((RIGHT,))}
    verdict = await held(client, tmp_path, nodes, rule="super-majority", rounds=1)
    vote_id = verdict["vote_id"]
    async with voting(client, tmp_path, {"a": Saying((RIGHT,))}) as (_, http):
        assert (await http.get(f"/api/consensus/history/{vote_id}")).json() == verdict["trail"]
        listed = (await http.get("/api/consensus/history")).json()
        assert [each["id"] for each in listed["votes"]] == [vote_id]
        page = await http.get(f"/api/consensus/history/{vote_id}/page")
        assert page.headers["content-type"].startswith("text/html")
        assert QUESTION in page.text
        graded = await http.post(f"/api/consensus/history/{vote_id}/reference", json={"answer": "12"})
        right = graded.json()["right"]  # a vote that could not change the decision was not waited for
        assert right.items() <= {"a": True, "b": False, "c": True}.items()
        assert len(right) >= 2
        assert (await http.get("/api/consensus/history")).json()["votes"][0]["right"] is True
        assert listed["votes"][0]["right"] is None
        again = await ask(http, nodes=1)
        assert again["trail"]["voters"][0]["weight"]["accuracy"] > 0.5 or "a" not in right
        assert (await http.get("/api/consensus/metrics")).json()[0]["votes"] == 2
        assert (await http.get("/api/consensus/history/none")).status_code == 404
        assert (await http.get("/api/consensus/status")).json()["ready"] is True


async def test_answers_that_a_client_has_are_compared(client: redis.Redis, tmp_path: Path) -> None:
    async with voting(client, tmp_path, {}) as (_, http):
        body = {"question": QUESTION, "answers": [RIGHT, WRONG, "5 + 7 = 12", ""]}
        trail = (await http.post("/api/ai/analyze", json=body)).json()
        assert trail["groups"] == [["answer 01", "answer 03"], ["answer 02"]]
        assert (await http.post("/api/ai/analyze", json={"question": QUESTION, "answers": []})).status_code == 200
        none = await http.post(ASK, json={"prompt": QUESTION})
        assert none.status_code == 429
        assert "can vote" in none.json()["detail"]


async def test_no_body_is_a_fault(client: redis.Redis, tmp_path: Path) -> None:
    keys = ["prompt", "question", "answers", "nodes", "samples", "rounds", "rule", "mode", "deadline_s", "temperature"]
    values = [None, -5, 0, 1, 5000, 2**70, -0.5, 0.5, 1e308, "", QUESTION, "single", "\x00é", [], [1], [RIGHT, ""], {}]
    draw = random.Random(0)
    async with voting(client, tmp_path, {"a": Saying((RIGHT, "", "?!", "not 12"))}) as (_, http):
        for _ in range(60):
            asked = {"prompt": QUESTION, "question": QUESTION, "answers": [WRONG]}
            body = asked | {key: draw.choice(values) for key in draw.sample([*keys, "odd"], draw.randrange(4))}
            for path in (ASK, "/api/ai/analyze"):
                response = await http.post(path, json=body)
                assert response.status_code < 500, (body, response.text)


def view(name: str, score: float = 80.0, gate: Gate | None = None, model: str = "m", type: str = "whole") -> NodeView:
    capabilities = pb.Capabilities(model_hash=model, slots=2)
    registration = pb.NodeRegistration(node=name, type=type, capabilities=capabilities)
    return NodeView(NodeRecord(registration, pb.NodeState(), 0.0, 0.0, False), score, gate, 0, 0, None, 0.0, 1.0)


def ballot(nodes: int = 3, samples: int = 1) -> VoteRequest:
    return VoteRequest(pipeline_pb2.GenerateRequest(), nodes, samples, 2, 10.0, VotingConfig(), "any")


def test_voters_are_the_healthiest_of_different_models_and_no_seed_comes_twice() -> None:
    views = [view("a", 90.0), view("b", 80.0), view("c", 70.0, model="other"), view("d", 99.0, Gate.DRAINING)]
    chosen = choose_voters([*views, view("e", 99.0, type="expert")], ballot(2), {})
    assert [voter.node for voter in chosen] == ["a", "c"]
    seeds = set()
    for before in ({}, {"a": 2, "b": 2}):
        for voter in choose_voters(views[:2], ballot(4), before):
            assert voter.samples == 2
            seeds |= {voter.seed + sample for sample in range(2)}
    assert len(seeds) == 8
    with pytest.raises(BusyError):
        choose_voters([views[3]], ballot(), {})


def test_voters_may_differ_in_wording_and_temperature() -> None:
    views = [view("a", 90.0), view("b", 80.0), view("c", 70.0)]
    varied = replace(ballot(3), prompts=("What is 5 + 7?", "Add 5 and 7."), temperatures=(0.2, 0.7, 1.0))
    first = choose_voters(views, varied, {})
    assert [each.prompt for each in first] == ["What is 5 + 7?", "Add 5 and 7.", "What is 5 + 7?"]
    assert [each.temperature for each in first] == [0.2, 0.7, 1.0]
    again = choose_voters(views, varied, {"a": 1, "b": 1, "c": 1})
    assert [each.prompt for each in again] == ["Add 5 and 7.", "What is 5 + 7?", "Add 5 and 7."]
    assert {each.prompt for each in choose_voters(views, ballot(3), {})} == {None}


async def test_each_node_gets_its_own_wording(client: redis.Redis, tmp_path: Path) -> None:
    nodes = {name: Saying((RIGHT,)) for name in "abc"}
    varied = {"prompts": ["Add 5 and 7.", "5 plus 7?", "12?"], "temperatures": [0.0, 0.5, 1.0]}
    trail = (await held(client, tmp_path, nodes, **varied))["trail"]
    came = {nodes[each["voter"]].prompt: each["temperature"] for each in trail["voters"]}
    assert came.items() <= dict(zip(*varied.values(), strict=True)).items() and len(came) == len(trail["voters"]) >= 2


def test_a_cluster_is_busy_when_a_task_waits_for_each_slot() -> None:
    assert not is_busy(3, [view("a"), view("b")])
    assert is_busy(4, [view("a"), view("b")])
    assert is_busy(2, [view("a"), view("b", gate=Gate.SILENT)])
    assert not is_busy(2, [view("b", gate=Gate.SILENT)])


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the names and data of server-sent events."""
    found = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.strip().split("\n\n")]
    return [(each["event"], json.loads(each["data"])) for each in found]


async def test_each_node_has_a_confidence_and_it_is_kept_for_every_round(client: redis.Redis, tmp_path: Path) -> None:
    nodes = {"a": Saying((RIGHT,)), "b": Saying((WRONG, RIGHT))}
    trail = (await held(client, tmp_path, nodes, nodes=2, rounds=2))["trail"]
    assert [each["round"] for each in trail["course"]] == [1, 2]
    first, last = trail["course"]
    assert {each["node"]: (each["answers"], each["for_leader"]) for each in first["nodes"]} in (
        {"a": (1, 1), "b": (1, 0)},
        {"a": (1, 0), "b": (1, 1)},
    )
    assert all(each["confidence"] == pytest.approx(math.exp(-0.1)) for each in first["nodes"])
    assert first["standings"][0]["share"] == 0.5 < last["standings"][0]["share"]
    assert trail["nodes"] == last["nodes"]
    page = render_vote("0" * 32, trail)
    assert "Rounds" in page and "own confidence" in page


async def test_every_voter_whose_answer_can_be_read_is_graded(client: redis.Redis, tmp_path: Path) -> None:
    said = ("The capital of France is Paris.", "Lyon.", "It is Paris, of course.", LONG)
    nodes = {name: Saying((text,)) for name, text in zip("abcd", said, strict=True)}
    async with voting(client, tmp_path, nodes) as (_, http):
        asked = {"prompt": "What is the capital of France?", "nodes": 4, "rounds": 1, "rule": "super-majority"}
        vote_id = (await ask(http, **asked))["vote_id"]
        graded = await http.post(f"/api/consensus/history/{vote_id}/reference", json={"answer": "Paris"})
    assert graded.json()["right"] == {"a": True, "b": False, "c": True, "d": None}


async def test_the_mode_of_a_query_is_single_consensus_or_by_load_and_counted(
    client: redis.Redis, tmp_path: Path
) -> None:
    async with voting(client, tmp_path, {name: Saying((RIGHT,)) for name in "abc"}) as (_, http):

        async def query(**fields: Any) -> httpx2.Response:
            return await http.post("/api/ai/query", json={"prompt": QUESTION, "deadline_s": 60.0, **fields})

        assert [(await query(**({"mode": mode} if mode else {}))).json()["mode"] for mode in ("", "single")] == [
            "single",
            "single",
        ]
        vote = (await query(mode="consensus")).json()
        assert (vote["mode"], vote["text"]) == ("consensus", RIGHT)
        assert len(vote["trail"]["nodes"]) in (2, 3)  # two equal answers of three decide, the third may come too late
        assert (await query(mode="auto")).json()["mode"] == "consensus"
        assert (await query(mode="consensus", stream=True)).status_code == 400
        assert (await http.post("/api/ai/single_query", json={"prompt": "x", "mode": "auto"})).status_code == 400
        counted = {each["mode"]: each for each in (await http.get("/api/consensus/metrics")).json()}
        assert (counted["single"]["votes"], counted["single"]["auto"]) == (2, 0)
        assert (counted["consensus"]["votes"], counted["consensus"]["auto"]) == (2, 1)
        assert counted["single"]["mean_tokens"] == 4 and counted["single"]["mean_seconds"] > 0


async def test_the_load_decides_on_the_mode_of_a_query(client: redis.Redis, tmp_path: Path) -> None:
    async with voting(client, tmp_path, {"a": Saying((RIGHT,), waits=0.3, slots=1)}) as (running, http):
        request = pipeline_pb2.GenerateRequest(prompt="x", sampling=pipeline_pb2.Sampling(max_new_tokens=1, top_p=1.0))
        for _ in range(4):
            await running.coordinator.submit(request)
        answer = (await http.post("/api/ai/query", json={"prompt": QUESTION, "mode": "auto"})).json()
        assert (answer["mode"], "busy" in answer["mode_reason"]) == ("single", True)
        [counted] = (await http.get("/api/consensus/metrics")).json()
        assert (counted["mode"], counted["votes"], counted["auto"]) == ("single", 1, 1)


async def test_a_vote_is_followed_while_it_is_held(client: redis.Redis, tmp_path: Path) -> None:
    nodes = {"a": Saying((RIGHT,)), "b": Saying((WRONG,), waits=0.2), "c": Saying((RIGHT,), waits=0.6)}
    async with voting(client, tmp_path, nodes) as (_, http):
        holding = asyncio.ensure_future(ask(http, rounds=1))

        async def running() -> list[dict[str, str]]:
            return (await http.get("/api/consensus/status")).json()["running"]

        [vote] = await until(running)
        assert vote["question"] == QUESTION
        at = f"/api/consensus/history/{vote['id']}"
        assert "EventSource" in (await http.get(f"{at}/page")).text
        told = events_of((await http.get(f"{at}/events")).text)
        assert [name for name, _ in told][-2:] == ["round", "end"]
        first = next(data for name, data in told if name == "count" and data["answered"] == 1)
        assert (first["missing"], first["standings"][0]["voters"]) == (2, ["a"])
        assert (await holding)["vote_id"] == vote["id"]
        assert await running() == []
        assert "EventSource" not in (await http.get(f"{at}/page")).text
        assert events_of((await http.get(f"{at}/events")).text) == [("end", {"id": vote["id"]})]
        assert (await http.get("/api/consensus/history/none/events")).status_code == 404
