"""Replies in the shapes of the Hacker News search by Algolia (hn.algolia.com/api)."""

import re
from typing import Any

from fake_source.ledger import Given
from fake_source.reply import Ask, Desk, Reply, json_reply, utc_time
from fake_source.world import Item
from qubic_lab.oracle.model.timestamps import SECOND_US

RATE_LIMITED = {"message": "Too many requests", "status": 429}
EVERY_S = 600
MOST_HITS = 1_000
"""How many hits of a query are shown."""
_BOUNDS = re.compile(r"created_at_i>=(\d+),created_at_i<(\d+)")


def reply(ask: Ask, desk: Desk) -> Reply:
    """Answer one request; no key is needed."""
    if ask.path != "search_by_date":
        return json_reply(404, {"message": "Path not supported by this API", "status": 404})
    bounds = _BOUNDS.fullmatch(ask.query["numericFilters"])
    if bounds is None:
        return json_reply(400, {"message": "invalid numericFilters", "status": 400})
    start, end = int(bounds[1]), min(int(bounds[2]), ask.now_s + 1)
    words = re.findall(r'"([^"]+)"|([^\s"]+)', ask.query.get("query", ""))
    wanted = [(phrase or word).lower() for phrase, word in words]
    items = desk.world.items("hacker-news", EVERY_S, start, end, ask.now_s)
    found = [item for item in items if all(word in f"{item.title} {item.body}".lower() for word in wanted)][::-1]
    shown = desk.spoil(ask.number, found[:MOST_HITS])
    content = {"hits": [_hit(item, ask.now_s) for item in shown], "nbHits": len(found)}
    given = (Given("text", str(_id(item)), 0, item.published_s * SECOND_US, item.title) for item in shown)
    return json_reply(200, content, tuple(given))


def _id(item: Item) -> int:
    return 40_000_000 + item.number


def _hit(item: Item, now_s: int) -> dict[str, Any]:
    points = 1 + min((now_s - item.published_s) // 3_600, 24) * (item.number % 5)
    return {
        "author": f"generator{item.number % 7}",
        "created_at": utc_time(item.published_s),
        "created_at_i": item.published_s,
        "objectID": str(_id(item)),
        "points": points,
        "story_text": f"<p>{item.body.replace('&', '&amp;')}</p>",
        "title": item.title,
    }
