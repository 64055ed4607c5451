"""The dashboard in Debian's Chromium: a node dies, the coordinator goes and comes, an answer streams, a vote falls."""

import asyncio
import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from clusters import WITHIN_S, Cluster, Process, address_of, cluster, processes, serving, until
from fastapi import FastAPI
from forked_python import PYTHON
from saying_node import Saying

from qubic_lab.api.access import ApiToken, hash_token, make_limiter, write_tokens
from qubic_lab.api.serve import create_app
from qubic_lab.database import open_database
from qubic_lab.votes.history import VoteHistory
from qubic_lab.votes.service import VoteService

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed: pip install playwright")
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.dist,
    pytest.mark.slow,
    pytest.mark.usefixtures("hurried"),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
TEXT = "Sunlight is scattered by the air, blue light most of all."
FAST = """
import sys
from qubic_lab.api.http_server import ServeConfig
from qubic_lab.dashboard.lab import Lab
from qubic_lab.dashboard.serve import serve
from qubic_lab.settings import settings
config = ServeConfig("127.0.0.1:0", settings().api_tokens)
serve(config, Lab(sys.argv[1]), lambda url: print(f"at {url}", flush=True), pace=0.05)
"""


@dataclass
class Shown:
    """A cluster, a dashboard of it, and a browser."""

    running: Cluster
    app: FastAPI
    port: int
    stack: AsyncExitStack
    dashboard: Process
    url: str
    browser: Any
    requests: list[str]
    doomed: Process

    async def open(self, arguments: str = "", **options: Any) -> Any:
        page = await self.browser.new_page(**options)
        page.set_default_timeout(1_000 * WITHIN_S)  # Playwright's own is too short for a busy machine
        page.on("request", lambda request: self.requests.append(request.url))
        await page.goto(f"{self.url}/{arguments}")
        await page.locator(".bk-tab").first.wait_for()
        return page

    async def stop_http(self) -> None:
        await self.stack.aclose()

    async def start_http(self) -> None:
        await self.stack.enter_async_context(serving(self.app, self.port))


@asynccontextmanager
async def shown(
    client: redis.Redis,
    folder: Path,
    *command: str,
    accesses: list[ApiToken] | None = None,
    words: asyncio.Semaphore | None = None,
    **environment: str,
) -> AsyncIterator[Shown]:
    nodes = {name: Saying((TEXT,), pause_s=0.1, words=words) for name in ("a", "c")}
    async with cluster(client, folder, nodes=dict(nodes)) as running, AsyncExitStack() as rest:
        engine = open_database(f"sqlite:///{folder / 'lab.db'}")
        rest.callback(engine.dispose)
        votes = VoteService(running.coordinator, lambda: VoteHistory(engine))
        guards = {"accesses": lambda: accesses, "limiter": make_limiter(client)} if accesses else {}
        app = create_app(running.coordinator, votes=votes, **guards)  # type: ignore[arg-type]
        stack = await rest.enter_async_context(AsyncExitStack())
        http = await stack.enter_async_context(serving(app))
        start = rest.enter_context(processes(PYTHON))
        doomed = start(
            *(folder, "b", "saying_node", "--name", "b", "--text", TEXT, "--pause-s", "0.1"),
            *("--coordinator", address_of(folder, 0), "--listen", f"unix:{folder}/b.sock"),
            PYTHONPATH=str(Path(__file__).parent),
        )
        url = str(http.base_url).rstrip("/")
        dashboard = start(
            *(folder, "dashboard", *(each.replace("URL", url) for each in command)),
            **environment,
            QUBIC_LAB_CACHE=str(folder),
        )
        found = await until(lambda: re.search(r"at (http://[\d.:]+)", dashboard.log))
        driver = await rest.enter_async_context(playwright.async_playwright())
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        rest.push_async_callback(browser.close)
        port = http.base_url.port
        assert port is not None
        yield Shown(running, app, port, stack, dashboard, found[1], browser, [], doomed)


COMMAND = ("qubic_lab.cli.main", "dashboard", "--listen", "127.0.0.1:0", "--coordinator", "URL")


def fast(folder: Path) -> tuple[str, ...]:
    """Return the command of a dashboard that looks 20 times a second."""
    (folder / "fast.py").write_text(FAST)  # where the process starts
    return "fast", "URL"


