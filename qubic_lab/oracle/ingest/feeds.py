"""RSS and Atom feeds, read from bytes that our client has fetched; broken ones as far as possible.

A collector reads them in a worker process (`feed_worker`), because some feeds hold their parser for many minutes.
"""

import asyncio
import io
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from qubic_lab.database import storable
from qubic_lab.killable import WorkerPool
from qubic_lab.oracle.ingest.collector_config import Feed
from qubic_lab.oracle.ingest.http_source import Batch, SourceClient, SourceError, malformed
from qubic_lab.oracle.ingest.validation import LONGEST_LINE, plain_text, read_date, short_id
from qubic_lab.oracle.model.coins import mentioned
from qubic_lab.oracle.model.records import Text

LONGEST_TITLE, LONGEST_BODY = 1000, 100_000
"""In characters; the rest is cut off and, for bodies, counted."""
MOST_ENTRIES = 1_000
READ_SECONDS = 20.0
"""Time limit for reading a feed."""

_READER = WorkerPool("qubic_lab.oracle.ingest.feed_worker", most=1)


def read_feed(
    content: bytes, feed: Feed, headers: Mapping[str, str], most: int = MOST_ENTRIES
) -> tuple[Text, ...] | None:
    """Return what `parse_feed` does, from a worker process; None also if the parser fails.

    Raises:
        OSError: there is no worker process; a TimeoutError if it takes too long.
    """
    question = {"content": content.decode("latin-1"), "feed": asdict(feed), "headers": dict(headers), "most": most}
    found = _READER.ask(question, READ_SECONDS)
    if not isinstance(found, list):
        return None
    return tuple(Text(**fields | {"coins": tuple(fields["coins"])}) for fields in storable(found))


def parse_feed(
    content: bytes, feed: Feed, headers: Mapping[str, str] | None = None, most: int = MOST_ENTRIES
) -> tuple[Text, ...] | None:
    """Return the entries of a feed in its order, each id once, `most` + 1 at most; None: the bytes are not a feed.

    `headers`: content-type, as it may name the encoding, and content-location, the base of relative links.
    """
    import feedparser

    # feedparser takes bytes for the path of a file, and text for an address to fetch. Its own readers of HTML take time
    # with the square of a text's length; `plain_text` needs none of what they do.
    options: dict[str, Any] = {"sanitize_html": False, "resolve_relative_uris": False}
    parsed = feedparser.parse(io.BytesIO(content), response_headers=dict(headers or {}), **options)
    if not parsed.get("version") and not parsed.entries:
        return None
    publisher = plain_text(parsed.feed.get("title"), LONGEST_LINE)[:256] or feed.name
    language = str(parsed.feed.get("language") or "")[:16]
    texts: dict[str, Text] = {}
    for entry in parsed.entries[: most + 1]:  # one more, so that the caller sees that there were more
        text = _text(entry, feed, publisher, language)
        if text is not None:
            texts.setdefault(text.external_id, text)
    return tuple(texts.values())


async def fetch_feed(client: SourceClient, feed: Feed) -> Batch:
    """Return a feed's entries; none if nothing has changed since the response that was kept last.

    Raises:
        SourceError: there is no good response, or it is not a feed that can be read in time.
    """
    fetched = await client.get(form="bytes")
    if fetched.not_modified:
        return Batch(fetched)
    try:
        most = client.config.most_items
        texts = await asyncio.to_thread(read_feed, fetched.body, feed, fetched.headers, most)
    except OSError as error:
        raise SourceError(f"{feed.name} was not read: {error}", "malformed", fetched) from None
    if texts is None:
        raise malformed(fetched)
    return Batch(fetched, texts=texts)


def _text(entry: Any, feed: Feed, publisher: str, language: str) -> Text | None:
    title = plain_text(entry.get("title"), LONGEST_LINE)
    bodies = [content.get("value") for content in entry.get("content") or ()]
    body = max((plain_text(each) for each in (entry.get("summary"), *bodies)), key=len)
    if not (title or body):
        return None
    url = str(entry.get("link") or "")
    named = str(entry.get("id") or url)
    return Text(
        source=feed.name,
        external_id=short_id(named, f"{title}\n{body}"),
        kind=feed.kind,
        title=title[:LONGEST_TITLE],
        body=body[:LONGEST_BODY],
        cut_characters=max(0, len(body) - LONGEST_BODY),
        url=url,
        publisher=publisher,
        # Some kinds of feed have only the date of the last change.
        published_us=read_date(entry.get("published") or entry.get("updated")),
        coins=mentioned(f"{title}\n{body}"),
        author=plain_text(entry.get("author"), LONGEST_LINE)[:256],
        language=language,
    )
