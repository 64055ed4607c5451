"""The texts about a coin: how many there are and how models have scored them, and pages of whole texts."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from qubic_lab.errors import check_choice, check_range
from qubic_lab.oracle.model.coins import known_coin
from qubic_lab.oracle.model.records import is_sample
from qubic_lab.oracle.model.response import (
    WINDOW_S,
    AgeS,
    Instant,
    Missing,
    OracleResponse,
    Part,
    Window,
    age_s,
)
from qubic_lab.oracle.model.timestamps import DAY_US, SECOND_US
from qubic_lab.oracle.sentiment.index import WEIGHTING, Weighting
from qubic_lab.oracle.sentiment.index_report import ModelScores, SentimentIndex, report_index
from qubic_lab.oracle.serving.prices import NextCursor
from qubic_lab.oracle.store.snapshot import Snapshot, reading
from qubic_lab.oracle.store.text_reader import StoredText, TextCounts

MOST_TEXTS = 500


@dataclass(frozen=True, kw_only=True)
class Headline(Part):
    """A text in short."""

    title: str
    source: str
    publisher: str
    url: str
    published_us: Instant | None
    known_us: Instant
    age_s: AgeS


@dataclass(frozen=True, kw_only=True)
class SourceTexts(Part):
    """How many texts a source gave: distinct ones, duplicates, and the age of the newest."""

    source: str
    texts: int
    duplicates: int
    newest_age_s: AgeS


@dataclass(frozen=True, kw_only=True)
class Sentiment(OracleResponse):
    """The texts about a coin in a window that ends at `as_of`, and how models have scored them.

    `texts` are distinct; `duplicates` repeat one of these or an earlier one; invented `samples` count nowhere else.
    `stale`: there is no text, or the newest is older than three of its source's intervals and its usual delay.
    """

    coin: str
    symbol: str
    name: str
    window: Window
    start_us: Instant
    as_of_us: Instant
    texts: int
    duplicates: int
    samples: int
    by_source: tuple[SourceTexts, ...]
    by_kind: dict[str, int]
    newest: Headline | None
    stale: bool
    scores: tuple[ModelScores, ...] | Missing
    index: SentimentIndex | Missing


@dataclass(frozen=True, kw_only=True)
class TextHistory(OracleResponse):
    """Texts about a coin, the newest first, each in the newest version that was known at `as_of`."""

    coin: str
    as_of_us: Instant
    texts: tuple[StoredText, ...]
    next_cursor: NextCursor


@reading()
def sentiment(snapshot: Snapshot, coin: str, window: Window = "24h", weighting: Weighting = WEIGHTING) -> Sentiment:
    """Return what was written about a coin, and how models have scored it.

    Raises:
        NotFoundError: an unknown coin.
        InputError: another window.
    """
    found = known_coin(coin)
    check_choice("window", window, WINDOW_S)
    at, start = snapshot.at_us, snapshot.at_us - WINDOW_S[window] * SECOND_US
    every = snapshot.texts.counts(found.id, start, at + 1)
    counts = [each for each in every if not is_sample(each.source)]
    texts = sum(each.texts for each in counts)
    newest = snapshot.texts.page(found.id, start, at + 1, limit=1, duplicates=True, invented=False).texts
    late = not newest or snapshot.store.text_frequency(newest[0].source).is_late(age_s(newest[0].at_us, at))
    scores, index = report_index(snapshot, found.id, window, texts, weighting)
    return Sentiment(
        coin=found.id,
        symbol=found.symbol,
        name=found.name,
        window=window,
        start_us=start,
        as_of_us=at,
        texts=texts,
        duplicates=sum(each.duplicates for each in counts),
        samples=sum(each.texts + each.duplicates for each in every if is_sample(each.source)),
        by_source=_by_source(counts, at),
        by_kind=_by_kind(counts),
        newest=_headline(newest[0], at) if newest else None,
        stale=late,
        scores=scores,
        index=index,
    )


@reading()
def text_history(
    snapshot: Snapshot,
    coin: str,
    start_us: int | None = None,
    end_us: int | None = None,
    *,
    duplicates: bool = False,
    limit: int = 100,
    cursor: str | None = None,
) -> TextHistory:
    """Return a page of the texts about a coin, the newest first; without a range those of the last week.

    Raises:
        NotFoundError: an unknown coin.
        InputError: an empty range, a limit that is out of range, or a cursor that no page gave.
    """
    found = known_coin(coin)
    check_range("limit", limit, 1, MOST_TEXTS)
    end = snapshot.at_us + 1 if end_us is None else end_us
    start = end - 7 * DAY_US if start_us is None else start_us
    page = snapshot.texts.page(found.id, start, end, limit=limit, cursor=cursor, duplicates=duplicates)
    return TextHistory(coin=found.id, as_of_us=snapshot.at_us, texts=page.texts, next_cursor=page.next_cursor)


def _by_source(counts: Sequence[TextCounts], at_us: int) -> tuple[SourceTexts, ...]:
    """Return how many texts each source gave, of all kinds together."""
    grouped: dict[str, list[TextCounts]] = defaultdict(list)
    for each in counts:
        grouped[each.source].append(each)
    return tuple(
        SourceTexts(
            source=source,
            texts=sum(each.texts for each in those),
            duplicates=sum(each.duplicates for each in those),
            newest_age_s=age_s(max(each.newest_at_us for each in those), at_us),
        )
        for source, those in sorted(grouped.items())
    )


def _by_kind(counts: Sequence[TextCounts]) -> dict[str, int]:
    """Return how many distinct texts of each kind there are."""
    found: Counter[str] = Counter()
    for each in counts:
        found[each.kind] += each.texts
    return {kind: number for kind, number in sorted(found.items()) if number}


def _headline(text: StoredText, at_us: int) -> Headline:
    return Headline(
        title=text.title,
        source=text.source,
        publisher=text.publisher,
        url=text.url,
        published_us=text.published_us,
        known_us=text.known_us,
        age_s=age_s(text.at_us, at_us),
    )
