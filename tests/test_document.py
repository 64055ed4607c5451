"""The OpenAPI document says all that it can: summaries, descriptions, limits, examples; the pages need nothing else."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import html5lib
import jsonschema_rs
import pytest
import redis
from fastapi import FastAPI
from pydantic import BaseModel, Field
from starlette.testclient import TestClient

from qubic_lab.api.access import ApiToken, hash_token
from qubic_lab.api.document import complete, operations_of, read_examples
from qubic_lab.api.http_metrics import HttpMetrics
from qubic_lab.api.http_server import guard, new_app
from qubic_lab.api.openai.embeddings import Embeddings
from qubic_lab.api.openai.metrics import PipelineMetrics
from qubic_lab.api.openai.pipeline import PipelineAnswerer
from qubic_lab.api.openai.serve import create_app as create_server
from qubic_lab.api.pages import Home, add_pages, curl
from qubic_lab.api.serve import create_app
from qubic_lab.bench.echo_node import EchoReplica
from qubic_lab.cli.coordinator import make_votes
from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.database import open_database
from qubic_lab.oracle.serving.service import Oracle
from qubic_lab.pipeline.text import Tokenizer

Json = dict[str, Any]


def of_coordinator() -> FastAPI:
    client = redis.Redis()
    coordinator = Coordinator(client, "unix:/nowhere")
    return create_app(
        coordinator, votes=make_votes(coordinator), oracle=Oracle(open_database, client), embeddings=Embeddings()
    )


def of_server() -> FastAPI:
    answerer = PipelineAnswerer(EchoReplica("echo", 0.01, 4))
    return create_server(answerer, PipelineMetrics(), load_tokenizer=lambda: Tokenizer(Path()))


@pytest.fixture(scope="module", params=[of_coordinator, of_server], ids=["coordinator", "server"])
def document(request: pytest.FixtureRequest) -> Json:
    found: Json = request.param().openapi()
    return found


def parts(node: Any, path: str) -> Iterator[tuple[str, Json]]:
    """Yield every object of a part of a document with its path, but what is inside of examples."""
    if isinstance(node, dict):
        yield path, node
        for name, each in node.items():
            if name not in ("example", "examples", "default", "enum", "const"):
                yield from parts(each, f"{path}.{name}")
    elif isinstance(node, list):
        for number, each in enumerate(node):
            yield from parts(each, f"{path}[{number}]")


def test_every_operation_says_what_it_does_and_shows_it(document: Json) -> None:
    for name, operation in operations_of(document):
        assert re.fullmatch(r"[A-Z].{10,}[^.]", operation["summary"]), name
        for content in operation.get("requestBody", {}).get("content", {}).values():
            assert "example" in content, f"{name} has no example: scripts/api_examples.py records it"
        for status, answer in operation["responses"].items():
            for kind, content in answer.get("content", {}).items() if status.startswith("2") else ():
                assert "example" in content, f"{name} has no example of {kind}: scripts/api_examples.py records it"
        for each in operation.get("parameters", ()):
            assert each.get("description"), f"{name}: {each['name']}"


def test_every_field_is_described(document: Json) -> None:
    bare = [
        f"{path}.{name}"
        for path, node in parts(document, "$")
        if node.get("type") == "object" and not path.endswith(".properties")
        for name, each in node.get("properties", {}).items()
        if not each.get("description")
    ]
    assert bare == []


def test_examples_fit_their_schemas(document: Json) -> None:
    for name, operation in operations_of(document):
        answers = [each.get("content", {}) for each in operation["responses"].values()]
        contents = [operation.get("requestBody", {}).get("content", {}), *answers]
        shown = [each for content in contents for kind, each in content.items() if kind.endswith("json")]
        for each in [*shown, *operation.get("parameters", ())]:
            if "example" in each:
                schema = each["schema"] | {"components": document["components"]}
                assert [str(error) for error in jsonschema_rs.iter_errors(schema, each["example"])] == [], name


def test_no_parameter_may_be_null(document: Json) -> None:
    for name, operation in operations_of(document):
        for each in operation.get("parameters", ()):
            assert '"null"' not in json.dumps(each["schema"]), f"{name}: {each['name']}"


def test_there_is_no_example_of_a_route_that_is_gone() -> None:
    assert read_examples().keys() <= dict(operations_of(of_coordinator().openapi())).keys()


def test_docstrings_become_summaries_and_descriptions() -> None:
    class Part(BaseModel):
        """A part."""

        size: Annotated[int, Field(description="its size")]

    class Thing(BaseModel):
        """A thing. `late`: it came after its time.

        Attributes:
            first, last_us: its ends; None if
                there are none.
        """

        first: int | None
        last: int | None
        late: bool
        part: Part | None

    app = FastAPI()

    @app.get("/thing")
    async def thing(limit: int | None = None) -> Thing:
        """Return a thing. It may be old."""
        return Thing(first=limit, last=None, late=False, part=None)

    described = app.openapi()
    complete(described, {"GET /thing": {"parameters": {"limit": 3}, "answers": {"application/json": {"first": 3}}}})
    operation = described["paths"]["/thing"]["get"]
    assert (operation["summary"], operation["description"]) == ("Return a thing", "It may be old.")
    assert operation["parameters"][0]["schema"]["type"] == "integer"
    assert operation["parameters"][0]["example"] == 3
    assert operation["responses"]["200"]["content"]["application/json"]["example"] == {"first": 3}
    schema = described["components"]["schemas"]["Thing"]
    assert schema["description"] == "A thing. `late`: it came after its time."
    assert {name: each["description"] for name, each in schema["properties"].items()} == {
        "first": "its ends; null if there are none",
        "last": "its ends; null if there are none",
        "late": "it came after its time",
        "part": "A part.",
    }


@pytest.mark.parametrize("make", [of_coordinator, of_server])
def test_docs_need_no_script_and_no_network(make: Any) -> None:
    app = make()
    with TestClient(app, base_url="http://localhost") as client:
        page = client.get("/docs")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    tree = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page.text)
    loaded = [*tree.iter("script"), *tree.iter("link"), *tree.iter("img"), *tree.iter("iframe")]
    assert loaded == []
    anchors = {each.get("id") for each in tree.iter() if each.get("id")}
    targets = {each.get("href") for each in tree.iter("a")}
    assert {each[1:] for each in targets if each.startswith("#")} <= anchors
    text = "".join(tree.itertext())
    for name, operation in operations_of(app.openapi()):
        assert name.split()[1] in text
        assert operation["summary"].replace("`", "") in text


def page_of(secret: str | None, headers: dict[str, str] | None = None) -> tuple[int, str]:
    app = new_app()

    async def look() -> Home:
        return Home({"version": "1.2.3"}, [("a <node>", "model-7", "available")], [("5f", "Why?" * 100)])

    add_pages(app, "A test.", look, secret)
    accesses = [ApiToken("me", hash_token("right"))]
    guard(app, HttpMetrics(), (lambda: accesses) if secret else None)
    with TestClient(app, base_url="http://localhost") as client:
        answer = client.get("/", headers=headers or {})
        return answer.status_code, answer.text


def test_the_first_page_says_what_runs_here() -> None:
    status, page = page_of(None)
    assert status == 200
    html5lib.HTMLParser(strict=True).parse(page)
    for text in ("1.2.3", "a &lt;node&gt;", "model-7", "/api/consensus/history/5f/page", "curl -s http://localhost/"):
        assert text in page


def test_without_the_token_the_first_page_shows_nothing_private() -> None:
    status, page = page_of("SECRET")
    assert status == 200
    assert "A test." in page
    assert not any(text in page for text in ("1.2.3", "model-7", "history/5f"))
    status, page = page_of("SECRET", {"Authorization": "Bearer right"})
    assert "model-7" in page
    assert "Authorization: Bearer $SECRET" in page.replace("&#34;", '"')
    assert page_of("SECRET", {"Authorization": "Bearer wrong"})[0] == 401


def test_commands_can_be_copied() -> None:
    assert curl("GET", "'http://x/y'", None, None) == "curl -s 'http://x/y'"
    assert curl("DELETE", "u", None, "KEY") == 'curl -s -X DELETE u -H "Authorization: Bearer $KEY"'
    body = curl("POST", "u", {"prompt": "What's that?"}, None, ["a: b"])
    assert body.endswith("""-d '{"prompt": "What'"'"'s that?"}'""")
