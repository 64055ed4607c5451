"""A database for trials: packaged prices and sample texts, and an overview of what it holds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from sqlalchemy import Engine, func, select

from qubic_lab.oracle.ingest.files.bar_files import keep_bars
from qubic_lab.oracle.ingest.files.packaged import DATASETS, PACKAGED, read_packaged, read_sample_texts
from qubic_lab.oracle.model.records import Series, is_sample
from qubic_lab.oracle.model.response import Instant, Part
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, SECOND_US, iso, now_us
from qubic_lab.oracle.store.price_store import PriceStore
from qubic_lab.oracle.store.tables import NEWS_DATA
from qubic_lab.oracle.store.text_store import TextStore

_END_US = 1 << 62


@dataclass(frozen=True)
class SeriesOverview(Part):
    """A series in the database.

    `change_24h_pct`, `change_7d_pct`: of the last close against the one that much earlier, in percent; None if there is
    none within a bar's length, or an hour, before that time. `age`: of the last price, in words.
    """

    coin: str
    source: str
    interval_s: int
    currency: str
    rows: int
    last_close: float
    change_24h_pct: float | None
    change_7d_pct: float | None
    age_s: float
    age: str
    first_us: Annotated[Instant, Field(alias="from")]
    last_us: Annotated[Instant, Field(alias="to")]


@dataclass(frozen=True)
class TextOverview(Part):
    """The texts of one source; `sample`: they are invented."""

    source: str
    texts: int
    sample: bool


@dataclass(frozen=True)
class DatabaseOverview(Part):
    """What a database holds."""

    series: tuple[SeriesOverview, ...]
    texts: tuple[TextOverview, ...]


@dataclass(frozen=True)
class DemoResult(Part):
    """Rows added to each table and their total, what the database holds now, and what was left out of the files."""

    rows_added: Mapping[str, int]
    overview: DatabaseOverview
    notes: tuple[str, ...]


def run_demo(engine: Engine, clock: Callable[[], int] = now_us) -> DemoResult:
    """Store packaged prices and sample texts in a database; a second run adds nothing.

    Raises:
        QubicLabError: the package with the prices is not installed.
    """
    prices, texts = PriceStore(engine, clock), TextStore(engine, clock)
    files = [read_packaged(name, clock()) for name in DATASETS]
    sample = read_sample_texts()
    market_data = sum(keep_bars(prices, file).added for file in files)
    news_data = texts.add(sample).added
    return DemoResult(
        rows_added={"market_data": market_data, "news_data": news_data, "total": market_data + news_data},
        overview=DatabaseOverview(overview(prices, clock()), _text_overviews(engine)),
        notes=tuple(f"{each.file}: {note}" for each in files for note in each.notes),
    )


def overview(store: PriceStore, at_us: int) -> tuple[SeriesOverview, ...]:
    """Return each series in a database as it looks at `at_us`, by coin and source."""
    return tuple(each for series in store.series() if (each := _series_overview(store, series, at_us)) is not None)


def _series_overview(store: PriceStore, series: Series, at_us: int) -> SeriesOverview | None:
    bars = store.read(series, -_END_US, _END_US)
    if not len(bars):
        return None
    last_us, last = int(bars.closed_us[-1]), float(bars.close[-1])

    def change_pct(back_us: int) -> float | None:
        number = int(bars.closed_us.searchsorted(last_us - back_us, "right")) - 1
        within_us = max(series.interval_s * SECOND_US, HOUR_US)
        if number < 0 or last_us - back_us - int(bars.closed_us[number]) >= within_us:
            return None
        return (last / float(bars.close[number]) - 1.0) * 100.0

    return SeriesOverview(
        coin=series.coin,
        source=series.source,
        interval_s=series.interval_s,
        currency=series.currency,
        rows=len(bars),
        first_us=int(bars.opened_us[0]),
        last_us=last_us,
        last_close=last,
        change_24h_pct=change_pct(DAY_US),
        change_7d_pct=change_pct(7 * DAY_US),
        age_s=(at_us - last_us) / SECOND_US,
        age=_age(series, last_us, at_us - last_us),
    )


def _age(series: Series, last_us: int, age_us: int) -> str:
    newest = "the newest bar closed" if series.interval_s else "the newest price is from"
    age = f"{newest} {iso(last_us)[:10]}, {age_us // DAY_US:,} days ago"
    if age_us < DAY_US:
        age = f"{newest} {max(age_us, 0) // SECOND_US:,} s ago"
    return f"{age}: packaged data, not live" if series.source == PACKAGED else age


def _text_overviews(engine: Engine) -> tuple[TextOverview, ...]:
    texts = func.count(NEWS_DATA.c.external_id.distinct())
    query = select(NEWS_DATA.c.source, texts).group_by(NEWS_DATA.c.source).order_by(NEWS_DATA.c.source)
    with engine.connect() as connection:
        return tuple(TextOverview(source, int(count), is_sample(source)) for source, count in connection.execute(query))
