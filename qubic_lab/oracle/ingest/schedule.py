"""The collector's schedule, as pure functions: which jobs there are, when each is due, where a backfill resumes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from qubic_lab.errors import InputError, did_you_mean
from qubic_lab.oracle.ingest.collector_config import CollectorConfig, SourceConfig
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, SECOND_US

JobKind = Literal["prices", "bars", "history", "texts", "feed"]

FIRST_RETRY_S = 15.0
LONGEST_RETRY_S = 3_600.0
SLICE_US = 89 * DAY_US
"""History in one request: CoinGecko gives hours for up to 90 days, days for more."""
BARS_S = 12 * 3_600.0
"""How often a day's bars are requested."""
OVERLAP_US = HOUR_US
"""How far searches overlap the last one, as sources list some texts late."""
FIRST_TEXTS_US = DAY_US
"""How far back the first search of a source with a quota goes."""
PACKAGED = "packaged"
PACKAGED_COIN = "bitcoin"
"""The coin of the prices that come with packages."""
GAP_PERIODS = 3
"""Periods without a price after which the history is asked for the missing ones."""


@dataclass(frozen=True)
class Job:
    """A recurring task.

    Attributes:
        name: in the database and in records.
        sources: to ask, the first choice first.
        period_s: between runs, if quotas allow; 0: as fast as limits allow, until it is done.
    """

    name: str
    kind: JobKind
    sources: tuple[str, ...]
    period_s: float


@dataclass(frozen=True)
class Slice:
    """A range of one coin's history to ask for; `last`: it reaches the present."""

    coin: str
    start_us: int
    end_us: int
    last: bool


def plan_jobs(
    config: CollectorConfig, clients: Mapping[str, SourceConfig], *, packaged: bool = False
) -> tuple[Job, ...]:
    """Return the jobs that the usable sources allow.

    Args:
        config: what to collect.
        clients: the usable sources by name; each feed by its own.
        packaged: prices that come with packages may be used, if the order has them.

    Raises:
        InputError: there are none.
    """
    feeds = {feed.name: feed.kind for feed in config.feeds if feed.name in clients}
    jobs: list[Job] = []
    if prices := tuple(name for name in config.order["prices"] if name in clients):
        jobs.append(Job("prices", "prices", prices, clients[prices[0]].period_s))
    may_be_packaged = packaged and PACKAGED_COIN in config.coins
    history = tuple(
        name for name in config.order["history"] if name in clients or (name == PACKAGED and may_be_packaged)
    )
    if history and config.backfill_days:
        jobs.append(Job("history", "history", history, 0.0))
    if bars := tuple(name for name in history if name != PACKAGED):
        jobs.append(Job("bars", "bars", bars, BARS_S))
    for kind in ("news", "social"):
        for name in config.order[kind]:
            if name in clients:
                jobs.append(Job(name, "texts", (name,), clients[name].period_s))
            elif name == "feeds":
                jobs += [
                    Job(each, "feed", (each,), clients[each].period_s) for each, its in feeds.items() if its == kind
                ]
    if not jobs:
        raise InputError("no source can be asked: set a key or enable a source (see qubic-lab oracle status)")
    return tuple(jobs)


def choose_sources(
    clients: Mapping[str, SourceConfig], config: CollectorConfig, wanted: Sequence[str]
) -> dict[str, SourceConfig]:
    """Return the clients with the given names (`feeds`: all feeds); all of them if no name is given.

    Raises:
        InputError: a name is not among them.
    """
    if not wanted:
        return dict(clients)
    feeds = [feed.name for feed in config.feeds if feed.name in clients]
    chosen: dict[str, SourceConfig] = {}
    for name in wanted:
        names = feeds if name == "feeds" else [name]
        if not names or not all(each in clients for each in names):
            raise InputError(f"unknown or unusable source {name!r}: {did_you_mean(name, [*clients, 'feeds'])}")
        chosen |= {each: clients[each] for each in names}
    return chosen


def fallbacks(config: CollectorConfig, name: str) -> list[str]:
    """Return the sources that come after one in the order of its kind of texts, each feed by its own name."""
    for kind in ("news", "social"):
        order = config.order[kind]
        if name in order:
            behind = order[order.index(name) + 1 :]
            feeds = [feed.name for feed in config.feeds if feed.kind == kind and "feeds" in behind]
            return [*behind, *feeds]
    return []


def next_due_us(due_us: int, now_us: int, period_s: float) -> int:
    """Return when a job that was done at `now_us` is due again: in its rhythm, without catching up on missed runs."""
    period_us = int(period_s * SECOND_US)
    return due_us + period_us if due_us + period_us > now_us else now_us + period_us


def retry_due_us(now_us: int, failures: int, period_s: float, retry_after_s: float | None) -> int:
    """Return when a failed job is retried: later with each failure, never before the source allows.

    Args:
        now_us: the present.
        failures: in a row, this one included.
        period_s: of the job; the longest wait between retries, up to an hour.
        retry_after_s: the wait that the source asks for.
    """
    longest_s = min(max(period_s, FIRST_RETRY_S), LONGEST_RETRY_S)
    wait_s = min(FIRST_RETRY_S * 2.0 ** min(failures - 1, 20), longest_s)
    return now_us + int(max(wait_s, retry_after_s or 0.0) * SECOND_US)


def first_instant_us(now_us: int, backfill_days: int) -> int:
    """Return where history begins: an hour late, as sources refuse requests that reach a second too far back."""
    return now_us - backfill_days * DAY_US + HOUR_US


def next_slice(
    until_us: Mapping[str, int], left: Iterable[str], now_us: int, backfill_days: int, slice_us: int = SLICE_US
) -> Slice | None:
    """Return the next slice of history, for the coin that is furthest behind; None: nothing is left.

    Args:
        until_us: the instant before which all of a coin's history is stored.
        left: coins whose history does not reach the present yet.
        now_us: the present.
        backfill_days: how far back history begins.
        slice_us: the longest slice.
    """
    first_us = first_instant_us(now_us, backfill_days)
    behind = sorted((max(until_us.get(coin, first_us), first_us), coin) for coin in left)
    if not behind:
        return None
    at_us, coin = behind[0]
    start_us = at_us // SECOND_US * SECOND_US  # sources take whole seconds
    end_us = min(start_us + slice_us, now_us)
    return Slice(coin, start_us, end_us, end_us >= now_us)


def slices_left(
    until_us: Mapping[str, int], left: Iterable[str], now_us: int, backfill_days: int, slice_us: int = SLICE_US
) -> int:
    """Return how many requests the history still needs."""
    first_us = first_instant_us(now_us, backfill_days)
    return sum(max(1, -(-(now_us - max(until_us.get(coin, first_us), first_us)) // slice_us)) for coin in left)


def is_gap(seen_us: int | None, now_us: int, period_s: float) -> bool:
    """Return whether prices have been missing long enough to ask the history for them."""
    return seen_us is not None and now_us - seen_us > GAP_PERIODS * period_s * SECOND_US


def search_range(until_us: int | None, now_us: int, delay_s: float, first_us: int) -> tuple[int, int]:
    """Return the range of published times to search: from the last search, with an overlap, to what is shown by now.

    Args:
        until_us: the end of the last search; None: there was none.
        now_us: the present.
        delay_s: how long after publication the source shows texts.
        first_us: how far back the first search goes.
    """
    end_us = now_us - int(delay_s * SECOND_US)
    start_us = end_us - first_us if until_us is None else until_us - OVERLAP_US
    return min(start_us, end_us - SECOND_US), end_us
