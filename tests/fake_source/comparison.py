"""The fake source's ledger against a collector's database: nothing lost, nothing twice, nothing made up."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from urllib.parse import parse_qs, urlsplit

from sqlalchemy import Engine, select

from fake_source.ledger import Entry, Given
from qubic_lab.oracle.model.timestamps import HOUR_US, SECOND_US
from qubic_lab.oracle.store.tables import MARKET_DATA, MARKET_SERIES, NEWS_DATA

Key = tuple[str, ...]
Versions = dict[Key, list[tuple[float | str, int]]]


def key_of(source: str, given: Given) -> Key:
    """What is one price or one text, in whatever version."""
    if given.kind == "price":
        return ("price", source, given.of, str(given.interval_s), str(given.at_us))
    return ("text", source, given.of)


def stored_versions(engine: Engine) -> Versions:
    """The values of all versions of every price and text, with when each was known, oldest first."""
    versions: Versions = defaultdict(list)
    prices = (
        select(MARKET_SERIES, MARKET_DATA)
        .join(MARKET_DATA, MARKET_DATA.c.series_id == MARKET_SERIES.c.id)
        .order_by(MARKET_DATA.c.known_us)
    )
    with engine.connect() as connection:
        for row in connection.execute(prices).mappings():
            key = ("price", row["source"], row["coin"], str(row["interval_s"]), str(row["closed_us"]))
            versions[key].append((row["close"], row["known_us"]))
        for row in connection.execute(select(NEWS_DATA).order_by(NEWS_DATA.c.known_us)).mappings():
            versions[("text", row["source"], row["external_id"])].append((row["title"], row["known_us"]))
    return versions


def lost(entries: Sequence[Entry], versions: Versions, killed_s: Sequence[float] = ()) -> list[tuple[Entry, Given]]:
    """What was given whole and is not in the database with its very value.

    Left out is what a collector may not have had time to store when it was killed (the last answer of each source
    before), and the end of a history or of bars: that is the forming present, or what the next answer has, too.
    """
    in_flight = {entry.number for at_s in killed_s for entry in _last_before(entries, at_s)}
    stored = {key: {value for value, _ in values} for key, values in versions.items()}
    return [
        (entry, given)
        for entry in entries
        for given in entry.given
        if entry.number not in in_flight
        and given.value not in stored.get(key_of(entry.source, given), ())
        and not (_is_end_of_history(entry, given) or _may_be_forming(entry, given))
    ]


def twice(versions: Versions) -> list[Key]:
    """What has two versions in a row with the same value; a later version may only correct."""
    return [key for key, values in versions.items() if any(one == other for (one, _), (other, _) in pairwise(values))]


def made_up(entries: Iterable[Entry], versions: Versions) -> list[Key]:
    """What the database has and no answer gave."""
    given = {(key_of(entry.source, each), each.value) for entry in entries for each in entry.given}
    return [key for key, values in versions.items() if any((key, value) not in given for value, _ in values)]


def longest_gap_s(versions: Versions, coin: str) -> float:
    """The longest time without a quote of a coin."""
    times = sorted(int(key[4]) for key in versions if key[0] == "price" and key[2:4] == (coin, "0"))
    return max((later - earlier for earlier, later in pairwise(times)), default=0) / SECOND_US


def _last_before(entries: Sequence[Entry], at_s: float) -> Iterable[Entry]:
    before = (entry for entry in entries if entry.arrived_s <= at_s)
    return {entry.source: entry for entry in sorted(before, key=lambda entry: entry.arrived_s)}.values()


def _may_be_forming(entry: Entry, given: Given) -> bool:
    """Whether a bar may have closed only after it was asked for, as at a fast clock; the next answer has it."""
    return "/ohlc" in entry.path and given.at_us > entry.now_us - 8 * HOUR_US


def _is_end_of_history(entry: Entry, given: Given) -> bool:
    if "market_chart/range" not in entry.path:
        return False
    query = parse_qs(urlsplit(entry.path).query)
    start_us, end_us = (int(query[name][0]) * SECOND_US for name in ("from", "to"))
    step_us = (300 if end_us - start_us <= 86_400 * SECOND_US else 3_600) * SECOND_US
    return given.at_us > end_us - SECOND_US - step_us
