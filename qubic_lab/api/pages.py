"""Pages for people: `/` says what runs here, `/docs` describes the interface. They need no script and no network."""

import json
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.concurrency import run_in_threadpool

from qubic_lab.api.document import Json, operations_of

CHAT = "/v1/chat/completions"
QUESTION = "Why is the sky blue?"
POLICY = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
_HERE = "http://here.invalid"
"""Stands in a rendered page for the URL at which it is asked for."""
_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "{} characters or more",
    "maxLength": "at most {} characters",
    "maxItems": "at most {} items",
    "pattern": "like {}",
}


@dataclass(frozen=True)
class Home:
    """What the first page says of a process to those who may call it.

    Attributes:
        facts: short texts by label, such as the version.
        answering: name, model and state of each node or pipeline.
        votes: id and question of the latest votes.
    """

    facts: Mapping[str, str]
    answering: Sequence[tuple[str, str, str]]
    votes: Sequence[tuple[str, str]] = ()


def add_pages(app: FastAPI, what: str, look: Callable[[], Awaitable[Home]], secret: str | None) -> None:
    """Add `/` and `/docs` to an application whose routes are complete.

    Args:
        app: the application.
        what: what this process is, in a sentence.
        look: returns what the first page says now; it is not called for those who show no token.
        secret: the variable in which clients have their token, if routes ask for one. `/` does not: without it, it says
            nothing of what runs here.
    """
    routes = APIRouter(include_in_schema=False)
    described: list[str] = []

    @routes.get("/")
    async def home(request: Request) -> HTMLResponse:
        known = secret is None or hasattr(request.state, "client")
        found = await look() if known else None
        links = {path for path, methods in app.openapi()["paths"].items() if "get" in methods}
        call = example_call(app.openapi(), _url_of(request), secret)
        save = curl("GET", shlex.quote(f"{_url_of(request)}/docs"), None, secret) + " -o docs.html"
        content = render("home.html", what=what, home=found, links=links, call=call, save=save)
        return HTMLResponse(content, headers=POLICY)

    @routes.get("/docs")
    async def docs(request: Request) -> HTMLResponse:
        if not described:
            described.append(await run_in_threadpool(render_docs, app.openapi(), secret))
        return HTMLResponse(described[0].replace(_HERE, str(escape(_url_of(request)))), headers=POLICY)

    app.include_router(routes)


def _url_of(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def example_call(document: Json, url: str, secret: str | None) -> str:
    """Return a curl command that asks a question."""
    if CHAT in document["paths"]:
        chat = {"model": "default", "messages": [{"role": "user", "content": QUESTION}], "max_completion_tokens": 32}
        return curl("POST", shlex.quote(url + CHAT), chat, secret)
    return curl("POST", shlex.quote(f"{url}/api/ai/query"), {"prompt": QUESTION, "max_new_tokens": 32}, secret)


def curl(method: str, url: str, body: Any, secret: str | None, headers: Sequence[str] = ()) -> str:
    """Return a command that can be copied, for a URL in quotes; the token comes from the environment."""
    parts = ["curl -s", *([] if method == ("GET" if body is None else "POST") else [f"-X {method}"]), url]
    parts += [f'-H "Authorization: Bearer ${secret}"'] if secret else []
    parts += [f"-H {shlex.quote(each)}" for each in headers]
    if body is not None:
        parts += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(json.dumps(body, ensure_ascii=False))}"]
    return " ".join(parts)


def render_docs(document: Json, secret: str | None) -> str:
    """Return the page that describes an interface: its operations by tag, and the types of their fields."""
    groups: dict[str, list[Json]] = {}
    for name, operation in operations_of(document):
        method, path = name.split(" ", 1)
        shown = {"id": _anchor(name), "method": method, "path": path, "call": _call(name, operation, secret)}
        groups.setdefault(operation.get("tags", ["more"])[0], []).append(operation | shown)
    schemas = document.get("components", {}).get("schemas", {})
    return render("docs.html", url=_HERE, info=document["info"], groups=groups, schemas=schemas)


def _anchor(name: str) -> str:
    return "-".join("".join(each if each.isalnum() else " " for each in name.lower()).split())


def _call(name: str, operation: Json, secret: str | None) -> str:
    """Return the example of an operation as a command for a shell in which URL is set."""
    method, path = name.split(" ", 1)
    given = [each for each in operation.get("parameters", ()) if "example" in each]
    for each in given:
        path = path.replace(f"{{{each['name']}}}", str(each["example"]))
    query = urlencode({each["name"]: each["example"] for each in given if each["in"] == "query"})
    headers = [f"{each['name']}: {each['example']}" for each in given if each["in"] == "header"]
    contents = operation.get("requestBody", {}).get("content", {}).values()
    body = next((each["example"] for each in contents if "example" in each), None)
    return curl(method, f'"$URL{path}{"?" if query else ""}{query}"', body, secret, headers)


def kind_of(schema: Json) -> Markup:
    """Return the type of a value in words, with links to the types of its parts."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return Markup('<a href="#type-{0}">{0}</a>').format(name)
    if sides := schema.get("anyOf", schema.get("oneOf")):
        return Markup(" or ").join(map(kind_of, sides))
    if "enum" in schema:
        return Markup(" | ").join(Markup("<code>{}</code>").format(json.dumps(each)) for each in schema["enum"])
    if "const" in schema:
        return Markup("<code>{}</code>").format(json.dumps(schema["const"]))
    if schema.get("type") == "array":
        return Markup("list of {}").format(kind_of(schema.get("items", {})))
    if isinstance(more := schema.get("additionalProperties"), dict):
        return Markup("object of {}").format(kind_of(more))
    return escape(schema.get("format", schema.get("type", "anything")))


def limits_of(schema: Json) -> str:
    """Return the limits of a value in words."""
    sides = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    found = schema | (sides[0] if len(sides) == 1 else {})
    said = [text.format(found[name]) for name, text in _LIMITS.items() if name in found]
    if "default" in found:
        said.append(f"default: {json.dumps(found['default'], ensure_ascii=False)}")
    return "; ".join(said)


def render(template: str, **content: Any) -> str:
    """Return a page."""
    environment = Environment(
        loader=PackageLoader("qubic_lab.api"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"kind": kind_of, "limits": limits_of, "pretty": _pretty, "said": _said}
    return environment.get_template(template).render(**content)


def _said(text: str) -> Markup:
    """Return a text whose names in backquotes are marked as code."""
    plain, *parts = text.split("`")
    marked = (f"<code>{escape(each)}</code>" if number % 2 == 0 else escape(each) for number, each in enumerate(parts))
    return Markup("".join([str(escape(plain)), *marked]))


def _pretty(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False)
