"""Hacker News by Algolia's search: stories and comments that name a coin, newest first, with their points.

A search shows a thousand hits at most: older ones are found by searching again for them.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from qubic_lab.oracle.ingest.http_rules import Params
from qubic_lab.oracle.ingest.http_source import Batch, SourceClient, malformed, search_back
from qubic_lab.oracle.ingest.validation import LONGEST_LINE, plain_text, read_date
from qubic_lab.oracle.model.coins import find_coin, mentioned
from qubic_lab.oracle.model.records import Text
from qubic_lab.oracle.model.timestamps import SECOND_US

MOST_HITS = 1000
ITEM = "https://news.ycombinator.com/item?id={}"


def parse_hits(hits: Sequence[Any], source: str) -> tuple[tuple[Text, ...], tuple[str, ...]]:
    """Return the stories and comments that name a coin in their own words, and a line for each damaged one.

    The search also finds other spellings and comments whose story names the coin: those are left out.
    """
    texts, faults = [], []
    for hit in hits:
        id = hit.get("objectID") if isinstance(hit, dict) else None
        if not isinstance(id, str) or not id:
            faults.append(f"hit {str(hit)[:80]!r} has no objectID")
            continue
        title, body_text = (
            plain_text(hit.get("title"), LONGEST_LINE),
            plain_text(hit.get("story_text") or hit.get("comment_text")),
        )
        coins = mentioned(f"{title}\n{body_text}")
        if not coins:
            continue
        points = hit.get("points")
        texts.append(
            Text(
                source=source,
                external_id=id,
                kind="social",
                title=title,
                body=body_text,
                url=hit["url"] if isinstance(hit.get("url"), str) and hit["url"] else ITEM.format(id),
                publisher="Hacker News",
                published_us=_published_us(hit),
                coins=coins,
                author=str(hit.get("author") or "")[:256],
                score=points if isinstance(points, int) and not isinstance(points, bool) else None,
            )
        )
    return tuple(texts), tuple(faults)


def fetch_texts(client: SourceClient, coins: Sequence[str], start_us: int, end_us: int) -> AsyncGenerator[Batch, None]:
    """Yield the stories and comments that name any of some coins, from `start_us` until before `end_us`."""

    async def ask(name: str, last_us: int) -> tuple[Batch, int | None]:
        params: Params = {
            "query": f'"{name}"',
            "tags": "(story,comment)",
            "numericFilters": f"created_at_i>={start_us // SECOND_US},created_at_i<{last_us // SECOND_US + 1}",
            "hitsPerPage": MOST_HITS,
            "page": 0,
            "typoTolerance": "false",
            "advancedSyntax": "true",
        }
        fetched = await client.get("/search_by_date", params, conditional=False)
        if not (isinstance(fetched.body, dict) and isinstance(fetched.body.get("hits"), list)):
            raise malformed(fetched)
        hits = fetched.body["hits"]
        texts, faults = parse_hits(hits, client.name)
        dates = (_published_us(hit) for hit in hits if isinstance(hit, dict))
        times = [at_us for at_us in dates if at_us is not None]
        shows_all = len(hits) < MOST_HITS
        return Batch(fetched, texts=texts, faults=faults), None if shows_all else min(times, default=start_us)

    return search_back(ask, [find_coin(coin).terms[0] for coin in coins], start_us, end_us)


def _published_us(hit: dict[str, Any]) -> int | None:
    seconds = hit.get("created_at_i")
    if isinstance(seconds, int) and not isinstance(seconds, bool):
        return seconds * SECOND_US
    return read_date(hit.get("created_at"))
