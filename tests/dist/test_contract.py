"""A coordinator keeps to its OpenAPI document, whatever requests come that the document allows, or nearly allows."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from clusters import processes, wait_until
from hypothesis import HealthCheck, given, settings

from qubic_lab.bench.local_cluster import free_ports
from qubic_lab.cluster.redis_server import RedisServer

pytestmark = [pytest.mark.dist, pytest.mark.slow]
TESTS = Path(__file__).resolve().parents[1]
DOCUMENT = TESTS / "golden" / "openapi.json"
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, methods in json.loads(DOCUMENT.read_text())["paths"].items()
    for method, operation in methods.items()
}
NEARLY = [
    name
    for name, each in OPERATIONS.items()
    if "requestBody" in each or any(parameter["in"] == "query" for parameter in each.get("parameters", ()))
]
"""Other operations allow everything."""
MEANT = (502, 503, 504)
"""Errors of the server's side that are answers: a lost node, no node, no Redis, too late."""
EXAMPLES = 40


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A coordinator with one node that says the same to all."""
    folder, (http, nodes, own) = tmp_path_factory.mktemp("contract"), free_ports(3)
    environment = {"QUBIC_LAB_DATA": str(folder / "data"), "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    with RedisServer(folder / "redis") as server, processes() as start:
        start(
            *(folder, "coordinator", "qubic_lab.cli.main", "coordinator", "--listen", f"127.0.0.1:{http}"),
            *("--nodes", f"127.0.0.1:{nodes}"),
            QUBIC_LAB_REDIS_URL=server.url,
            **environment,
        )
        start(
            *(folder, "node", "saying_node", "--name", "a", "--text", "The answer is 12."),
            *("--coordinator", f"127.0.0.1:{nodes}", "--listen", f"127.0.0.1:{own}"),
            **environment,
        )

        def is_up() -> bool:
            try:
                return httpx2.get(f"http://127.0.0.1:{http}/ready", trust_env=False).status_code == 200
            except httpx2.TransportError:
                return False

        wait_until(is_up)
        yield f"http://127.0.0.1:{http}"


@pytest.fixture(scope="module")
def operations() -> dict[str, Any]:
    """The operations as schemathesis sees them; imported here, as it takes seconds."""
    import schemathesis

    found = [each.ok() for each in schemathesis.openapi.from_path(DOCUMENT).get_all_operations()]
    assert {each.label for each in found} == OPERATIONS.keys()
    return {each.label: each for each in found}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "mode"), [*((name, "positive") for name in OPERATIONS), *((name, "negative") for name in NEARLY)]
)
def test_answers_are_as_documented(name: str, mode: str, url: str, operations: dict[str, Any]) -> None:
    from schemathesis import Case, GenerationMode
    from schemathesis.specs.openapi import checks

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operations[name].as_strategy(generation_mode=GenerationMode(mode)))
    def check(case: Case) -> None:
        response = case.call(base_url=url, timeout=60)
        assert response.status_code < 500 or response.status_code in MEANT, response.text
        documented = [checks.content_type_conformance, checks.response_schema_conformance]
        case.validate_response(response, checks=[*documented, checks.status_code_conformance])

    check()
