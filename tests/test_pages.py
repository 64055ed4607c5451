"""Pages of the documentation: no dead link, each in the site, and a reference of all commands and routes."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import site_pages

ROOT = Path(__file__).parents[1]
PAGES = site_pages.pages(ROOT)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    heads = re.findall(r"^#+ (.+)$", site_pages.FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head).lower() for head in heads)
    return {re.sub(r"[^\w\- ]", "", head).strip().replace(" ", "-") for head in plain}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_no_link_is_dead(page: Path) -> None:
    text = site_pages.FENCE.sub("", page.read_text())
    dead = []
    for target, anchor in re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)", text):
        if "://" in target:
            continue
        file = page.parent / target if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(f"{target}#{anchor}")
    assert dead == []


def paths(entries: list[dict[str, object]]) -> set[str]:
    """Return the pages of a site's navigation."""
    found = set()
    for entry in entries:
        for value in entry.values():
            found |= paths(value) if isinstance(value, list) else {str(value)}
    return found


def test_the_site_leads_to_every_page() -> None:
    written = {
        str(page.relative_to(ROOT)) for page in PAGES if page.is_relative_to(ROOT / "docs") or page.parent == ROOT
    }
    made = {f"docs/reference/{name}.md" for name in ("commands", "http", "python")}
    assert paths(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]) == written | made


def test_the_reference_has_commands_fields_and_what_pages_import() -> None:
    document = {
        "components": {"schemas": {"Ask": {"properties": {"prompt": {"description": "the <question> | text"}}}}},
        "paths": {
            "/ask/{id}": {
                "post": {
                    "summary": "Ask.",
                    "parameters": [{"name": "id", "in": "path", "description": "whose"}],
                    "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Ask"}}}},
                }
            }
        },
    }
    said = "\n".join(site_pages.routes(document))
    assert "## POST /ask/{id}\n\nAsk.\n" in said
    assert "| `id` | path | whose |\n| `prompt` | body | the &lt;question> ∣ text |" in said
    said = "\n".join(site_pages.commands())
    assert "### qubic-lab oracle demo\n\n```text\nUsage: qubic-lab oracle demo [OPTIONS]" in said
    assert "## qubic-lab generate\n" in said
    code = "x\nfrom qubic_lab.core import Request, SamplingParams\n    from qubic_lab import runs\nimport os"
    assert [*site_pages.imported(code)] == ["qubic_lab.core.Request", "qubic_lab.core.SamplingParams", "qubic_lab.runs"]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning() -> None:
    if not (ROOT / ".peers" / "docs" / ".stamp").exists():
        pytest.skip("the site's tools are not installed: run `make docs`")
    done = subprocess.run(["make", "docs"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout
