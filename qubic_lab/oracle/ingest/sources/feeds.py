"""RSS and Atom feeds: read from bytes that our own client has fetched; broken ones as far as they can be read."""

import hashlib
import io
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from qubic_lab.errors import InputError
from qubic_lab.oracle.ingest.collector_config import Feed
from qubic_lab.oracle.ingest.http_source import Batch, SourceClient, malformed
from qubic_lab.oracle.ingest.markup import plain_text
from qubic_lab.oracle.model.coins import mentioned
from qubic_lab.oracle.model.records import Text
from qubic_lab.oracle.model.timestamps import from_us, read_iso, to_us

LONGEST_ID = 512
LONGEST_TITLE, LONGEST_BODY = 1000, 100_000
"""Characters; the rest is left out and, for bodies, counted."""


def parse_feed(content: bytes, feed: Feed, headers: Mapping[str, str] | None = None) -> tuple[Text, ...] | None:
    """Return the entries of a feed in its order, each id once; None: the bytes are no feed.

    Args:
        content: as it was fetched.
        feed: its name is the texts' source.
        headers: content-type (it may name the encoding) and content-location (what short links begin with).
    """
    import feedparser

    # Bytes would be taken for the path of a file, and text for an address to fetch.
    parsed = feedparser.parse(io.BytesIO(content), response_headers=dict(headers or {}))
    if not parsed.get("version") and not parsed.entries:
        return None
    publisher = _words(parsed.feed.get("title"))[:256] or feed.name
    language = str(parsed.feed.get("language") or "")[:16]
    texts: dict[str, Text] = {}
    for entry in parsed.entries:
        text = _text(entry, feed, publisher, language)
        if text is not None:
            texts.setdefault(text.external_id, text)
    return tuple(texts.values())


def read_date(text: str | None) -> int | None:
    """Return the instant that an entry's date names, in RFC 822's or ISO 8601's form; None where it names no zone.

    A date without a zone may be any of 26 hours: it is not guessed.
    """
    for read in (read_iso, _read_rfc_822):
        try:
            at_us = read(text or "")
            from_us(at_us)  # some dates lie beyond the calendar once they are in UTC
        except (InputError, ValueError, TypeError, OverflowError):
            continue
        return at_us
    return None


def _read_rfc_822(text: str) -> int:
    at = parsedate_to_datetime(text.strip())
    if at.tzinfo is None and text.strip().endswith("-0000"):  # UTC, and nothing about the writer's zone
        at = at.replace(tzinfo=UTC)
    return to_us(at)


async def fetch_feed(client: SourceClient, feed: Feed) -> Batch:
    """Return a feed's entries; none where nothing has changed since the answer that was kept last.

    Raises:
        SourceError: there is no answer, or it is no feed.
    """
    fetched = await client.get(form="bytes")
    if fetched.not_modified:
        return Batch(fetched)
    texts = parse_feed(fetched.body, feed, fetched.headers)
    if texts is None:
        raise malformed(fetched, "gave something that is no feed")
    return Batch(fetched, texts=texts)


def _text(entry: Any, feed: Feed, publisher: str, language: str) -> Text | None:
    title = _words(entry.get("title"))
    bodies = [content.get("value") for content in entry.get("content") or ()]
    body = max((_words(each) for each in (entry.get("summary"), *bodies)), key=len)
    if not (title or body):
        return None
    url = str(entry.get("link") or "")
    id = str(entry.get("id") or url or f"{title}\n{body}")
    if len(id) > LONGEST_ID or not (entry.get("id") or url):
        id = f"sha256:{hashlib.sha256(id.encode()).hexdigest()}"
    return Text(
        source=feed.name,
        external_id=id,
        kind=feed.kind,
        title=title[:LONGEST_TITLE],
        body=body[:LONGEST_BODY],
        cut_characters=max(0, len(body) - LONGEST_BODY),
        url=url,
        publisher=publisher,
        # Some kinds of feed have one date alone, that of the last change.
        published_us=read_date(entry.get("published") or entry.get("updated")),
        coins=mentioned(f"{title}\n{body}"),
        author=_words(entry.get("author"))[:256],
        language=language,
    )


def _words(value: Any) -> str:
    return plain_text(value) if isinstance(value, str) else ""
