"""NewsAPI's /v2/everything: articles that name a coin, newest first, a hundred at a time.

Its developer plan gives articles a day late, and only the first hundred of a search: older ones are found by searching
again for them.
"""

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote_plus

from qubic_lab.errors import InputError
from qubic_lab.oracle.ingest.http_rules import Params
from qubic_lab.oracle.ingest.http_source import (
    Batch,
    Fetched,
    SourceClient,
    SourceError,
    malformed,
    refusal_as_fetched,
)
from qubic_lab.oracle.ingest.text_fields import plain_text, read_date, short_id
from qubic_lab.oracle.model.coins import find_coin, mentioned
from qubic_lab.oracle.model.records import Text
from qubic_lab.oracle.model.timestamps import SECOND_US, from_us, iso

LONGEST_QUERY = 500
"""Characters of a query in the encoding of URLs."""
PAGE_SIZE = 100
TOO_MANY = "maximumResultsReached"
_CUT = re.compile(r"\s*…?\s*\[\+(\d+) chars\]\s*$")
_REMOVED = "[Removed]"


def queries(coins: Sequence[str]) -> tuple[str, ...]:
    """Return the fewest searches that find the names of all coins.

    Raises:
        InputError: a coin is not known, or a name is too long to be searched for.
    """
    found: list[str] = []
    for term in (f'"{name}"' for coin in coins for name in find_coin(coin).terms):
        longer = f"{found[-1]} OR {term}" if found else term
        if found and len(quote_plus(longer)) <= LONGEST_QUERY:
            found[-1] = longer
        elif len(quote_plus(term)) <= LONGEST_QUERY:
            found.append(term)
        else:
            raise InputError(f"search for {term[:40]}… is longer than {LONGEST_QUERY} characters: shorten the name")
    return tuple(found)


def parse_articles(body: Any, source: str) -> tuple[tuple[Text, ...], tuple[str, ...]]:
    """Return the articles of a response in its order, and a line for each one left out.

    Withdrawn articles ("[Removed]") are left out without a line. A time without a zone is not used.

    Args:
        body: of /v2/everything.
        source: of the texts.
    """
    texts, faults = [], []
    for entry in body.get("articles") or ():
        if not isinstance(entry, dict):
            faults.append(f"article {str(entry)[:80]!r} is not an object")
            continue
        title, description = plain_text(entry.get("title")), plain_text(entry.get("description"))
        content, cut = _content(entry.get("content"))
        url = str(entry.get("url") or "")
        if _REMOVED in (title, description) or url.startswith("https://removed.com"):
            continue
        if not url or not (title or description or content):
            faults.append(f"article {title[:60]!r} at {url[:80]!r} has no address or no words")
            continue
        body_text = _joined(description, content)
        publisher = entry.get("source")
        texts.append(
            Text(
                source=source,
                external_id=short_id(url),
                kind="news",
                title=title,
                body=body_text,
                url=url,
                publisher=plain_text(publisher.get("name") if isinstance(publisher, dict) else None)[:256] or source,
                published_us=read_date(entry.get("publishedAt")),
                coins=mentioned(f"{title}\n{body_text}"),
                author=plain_text(entry.get("author"))[:256],
                cut_characters=cut,
            )
        )
    return tuple(texts), tuple(faults)


async def fetch_texts(client: SourceClient, coins: Sequence[str], start_us: int, end_us: int) -> AsyncIterator[Batch]:
    """Yield the articles that name any of some coins and appeared from `start_us` until before `end_us`.

    A batch is a request; each article comes once. Only the last batch says until when all has been given, as the order
    is newest first. Articles of the last `delay_s` seconds are not there yet: the caller leaves them for later.

    Raises:
        SourceError: there is no good response; the batches until then are good.
    """
    seen: set[str] = set()
    searches = queries(coins)
    for number, query in enumerate(searches, 1):
        async for batch in _search(client, query, start_us, end_us, seen):
            done = batch.until_us is not None and number == len(searches)
            yield replace(batch, until_us=end_us if done else None)


async def _search(client: SourceClient, query: str, start_us: int, end_us: int, seen: set[str]) -> AsyncIterator[Batch]:
    """Yield one search's articles; its last batch has `until_us`."""
    last_us, oldest_us, page = end_us - 1, end_us - 1, 1
    while True:
        answer = await _page(client, query, start_us, last_us, page)
        texts, faults = parse_articles(answer.body, client.name) if answer.body is not None else ((), ())
        new = tuple({text.external_id: text for text in texts if text.external_id not in seen}.values())
        seen |= {text.external_id for text in new}
        oldest_us = min([oldest_us, *(text.published_us for text in texts if text.published_us is not None)])
        total, given = _total(answer), (page - 1) * PAGE_SIZE + _count(answer)
        most = client.config.most_results
        if answer.body is not None and (given >= total or _count(answer) == 0):
            yield Batch(answer, texts=new, faults=faults, until_us=end_us)
            return
        if answer.body is not None and (most is None or given < most):
            page += 1
        elif oldest_us // SECOND_US < last_us // SECOND_US:
            last_us, page = oldest_us, 1
        else:
            at = iso(last_us // SECOND_US * SECOND_US)
            faults = (*faults, f"{total or 'more'} articles until {at}: the source shows no more of them")
            yield Batch(answer, texts=new, faults=faults, until_us=end_us)
            return
        yield Batch(answer, texts=new, faults=faults)


async def _page(client: SourceClient, query: str, start_us: int, last_us: int, page: int) -> Fetched:
    """Return a page of a search; without a body if the source does not show results that far down."""
    params: Params = {
        "q": query,
        "from": _second(start_us),
        "to": _second(last_us),
        "sortBy": "publishedAt",
        "pageSize": PAGE_SIZE,
        "page": page,
    }
    try:
        fetched = await client.get("/everything", params, conditional=False)
    except SourceError as error:
        if error.code != TOO_MANY or page == 1:
            raise
        return refusal_as_fetched(error)
    if not (isinstance(fetched.body, dict) and isinstance(fetched.body.get("articles"), list)):
        raise malformed(fetched)
    return fetched


def _total(answer: Fetched) -> int:
    total = answer.body.get("totalResults") if answer.body is not None else None
    return total if isinstance(total, int) else 0


def _count(answer: Fetched) -> int:
    return len(answer.body["articles"]) if answer.body is not None else 0


def _second(at_us: int) -> str:
    """Return an instant in the form of the source: whole seconds of UTC without a zone."""
    return from_us(at_us).strftime("%Y-%m-%dT%H:%M:%S")


def _content(value: Any) -> tuple[str, int]:
    """Return the beginning of an article, and how many characters are left out."""
    if not isinstance(value, str):
        return "", 0
    cut = _CUT.search(value)  # before markup is taken out: a tag may be cut too
    return (plain_text(value[: cut.start()]).rstrip(" …"), int(cut.group(1))) if cut else (plain_text(value), 0)


def _joined(description: str, content: str) -> str:
    """Return both, or only the content if it begins with the description."""
    if content.startswith(description.rstrip(" .…")[:80]):
        return content
    return f"{description}\n{content}" if content else description
