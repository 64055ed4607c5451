"""Writes texts and their sentiment scores. A text that repeats another is marked as it arrives.

Texts repeat each other if they have the same words, the same title on one day, or similar words within a week.
"""

import hashlib
import html
import json
import re
import threading
import unicodedata
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, Engine, and_, func, insert, select, update

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.records import Text
from qubic_lab.oracle.model.timestamps import DAY_US, now_us
from qubic_lab.oracle.store.tables import NEWS_COINS, NEWS_DATA, SENTIMENT_SCORES
from qubic_lab.oracle.store.text_reader import TextReader, text_subject
from qubic_lab.oracle.store.transactions import (
    MOST_BATCH,
    Added,
    Clock,
    Writer,
    assumed_time,
    chunks,
    fetch_tuples,
    insert_rows,
    settle,
    writing,
)

if TYPE_CHECKING:  # it imports SciPy, which is slow and not needed to read texts
    from datasketch import MinHash

BEFORE_US, AFTER_US = 7 * DAY_US, DAY_US
"""A text may repeat one that was published this long before it, or, as sources differ in speed, this soon after it."""
_BATCH = 500
_SLICE_US = BEFORE_US + AFTER_US
"""Length of a slice of published time; a text is compared with those of two slices at most."""
_MOST_SLICES = 6
"""Most slices in memory; a batch needs five at most."""
_MOST_IN_SLICE = 10_000
"""Most texts of one slice in memory, the last ones, of about 3 kB each."""
_TEXT_FIELDS = tuple(each.name for each in fields(Text) if each.name != "coins")
_WRITTEN = (*_TEXT_FIELDS, "id", "at_us", "known_us", "content_hash", "duplicate_of", "fetch_id")
_LENGTHS = {"publisher": 256, "author": 256, "language": 16}
"""Longer values are cut to the length of the table's columns."""
LEAST_SHARED = 0.7
"""The least Jaccard similarity of the word triples of similar texts."""
LEAST_TITLE_WORDS = 4
"""Shorter titles, such as "Bitcoin price today", are reused for other texts."""
LEAST_EXACT_WORDS = 20
"""A text of this length is a repetition at any time; a shorter one may be about another event."""
SHORT_WORDS = 50
"""In shorter texts every number must be equal; in longer ones those of the title."""
_MOST_WORDS = 400
_MOST_CANDIDATES = 64
_BANDS, _BAND_ROWS = 8, 3
"""Finds 97 % of the pairs that share 0.7 of their triples, 99.7 % of those that share 0.8."""
_LEFTOVERS = re.compile(r"<[^<>]{1,500}>|\[\+\d+ chars\]|https?://\S+")
_THOUSANDS = re.compile(r"(?<=\d)[,'’](?=\d{3})")
_WORD = re.compile(
    r"(?:(?<![\w.])[-+−])?\d+(?:\.\d+)*|[^\W\d_]+|[\u2190-\u21ff\u2600-\u27bf\U0001f300-\U0001faff]", re.UNICODE
)
_A, _B, _C = (np.uint64(odd) for odd in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))

Key = tuple[str, str]
"""A text's source and its id there: its versions are no duplicates of each other."""
_ScoreValues = tuple[float, float | None, Any]


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What texts are compared by.

    Attributes:
        content_hash: of all words; equal for texts that differ only in case, spaces, punctuation and markup.
        title: the words of the title; empty if they are too few to tell texts apart.
        words: the number of words in title and body.
        shingles: the sorted, distinct hashes of all word triples; they differ for texts with different numbers.
    """

    content_hash: str
    title: str
    words: int
    shingles: NDArray[np.uint32]


def words_of(text: str) -> list[str]:
    """Return a text's words, numbers and pictographs in lower case, without markup, addresses and punctuation."""
    plain = unicodedata.normalize("NFKC", html.unescape(text))
    return _WORD.findall(_THOUSANDS.sub("", _LEFTOVERS.sub(" ", plain)).casefold())


def fingerprint(title: str, body: str) -> Fingerprint:
    """Return what a text is compared by."""
    title_words, body_words = words_of(title), words_of(body)
    words = title_words + body_words
    said = " ".join(title_words) + "\n" + " ".join(body_words) if words else f"{title}\n{body}"
    counted = words if len(words) < SHORT_WORDS else title_words
    numbers = sorted(word for word in counted if word[-1].isdigit())
    return Fingerprint(
        hashlib.sha256(said.encode()).hexdigest(),
        " ".join(title_words) if len(title_words) >= LEAST_TITLE_WORDS else "",
        len(words),
        _shingles(words[:_MOST_WORDS], " ".join(numbers)),
    )


