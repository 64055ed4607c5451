"""Metrics of the oracle's sources and prices, from the log of requests and the newest prices in the database."""

from prometheus_client.metrics_core import Metric
from sqlalchemy import Engine, func, select

from qubic_lab.metrics import MOST_VALUES, counter, gauge
from qubic_lab.oracle.model.timestamps import SECOND_US
from qubic_lab.oracle.store.fetch_log import FetchLog, read_source_health
from qubic_lab.oracle.store.tables import MARKET_DATA, MARKET_SERIES


def source_families(engine: Engine, now_us: int, since_us: int) -> list[Metric]:
    """Return the metrics of sources and prices; counters begin at `since_us`, the start of the process that asks.

    A source that was never asked has none, and of more than MOST_VALUES the first by name are shown.
    """
    health = read_source_health(engine, now_us)[:MOST_VALUES]
    counts = FetchLog(engine).counts(since_us)[:MOST_VALUES]
    ages = [((each.source,), each.last_success_age_s) for each in health if each.last_success_age_s is not None]
    outcomes = [
        ((each.source, outcome), float(getattr(each, outcome)))
        for each in counts
        for outcome in ("ok", "not_modified", "failed")
    ]
    newest = (
        select(func.max(MARKET_DATA.c.closed_us)).where(MARKET_DATA.c.series_id == MARKET_SERIES.c.id).scalar_subquery()
    )
    latest_us: dict[str, int] = {}
    with engine.connect() as connection:  # by series, as each has its end in an index
        for coin, closed_us in connection.execute(select(MARKET_SERIES.c.coin, newest)):
            latest_us[coin] = max(latest_us.get(coin, 0), closed_us or 0)
    prices = [((coin,), (now_us - at_us) / SECOND_US) for coin, at_us in sorted(latest_us.items()) if at_us]
    return [
        gauge("oracle_source_age_seconds", "Time since a source last answered.", ages, ["source"]),
        gauge(
            "oracle_source_up",
            "Whether a source answered the last request.",
            [((each.source,), each.state == "ok") for each in health],
            ["source"],
        ),
        counter("oracle_source_requests", "Requests to sources, by outcome.", outcomes, ["source", "outcome"]),
        counter(
            "oracle_source_rows",
            "New rows from sources: prices and texts.",
            [((each.source,), each.rows_added) for each in counts],
            ["source"],
        ),
        gauge("oracle_price_age_seconds", "Age of a coin's newest price.", prices[:MOST_VALUES], ["coin"]),
    ]
