"""What is told of the texts about a coin: how many of each source, the newest, and whole ones."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from qubic_lab.oracle.model.response import age_s
from qubic_lab.oracle.model.timestamps import iso
from qubic_lab.oracle.serving.responses import Headline, HistoricText, TextCount, iso_or_none
from qubic_lab.oracle.store.text_reader import StoredText, TextCounts


def by_source(counts: Sequence[TextCounts], at: int) -> list[TextCount]:
    """Return how many texts each source gave, of all kinds together."""
    grouped: dict[str, list[TextCounts]] = defaultdict(list)
    for each in counts:
        grouped[each.source].append(each)
    return [
        TextCount(
            source=source,
            texts=sum(each.texts for each in those),
            duplicates=sum(each.duplicates for each in those),
            newest_age_s=age_s(max(each.newest_at_us for each in those), at),
        )
        for source, those in sorted(grouped.items())
    ]


def by_kind(counts: Sequence[TextCounts]) -> dict[str, int]:
    """Return how many distinct texts of each kind there are."""
    found: Counter[str] = Counter()
    for each in counts:
        found[each.kind] += each.texts
    return {kind: number for kind, number in sorted(found.items()) if number}


def headline(text: StoredText, at: int) -> Headline:
    """Return a text in short."""
    return Headline(
        title=text.title,
        source=text.source,
        publisher=text.publisher,
        url=text.url,
        published=iso_or_none(text.published_us),
        known=iso(text.known_us),
        age_s=age_s(text.at_us, at),
    )


def historic_text(text: StoredText) -> HistoricText:
    """Return a text of a history for clients."""
    return HistoricText(
        id=text.id,
        source=text.source,
        publisher=text.publisher,
        kind=text.kind,
        title=text.title,
        body=text.body,
        cut_characters=text.cut_characters,
        url=text.url,
        author=text.author,
        language=text.language,
        coins=list(text.coins),
        score=text.score,
        published=iso_or_none(text.published_us),
        known=iso(text.known_us),
        duplicate_of=text.duplicate_of,
    )