def same_time(at_us: int, other_us: int) -> bool:
    """Return whether a text published at `at_us` may repeat a short or similar one of `other_us`."""
    return -AFTER_US <= at_us - other_us <= BEFORE_US


def shared(first: Fingerprint, second: Fingerprint) -> float:
    """Return the Jaccard similarity of two texts' word triples, 0..1."""
    if not (len(first.shingles) and len(second.shingles)):
        return 0.0
    both = len(np.intersect1d(first.shingles, second.shingles, assume_unique=True))
    return both / (len(first.shingles) + len(second.shingles) - both)


class TextIndex:
    """An index in memory of at most `most` texts, the last ones, that finds texts similar to a given one."""

    def __init__(self, most: int) -> None:
        from datasketch import MinHashLSH

        self._most = most
        self._texts: dict[int, tuple[Key, int, Fingerprint]] = {}
        self._titles: dict[str, list[int]] = {}
        self._lsh = MinHashLSH(num_perm=_BANDS * _BAND_ROWS, params=(_BANDS, _BAND_ROWS))

    def add(self, id: int, key: Key, at_us: int, text: Fingerprint) -> None:
        """Add a text, published at `at_us`, that later ones may repeat; one that is there already changes nothing."""
        if id in self._texts:
            return
        while len(self._texts) >= self._most:
            self._drop(next(iter(self._texts)))
        self._texts[id] = key, at_us, text
        if text.title:
            self._titles.setdefault(text.title, []).append(id)
        if len(text.shingles):
            self._lsh.insert(id, _sketch(text.shingles), check_duplication=False)

    def find(self, key: Key, at_us: int, text: Fingerprint) -> int | None:
        """Return the first text that this one repeats: the same title on the same day, or similar words."""
        for id in self._titles.get(text.title, ()):
            other_key, other_us, _ = self._texts[id]
            if other_key != key and abs(at_us - other_us) <= DAY_US:
                return id
        if not len(text.shingles):
            return None
        for id in sorted(self._lsh.query(_sketch(text.shingles)))[:_MOST_CANDIDATES]:
            other_key, other_us, other = self._texts[id]
            if other_key != key and same_time(at_us, other_us) and shared(text, other) >= LEAST_SHARED:
                return int(id)
        return None

    def _drop(self, id: int) -> None:
        _, _, text = self._texts.pop(id)
        if text.title:
            self._titles[text.title].remove(id)
            if not self._titles[text.title]:
                del self._titles[text.title]
        if len(text.shingles):
            self._lsh.remove(id)


def _shingles(words: Sequence[str], salt: str) -> NDArray[np.uint32]:
    if not words:
        return np.empty(0, dtype=np.uint32)
    padded = [*words, *[""] * (3 - len(words))]
    each = np.array([zlib.crc32(word.encode()) for word in padded], dtype=np.uint64)
    mixed = each[:-2] * _A + each[1:-1] * _B + each[2:] * _C
    mixed ^= np.uint64(zlib.crc32(salt.encode())) << np.uint64(32)
    mixed *= _A
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


@cache
def _blank() -> "MinHash":
    from datasketch import MinHash

    return MinHash(num_perm=_BANDS * _BAND_ROWS, hashfunc=int)


def _sketch(shingles: NDArray[np.uint32]) -> "MinHash":
    sketch = _blank().copy()
    sketch.update_batch(shingles.tolist())
    return sketch


@dataclass(frozen=True)
class Score:
    """A model's score of a version of a text: from -1 (bad) to 1 (good).

    Attributes:
        model: its name and version.
        confidence: from 0 to 1; None if the model gives none.
        details: plain values for JSON, such as the probability of each label.
    """

    news_id: int
    model: str
    score: float
    confidence: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not -1.0 <= self.score <= 1.0:
            raise InputError(f"score of text {self.news_id} is {self.score}: it must be in -1 to 1")
        if self.confidence is not None and not 0.0 <= self.confidence <= 1.0:
            raise InputError(f"confidence in text {self.news_id} is {self.confidence}: it must be in 0 to 1")


