"""Replies in the shapes of NewsAPI's version 2, developer plan (newsapi.org/docs)."""

import re
from typing import Any

from fake_source.ledger import Given
from fake_source.reply import KEYS, Ask, Desk, Reply, json_reply, read_time, utc_time, whole
from fake_source.world import Item
from qubic_lab.oracle.model.timestamps import SECOND_US

EVERY_S = 360
DELAY_S = 86_400
REACH_S = 31 * 86_400
MOST_RESULTS = 100
MOST_QUERY = 500
CONTENT_CHARACTERS = 60
"""Real ones are cut at about 200; these texts are shorter."""


def reply(ask: Ask, desk: Desk) -> Reply:
    """Reply one request: by a key in a header or the query."""
    key = ask.headers.get("x-api-key") or ask.query.get("apiKey")
    if not key:
        return _error(401, "apiKeyMissing", "Your API key is missing. Append this to the URL with the apiKey param.")
    if key != KEYS["newsapi"]:
        return _error(401, "apiKeyInvalid", "Your API key is invalid or incorrect. Check your key.")
    if ask.path != "everything":
        return _error(404, "unexpectedError", "There is no such endpoint.")
    query = ask.query.get("q", "")
    if not query:
        return _error(400, "parametersMissing", "Required parameters are missing. Please set q.")
    if len(query) > MOST_QUERY:
        return _error(400, "queryTooLong", f"The query has {len(query)} characters: at most {MOST_QUERY}.")
    size, page = whole(ask.query, "pageSize", 100), whole(ask.query, "page", 1)
    if not 1 <= size <= MOST_RESULTS or page < 1:
        return _error(400, "parameterInvalid", "pageSize must be between 1 and 100, and page at least 1.")
    if page * size > MOST_RESULTS and page > 1:
        first = (page - 1) * size
        return _error(
            426,
            "maximumResultsReached",
            "You have requested too many results. Developer accounts are limited to a max of 100 results. "
            f"You are trying to request results {first} to {first + size}.",
        )
    return _everything(ask, desk, query, size, page)


def rate_limited(ask: Ask, retry_after_s: int) -> Reply:
    """Return the reply to a request above the limit."""
    refused = _error(429, "rateLimited", "You have made too many requests recently.")
    return Reply(429, refused.body, headers={"retry-after": str(retry_after_s)})


def _everything(ask: Ask, desk: Desk, query: str, size: int, page: int) -> Reply:
    newest = ask.now_s - DELAY_S
    start = read_time(ask.query.get("from", ""), newest - REACH_S)
    end = read_time(ask.query.get("to", ""), newest)
    if start is None or end is None:
        return _error(400, "parameterInvalid", "from and to must be dates or times in ISO 8601.")
    if start < newest - REACH_S:
        return _error(426, "parameterInvalid", "You are trying to request results too far in the past.")
    items = desk.world.items("newsapi", EVERY_S, start, min(end, newest) + 1, ask.now_s)
    found = sorted((item for item in items if matches(query, item)), key=lambda item: -item.published_s)
    shown = desk.spoil(ask.number, found[(page - 1) * size : page * size])
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
    left_out = len(item.body) - CONTENT_CHARACTERS
    return {
        "source": {"id": None, "name": item.publisher},
        "author": f"Generator {item.number % 7}",
        "title": item.title,
        "description": item.body,
        "url": f"https://news.invalid/{item.number}",
        "urlToImage": None,
        "publishedAt": utc_time(item.published_s),
        "content": f"{item.body[:CONTENT_CHARACTERS]}… [+{left_out} chars]",
    }


def _error(status: int, code: str, message: str) -> Reply:
    return json_reply(status, {"status": "error", "code": code, "message": message})
