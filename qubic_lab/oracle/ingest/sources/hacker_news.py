"""Hacker News by Algolia's search: stories and comments that name a coin, with their points.

A search shows a thousand hits at most: a range of time with more is halved until it has fewer.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from qubic_lab.oracle.ingest.http_rules import Params
from qubic_lab.oracle.ingest.http_source import Batch, Fetched, SourceClient, malformed
from qubic_lab.oracle.ingest.text_fields import plain_text, read_date
from qubic_lab.oracle.model.coins import find_coin, mentioned
from qubic_lab.oracle.model.records import Text
from qubic_lab.oracle.model.timestamps import SECOND_US

MOST_HITS = 1000
ITEM = "https://news.ycombinator.com/item?id={}"


def is_too_wide(body: Any) -> bool:
    """Return whether a search found more than it shows."""
    return len(body["hits"]) >= MOST_HITS or _count(body.get("nbHits")) > MOST_HITS or _count(body.get("nbPages")) > 1


def parse_hits(body: Any, source: str) -> tuple[tuple[Text, ...], tuple[str, ...]]:
    """Return the stories and comments that name a coin in their own words, and a line for each damaged one.

    The search also finds other spellings and comments whose story names the coin: those are left out.

    Args:
        body: of search_by_date.
        source: of the texts.
    """
    texts, faults = [], []
    for hit in body["hits"]:
        id = hit.get("objectID") if isinstance(hit, dict) else None
        if not isinstance(id, str) or not id:
            faults.append(f"hit {str(hit)[:80]!r} has no objectID")
            continue
        title, body_text = plain_text(hit.get("title")), plain_text(hit.get("story_text") or hit.get("comment_text"))
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
                published_us=_published(hit),
                coins=coins,
                author=str(hit.get("author") or "")[:256],
                score=points if isinstance(points, int) and not isinstance(points, bool) else None,
            )
        )
    return tuple(texts), tuple(faults)


async def fetch_texts(client: SourceClient, coins: Sequence[str], start_us: int, end_us: int) -> AsyncIterator[Batch]:
    """Yield the stories and comments that name any of some coins, posted from `start_us` until before `end_us`.

    A batch is a request, for one coin and one range of time; each text comes once. Ranges come in order of time,
    and the last batch of each says that all before its end has been given. In whole seconds.

    Raises:
        InputError: a coin is not known.
        SourceError: there is no good response; the batches until then are good.
    """
    names = [find_coin(coin).terms[0] for coin in coins]
    seen: set[str] = set()
    ranges = [(start_us // SECOND_US, -(-end_us // SECOND_US))]
    while ranges:
        start_s, end_s = ranges.pop()
        for number, name in enumerate(names, 1):
            fetched = await _search(client, name, start_s, end_s)
            wide = is_too_wide(fetched.body)
            if wide and end_s - start_s > 1:
                yield Batch(fetched)
                middle = (start_s + end_s) // 2
                ranges += [(middle, end_s), (start_s, middle)]
                break
            texts, faults = parse_hits(fetched.body, client.name)
            new = tuple({text.external_id: text for text in texts if text.external_id not in seen}.values())
            seen |= {text.external_id for text in new}
            if wide:
                faults = (*faults, f"more than {len(fetched.body['hits'])} posts in one second: only those are given")
            until_us = min(end_s * SECOND_US, end_us) if number == len(names) else None
            yield Batch(fetched, texts=new, faults=faults, until_us=until_us)


async def _search(client: SourceClient, name: str, start_s: int, end_s: int) -> Fetched:
    params: Params = {
        "query": f'"{name}"',
        "tags": "(story,comment)",
        "numericFilters": f"created_at_i>={start_s},created_at_i<{end_s}",
        "hitsPerPage": MOST_HITS,
        "page": 0,
        "typoTolerance": "false",
        "advancedSyntax": "true",
    }
    fetched = await client.get("/search_by_date", params, conditional=False)
    if not (isinstance(fetched.body, dict) and isinstance(fetched.body.get("hits"), list)):
        raise malformed(fetched)
    return fetched


def _published(hit: Any) -> int | None:
    seconds = hit.get("created_at_i")
    whole = isinstance(seconds, int) and not isinstance(seconds, bool)
    return seconds * SECOND_US if whole else read_date(hit.get("created_at"))


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0
