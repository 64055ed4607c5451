"""Gather the pages of the documentation site in a folder: the repository's own, and a reference made from the code.

Pages and what they link to keep their places, so that links work in the site as they do in a checkout. The reference
has the help of every command, every route of a coordinator with its fields, and the docstrings of what pages import.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE")
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
IMPORT = re.compile(r"^ *from (qubic_lab[\w.]*) import ([\w, ]+)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def pages(root: Path) -> list[Path]:
    """Return all pages that people wrote: those at the top, in docs/, and what is said of data."""
    found = [root / name for name in PAGES if (root / name).suffix == ".md"]
    return [*found, *sorted((root / "docs").rglob("*.md")), *sorted((root / "data").glob("*/README.md"))]


def links(page: Path) -> set[Path]:
    """Return the files of the repository that a page links to or shows."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return {page.parent / target for target in LINK.findall(text) if "://" not in target and "mailto:" not in target}


def gather(root: Path, folder: Path) -> None:
    """Copy pages and what they link to into an empty folder, and write the reference there."""
    from golden import described

    written = pages(root)
    for file in {*written, *(target.resolve() for page in written for target in links(page))}:
        copy = folder / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file():
            shutil.copyfile(file, copy)
    reference = folder / "docs" / "reference"
    reference.mkdir(parents=True)
    named = sorted({name for page in written for name in imported(page.read_text(encoding="utf-8"))})
    for name, lines in (("commands", commands()), ("http", routes(described())), ("python", docstrings(named))):
        (reference / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def imported(text: str) -> Iterator[str]:
    """Yield what the Python of a page imports from the package, by its dotted name."""
    for module, names in IMPORT.findall(text):
        yield from (f"{module}.{name.strip()}" for name in names.split(","))


def docstrings(named: list[str]) -> Iterator[str]:
    """Yield the page of Python: a line for mkdocstrings for each name."""
    yield "# Python\n\nWhat the pages of this site import. Other names are not promised to stay."
    for name in named:
        yield f"\n::: {name}"


def commands() -> Iterator[str]:
    """Yield the page of commands: the help of each, as a terminal prints it."""
    from typer.main import get_command

    from qubic_lab.cli.main import app

    yield "# Commands\n\nThe help of each command, as `qubic-lab COMMAND --help` prints it."
    yield from _help(get_command(app), None, "qubic-lab")


def _help(command: Any, parent: Any, name: str) -> Iterator[str]:
    context = command.make_context(name, [], parent, resilient_parsing=True, max_content_width=100, terminal_width=100)
    level = "###" if parent and parent.parent else "##"
    yield f"\n{level} {context.command_path}\n\n```text\n{command.get_help(context)}\n```"
    if hasattr(command, "list_commands"):
        for each in command.list_commands(context):
            yield from _help(command.get_command(context, each), context, each)


def routes(document: dict[str, Any]) -> Iterator[str]:
    """Yield the page of HTTP routes of an OpenAPI document: what each takes, field by field."""
    yield "# HTTP\n\nThe routes of a coordinator. It serves the same as `/openapi.json`, and as a page at `/docs`."
    schemas = document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            yield f"\n## {method.upper()} {path}\n\n{_one_line(route.get('description') or route['summary'])}"
            rows = [(each["name"], each["in"], each) for each in route.get("parameters", ())]
            for content in route.get("requestBody", {}).get("content", {}).values():
                body = content["schema"]
                properties = schemas[body["$ref"].rsplit("/", 1)[1]]["properties"] if "$ref" in body else {}
                rows += [(name, "body", field) for name, field in properties.items()]
            if rows:
                yield "\n| field | in | means |\n|---|---|---|"
                for name, place, field in rows:
                    yield f"| `{name}` | {place} | {_one_line(field.get('description', '')).replace('|', '∣')} |"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;").replace("{", "&#123;")


if __name__ == "__main__":
    gather(ROOT, Path(sys.argv[1]))
