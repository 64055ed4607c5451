"""Texts from files: news and posts as CSV, JSON lines or Parquet, each with its time of publication."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qubic_lab.errors import InputError, check_choice
from qubic_lab.oracle.ingest.file_columns import (
    TEXT_TARGETS,
    ask_once,
    check_reading,
    find_columns,
    is_header,
    is_missing,
    read_numbers,
    read_stamps,
)
from qubic_lab.oracle.ingest.newsapi import are_articles, cut_words, parse_articles, publisher_name
from qubic_lab.oracle.ingest.validation import check_texts, plain_text
from qubic_lab.oracle.model.coins import COINS, find_coin, mentioned, mentions_crypto
from qubic_lab.oracle.model.file_tables import FileTable, read_table
from qubic_lab.oracle.model.known import known_text, read_known
from qubic_lab.oracle.model.records import Text, TextKind, check_source
from qubic_lab.oracle.model.response import Instant, Part
from qubic_lab.oracle.model.timestamps import now_us
from qubic_lab.oracle.store.text_store import TextStore

KINDS: tuple[TextKind, ...] = ("news", "social")


@dataclass(frozen=True)
class TextOptions:
    """What a file of texts does not say about itself: the `source` of its texts, the `kind` of those without one.

    `known`: when texts count as known, see `read_known`; the others are those of `BarOptions`.
    """

    source: str = "file"
    kind: str = "news"
    zone: str | None = None
    date_order: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    known: str = "now"

    def __post_init__(self) -> None:
        read_known(self.known)
        check_choice("kind of text", self.kind, KINDS)
        check_reading(self.columns, TEXT_TARGETS, self.zone, self.date_order)


@dataclass(frozen=True)
class TextFile:
    """A file's texts by time, the number of its rows, and what was left out."""

    file: str
    texts: tuple[Text, ...]
    rows: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class TextImport(Part):
    """The outcome of an import: `added` rows are new in the database, `corrected` of them are later versions."""

    file: str
    source: str
    rows: int
    texts: int
    added: int
    corrected: int
    from_us: Instant
    to_us: Instant
    coins: Mapping[str, int]
    known: str
    notes: tuple[str, ...]


def import_texts(store: TextStore, path: Path, options: TextOptions, clock: Callable[[], int] = now_us) -> TextImport:
    """Read a file of texts and store them; nothing is stored if it cannot be read right."""
    check_source(options.source)
    file = read_texts(path, options, clock())
    added, delay_us = store.add(file.texts), read_known(options.known)
    store.assume(file.texts, delay_us)
    return TextImport(
        file=file.file,
        source=options.source,
        rows=file.rows,
        texts=len(file.texts),
        added=added.added,
        corrected=added.corrected,
        from_us=file.texts[0].published_us or 0,
        to_us=file.texts[-1].published_us or 0,
        coins=dict(Counter(coin for text in file.texts for coin in text.coins)),
        known=known_text(delay_us),
        notes=file.notes,
    )


def read_texts(path: Path, options: TextOptions, now_us: int) -> TextFile:
    """Read a file of texts; each needs a time of publication, at most a day after `now_us`.

    It is CSV with any delimiter, JSON lines, Parquet, or NewsAPI's JSON; all but Parquet may be in .gz or .zip.

    Raises:
        InputError: it cannot be read exactly; names file, line and remedy. If options are missing, it names all.
    """
    return ask_once(lambda given: _read_texts(path, given, now_us), options)


def _read_texts(path: Path, options: TextOptions, now_us: int) -> TextFile:
    needed = (("title", "body"),)
    table = read_table(path, lambda names: len(names) > 1 and is_header(names, options.columns, TEXT_TARGETS, needed))
    if are_articles(table.header) and not options.columns:
        return _read_articles(table, options, now_us)
    found = find_columns(table, options.columns, TEXT_TARGETS)
    if "published" not in found or not {"title", "body"} & set(found):
        lacking = "published" if "published" not in found else "title"
        raise InputError(f"{table.file}: no column for {lacking} among {table.listed()}: map it")
    places = table.places()
    dates = table.column(found["published"])
    published = read_stamps(dates, places, options.zone, options.date_order, ordered=False)
    unknown: set[str] = set()
    texts = []
    for cells, at, place in zip(table.rows, published, places, strict=True):
        row = {target: cells[number] for target, number in found.items()}
        coins, others = _coins(row.get("coins"))
        unknown.update(others)
        texts.append(_text(row, place, at, coins, options))
    check_texts(texts, places, now_us)
    kept = _once(texts, places)
    notes = [*table.notes, *table.unused(set(found.values()))]
    if len(kept) < len(texts):
        notes.append(f"{len(texts) - len(kept)} row(s) left out that repeat another one's id and words")
    if unknown:
        notes.append(f"unknown coins left out: {', '.join(sorted(unknown)[:10])}")
    return _file_of(table, kept, notes)


