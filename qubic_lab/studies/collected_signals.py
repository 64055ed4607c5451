"""Collected texts with scores, and the bars of the same database and time, for signal studies of real sentiment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qubic_lab.database import open_database
from qubic_lab.errors import InputError
from qubic_lab.oracle.inference.alignment import LEAST_BEFORE, AvailableText, assumption, available_texts
from qubic_lab.oracle.inference.conditional_returns import AROUND
from qubic_lab.oracle.model.bars import Bars
from qubic_lab.oracle.model.coins import find_coin
from qubic_lab.oracle.model.known import known_text
from qubic_lab.oracle.model.records import QUOTES, Series
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, MINUTE_US, SECOND_US, iso, now_us
from qubic_lab.oracle.sentiment.index import BASELINE
from qubic_lab.oracle.sentiment.models import DEFAULT, make_model
from qubic_lab.oracle.sentiment.scores import model_key, score_texts
from qubic_lab.oracle.store.price_store import PriceStore
from qubic_lab.oracle.store.text_reader import ScoreColumns, StoredText
from qubic_lab.oracle.store.text_store import TextStore
from qubic_lab.studies.market_bars import LEAST_BARS, StudyBars, load_bars
from qubic_lab.studies.oracle_backtest import ScoredTexts
from qubic_lab.studies.oracle_measures import find_scorer

Row = dict[str, Any]
ALL_SOURCES = "all sources"
LEAST_SCORED = 100
"""Bars with a score; a source with fewer is not studied alone."""
LATENCY_US = MINUTE_US
"""The time to read and score a text."""
_END_US = 1 << 61
Scores = dict[str, dict[int, tuple[float, int]]]
"""By model and text: the score, and when it was made."""


@dataclass(frozen=True, eq=False)
class Collected:
    """A coin's bars, and the collected texts of their time with scores by `models` of these keys.

    Attributes:
        bars: from a little before the first text to a little after the last one.
        by_source: usable texts of each source that has enough of them, and of `ALL_SOURCES`.
        usage: how many texts of each source are usable, for a table.
    """

    bars: StudyBars
    by_source: Mapping[str, tuple[AvailableText, ...]]
    models: tuple[str, ...]
    usage: tuple[Row, ...]

    @property
    def scored(self) -> ScoredTexts:
        """All texts, to trade by."""
        return ScoredTexts("collected sentiment", self.by_source[ALL_SOURCES], self.models)

    def notes(self) -> list[str]:
        """Return what a reader must know about the texts, a line each."""
        every = self.usage[0]
        said = {
            "too late": "came after the last bar and are not used",
            "late by a bar": "were fetched more than a bar after their publication, and count only from then on",
            "scored a day later": "were scored more than a day after they came, by models that may be newer",
        }
        told = [
            f"{every[name]} of {every['texts']} collected texts {what}" for name, what in said.items() if every[name]
        ]
        return [*told, *assumption(self.by_source[ALL_SOURCES])]


def load_markets(
    file: str = "",
    coin: str = "bitcoin",
    reading: Mapping[str, Any] | None = None,
    collected: str = "",
    models: Sequence[str] = (),
) -> tuple[tuple[StudyBars, ...], Collected | None]:
    """Return the bars to study, and collected texts with scores if a database of them is named by its URL.

    The arguments are those of `load_bars` and `load_collected`; the bars of a database are then the only ones.

    Raises:
        InputError: a file as well as a database, models without one, or what `load_bars` and `load_collected` refuse.
    """
    if models and not collected:
        raise InputError(
            f"`models` are {', '.join(models)} and `collected` is empty: models need collected texts; name their "
            "database, or leave `models` out"
        )
    if not collected:
        return load_bars(file, coin, reading), None
    if file:
        raise InputError(
            f"`file` is {file!r} and `collected` is given as well: collected texts use the prices of their own "
            "database; leave one of the two out"
        )
    found = load_collected(collected, coin, models)
    return (found.bars,), found


def load_collected(database: str, coin: str = "bitcoin", models: Sequence[str] = ()) -> Collected:
    """Return the bars of 1 h or of 1 day and the scored texts that a database has collected of a coin.

    A text can be used from the time when its last version was stored, whatever its own date; or, if it was imported so,
    from the time at which it is assumed to have been known, which the notes tell. Its score counts from then
    on too, even if it was made later, because the same model gives the same score. The number of such texts is
    reported, as the model may have been trained later. Invented samples are never used. Nothing is written.

    `models` are names or keys; none: all with stored scores, or else the default model, which scores now.

    Raises:
        InputError: no such coin or model, no texts, no prices of their time, or too few bars.
    """
    known = find_coin(coin)
    engine = open_database(database, make=False)
    try:
        store = TextStore(engine)
        texts = store.read(known.id, 0, _END_US, invented=False)
        if not texts:
            raise InputError(
                f"no collected text is about {known.id} in {engine.url.render_as_string()}: collect some with "
                "qubic-lab oracle collect (invented samples do not count)"
            )
        scores = _scores(store, known.id, texts, models)
        first, last = min(map(_known_us, texts)), max(map(_known_us, texts))
        bars = _bars(PriceStore(engine), known.id, first, last + LATENCY_US)
    finally:
        engine.dispose()
    return _collected(bars, texts, scores)


def _scores(store: TextStore, coin: str, texts: Sequence[StoredText], models: Sequence[str]) -> Scores:
    stored = {
        key: columns
        for key, columns in store.scores_by_model(coin, 0, _END_US).items()
        if key.partition("@")[0] != BASELINE
    }
    found: Scores = {}
    for name in models or list(stored) or [DEFAULT]:
        key = _stored_key(name, stored)
        if key is not None:
            ids, *made = (getattr(stored[key], name).tolist() for name in ("news_id", "score", "known_us"))
            found[key] = dict(zip(ids, zip(*made, strict=True), strict=True))
        else:
            scorer, now = make_model(name) if models else find_scorer(name), now_us()
            scored = zip(texts, score_texts(scorer, texts), strict=True)
            found[model_key(scorer)] = {text.id: (each.score, now) for text, each in scored}
    return found


def _stored_key(name: str, stored: Mapping[str, ScoreColumns]) -> str | None:
    """Return the key for a name: of several versions, the one with the most scores, then the newest."""
    fitting = [key for key in stored if name in (key, key.partition("@")[0])]
    return max(fitting, key=lambda key: (len(stored[key]), stored[key].known_us.max(initial=0)), default=None)


def _bars(store: PriceStore, coin: str, first_us: int, last_us: int) -> StudyBars:
    """Return the hours, or days if hours are too few, of the series with the most bars in the time of the texts."""
    most = 0
    every = [series for series in store.series(coin) if series.currency == "usd"]
    for frame_us in (HOUR_US, DAY_US):
        found = []
        for series in every:
            if series.makes(frame_us):
                step_us = series.interval_s * SECOND_US or int(QUOTES.every_s * SECOND_US)
                start, end = first_us - LEAST_BEFORE * frame_us, last_us + (AROUND + 2) * frame_us
                bars = store.read(series, start, end).resample(frame_us, now_us(), step_us)
                inside = (bars.closed_us >= first_us) & (bars.opened_us <= last_us)
                found.append((int(inside.sum()), -step_us, series, bars))
        if found:
            count, _, series, bars = max(found, key=lambda each: each[:2])
            if count >= LEAST_BARS:
                return StudyBars.of(series, series.source, bars, *_known(store, series, bars))
            most = max(most, count)
    if not every:
        raise InputError(f"there are no prices of {coin} in usd beside its texts: collect some, or import a file")
    raise InputError(
        f"{coin} has {most} bars in the time of its texts, {iso(first_us)} to {iso(last_us)}: signal studies need at "
        f"least {LEAST_BARS} of 1 h or of 1 day; collect for longer, or import prices of that time"
    )


def _known(store: PriceStore, series: Series, bars: Bars) -> tuple[list[str], int]:
    """Return what is assumed of when bars were known, a line each, and how long after their close that was."""
    late = int((bars.known_us > bars.closed_us + bars.frame_us).sum())
    delay_us = store.delay_us(series, int(bars.opened_us[0]), int(bars.closed_us[-1]) + 1) or 0
    told = f"{late} of {len(bars)} were recorded more than a bar after their close: {known_text(delay_us)}"
    return [told] if late else [], delay_us


def _known_us(text: StoredText) -> int:
    """Return when a text was known, or is assumed to have been."""
    return text.known_us if text.assumed_us is None else text.assumed_us


def _collected(bars: StudyBars, texts: Sequence[StoredText], scores: Scores) -> Collected:
    sources = sorted({text.source for text in texts})
    groups = {ALL_SOURCES: list(texts)}
    if len(sources) > 1:
        groups |= {source: [text for text in texts if text.source == source] for source in sources}
    found, usage = {}, []
    for source, some in groups.items():
        usable = available_texts([_dated(text, scores) for text in some], LATENCY_US)
        row = _usage(source, some, usable, scores, bars)
        if row["studied alone"]:
            found[source] = usable
        usage.append(row)
    if usage[0]["bars with a score"] < LEAST_SCORED:
        raise InputError(
            f"{usage[0]['bars with a score']} bars of {bars.name} have a text with a score: signal studies need at "
            f"least {LEAST_SCORED}; collect for longer"
        )
    return Collected(bars, found, tuple(scores), tuple(usage))


def _dated(text: StoredText, scores: Scores) -> AvailableText:
    """Return a text with its scores, available from the time when it was stored."""
    given = {key: each[text.id][0] for key, each in scores.items() if text.id in each}
    name = f"{text.source} {text.external_id}"
    assumed = text.assumed_us is not None
    known_us = _known_us(text)
    return AvailableText(name, text.title, text.at_us, known_us, coins=text.coins, scores=given, assumed=assumed)


def _usage(
    source: str, texts: Sequence[StoredText], usable: Sequence[AvailableText], scores: Scores, bars: StudyBars
) -> Row:
    opened, closed = int(bars.bars.opened_us[0]), bars.bars.closed_us
    at = np.array([text.available_us for text in usable if text.scores], np.int64)
    scored = len(np.unique(np.searchsorted(closed, at[(at > opened) & (at <= closed[-1])])))
    return {
        "source": source,
        "texts": len(texts),
        "without a score": sum(not text.scores for text in usable),
        "assumed": sum(text.assumed_us is not None for text in texts),
        "late by a bar": sum(_known_us(text) - text.at_us > bars.frame_us for text in texts),
        "too late": sum(text.available_us > int(closed[-1]) for text in usable),
        "scored a day later": sum(
            any(text.id in each and each[text.id][1] - _known_us(text) > DAY_US for each in scores.values())
            for text in texts
        ),
        "bars with a score": scored,
        "studied alone": source == ALL_SOURCES or scored >= LEAST_SCORED,
    }
