"""Whole bodies of articles that a source has cut, from hosts that the settings name with a licence.

A page is fetched only if its host's robots.txt allows it, and kept only if neither its headers nor its markup ask not
to and no redirect has led to another host. A body is a new version of its text, known from now on.
"""

import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from urllib.parse import urlsplit
from urllib.robotparser import RobotFileParser

from sqlalchemy import Engine

from qubic_lab.oracle.ingest.collector_config import SourceConfig
from qubic_lab.oracle.ingest.feeds import LONGEST_BODY
from qubic_lab.oracle.ingest.http_rules import USER_AGENT
from qubic_lab.oracle.ingest.http_source import Fetched, SourceClient, SourceError
from qubic_lab.oracle.ingest.validation import plain_text
from qubic_lab.oracle.model.records import Text
from qubic_lab.oracle.model.response import Part
from qubic_lab.oracle.sentiment.scores import is_cut
from qubic_lab.oracle.store.fetch_log import FetchLog
from qubic_lab.oracle.store.text_reader import StoredText
from qubic_lab.oracle.store.text_store import TextStore, words_of

CONFIG = SourceConfig(base_url="", rate=12, attempts=2, most_body_bytes=4 << 20, deadline_s=60.0)
"""How each host is asked: every five seconds at most."""
FIRST_WORDS = 8
"""Words of the cut text that a page must have in a row: else it is another text."""
_ROBOTS = re.compile(r"<meta [^<>]{0,500}\brobots\b[^<>]{0,500}>")
_ASKS_NOT_TO = re.compile(r"\b(noarchive|noindex|none|noai)\b")
_END_US = 1 << 61
Outcome = tuple[str, Fetched | None]
"""A body with the fetch that brought it; or the reason why there is none."""


@dataclass(frozen=True)
class ArticleReport(Part):
    """How many texts are cut, how many whole bodies were found, and why the others were not, by reason."""

    cut: int
    found: int
    left: Mapping[str, int]


async def fetch_articles(
    engine: Engine,
    licences: Mapping[str, str],
    coin: str,
    most: int = 20,
    make_client: Callable[[str, SourceConfig, Engine], SourceClient] = SourceClient,
) -> ArticleReport:
    """Fetch and store the whole bodies of a coin's newest texts that are cut, `most` pages at most.

    `licences`: under which the articles of each host may be kept; no other host is asked.
    """
    store, log = TextStore(engine), FetchLog(engine)
    texts = [text for text in store.read(coin, 0, _END_US, invented=False) if not text.body or is_cut(text)]
    allowed = [text for text in reversed(texts) if urlsplit(text.url).hostname in licences][:most]
    left, found = Counter({"no licence is named for the host, or more than asked for": len(texts) - len(allowed)}), 0
    for host in dict.fromkeys(str(urlsplit(text.url).hostname) for text in allowed):
        some = [text for text in allowed if urlsplit(text.url).hostname == host]
        async with make_client(f"articles {host}"[:64], replace(CONFIG, base_url=f"https://{host}"), engine) as client:
            async for text, (said, fetched) in _of_host(client, host, some):
                if fetched is None:
                    left[said] += 1
                    continue
                values = {each.name: getattr(text, each.name) for each in fields(Text)}
                whole = Text(
                    **values | {"body": said[:LONGEST_BODY], "cut_characters": max(0, len(said) - LONGEST_BODY)}
                )
                fetch_id, found = log.record(replace(fetched, job="articles")), found + 1
                log.brought(fetch_id, 1, store.add([whole], fetch_id=fetch_id).added)
    return ArticleReport(len(texts), found, dict(+left))


async def _of_host(
    client: SourceClient, host: str, texts: Sequence[StoredText]
) -> AsyncIterator[tuple[StoredText, Outcome]]:
    rules = RobotFileParser()
    try:
        rules.parse((await _get(client, "/robots.txt")).body.decode("utf-8", "replace").splitlines())
    except SourceError as error:  # without such a file all is allowed, without an answer nothing (RFC 9309)
        rules.parse([] if 400 <= (error.fetch.status or 0) < 500 else ["User-agent: *", "Disallow: /"])
    for text in texts:
        parts = urlsplit(text.url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        slow = float(rules.crawl_delay(USER_AGENT) or 0.0) > CONFIG.window_s / CONFIG.rate
        if slow or not rules.can_fetch(USER_AGENT, f"https://{host}{path}"):
            yield text, ("robots.txt of the host does not allow it", None)
            continue
        try:
            yield text, _article(await _get(client, path), host, text)
        except SourceError as error:
            yield text, (f"the page was not had ({error.kind})", None)


async def _get(client: SourceClient, path: str) -> Fetched:
    return await client.get(path, conditional=False, form="page")


def _article(fetched: Fetched, host: str, text: Text) -> Outcome:
    """Return the words of a page's article, or of the whole page where none is marked; or why they are not kept."""
    if urlsplit(fetched.headers["content-location"]).hostname != host:
        return "the page is on another host", None
    page = fetched.body.decode("utf-8", "replace")
    lower = page.lower()
    if _ASKS_NOT_TO.search(" ".join([*_ROBOTS.findall(lower), fetched.headers["x-robots-tag"].lower()])):
        return "the page asks not to be kept", None
    start, end = lower.find("<article"), lower.rfind("</article>")
    body = plain_text(page[start:end] if 0 <= start < end else page)
    known = " ".join(words_of(text.body or text.title)[:FIRST_WORDS])
    if len(body) <= len(text.body) or known not in " ".join(words_of(body)):
        return "the page does not have the text", None
    return body, fetched
