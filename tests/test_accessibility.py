"""Pages as axe-core judges them in Debian's Chromium, unfolded, light and dark: no serious finding."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qubic_lab.runs.language import language
from qubic_lab.runs.page import make_page
from qubic_lab.runs.report import render
from qubic_lab.runs.week_report import read_week

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SAMPLE = Path(__file__).parents[1] / "reports" / "sample"
axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is missing")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize(
    ("name", "scheme"), [("index.html", "light"), ("index.html", "dark"), ("zh-TW", "light"), ("cluster.html", "dark")]
)
def test_a_page_has_no_serious_finding(browser: Any, tmp_path: Path, name: str, scheme: str) -> None:
    file = SAMPLE / name
    if name == "zh-TW":
        with language(name):
            (file := tmp_path / "index.html").write_text(render(make_page(read_week(SAMPLE / "week.json"))))
    page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 800})
    page.goto(file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    found = axe_playwright.Axe().run(page).response
    page.close()
    assert len(found["passes"]) > 10
    serious = [each for each in found["violations"] if each["impact"] in ("serious", "critical")]
    assert not serious, [(each["id"], each["nodes"][0]["html"][:200], len(each["nodes"])) for each in serious]
