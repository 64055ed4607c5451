"""Whole articles: only from hosts with a licence, as robots.txt and the page allow, and known from now on."""

import asyncio
from pathlib import Path

import httpx2
import pytest
from commands import Run
from sqlalchemy import Engine
from virtual import run_virtually

from qubic_lab.database import open_database
from qubic_lab.errors import InputError
from qubic_lab.oracle.config import read_config
from qubic_lab.oracle.ingest.articles import ArticleReport, fetch_articles
from qubic_lab.oracle.ingest.collector_config import SourceConfig
from qubic_lab.oracle.ingest.http_source import SourceClient
from qubic_lab.oracle.model.records import Text
from qubic_lab.oracle.model.timestamps import HOUR_US, SECOND_US, read_iso
from qubic_lab.oracle.store.text_store import TextStore

NOON = read_iso("2026-11-24T12:00:00Z")
CUT = "Miners of the network have moved more coins this week than in any week before, says a rep"
WHOLE = f"{CUT}ort that was published today. " + " ".join(f"sentence{n}" for n in range(60))
LICENCES = {"free.example": "CC0-1.0"}


def page(body: str = WHOLE, head: str = "") -> httpx2.Response:
    markup = f"<!DOCTYPE html><html><head>{head}</head><nav>Home</nav><article><p>{body}</p></article></html>"
    return httpx2.Response(200, text=markup, headers={"content-type": "text/html; charset=utf-8"})


ROBOTS = httpx2.Response(200, text="User-agent: *\nDisallow: /private/\n")


class Web:
    """Hosts that answer by address; all that is asked for is recorded."""

    def __init__(self, **answers: httpx2.Response) -> None:
        self.answers = {"robots.txt": ROBOTS} | answers
        self.asked: list[str] = []

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(str(request.url))
        answer = self.answers.get(request.url.path.strip("/"), httpx2.Response(404))
        return httpx2.Response(answer.status_code, headers=answer.headers, content=answer.content)

    def client(self, name: str, config: SourceConfig, engine: Engine) -> SourceClient:
        def clock() -> int:
            return NOON + int(asyncio.get_running_loop().time() * SECOND_US)

        return SourceClient(name, config, engine, transport=httpx2.MockTransport(self), clock=clock)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_database(f"sqlite:///{tmp_path}/texts.db")


def fetch(engine: Engine, web: Web, *urls: str, licences: dict[str, str] | None = None) -> ArticleReport:
    """Store a cut text for each address, and fetch their bodies."""
    TextStore(engine).add(
        Text(
            "newsapi",
            url,
            "news",
            f"Headline {n} of the day",
            CUT,
            url,
            "A",
            NOON - n * HOUR_US,
            ("bitcoin",),
            cut_characters=900,
        )
        for n, url in enumerate(urls)
    )
    found = fetch_articles(engine, LICENCES if licences is None else licences, "bitcoin", 20, web.client)
    report: ArticleReport = run_virtually(found)
    return report


def bodies(engine: Engine) -> list[str]:
    return [text.body for text in TextStore(engine).read("bitcoin", 0, 1 << 61, duplicates=True)]


def test_a_whole_body_is_a_new_version_that_is_known_from_now_on(engine: Engine) -> None:
    first, web = TextStore(engine), Web(news=page())
    assert fetch(engine, web, "https://free.example/news") == ArticleReport(1, 1, {})
    assert web.asked == ["https://free.example/robots.txt", "https://free.example/news"]
    (text,) = first.read("bitcoin", 0, 1 << 61)
    assert text.body == WHOLE and text.cut_characters == 0
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT body, known_us, fetch_id FROM news_data ORDER BY id").all()
    assert [row[0] for row in rows] == [CUT, WHOLE] and rows[0][1] < rows[1][1] == text.known_us
    assert rows[1][2] is not None  # an import that assumes times leaves it alone
    first.assume([text], 0)
    assert first.read("bitcoin", 0, 1 << 61)[0].assumed_us is None
    assert fetch(engine, web, "https://free.example/news").cut == 1  # the cut one is imported again


@pytest.mark.parametrize(
    ("url", "answers", "why"),
    [
        ("https://other.example/news", {}, "no licence is named for the host, or more than asked for"),
        ("https://free.example.evil.example/news", {}, "no licence is named for the host, or more than asked for"),
        ("https://free.example/private/news", {}, "robots.txt of the host does not allow it"),
        ("https://free.example/news", {"robots.txt": httpx2.Response(500)}, "robots.txt of the host does not allow it"),
        (
            "https://free.example/news",
            {"robots.txt": httpx2.Response(200, text="User-agent: *\nCrawl-delay: 30\n")},
            "robots.txt of the host does not allow it",
        ),
        ("https://free.example/gone", {}, "the page was not had (refused)"),
        (
            "https://free.example/news",
            {"news": page("Something else " * 30)},
            "the page does not have the text",
        ),
        ("https://free.example/news", {"news": page(CUT[:40])}, "the page does not have the text"),
        (
            "https://free.example/news",
            {"news": page(head='<meta name="robots" content="index, NOARCHIVE">')},
            "the page asks not to be kept",
        ),
        (
            "https://free.example/news",
            {"news": httpx2.Response(200, text=WHOLE, headers={"x-robots-tag": "noarchive"})},
            "the page asks not to be kept",
        ),
        (
            "https://free.example/news",
            {
                "news": httpx2.Response(302, headers={"location": "https://93.184.216.34/else"}),
                "else": page(),
            },
            "the page is on another host",
        ),
        (
            "https://free.example/news",
            {"news": httpx2.Response(302, headers={"location": "http://127.0.0.1/news"})},
            "the page was not had (refused)",
        ),
    ],
)
def test_what_terms_do_not_allow_is_left(
    engine: Engine, url: str, answers: dict[str, httpx2.Response], why: str
) -> None:
    web = Web(**({"news": page()} | answers))
    assert fetch(engine, web, url) == ArticleReport(1, 0, {why: 1})
    assert bodies(engine) == [CUT]
    assert all(asked.startswith("https://free.example/") or "93.184.216.34" in asked for asked in web.asked)


@pytest.mark.parametrize("rules", [httpx2.Response(404), httpx2.Response(200, text="")])
def test_a_host_without_rules_allows_all(engine: Engine, rules: httpx2.Response) -> None:
    web = Web(**{"robots.txt": rules, "a": page()})
    assert fetch(engine, web, "https://free.example/a") == ArticleReport(1, 1, {})


def test_nothing_is_fetched_by_default(oracle: Run, tmp_path: Path) -> None:
    assert read_config().articles == {}
    assert "no host is named under `articles`" in oracle("articles --coin BTC").failed(2)
    settings = tmp_path / "oracle.yaml"
    for wrong in ('{"https://a.example": CC0}', '{a.example: ""}'):
        settings.write_text(f"articles: {wrong}\n")
        with pytest.raises(InputError, match="articles"):
            read_config(settings)
    settings.write_text("articles: {a.example: CC0-1.0}\n")
    assert read_config(settings).articles == {"a.example": "CC0-1.0"}
    assert oracle(f"articles --coin BTC --config {settings} --json").json == {"cut": 0, "found": 0, "left": {}}
