"""Replies in the shapes of the Hacker News search by Algolia (hn.algolia.com/api)."""

import re
from dataclasses import replace
from typing import Any

from fake_source.ledger import Given
from fake_source.reply import Ask, Desk, Reply, json_reply, utc_time, whole
from fake_source.world import Item
from qubic_lab.oracle.model.timestamps import SECOND_US

EVERY_S = 600
MOST_HITS = 1_000
"""How many hits of a query can be paged to."""
_SHOWN_S = 30 * 86_400
"""How far back a search without bounds goes."""
_BOUNDS = re.compile(r"created_at_i>=(\d+),created_at_i<(\d+)")


def reply(ask: Ask, desk: Desk) -> Reply:
    """Answer one request; no key is needed."""
    if ask.path != "search_by_date":
        return json_reply(404, {"message": "Path not supported by this API", "status": 404})
    size, page = whole(ask.query, "hitsPerPage", 20), whole(ask.query, "page", 0)
    if not 0 <= size <= MOST_HITS or page < 0:
        return json_reply(400, {"message": "invalid hitsPerPage or page", "status": 400})
    filters = ask.query.get("numericFilters", f"created_at_i>={ask.now_s - _SHOWN_S},created_at_i<{ask.now_s + 1}")
    bounds = _BOUNDS.fullmatch(filters)
    if bounds is None:
        return json_reply(400, {"message": f"invalid numericFilters: {filters}", "status": 400})
    start, end = int(bounds[1]), min(int(bounds[2]), ask.now_s + 1)
    words = re.findall(r'"([^"]+)"|([^\s"]+)', ask.query.get("query", ""))
    wanted = [(phrase or word).lower() for phrase, word in words]
    items = desk.world.items("hacker-news", EVERY_S, start, end, ask.now_s)
    found = [item for item in items if all(word in f"{item.title} {item.body}".lower() for word in wanted)][::-1]
    reachable = found[:MOST_HITS]
    shown = desk.spoil(ask.number, reachable[page * size : (page + 1) * size])
    content = {
        "hits": [_hit(item, ask.now_s) for item in shown],
        "hitsPerPage": size,
        "nbHits": len(found),
        "nbPages": -(-len(reachable) // size) if size else 0,
        "page": page,
    }
    given = (Given("text", str(_id(item)), 0, item.published_s * SECOND_US, item.title) for item in shown)
    return replace(json_reply(200, content, tuple(given)), partial=len(found) > len(reachable))


def rate_limited(ask: Ask, retry_after_s: int) -> Reply:
    """Return the reply to a request above the limit."""
    content = {"message": "Too many requests", "status": 429}
    return json_reply(429, content, headers={"retry-after": str(retry_after_s)})


def _id(item: Item) -> int:
    return 40_000_000 + item.number


def _hit(item: Item, now_s: int) -> dict[str, Any]:
    points = 1 + min((now_s - item.published_s) // 3_600, 24) * (item.number % 5)
    return {
        "_tags": ["story", f"story_{_id(item)}"],
        "author": f"generator{item.number % 7}",
        "created_at": utc_time(item.published_s),
        "created_at_i": item.published_s,
        "objectID": str(_id(item)),
        "points": points,
        "story_text": f"<p>{item.body.replace('&', '&amp;')}</p>",
        "title": item.title,
    }
