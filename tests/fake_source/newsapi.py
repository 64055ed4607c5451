"""Replies in the shapes of NewsAPI's version 2, developer plan (newsapi.org/docs)."""

import re
from typing import Any

from fake_source.ledger import Given
from fake_source.reply import KEYS, Ask, Desk, Reply, json_reply, utc_time
from fake_source.world import PUBLISHER, Item
from qubic_lab.oracle.model.timestamps import SECOND_US, read_iso

RATE_LIMITED = {"status": "error", "code": "rateLimited", "message": "You have made too many requests recently."}
EVERY_S = 360
DELAY_S = 86_400
REACH_S = 31 * 86_400
MOST_RESULTS = 100
MOST_QUERY = 500
CONTENT_CHARACTERS = 60
"""Real ones are cut at about 200; these texts are shorter."""


def reply(ask: Ask, desk: Desk) -> Reply:
    """Answer one request, by a key in a header or the query."""
    key = ask.headers.get("x-api-key") or ask.query.get("apiKey")
    if not key:
        return _error(401, "apiKeyMissing", "Your API key is missing. Append this to the URL with the apiKey param.")
    if key != KEYS["newsapi"]:
        return _error(401, "apiKeyInvalid", "Your API key is invalid or incorrect. Check your key.")
    if ask.path != "everything":
        return _error(404, "unexpectedError", "There is no such endpoint.")
    if len(ask.query["q"]) > MOST_QUERY:
        return _error(400, "queryTooLong", f"The query has more than {MOST_QUERY} characters.")
    return _everything(ask, desk)


def _everything(ask: Ask, desk: Desk) -> Reply:
    newest = ask.now_s - DELAY_S
    start, end = (read_iso(f"{ask.query[name]}Z") // SECOND_US for name in ("from", "to"))
    if start < newest - REACH_S:
        return _error(426, "parameterInvalid", "You are trying to request results too far in the past.")
    items = desk.world.items("newsapi", EVERY_S, start, min(end, newest) + 1, ask.now_s)
    found = sorted((item for item in items if matches(ask.query["q"], item)), key=lambda item: -item.published_s)
    shown = desk.spoil(ask.number, found[:MOST_RESULTS])
    articles = [_article(item) for item in shown]
    given = tuple(
        Given("text", article["url"], 0, item.published_s * SECOND_US, item.title)
        for item, article in zip(shown, articles, strict=True)
    )
    return json_reply(200, {"status": "ok", "totalResults": len(found), "articles": articles}, given)


def matches(query: str, item: Item) -> bool:
    """Return whether a text has one of the words or "phrases" of a query, which are joined by OR."""
    text = f"{item.title} {item.body}".lower()
    terms = (term.strip().strip('"').lower() for term in query.split(" OR "))
    return any(re.search(rf"\b{re.escape(term)}\b", text) for term in terms)


def _article(item: Item) -> dict[str, Any]:
    return {
        "source": {"id": None, "name": PUBLISHER},
        "author": f"Generator {item.number % 7}",
        "title": item.title,
        "description": item.body,
        "url": f"https://news.invalid/{item.number}",
        "publishedAt": utc_time(item.published_s),
        "content": f"{item.body[:CONTENT_CHARACTERS]}… [+{len(item.body) - CONTENT_CHARACTERS} chars]",
    }


def _error(status: int, code: str, message: str) -> Reply:
    return json_reply(status, {"status": "error", "code": code, "message": message})