class TextStore(TextReader):
    """Adds texts and scores to a database that `open_database` opened, and reads those that are known now."""

    def __init__(self, engine: Engine, clock: Clock = now_us) -> None:
        super().__init__(engine)
        self._clock = clock
        self._lock = threading.Lock()
        self._originals = _Originals()

    def as_of(self, known_us: int, assumed: bool = False) -> TextReader:
        """Return a reader of the texts and scores as they were known at an instant; what it reads never changes.

        With what is `assumed` of archives it changes once another archive is imported.

        Raises:
            InputError: the instant is not settled yet: it is too near, or still to come.
        """
        settle(self._engine, known_us, self._clock)
        return TextReader(self._engine, known_us, assumed)

    def add(self, texts: Iterable[Text], *, fetch_id: int | None = None) -> Added:
        """Store texts that are new or whose title or body differs from their newest version; equal ones add nothing.

        They are written in order of publication, 500 at a time; a repetition of an earlier text gets its
        `duplicate_of`. Of two with the same source and id, the later one counts.
        """
        given = list(texts)
        found = {(text.source, text.external_id): text for text in map(_storable, given)}
        now = self._clock()
        added = Added(given=len(given))
        for batch in _batches(list(found.values()), now):
            with self._engine.connect() as connection:
                newest = _newest_versions(connection, batch)
            changed = [text for text in batch if not _is_same(text, newest)]  # the others need no lock
            prints = [fingerprint(text.title, text.body) for text in changed]
            if changed:
                with self._lock:
                    added += self._add_batch(changed, prints, now, fetch_id)
        return added

    def assume(self, texts: Iterable[Text], delay_us: int | None) -> None:
        """Take texts that were imported as known some time after their publication; None: from when they were recorded.

        Collected ones keep the times at which they were recorded.
        """
        by_source: dict[str, list[str]] = {}
        for text in map(_storable, texts):
            by_source.setdefault(text.source, []).append(text.external_id)
        rows = NEWS_DATA.c
        for source, named in by_source.items():
            for some in chunks(named):
                which = (rows.source == source, rows.external_id.in_(some), rows.fetch_id.is_(None))
                with writing(self._engine, self._clock) as writer:
                    given = assumed_time(rows, rows.at_us, delay_us)
                    change = update(NEWS_DATA).where(*which, rows.assumed_us.is_distinct_from(given))
                    changed = writer.connection.execute(change.values(assumed_us=given).returning(rows.id)).scalars()
                    if ids := set(changed):
                        _wrote_about(writer, ids)

    def add_scores(self, scores: Iterable[Score]) -> Added:
        """Store scores that are new or differ from the newest one of the same text and model.

        They are written 5,000 at a time; if two of these have the same text and model, the later one counts.
        """
        rest, added = iter(scores), Added()
        while batch := list(islice(rest, MOST_BATCH)):
            given = {(each.news_id, each.model): each for each in batch}
            with writing(self._engine, self._clock) as writer:
                ids = sorted({each.news_id for each in batch})
                newest = _newest_scores(writer.connection, ids)
                new = [each for key, each in sorted(given.items()) if newest.get(key) != _score_values(each)]
                if new:
                    rows = [{**asdict(each), "known_us": writer.known_us} for each in new]
                    writer.connection.execute(insert(SENTIMENT_SCORES), rows)
                    _wrote_about(writer, {each.news_id for each in new})
            corrected = sum((each.news_id, each.model) in newest for each in new)
            added += Added(len(batch), len(new), corrected)
        return added

    def _add_batch(self, texts: list[Text], prints: list[Fingerprint], now: int, fetch_id: int | None) -> Added:
        times = [_time(text, now) for text in texts]
        try:
            with self._engine.connect() as connection:  # what takes long, before other writers must wait
                self._originals.load(connection, min(times), max(times))
            with writing(self._engine, self._clock) as writer:
                self._originals.load(writer.connection, min(times), max(times))
                return self._write(writer, texts, prints, fetch_id)
        except BaseException:
            self._originals = _Originals()  # it may hold texts that were not written
            raise

    def _write(self, writer: Writer, texts: list[Text], prints: list[Fingerprint], fetch_id: int | None) -> Added:
        connection, known_us = writer.connection, writer.known_us
        newest = _newest_versions(connection, texts)
        same_words = _same_words(connection, [each.content_hash for each in prints])
        next_id = _last_id(connection) + 1
        rows: list[tuple[Any, ...]] = []
        about: list[tuple[Any, ...]] = []
        corrected: set[int] = set()
        for text, words in zip(texts, prints, strict=True):
            key, id, at_us = (text.source, text.external_id), next_id + len(rows), _time(text, known_us)
            if _is_same(text, newest):  # another writer was faster
                continue
            if key in newest:
                corrected.add(newest[key][0])
            original = next(
                (
                    other
                    for other, other_key, other_us in same_words.get(words.content_hash, ())
                    if other_key != key and (words.words >= LEAST_EXACT_WORDS or same_time(at_us, other_us))
                ),
                None,
            )
            if original is None:
                original = self._originals.find(connection, key, at_us, words)
            if original is None:
                same_words.setdefault(words.content_hash, []).append((id, key, at_us))
                self._originals.add(connection, id, key, at_us, words)
            values = tuple(getattr(text, name) for name in _TEXT_FIELDS)
            rows.append((*values, id, at_us, known_us, words.content_hash, original, fetch_id))
            about += [(coin, at_us, id) for coin in sorted(set(text.coins))]
        if rows:
            insert_rows(connection, NEWS_DATA, _WRITTEN, rows)
            if about:
                insert_rows(connection, NEWS_COINS, ("coin", "at_us", "news_id"), about)
            self._originals.seen = next_id + len(rows) - 1
            _wrote_about(writer, {*range(next_id, next_id + len(rows)), *corrected})
        return Added(0, len(rows), len(corrected))