def _file_of(table: FileTable, texts: Sequence[Text], notes: Sequence[str]) -> TextFile:
    ordered = sorted(texts, key=lambda text: (text.published_us or 0, text.external_id))
    return TextFile(table.file, tuple(ordered), len(table.rows), (*notes, *_without_coins(ordered)))


def _without_coins(texts: Sequence[Text]) -> list[str]:
    """Return a note on the texts that no coin will show, and why, if there are any."""
    bare = [f"{text.title}\n{text.body}" for text in texts if not text.coins]
    if not bare:
        return []
    general = sum(map(mentions_crypto, bare))
    return [
        f"{len(bare)} of {len(texts)} text(s) name none of the {len(COINS)} known coins, so no coin shows them: "
        f"{general} speak of crypto in general, {len(bare) - general} of something else"
    ]


def _read_articles(table: FileTable, options: TextOptions, now_us: int) -> TextFile:
    """Return the articles in a table with NewsAPI's columns, as its collector would read them."""
    found: dict[str, tuple[Text, str]] = {}
    notes, repeated = list(table.notes), 0
    for row, place in zip(table.rows, table.places(), strict=True):
        texts, faults = parse_articles([dict(zip(table.header, row, strict=True))], options.source)
        notes += [f"{place}: {fault}: it is left out" for fault in faults]
        for text in texts:
            if text.published_us is None:
                notes.append(f"{place}: its time has no zone, or is none: it is left out")
            elif text.external_id in found:
                repeated += 1
            else:
                found[text.external_id] = replace(text, kind=_kind(options.kind)), place
    if not found:
        raise InputError(f"{table.file}: none of {len(table.rows)} articles has words and a time: fetch it again")
    kept, places = zip(*found.values(), strict=True)
    check_texts(kept, places, now_us)
    if repeated:
        notes.append(f"{repeated} article(s) left out that have the address of an earlier one")
    return _file_of(table, kept, notes)


def _words(cell: Any) -> str:
    return "" if is_missing(cell) else plain_text(str(cell))


def _kind(name: str) -> TextKind:
    return "social" if name == "social" else "news"


def _text(row: Mapping[str, Any], place: str, published_us: int, coins: tuple[str, ...], options: TextOptions) -> Text:
    words = {target: _words(row.get(target)) for target in TEXT_TARGETS}
    title, kind = words["title"], words["kind"].lower() or options.kind
    body, cut = cut_words("" if is_missing(row.get("body")) else str(row.get("body")))
    if kind not in KINDS:
        raise InputError(f"{place}: kind {kind!r} of text: it must be news or social")
    if not (title or body):
        raise InputError(f"{place}: neither title nor body: correct the row or leave it out")
    publisher, score = row.get("publisher"), read_numbers([row.get("score")], [place], "score")[0]
    made_id = hashlib.sha256(f"{published_us}\n{title}\n{body}".encode()).hexdigest()[:32]
    return Text(
        source=options.source,
        external_id=words["id"] or words["url"] or made_id,
        kind=_kind(kind),
        title=title,
        body=body,
        url=words["url"],
        publisher=("" if is_missing(publisher) else publisher_name(publisher)) or options.source,
        published_us=published_us,
        coins=coins or mentioned(f"{title}\n{body}"),
        author=words["author"],
        language=words["language"],
        score=None if score != score else int(score),
        cut_characters=cut,
    )


def _coins(cell: Any) -> tuple[tuple[str, ...], list[str]]:
    """Return the known coins in a cell, and unknown ones: a list, or texts separated by commas, semicolons or bars."""
    if is_missing(cell):
        return (), []
    parts = cell if isinstance(cell, list) else re.split("[,;|]", str(cell).strip("[]"))
    known: list[str] = []
    unknown: list[str] = []
    for name in filter(None, (str(part).strip(" '\"$") for part in parts)):
        try:
            known.append(find_coin(name).id)
        except InputError:
            unknown.append(name)
    return tuple(dict.fromkeys(known)), unknown


def _once(texts: Sequence[Text], places: Sequence[str]) -> list[Text]:
    """Return texts with different ids: repeated rows are left out, other contents for one id are refused."""
    seen: dict[str, int] = {}
    for number, text in enumerate(texts):
        first = seen.setdefault(text.external_id, number)
        if texts[first] != text:
            raise InputError(
                f"{places[first]}: has the id {text.external_id[:60]!r} of {places[number].rpartition('/')[2]}, with "
                "other contents: correct one or leave it out"
            )
    return [texts[number] for number in seen.values()]
