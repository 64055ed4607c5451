"""What is told of the texts about a coin: how many of each source, the newest, and whole ones."""

from collections import defaultdict
from collections.abc import Sequence

from qubic_lab.oracle.answers import Headline, HistoricText, TextCount, age_s, iso_or_none
from qubic_lab.oracle.instants import iso
from qubic_lab.oracle.text_store import StoredText


def distinct_ids(texts: Sequence[StoredText]) -> set[int] | None:
    """Return the ids of texts that repeat none before; None where one repeats a text that is not among these."""
    distinct: set[int] = set()
    originals: set[int] = set()
    for text in sorted(texts, key=lambda text: text.id):
        if text.duplicate_of is None:
            distinct.add(text.id)
            originals.add(text.id)
        elif text.duplicate_of not in originals:
            return None
    return distinct


def by_source(texts: Sequence[StoredText], distinct: set[int], at: int) -> list[TextCount]:
    """Return how many texts each source gave; `distinct`: ids of those that are no duplicates."""
    grouped: dict[str, list[StoredText]] = defaultdict(list)
    for text in texts:
        grouped[text.source].append(text)
    return [
        TextCount(
            source=source,
            texts=sum(text.id in distinct for text in those),
            duplicates=sum(text.id not in distinct for text in those),
            newest_age_s=age_s(max(text.at_us for text in those), at),
        )
        for source, those in sorted(grouped.items())
    ]


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
