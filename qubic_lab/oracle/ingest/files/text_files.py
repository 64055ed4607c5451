"""Texts from files: news and posts as CSV, JSON lines or Parquet, each with the instant at which it appeared."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qubic_lab.errors import InputError, check_choice
from qubic_lab.oracle.ingest.files.cells import StampRules, is_missing, read_number, read_stamps
from qubic_lab.oracle.ingest.files.columns import TEXT_TARGETS, check_targets, find_columns, is_header
from qubic_lab.oracle.ingest.files.tables import read_table
from qubic_lab.oracle.ingest.schemas import check_texts
from qubic_lab.oracle.ingest.text_fields import plain_text
from qubic_lab.oracle.model.coins import find_coin, mentioned
from qubic_lab.oracle.model.records import Text, TextKind
from qubic_lab.oracle.model.response import Instant, Part
from qubic_lab.oracle.model.source_names import check_source
from qubic_lab.oracle.model.timestamps import now_us
from qubic_lab.oracle.store.text_store import TextStore

KINDS: tuple[TextKind, ...] = ("news", "social")


@dataclass(frozen=True)
class TextOptions:
    """What a file of texts does not say about itself.

    Attributes:
        source: the name that its texts get.
        kind: news or social, of texts that do not say theirs.
        publisher: of texts that do not say theirs; empty: the source.
        zone: of times that do not say theirs.
        date_order: dmy or mdy; auto: as the file's dates show.
        columns: our names to the file's, such as {"published": "created_utc"}.
        coins: what all texts are about; empty: what their words name.
    """

    source: str = "file"
    kind: str = "news"
    publisher: str = ""
    zone: str | None = None
    date_order: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    coins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("kind of text", self.kind, KINDS)
        check_targets(self.columns, TEXT_TARGETS)
        StampRules(self.zone, self.date_order)
        for coin in self.coins:
            find_coin(coin)


@dataclass(frozen=True)
class TextFile:
    """A file's texts by time, how many rows it has, and what was left out."""

    file: str
    texts: tuple[Text, ...]
    rows: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class TextImport(Part):
    """What became of a file of texts: `added` rows are new in the database, `corrected` of them are later versions."""

    file: str
    source: str
    rows: int
    texts: int
    added: int
    corrected: int
    from_us: Instant
    to_us: Instant
    coins: Mapping[str, int]
    notes: tuple[str, ...]


def import_texts(store: TextStore, path: Path, options: TextOptions, clock: Callable[[], int] = now_us) -> TextImport:
    """Read a file of texts and keep them.

    Raises:
        InputError: the file cannot be read right; nothing was kept.
    """
    check_source(options.source)
    return keep_texts(store, read_texts(path, options, clock()), options.source)


def keep_texts(store: TextStore, file: TextFile, source: str) -> TextImport:
    """Keep a file's texts."""
    added = store.add(file.texts)
    times = [text.published_us for text in file.texts if text.published_us is not None]
    return TextImport(
        file=file.file,
        source=source,
        rows=file.rows,
        texts=len(file.texts),
        added=added.added,
        corrected=added.corrected,
        from_us=min(times),
        to_us=max(times),
        coins=dict(Counter(coin for text in file.texts for coin in text.coins)),
        notes=file.notes,
    )