class _Originals:
    """The texts that repeat no other, in memory, for some slices of published time."""

    def __init__(self) -> None:
        self.seen = 0
        """The slices are complete up to this id."""
        self._slices: OrderedDict[int, TextIndex] = OrderedDict()

    def load(self, connection: Connection, first_us: int, last_us: int) -> None:
        """Read what others have written since, and the slices that texts from first to last are compared with."""
        last_id = _last_id(connection)
        if self._slices and last_id > self.seen:
            later = and_(
                NEWS_DATA.c.id > self.seen,
                NEWS_DATA.c.at_us >= min(self._slices) * _SLICE_US,
                NEWS_DATA.c.at_us < (max(self._slices) + 1) * _SLICE_US,
            )
            for id, key, at_us, words in _read_originals(connection, later):
                if index := self._slices.get(at_us // _SLICE_US):
                    index.add(id, key, at_us, words)
        self.seen = last_id
        for number in _slices_of(first_us, last_us):
            self._slice(connection, number)

    def find(self, connection: Connection, key: Key, at_us: int, words: Fingerprint) -> int | None:
        """Return the first text that this one repeats."""
        indexes = [self._slice(connection, number) for number in _slices_of(at_us, at_us)]
        found = [index.find(key, at_us, words) for index in indexes]
        return min((id for id in found if id is not None), default=None)

    def add(self, connection: Connection, id: int, key: Key, at_us: int, words: Fingerprint) -> None:
        """Add a text that is being written."""
        self._slice(connection, at_us // _SLICE_US).add(id, key, at_us, words)

    def _slice(self, connection: Connection, number: int) -> TextIndex:
        if number not in self._slices:
            within = NEWS_DATA.c.at_us.between(number * _SLICE_US, (number + 1) * _SLICE_US - 1)
            index = TextIndex(_MOST_IN_SLICE)
            for each in _read_originals(connection, within):
                index.add(*each)
            self._slices[number] = index
            while len(self._slices) > _MOST_SLICES:
                self._slices.popitem(last=False)
        self._slices.move_to_end(number)
        return self._slices[number]


def _slices_of(first_us: int, last_us: int) -> range:
    """Return the numbers of the slices that hold all texts that those from first to last may repeat."""
    return range((first_us - BEFORE_US) // _SLICE_US, (last_us + AFTER_US) // _SLICE_US + 1)


def _read_originals(connection: Connection, which: ColumnElement[bool]) -> Iterator[tuple[int, Key, int, Fingerprint]]:
    """Yield the texts that repeat no other, in order of id; of very many, the last ones."""
    names = ("id", "source", "external_id", "at_us", "title", "body")
    query = select(*(NEWS_DATA.c[name] for name in names)).where(which, NEWS_DATA.c.duplicate_of.is_(None))
    query = query.order_by(NEWS_DATA.c.id.desc()).limit(_MOST_IN_SLICE * _MOST_SLICES)
    rows = [row for rows in fetch_tuples(connection, query) for row in rows]
    for id, source, external_id, at_us, title, body in reversed(rows):
        yield id, (source, external_id), at_us, fingerprint(title, body)


def _batches(texts: list[Text], now: int) -> Iterator[list[Text]]:
    """Yield the texts in order of time, in batches that need few slices at once."""
    batch: list[Text] = []
    for text in sorted(texts, key=lambda text: _time(text, now)):
        if batch and (len(batch) == _BATCH or _time(text, now) - _time(batch[0], now) > _SLICE_US):
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def _time(text: Text, known_us: int) -> int:
    return known_us if text.published_us is None else text.published_us


def _storable(text: Text) -> Text:
    """Return a text without what the databases refuse: long names, NUL and halves of surrogate pairs."""
    words = {name: value for name in _TEXT_FIELDS if isinstance(value := getattr(text, name), str)}
    clean = {name: value.replace("\0", "").encode("utf-8", "replace").decode() for name, value in words.items()}
    return replace(text, **{name: value[: _LENGTHS.get(name)] for name, value in clean.items()})  # type: ignore[arg-type]


def _last_id(connection: Connection) -> int:
    return int(connection.execute(select(func.max(NEWS_DATA.c.id))).scalar() or 0)


def _newest_versions(connection: Connection, texts: list[Text]) -> dict[Key, tuple[int, str, str]]:
    """Return the id, title and body of the newest version of each of these texts that is stored."""
    by_source: dict[str, list[str]] = {}
    for text in texts:
        by_source.setdefault(text.source, []).append(text.external_id)
    found: dict[Key, tuple[int, str, str]] = {}
    names = ("source", "external_id", "id", "title", "body")
    for source, ids in by_source.items():
        query = select(*(NEWS_DATA.c[name] for name in names)).where(
            NEWS_DATA.c.source == source, NEWS_DATA.c.external_id.in_(ids)
        )
        for rows in fetch_tuples(connection, query.order_by(NEWS_DATA.c.known_us)):
            found |= {(row[0], row[1]): (row[2], row[3], row[4]) for row in rows}
    return found


def _is_same(text: Text, newest: Mapping[Key, tuple[int, str, str]]) -> bool:
    version = newest.get((text.source, text.external_id))
    return version is not None and version[1:] == (text.title, text.body)


def _same_words(connection: Connection, hashes: list[str]) -> dict[str, list[tuple[int, Key, int]]]:
    """Return the texts with these words that repeat no other: id, key and time, in order of id."""
    columns = (NEWS_DATA.c[name] for name in ("content_hash", "id", "source", "external_id", "at_us"))
    query = select(*columns).where(NEWS_DATA.c.content_hash.in_(hashes), NEWS_DATA.c.duplicate_of.is_(None))
    found: dict[str, list[tuple[int, Key, int]]] = {}
    for rows in fetch_tuples(connection, query.order_by(NEWS_DATA.c.id)):
        for content_hash, id, source, external_id, at_us in rows:
            found.setdefault(content_hash, []).append((id, (source, external_id), at_us))
    return found


def _wrote_about(writer: Writer, ids: set[int]) -> None:
    coins: set[str] = set()
    for some in chunks(sorted(ids)):
        query = select(NEWS_COINS.c.coin).distinct().where(NEWS_COINS.c.news_id.in_(some))
        coins.update(writer.connection.execute(query).scalars())
    writer.wrote(*(text_subject(coin) for coin in coins))


def _newest_scores(connection: Connection, ids: list[int]) -> dict[tuple[int, str], _ScoreValues]:
    found: dict[tuple[int, str], _ScoreValues] = {}
    names = ("news_id", "model", "score", "confidence", "details")
    for some in chunks(ids):
        query = select(*(SENTIMENT_SCORES.c[name] for name in names)).where(SENTIMENT_SCORES.c.news_id.in_(some))
        for id, model, *values in connection.execute(query.order_by(SENTIMENT_SCORES.c.known_us)):
            found[id, model] = tuple(values)
    return found


def _score_values(score: Score) -> _ScoreValues:
    """Return the values of a score as they are read back."""
    return score.score, score.confidence, json.loads(json.dumps(dict(score.details)))