async def test_the_page_follows_what_happens(client: redis.Redis, tmp_path: Path) -> None:
    words = asyncio.Semaphore(3)
    async with shown(client, tmp_path, *COMMAND, words=words) as lab:
        page = await lab.open()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        row = page.locator("tr[data-node=b]")
        await row.get_by_text("available").wait_for()

        lab.doomed.send(signal.SIGKILL)
        await row.get_by_text("no heartbeat").wait_for()

        await page.locator(".bk-tab", has_text="Playground").click()
        await page.locator("textarea").fill("Why is the sky blue?")
        await page.get_by_role("button", name="Ask", exact=True).click()
        answer = playwright.expect(page.locator(".answer"))
        for so_far, more in (("Sunlight is scattered", 2), ("Sunlight is scattered by the", 1000), (TEXT, 0)):
            await answer.to_have_text(so_far, timeout=1_000 * WITHIN_S)
            for _ in range(more):
                words.release()
        await page.locator("canvas:visible").first.wait_for()

        await page.get_by_role("button", name="Ask as a vote").click()
        await page.get_by_text("Who said what").first.wait_for()
        await page.locator(".bk-tab", has_text="Consensus").click()
        await page.get_by_role("combobox").wait_for()
        await page.get_by_text(TEXT).first.wait_for()

        await page.locator(".bk-tab", has_text="Cluster").click()
        await lab.stop_http()
        await page.get_by_text("The coordinator does not answer").wait_for()
        assert await row.count() == 1  # the last values stay
        await lab.start_http()
        await page.get_by_text("The coordinator does not answer").wait_for(state="hidden")
        assert not errors
        host = lab.url.partition("//")[2]
        assert [url for url in lab.requests if not re.match(rf"(https?|ws)://{host}/|data:|blob:", url)] == []


async def test_drain_asks_first_readers_have_no_buttons_and_other_forms_fit(
    client: redis.Redis, tmp_path: Path
) -> None:
    own, reader = (
        ApiToken("own", hash_token("of all"), 100_000),
        ApiToken("reader", hash_token("of one"), read_only=True),
    )
    write_tokens(tokens := tmp_path / "tokens.yaml", [own, reader])
    environment = {"QUBIC_LAB_API_TOKENS": str(tokens), "QUBIC_LAB_API_TOKEN": "of all"}
    known = [own]
    async with shown(client, tmp_path, *fast(tmp_path), accesses=known, **environment) as lab:

        async def enter(token: str, **options: Any) -> Any:
            page = await (await lab.browser.new_context(**options)).new_page()
            page.set_default_timeout(1_000 * WITHIN_S)
            await page.goto(f"{lab.url}/login")
            await page.locator("input").fill(token)
            await page.get_by_role("button").click()
            await page.locator(".bk-tab").first.wait_for()
            return page

        page = await enter("of one")
        await page.get_by_text("Your token only reads").wait_for()
        await page.locator("tr[data-node=a]").wait_for()
        assert await page.get_by_role("button", name="Drain").count() == 0
        await page.locator(".bk-tab", has_text="Playground").click()
        await page.get_by_text("Your token only reads").nth(1).wait_for()
        assert await page.locator("textarea:visible").count() == 0
        await page.context.close()

        page = await enter("of all", viewport={"width": 400, "height": 800}, color_scheme="dark")
        await page.goto(f"{lab.url}/?lang=zh-TW")
        await page.get_by_text("可用").first.wait_for()
        await page.get_by_role("button", name="停止接收").click()
        assert lab.running.gates("a") == {None}
        await page.get_by_role("button", name="是", exact=True).click()
        await until(lambda: lab.running.gates("a") == {"draining"})
        await page.locator("tr[data-node=a]").get_by_text("停止接收中").wait_for()
        ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == "rgb(20, 27, 33)"
        for number in range(4):
            await page.locator(".bk-tab").nth(number).click()
            assert await page.evaluate("document.documentElement.scrollWidth") <= 400
        assert await page.evaluate("document.documentElement.scrollHeight") <= 800, "as high as a hidden tab"
        known[:] = [replace(own, read_only=True)]
        await page.get_by_text("這個儀表板的權杖只能讀取").first.wait_for()


async def hold(lab: Shown, updates: int) -> float:
    """Return the resident memory of the dashboard after so many updates of a page, in MB, and of nothing else."""
    page = lab.browser.contexts[0].pages[0]
    await page.wait_for_timeout(updates * 50)
    return psutil.Process(lab.dashboard.pid).memory_info().rss / 1e6


async def assert_flat(lab: Shown, updates: int) -> None:
    """Let a page be updated so often; the dashboard may not grow by that."""
    before = await hold(lab, max(100, updates // 4))
    after = await hold(lab, updates)
    assert after < 1.05 * before


@pytest.mark.slow
async def test_memory_stays_flat_for_as_many_updates_as_in_an_hour(client: redis.Redis, tmp_path: Path) -> None:
    async with shown(client, tmp_path, *fast(tmp_path)) as lab:
        page = await lab.open()
        await page.locator("tr[data-node=a]").wait_for()
        await assert_flat(lab, updates=3_600)
