"""NewsAPI's /v2/everything: articles that name a coin, newest first, a hundred at a time.

Its developer plan gives articles a day late and the first hundred of a search alone: what lies behind them is found by
searching again for what is older.
"""

import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote_plus

from qubic_lab.errors import InputError
from qubic_lab.oracle.ingest.http_source import Batch, Fetched, Params, SourceClient, SourceError, fetched_of, malformed
from qubic_lab.oracle.ingest.markup import plain_text
from qubic_lab.oracle.model.coins import find_coin, mentioned
from qubic_lab.oracle.model.records import Text
from qubic_lab.oracle.model.timestamps import SECOND_US, from_us, iso, read_iso

LONGEST_QUERY = 500
"""Characters of a query as it is sent, in the encoding of URLs."""
PAGE_SIZE = 100
TOO_MANY = "maximumResultsReached"
LONGEST_ID = 512
_CUT = re.compile(r"\s*…?\s*\[\+(\d+) chars\]\s*$")
_REMOVED = "[Removed]"


def queries(coins: Sequence[str]) -> tuple[str, ...]:
    """Return as few searches as there must be to find the names of all coins.

    Raises:
        InputError: a coin is not known, or a name is too long to be searched for.
    """
    found: list[str] = []
    for term in (term for coin in coins for term in _terms(coin)):
        longer = f"{found[-1]} OR {term}" if found else term
        if found and len(quote_plus(longer)) <= LONGEST_QUERY:
            found[-1] = longer
        elif len(quote_plus(term)) <= LONGEST_QUERY:
            found.append(term)
        else:
            raise InputError(f"search for {term[:40]}… is longer than {LONGEST_QUERY} characters: shorten the name")
    return tuple(found)


def parse_articles(body: Any, source: str) -> tuple[tuple[Text, ...], tuple[str, ...]]:
    """Return the articles of an answer in its order, and a line for each one left out.

    What was withdrawn ("[Removed]") is left out without a line. An article whose time names no zone has none.

    Args:
        body: of /v2/everything.
        source: as the texts name it.
    """
    texts, faults = [], []
    for entry in body.get("articles") or ():
        if not isinstance(entry, dict):
            faults.append(f"article {str(entry)[:80]!r} is none")
            continue
        title, description = _words(entry.get("title")), _words(entry.get("description"))
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
                external_id=_id(url),
                kind="news",
                title=title,
                body=body_text,
                url=url,
                publisher=_words(publisher.get("name") if isinstance(publisher, dict) else None)[:256] or source,
                published_us=_instant(entry.get("publishedAt")),
                coins=mentioned(f"{title}\n{body_text}"),
                author=_words(entry.get("author"))[:256],
                cut_characters=cut,
            )
        )
    return tuple(texts), tuple(faults)


async def fetch_texts(client: SourceClient, coins: Sequence[str], start_us: int, end_us: int) -> AsyncIterator[Batch]:
    """Yield the articles that name any of some coins and appeared from `start_us` until before `end_us`.

    A batch is a request; each article comes once. Only the last batch says until when all has been given, for the order
    is newest first. What appeared in the last `delay_s` seconds is not there yet: the caller leaves that for later.

    Raises:
        SourceError: there is no answer; what was given until then is good.
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
    """Return a page of a search; one without a body where the source shows no results so far down."""
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
        return fetched_of(error)
    if not (isinstance(fetched.body, dict) and isinstance(fetched.body.get("articles"), list)):
        raise malformed(fetched, "gave JSON of another shape than its documents say")
    return fetched


def _total(answer: Fetched) -> int:
    total = answer.body.get("totalResults") if answer.body is not None else None
    return total if isinstance(total, int) else 0


def _count(answer: Fetched) -> int:
    return len(answer.body["articles"]) if answer.body is not None else 0


def _terms(coin: str) -> tuple[str, ...]:
    return tuple(f'"{term}"' for term in find_coin(coin).terms)


def _second(at_us: int) -> str:
    """Return an instant as the source takes it: whole seconds of UTC without a zone."""
    return from_us(at_us).strftime("%Y-%m-%dT%H:%M:%S")


def _words(value: Any) -> str:
    return plain_text(value) if isinstance(value, str) else ""


def _content(value: Any) -> tuple[str, int]:
    """Return the part of an article that is given, and how many characters are left out."""
    if not isinstance(value, str):
        return "", 0
    cut = _CUT.search(value)  # before markup is taken out: a tag may be cut too
    return (plain_text(value[: cut.start()]).rstrip(" …"), int(cut.group(1))) if cut else (plain_text(value), 0)


def _joined(description: str, content: str) -> str:
    """Return both, or the longer one where it begins with the other's words."""
    if content.startswith(description.rstrip(" .…")[:80]):
        return content
    return f"{description}\n{content}" if content else description


def _id(url: str) -> str:
    """Return what an article is called: its address, for there is nothing else."""
    return url if len(url) <= LONGEST_ID else f"sha256:{hashlib.sha256(url.encode()).hexdigest()}"


def _instant(value: Any) -> int | None:
    try:
        return read_iso(value) if isinstance(value, str) else None
    except InputError:
        return None
