"""Feeds: RSS 2.0 and Atom, with validators, so that an unchanged one is not sent again."""

import hashlib
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from xml.sax.saxutils import escape

from fake_source.ledger import Given
from fake_source.reply import Ask, Desk, Reply, json_reply, utc_time
from fake_source.world import PUBLISHER, Item
from qubic_lab.oracle.model.timestamps import SECOND_US

RATE_LIMITED = "Too Many Requests"
EVERY_S = 1_200
ITEMS = 40
NAMES = ("fake-rss", "fake-atom")


def reply(ask: Ask, desk: Desk) -> Reply:
    """Answer a request for NAME.rss or NAME.atom; no key is needed."""
    name, _, form = ask.path.rpartition(".")
    if name not in NAMES or form not in ("rss", "atom"):
        return json_reply(404, {"message": "no such feed"})
    start = ask.now_s - EVERY_S * (ITEMS + 1)
    items = desk.world.items(name, EVERY_S, start, ask.now_s + 1, ask.now_s)[::-1][:ITEMS]
    etag = '"' + hashlib.sha256("\n".join(item.title for item in items).encode()).hexdigest()[:16] + '"'
    modified = format_datetime(datetime.fromtimestamp(items[0].published_s, UTC), usegmt=True)
    headers = {"etag": etag, "last-modified": modified}
    if etag in ask.headers.get("if-none-match", ""):
        return Reply(304, b"", headers=headers)
    shown = desk.spoil(ask.number, items)
    body = _rss(name, shown) if form == "rss" else _atom(name, shown)
    given = (Given("text", _id(name, item), 0, item.published_s * SECOND_US, item.title) for item in shown)
    return Reply(200, body.encode(), f"application/{form}+xml; charset=utf-8", headers, tuple(given))


def _id(name: str, item: Item) -> str:
    return f"https://feeds.invalid/{name}/{item.number}"


def _rss(name: str, items: list[Item]) -> str:
    entries = "".join(
        f"<item><title>{escape(item.title)}</title><link>{_id(name, item)}</link>"
        f'<guid isPermaLink="true">{_id(name, item)}</guid><pubDate>{_local_time(item)}</pubDate>'
        f"<description>{escape(f'<p>{escape(item.body)}</p>')}</description></item>"
        for item in items
    )
    head = f"<title>{name}</title><link>https://feeds.invalid/{name}</link><description>synthetic</description>"
    return f'<?xml version="1.0" encoding="UTF-8"?><rss version="2.0"><channel>{head}{entries}</channel></rss>'


def _atom(name: str, items: list[Item]) -> str:
    entries = "".join(
        f"<entry><title>{escape(item.title)}</title><id>{_id(name, item)}</id>"
        f'<link href="{_id(name, item)}"/><published>{utc_time(item.published_s)}</published>'
        f"<updated>{utc_time(item.published_s)}</updated><author><name>{PUBLISHER}</name></author>"
        f"<summary>{escape(item.body)}</summary></entry>"
        for item in items
    )
    changed = utc_time(items[0].published_s)
    head = f"<title>{name}</title><id>https://feeds.invalid/{name}</id><updated>{changed}</updated>"
    return f'<?xml version="1.0" encoding="UTF-8"?><feed xmlns="http://www.w3.org/2005/Atom">{head}{entries}</feed>'


def _local_time(item: Item) -> str:
    """Return an item's time as RSS writes it, in one of several zones."""
    zone = timezone(timedelta(hours=(-5, 0, 2)[item.number % 3]))
    return format_datetime(datetime.fromtimestamp(item.published_s, zone))
