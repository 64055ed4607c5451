"""A database to try things out with: packaged prices and sample texts, and an overview of what it holds then."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, func, select

from qubic_lab.oracle.ingest.files.bar_files import keep_bars
from qubic_lab.oracle.ingest.files.packaged import DATASETS, PACKAGED, read_packaged
from qubic_lab.oracle.ingest.files.sample_texts import read_sample_texts
from qubic_lab.oracle.model.records import Series
from qubic_lab.oracle.model.source_names import is_sample
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, SECOND_US, iso, now_us
from qubic_lab.oracle.store.price_store import PriceStore
from qubic_lab.oracle.store.tables import NEWS_DATA
from qubic_lab.oracle.store.text_store import TextStore
from qubic_lab.oracle.store.transactions import Added

_END_US = 1 << 62


@dataclass(frozen=True)
class SeriesOverview:
    """A series in the database.

    `change_24h_pct`, `change_7d_pct`: of the last close against the one so much earlier, in per cent; None where there
    is none within a bar's length, or an hour, of that time. `age`: in words, how old the last price is.
    """

    coin: str
    source: str
    interval_s: int
    currency: str
    rows: int
    first_us: int
    last_us: int
    last_close: float
    change_24h_pct: float | None
    change_7d_pct: float | None
    age_s: float
    age: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON, times in ISO 8601."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__ if not name.endswith("_us")}
        return {**found, "from": iso(self.first_us), "to": iso(self.last_us)}


@dataclass(frozen=True)
class TextOverview:
    """The texts of one source; `sample`: they are invented."""

    source: str
    texts: int
    sample: bool

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return {"source": self.source, "texts": self.texts, "sample": self.sample}


@dataclass(frozen=True)
class DemoResult:
    """What filling the database added, by table, and what it holds now; `notes`: what was left out of files."""

    rows_added: dict[str, int]
    series: tuple[SeriesOverview, ...]
    texts: tuple[TextOverview, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON, times in ISO 8601."""
        overview = {
            "series": [each.to_dict() for each in self.series],
            "texts": [each.to_dict() for each in self.texts],
        }
        total = sum(self.rows_added.values())
        return {"rows_added": {**self.rows_added, "total": total}, "overview": overview, "notes": list(self.notes)}


def run_demo(engine: Engine, clock: Callable[[], int] = now_us) -> DemoResult:
    """Put packaged prices and sample texts into a database, and return what was added; the second time that is nothing.

    Raises:
        QubicLabError: the package with the prices is not installed.
    """
    prices, texts = PriceStore(engine, clock), TextStore(engine, clock)
    files = [read_packaged(name, clock()) for name in DATASETS]
    sample = read_sample_texts()
    imports = [keep_bars(prices, file) for file in files]
    added: Added = texts.add(sample)
    return DemoResult(
        rows_added={"market_data": sum(each.added for each in imports), "news_data": added.added},
        series=overview(prices, clock()),
        texts=_text_overviews(engine),
        notes=tuple(f"{each.file}: {note}" for each in files for note in each.notes),
    )


def overview(store: PriceStore, at_us: int) -> tuple[SeriesOverview, ...]:
    """Return each series in a database as it looks at `at_us`, by coin and source."""
    return tuple(each for series in store.series() if (each := _series_overview(store, series, at_us)) is not None)


def _series_overview(store: PriceStore, series: Series, at_us: int) -> SeriesOverview | None:
    columns = store.read(series, -_END_US, _END_US)
    if not len(columns):
        return None
    last_us, last = int(columns.closed_us[-1]), float(columns.close[-1])
    age_us = at_us - last_us

    def change_pct(back_us: int) -> float | None:
        number = int(columns.closed_us.searchsorted(last_us - back_us, "right")) - 1
        within_us = max(series.interval_s * SECOND_US, HOUR_US)
        if number < 0 or last_us - back_us - int(columns.closed_us[number]) >= within_us:
            return None
        return (last / float(columns.close[number]) - 1.0) * 100.0

    return SeriesOverview(
        coin=series.coin,
        source=series.source,
        interval_s=series.interval_s,
        currency=series.currency,
        rows=len(columns),
        first_us=int(columns.opened_us[0]),
        last_us=last_us,
        last_close=last,
        change_24h_pct=change_pct(DAY_US),
        change_7d_pct=change_pct(7 * DAY_US),
        age_s=age_us / SECOND_US,
        age=_age(series, last_us, age_us),
    )


def _age(series: Series, last_us: int, age_us: int) -> str:
    newest = "the newest bar closed" if series.interval_s else "the newest price is from"
    said = f"{newest} {iso(last_us)[:10]}, {age_us // DAY_US:,} days ago"
    if age_us < DAY_US:
        said = f"{newest} {max(age_us, 0) // SECOND_US:,} s ago"
    return f"{said}: packaged data, not live" if series.source == PACKAGED else said


def _text_overviews(engine: Engine) -> tuple[TextOverview, ...]:
    texts = func.count(NEWS_DATA.c.external_id.distinct())
    query = select(NEWS_DATA.c.source, texts).group_by(NEWS_DATA.c.source).order_by(NEWS_DATA.c.source)
    with engine.connect() as connection:
        return tuple(TextOverview(source, int(count), is_sample(source)) for source, count in connection.execute(query))
