"""A server keeps to its OpenAPI document, whatever requests come that the document allows, or nearly allows.

What the document allows is not refused: a request may only meet a state in which there is nothing to answer.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import golden
import httpx2
import pytest
from clusters import Process, processes, wait_until
from forked_python import PYTHON
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qubic_lab.bench.local_cluster import free_ports
from qubic_lab.cluster.redis_server import RedisServer
from qubic_lab.database import open_database
from qubic_lab.oracle.model.records import Series
from qubic_lab.oracle.model.timestamps import now_us
from qubic_lab.oracle.store.price_store import PriceStore

pytestmark = pytest.mark.dist
TESTS = Path(__file__).resolve().parents[1]
DOCUMENT = golden.FOLDER / "openapi.json"
"""The document of a coordinator, which another test keeps up to date: here are all routes that there are."""
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, methods in json.loads(DOCUMENT.read_text())["paths"].items()
    for method, operation in methods.items()
}
OF_SERVER = [name for name in OPERATIONS if " /v1/" in name]
NEARLY = {
    name
    for name, each in OPERATIONS.items()
    if "requestBody" in each or any(parameter["in"] == "query" for parameter in each.get("parameters", ()))
}
"""Other operations allow everything."""
MEANT = (502, 503, 504)
"""Errors of the server's side that are answers: a lost node, no node, no Redis, too late."""
NOTHING_TO_ANSWER = (404, 409, 429, *MEANT)
"""What may meet a request that the document allows: nothing by this name, a key of another request, too many."""
NOT_OF_VOTES = "is not supported by the model consensus"
"""The document has one form of requests for all models, and a vote refuses by name what it does not have."""
KNOWN = {
    "coin": ("bitcoin", "ETH"),
    "coins": ("bitcoin", "BTC,ethereum"),
    "source": ("exchange",),
    "name": ("default", "b"),
    "model": ("default", "consensus/2"),
    "Idempotency-Key": ("",),  # left out: few of the others are new
}
"""Values that a generator does not find, with which there is something to answer; the node b gets no requests."""
FEW, MANY = 4, 250
"""Examples of what is allowed, and as many of what nearly is."""


def serving(process: Process, url: str) -> str:
    """Return the URL of a server that is ready."""

    def is_up() -> bool:
        try:
            return client.get(f"{url}/ready").status_code in (200, 404)  # one pipeline has no /ready
        except httpx2.TransportError:
            return process.ended

    with httpx2.Client(trust_env=False) as client:  # each new one would read all certificates of this machine
        wait_until(is_up)
    assert not process.ended, process.log
    return url


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A coordinator with two nodes that say the same to all, and prices of a coin."""
    folder, (http, nodes, first, second) = tmp_path_factory.mktemp("contract"), free_ports(4)
    database = open_database(url := f"sqlite:///{folder / 'lab.db'}")
    PriceStore(database).add(Series("bitcoin", "exchange", 3_600), golden._random_bars(now_us(), 20))
    database.dispose()
    environment = {"QUBIC_LAB_DATABASE_URL": url, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    with RedisServer(folder / "redis") as server, processes(PYTHON) as start:
        process = start(
            *(folder, "coordinator", "qubic_lab.cli.main", "coordinator", "--listen", f"127.0.0.1:{http}"),
            *("--nodes", f"127.0.0.1:{nodes}"),
            QUBIC_LAB_REDIS_URL=server.url,
            **environment,
        )
        for name, port in {"a": first, "b": second}.items():
            start(
                *(folder, name, "saying_node", "--name", name, "--text", "The answer is 12."),
                *("--coordinator", f"127.0.0.1:{nodes}", "--listen", f"127.0.0.1:{port}"),
                **environment,
            )
        yield serving(process, f"http://127.0.0.1:{http}")


@pytest.fixture(scope="module")
def pipeline(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A served pipeline of a tiny model."""
    folder, [port] = tmp_path_factory.mktemp("served"), free_ports(1)
    arguments = ("serve", "--model", str(tiny), "--threads", "1", "--listen", f"127.0.0.1:{port}")
    with processes(PYTHON) as start:
        process = start(folder, "serve", "qubic_lab.cli.main", *arguments, PYTHONPATH=str(TESTS.parent))
        wait_until(lambda: "curl" in process.log or process.ended)
        yield serving(process, f"http://127.0.0.1:{port}")


@pytest.fixture(scope="module")
def operations() -> dict[str, Any]:
    """The operations as schemathesis sees them; imported here, as it takes seconds."""
    import schemathesis

    found = [each.ok() for each in schemathesis.openapi.from_path(DOCUMENT).get_all_operations()]
    assert {each.label for each in found} == OPERATIONS.keys()
    return {each.label: each for each in found}


def with_known(case: Any, draw: st.DataObject) -> None:
    """Give some parameters of a request values with which there is something to answer."""
    for values in (case.path_parameters, case.query, case.headers, case.body):
        for name in KNOWN.keys() & set(values if isinstance(values, dict) or hasattr(values, "keys") else ()):
            chosen = draw.draw(st.sampled_from([None, *KNOWN[name]]), label=name)
            if chosen:
                values[name] = chosen
            elif chosen is not None:
                del values[name]


def check(operation: Any, mode: str, url: str, examples: int, refusable: bool = False) -> None:
    """Send generated requests and compare each answer with the document."""
    from schemathesis import GenerationMode
    from schemathesis.specs.openapi import checks

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # a smaller example would take minutes
    )
    @given(operation.as_strategy(generation_mode=GenerationMode(mode)), st.data())
    def ask(case: Any, draw: st.DataObject) -> None:
        if mode == "positive":
            with_known(case, draw)
        response = case.call(base_url=url, timeout=60)
        assert response.status_code < 500 or response.status_code in MEANT, response.text
        if mode == "positive" and not refusable:
            is_meant = response.status_code in NOTHING_TO_ANSWER or NOT_OF_VOTES in response.text
            assert response.status_code < 400 or is_meant, response.text
        documented = [checks.content_type_conformance, checks.response_schema_conformance]
        case.validate_response(response, checks=[*documented, checks.status_code_conformance])

    ask()


@pytest.mark.parametrize("name", OPERATIONS)
def test_answers_are_as_documented(name: str, coordinator: str, operations: dict[str, Any]) -> None:
    for mode in ("positive", "negative") if name in NEARLY else ("positive",):
        check(operations[name], mode, coordinator, FEW)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("name", OPERATIONS)
def test_many_answers_are_as_documented(name: str, coordinator: str, operations: dict[str, Any]) -> None:
    for mode in ("positive", "negative") if name in NEARLY else ("positive",):
        check(operations[name], mode, coordinator, MANY)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("name", OF_SERVER)
def test_a_pipeline_answers_as_documented(name: str, pipeline: str, operations: dict[str, Any]) -> None:
    for mode in ("positive", "negative") if name in NEARLY else ("positive",):
        check(operations[name], mode, pipeline, MANY, refusable=True)  # a real model has a vocabulary and a context
