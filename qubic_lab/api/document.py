"""The OpenAPI document of an application: what FastAPI derives from the routes, and what readers and tools need beyond.

- The first sentence of a route's docstring is its summary.
- A field without a description of its own has that of its class's docstring (section "Attributes", or `name`: text), or
  else that of its type.
- Limits are whole numbers, as they are in the code: FastAPI makes floats of them, and of a large one a larger one.
- A parameter of a path, a query or a header is never null: it is left out.
- Examples are those of `examples.json`, which `scripts/api_examples.py` records from a running coordinator.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import FastAPI

Json = dict[str, Any]
METHODS = ("get", "post", "put", "patch", "delete")
_LIMITS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
_EXACT = 2.0**53
_SENTENCE = re.compile(r"(.+?)\.(?:\s+|$)", re.S)
_SECTION = re.compile(r"\n{1,2}(?:Attributes|Raises):\n(?: {4}.*(?:\n|\Z)|\n)*")
_NAMED = re.compile(r"^ {4}(\w+(?:, \w+)*): ", re.M)
_QUOTED = re.compile(r"`(\w+)`:\s+(.*?)(?=[;.]\s+`\w+`:|\.(?:\s|$)|$)", re.S)


def install(app: FastAPI) -> None:
    """Let an application describe itself with its completed document."""
    derive = app.openapi

    def openapi() -> Json:
        if app.openapi_schema is None:
            complete(derive(), read_examples())  # FastAPI keeps what it derives
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def operations_of(document: Json) -> Iterator[tuple[str, Json]]:
    """Yield the name of each operation, such as "GET /health", and its description."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in METHODS:
                yield f"{method.upper()} {path}", operation


@cache
def read_examples() -> Mapping[str, Json]:
    """Return the examples of requests and answers by operation (see `scripts/api_examples.py`)."""
    text = (files("qubic_lab.api") / "examples.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def complete(document: Json, examples: Mapping[str, Json]) -> None:
    """Complete an OpenAPI document in place."""
    _round_limits(document["paths"])
    schemas = document.get("components", {}).get("schemas", {})
    for schema in schemas.values():
        _round_limits(schema)
        _describe_fields(schema)
    for schema in schemas.values():
        for each in schema.get("properties", {}).values():
            if "description" not in each and (found := _description_of(each, schemas)):
                each["description"] = found
    for name, operation in operations_of(document):
        _summarize(operation)
        for parameter in operation.get("parameters", ()):
            _complete_parameter(parameter)
        _add_examples(operation, examples.get(name, {}))


def _round_limits(node: Any) -> None:
    """Make whole limits integers; one that a float cannot hold becomes the next smaller one that it can."""
    parts = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for each in parts:
        _round_limits(each)
    for name in _LIMITS & node.keys() if isinstance(node, dict) else ():
        value = node[name]
        if isinstance(value, float) and value.is_integer():
            node[name] = int(value if value < _EXACT else math.nextafter(value, 0.0))


def _describe_fields(schema: Json) -> None:
    """Move what the docstring of a class says of its fields to them."""
    text = schema.get("description")
    if text is None:
        return
    known = _fields_of(text)
    for name, each in schema.get("properties", {}).items():
        if "description" not in each and name in known:
            each["description"] = known[name]
    schema["description"] = _as_json(_SECTION.sub("", text))


def _fields_of(docstring: str) -> dict[str, str]:
    """Return what a docstring says of fields, by their names in JSON."""
    section = _SECTION.search(docstring)
    found = dict(_QUOTED.findall(docstring))
    if section is not None:
        names_and_texts = _NAMED.split(section[0])[1:]
        for names, text in zip(names_and_texts[::2], names_and_texts[1::2], strict=True):
            found |= dict.fromkeys(names.split(", "), text)
    return {name.removesuffix("_us"): _as_json(" ".join(text.split()).rstrip(".")) for name, text in found.items()}


def _as_json(text: str) -> str:
    """Return a docstring's text in the words of JSON."""
    return re.sub(r"`(\w+?)_us`", r"`\1`", re.sub(r"\bNone\b", "null", text)).strip()


def _description_of(schema: Json, schemas: Json) -> str | None:
    """Return the description of a type, or of what it is made of."""
    if "$ref" in schema:
        return _description_of(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "description" in schema:
        return str(schema["description"])
    parts = [
        *schema.get("anyOf", ()),
        *schema.get("oneOf", ()),
        schema.get("items"),
        schema.get("additionalProperties"),
    ]
    found = (_description_of(each, schemas) for each in parts if isinstance(each, dict))
    return next((each for each in found if each), None)


def _summarize(operation: Json) -> None:
    text = operation.pop("description", "").strip()
    if first := _SENTENCE.match(text):
        operation["summary"] = " ".join(first[1].split())
        text = text[first.end() :]
    if text:
        operation["description"] = text


def _complete_parameter(parameter: Json) -> None:
    schema = parameter["schema"]
    if "anyOf" in schema:
        sides = [each for each in schema["anyOf"] if each.get("type") != "null"]
        if len(sides) == 1:
            del schema["anyOf"]
            parameter["schema"] = schema = sides[0] | schema
        else:
            schema["anyOf"] = sides
    if schema.get("default", "") is None:
        del schema["default"]
    if "description" in schema:
        parameter.setdefault("description", schema.pop("description"))


def _add_examples(operation: Json, example: Json) -> None:
    for parameter in operation.get("parameters", ()):
        if parameter["name"] in example.get("parameters", {}):
            parameter["example"] = example["parameters"][parameter["name"]]
    if "body" in example and "requestBody" in operation:
        for content in operation["requestBody"]["content"].values():
            content["example"] = example["body"]
    for status, response in operation["responses"].items():
        for kind, content in response.get("content", {}).items():
            if kind in example.get("answers", {}) and status.startswith("2"):
                content.setdefault("example", example["answers"][kind])