def read_texts(path: Path, options: TextOptions, now_us: int) -> TextFile:
    """Read a file of texts; each must say when it appeared.

    Args:
        path: CSV with any delimiter, JSON lines or Parquet; the first two may be in .gz or .zip.
        options: what the file does not say.
        now_us: nothing can have appeared more than a day later.

    Raises:
        InputError: it cannot be read right; names file, line and remedy.
    """
    table = read_table(
        path,
        lambda names: len(names) > 1 and is_header(names, options.columns, TEXT_TARGETS, (("title", "body"),)),
    )
    found = find_columns(table, options.columns, TEXT_TARGETS)
    if "published" not in found or not {"title", "body"} & set(found):
        lacking = "published" if "published" not in found else "title"
        listed = ", ".join(map(repr, table.header[:12]))
        raise InputError(f"{table.file}: no column for {lacking} among {listed}: map it")
    places = table.places()
    rules = StampRules(options.zone, options.date_order, ordered=False)
    published = read_stamps(table.column(found["published"]), places, rules)
    texts = [
        _text(_Row(row, found, place), at, options)
        for row, at, place in zip(table.rows, published, places, strict=True)
    ]
    check_texts(texts, places, now_us)
    kept = _once(texts, places)
    notes = [*table.notes, *table.unused(set(found.values()))]
    if len(kept) < len(texts):
        notes.append(f"{len(texts) - len(kept)} row(s) left out that repeat another one's id and words")
    unknown = (
        Counter(name for cell in table.column(found["coins"]) for name in _coins(cell)[1]) if "coins" in found else {}
    )
    if unknown:
        notes.append(f"coins that are not known left out: {', '.join(sorted(unknown)[:10])}")
    without = sum(not text.coins for text in kept)
    if without:
        notes.append(f"{without} text(s) name no coin that is known: they are kept, and no coin shows them")
    ordered = sorted(kept, key=lambda text: (text.published_us or 0, text.external_id))
    return TextFile(table.file, tuple(ordered), len(table.rows), tuple(notes))


@dataclass(frozen=True)
class _Row:
    cells: Sequence[Any]
    columns: Mapping[str, int]
    place: str

    def get(self, target: str) -> Any:
        return self.cells[self.columns[target]] if target in self.columns else None

    def words(self, target: str) -> str:
        """Return a cell's words; NewsAPI's source is an object with a name."""
        cell = self.get(target)
        if isinstance(cell, dict):
            cell = cell.get("name")
        return "" if is_missing(cell) else plain_text(str(cell))


def _text(row: _Row, published_us: int, options: TextOptions) -> Text:
    title, body, url = row.words("title"), row.words("body"), row.words("url")
    kind = row.words("kind").lower() or options.kind
    if kind not in KINDS:
        raise InputError(f"{row.place}: kind {kind!r} of text: it must be news or social")
    if not (title or body):
        raise InputError(f"{row.place}: neither title nor body: correct the row or leave it out")
    try:
        score = read_number(row.get("score"))
    except ValueError as error:
        raise InputError(f"{row.place}: score is no number: correct the row or leave it out") from error
    named = _coins(row.get("coins"))[0] or tuple(find_coin(coin).id for coin in options.coins)
    return Text(
        source=options.source,
        external_id=row.words("id") or url or _made_id(published_us, title, body),
        kind="social" if kind == "social" else "news",
        title=title,
        body=body,
        url=url,
        publisher=row.words("publisher") or options.publisher or options.source,
        published_us=published_us,
        coins=named or mentioned(f"{title}\n{body}"),
        author=row.words("author"),
        language=row.words("language"),
        score=None if score != score else int(score),
    )


def _coins(cell: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the known coins in a cell, and what else it names: a list, or texts between commas, semicolons or bars."""
    if is_missing(cell):
        return (), ()
    if isinstance(cell, str) and cell.startswith("["):
        try:
            cell = json.loads(cell)
        except ValueError:
            cell = cell.strip("[]")
    parts = cell if isinstance(cell, list) else str(cell).replace(";", ",").replace("|", ",").split(",")
    known: list[str] = []
    unknown: list[str] = []
    for name in (str(part).strip(" '\"$") for part in parts):
        try:
            known += [find_coin(name).id] if name else []
        except InputError:
            unknown.append(name)
    return tuple(dict.fromkeys(known)), tuple(unknown)


def _made_id(published_us: int, title: str, body: str) -> str:
    return hashlib.sha256(f"{published_us}\n{title}\n{body}".encode()).hexdigest()[:32]


def _once(texts: Sequence[Text], places: Sequence[str]) -> list[Text]:
    """Return texts that differ in their ids; the same again is left out, another one of the same id refused."""
    seen: dict[str, int] = {}
    for number, text in enumerate(texts):
        first = seen.setdefault(text.external_id, number)
        if texts[first] != text:
            raise InputError(
                f"{places[first]}: has the id {text.external_id[:60]!r} of {places[number].rpartition('/')[2]}, with "
                "other contents: correct one or leave it out"
            )
    return [texts[number] for number in seen.values()]
