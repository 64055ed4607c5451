"""Votes on a cluster of processes, asked for by command and client; and where they saturate it, by hand. No speeds."""

from collections.abc import Iterator

import pytest
from commands import Run
from examples import example

from qubic_lab.api.client import CoordinatorClient
from qubic_lab.bench.dispatch import LoadResult
from qubic_lab.bench.local_cluster import local_cluster
from qubic_lab.bench.vote_load import HEADER, QUESTION, SAID, bench_vote_load, capacities
from qubic_lab.errors import InputError


def load(clients: int, votes_per_s: float) -> LoadResult:
    return example(LoadResult, nodes=2, concurrency=clients, requests_per_s=votes_per_s)


def test_saturated_is_the_fewest_clients_that_give_nearly_the_most() -> None:
    loads = [load(1, 4.0), load(4, 15.0), load(16, 29.0), load(32, 30.0), load(64, 21.0)]
    assert list(capacities({"echo": loads})) == [
        "echo nodes: 29.00 votes/s, 14.50 a node, saturated at 16 concurrent votes"
    ]
    assert "still rising at 4 concurrent votes" in next(capacities({"echo": loads[:2]}))


def test_concurrent_votes_are_held_through_the_interface() -> None:
    result = bench_vote_load(clients=(1, 2), votes=2, real_votes=0)
    assert [(each.concurrency, each.requests, each.errors) for each in result.loads["echo"]] == [(1, 2, 0), (2, 4, 0)]
    assert all(each.requests_per_s > 0 for each in result.loads["echo"])
    assert {len(row) for row in result.rows()} == {len(HEADER)}
    for wrong in ({"clients": (0,)}, {"votes": 0}, {"real_votes": -1}):
        with pytest.raises(InputError):
            bench_vote_load(**{"real_votes": 0} | wrong)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A coordinator with three nodes that say the same."""
    with local_cluster() as cluster:
        cluster.start_echo("a", "b", "c", token_s=0.01, slots=4, says=SAID)
        cluster.wait_for_nodes("a", "b", "c")
        yield cluster.urls["coordinator-1"]


def test_the_client_reaches_votes_and_oracle(url: str) -> None:
    with CoordinatorClient(url) as client:
        answer = client.vote(QUESTION, mode="consensus", nodes=3, max_new_tokens=2)
        assert (answer.mode, answer.text) == ("consensus", SAID)
        assert "sources" in client.oracle("status")
        assert client.oracle("sentiment")["coin"] == "market"
        with pytest.raises(InputError, match="nocoin"):
            client.oracle("sentiment", coin="nocoin")


def test_ask_prints_the_answer_and_who_is_for_it(url: str, here: Run) -> None:
    printed = here(f"ask '{QUESTION}' --mode consensus --max-new-tokens 2 --url {url}").out
    assert printed.startswith(f"{SAID}\nconsensus (a vote was held); answer with a note; no confidence")
    assert "1 of 1 for it, own confidence 100%" in printed and f"{url}/api/consensus/history/" in printed
    assert here(f"ask '{QUESTION}' --mode single --max-new-tokens 2 --url {url} --json").json["mode"] == "single"
    assert "sources" in here(f"ask --oracle status --url {url}").json
    assert "--oracle" in here("ask").failed(2)
    assert "did you mean" in here(f"ask hi --mode consenus --url {url}").failed(2)
