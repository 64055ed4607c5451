"""NewsAPI's /v2/everything: articles that name a coin, newest first.

Its developer plan gives articles a day late, and only the first hundred of a search: older ones are found by searching
again for them, whatever the plan.
"""

import ast
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Any
from urllib.parse import quote_plus

from qubic_lab.oracle.ingest.http_rules import Params
from qubic_lab.oracle.ingest.http_source import Batch, SourceClient, malformed, search_back
from qubic_lab.oracle.ingest.validation import LONGEST_LINE, plain_text, read_date, short_id
from qubic_lab.oracle.model.coins import find_coin, mentioned
from qubic_lab.oracle.model.records import Text
from qubic_lab.oracle.model.timestamps import from_us

LONGEST_QUERY = 500
"""Characters of a query in the encoding of URLs."""
PAGE_SIZE = 100
LONGEST_PUBLISHER = 1_000
_COLUMNS = frozenset(("title", "description", "content", "url", "publishedAt"))
_CUT = re.compile(r"(?<!\s)\s*(?:…\s*)?\[\+(\d{1,9}) chars\]\s*$")
_REMOVED = "[Removed]"


def queries(coins: Sequence[str]) -> tuple[str, ...]:
    """Return the fewest searches that find the names of all coins."""
    found: list[str] = []
    for term in (f'"{name}"' for coin in coins for name in find_coin(coin).terms):
        longer = f"{found[-1]} OR {term}" if found else term
        if found and len(quote_plus(longer)) <= LONGEST_QUERY:
            found[-1] = longer
        else:
            found.append(term)
    return tuple(found)


def are_articles(columns: Sequence[str]) -> bool:
    """Return whether a table has the columns of articles as this source gives them."""
    return set(columns) >= _COLUMNS


def parse_articles(articles: Sequence[Any], source: str) -> tuple[tuple[Text, ...], tuple[str, ...]]:
    """Return the articles of a response in its order, and a line for each one left out.

    Withdrawn articles ("[Removed]") are left out without a line. A time without a zone is not used.
    """
    texts, faults = [], []
    for entry in articles:
        if not isinstance(entry, dict):
            faults.append(f"article {str(entry)[:80]!r} is not an object")
            continue
        title, description = plain_text(entry.get("title"), LONGEST_LINE), plain_text(entry.get("description"))
        content, cut = cut_words(entry.get("content"))
        url = str(entry.get("url") or "")
        if _REMOVED in (title, description) or url.startswith("https://removed.com"):
            continue
        if not url or not (title or description or content):
            faults.append(f"article {title[:60]!r} at {url[:80]!r} has no address or no words")
            continue
        body_text = _joined(description, content)
        texts.append(
            Text(
                source=source,
                external_id=short_id(url),
                kind="news",
                title=title,
                body=body_text,
                url=url,
                publisher=publisher_name(entry.get("source"))[:256] or source,
                published_us=read_date(entry.get("publishedAt")),
                coins=mentioned(f"{title}\n{body_text}"),
                author=plain_text(entry.get("author"), LONGEST_LINE)[:256],
                cut_characters=cut,
            )
        )
    return tuple(texts), tuple(faults)


def fetch_texts(client: SourceClient, coins: Sequence[str], start_us: int, end_us: int) -> AsyncGenerator[Batch, None]:
    """Yield the articles that name any of some coins, from `start_us` until before `end_us`.

    Articles of the last `delay_s` seconds are not there yet: the caller leaves them for later.
    """

    async def ask(query: str, last_us: int) -> tuple[Batch, int | None]:
        params: Params = {
            "q": query,
            "from": _second(start_us),
            "to": _second(last_us),
            "sortBy": "publishedAt",
            "pageSize": PAGE_SIZE,
        }
        fetched = await client.get("/everything", params, conditional=False)
        if not (isinstance(fetched.body, dict) and isinstance(fetched.body.get("articles"), list)):
            raise malformed(fetched)
        articles, total = fetched.body["articles"], fetched.body.get("totalResults")
        texts, faults = parse_articles(articles, client.name)
        shows_all = not articles or not isinstance(total, int) or len(articles) >= total
        dates = (read_date(entry.get("publishedAt")) for entry in articles if isinstance(entry, dict))
        times = [at_us for at_us in dates if at_us is not None]
        return Batch(fetched, texts=texts, faults=faults), None if shows_all else min(times, default=start_us)

    return search_back(ask, queries(coins), start_us, end_us)


def _second(at_us: int) -> str:
    """Return an instant in the form of the source: whole seconds of UTC without a zone."""
    return from_us(at_us).strftime("%Y-%m-%dT%H:%M:%S")


def publisher_name(value: Any) -> str:
    """Return the name of a publisher, which may be an object with a name, or such an object as Python prints it."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = ast.literal_eval(value[:LONGEST_PUBLISHER])
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: nested too deeply
            return plain_text(value, LONGEST_LINE)
    return plain_text(value.get("name") if isinstance(value, dict) else value, LONGEST_LINE)


def cut_words(value: Any) -> tuple[str, int]:
    """Return the beginning of a text without the mark "[+2380 chars]" at its end, and that number, else 0."""
    if not isinstance(value, str):
        return "", 0
    cut = _CUT.search(value)  # before markup is taken out: a tag may be cut too
    return (plain_text(value[: cut.start()]).rstrip(" …"), int(cut.group(1))) if cut else (plain_text(value), 0)


def _joined(description: str, content: str) -> str:
    """Return both, or only the content if it begins with the description."""
    if content.startswith(description.rstrip(" .…")[:80]):
        return content
    return f"{description}\n{content}" if content else description
