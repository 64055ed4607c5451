"""The collector: polls each source, stores what it gives, and can end at any instant.

A response is stored before the position that it leads to, so a process that was killed asks for its last slice again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from qubic_lab.database import FULL_RETRY_S
from qubic_lab.errors import BusyError, FullError, InputError, QubicLabError
from qubic_lab.oracle.ingest import coingecko, feeds, hacker_news, newsapi
from qubic_lab.oracle.ingest.collector_config import (
    PACKAGED,
    CollectorConfig,
    Job,
    choose_sources,
    fallbacks,
    key_of,
    plan_jobs,
    usable_sources,
)
from qubic_lab.oracle.ingest.collector_state import (
    COLLECTOR,
    FIRST_TEXTS_US,
    LEASE_S,
    JobState,
    Lease,
    next_due_us,
    next_slice,
    read_jobs,
    retry_due_us,
    save_job,
    search_range,
    slices_left,
)
from qubic_lab.oracle.ingest.http_rules import Quotas
from qubic_lab.oracle.ingest.http_source import Batch, SourceClient, SourceError
from qubic_lab.oracle.ingest.packaged import DATASETS, read_packaged
from qubic_lab.oracle.ingest.validation import keep_prices
from qubic_lab.oracle.model.timestamps import DAY_US, SECOND_US, iso
from qubic_lab.oracle.store.fetch_log import FetchLog
from qubic_lab.oracle.store.price_store import PriceStore
from qubic_lab.oracle.store.text_store import TextStore
from qubic_lab.oracle.store.transactions import Added

_log = logging.getLogger(__name__)

STOP_S = 3.0
"""How long requests in flight may take after `stop`."""
LOOK_S = 1.0
"""How often a collector that waits for another one checks whether that has ended."""
SPARE = 10
"""Requests of a quota that backfills leave to polling, beyond the plan."""
GAP_PERIODS = 3
"""Periods without a price after which the history is asked for the missing ones."""
_FAR_S = 3_600.0
T = TypeVar("T")


@dataclass(frozen=True)
class CollectorProgress:
    """What a collector has done since it started.

    `requests` count without retries, those `failed` included. `added` rows are new in the database, `corrected` of them
    later versions. `slices` are those of the history; `troubles` the error of each job that failed last time.
    """

    requests: int = 0
    failed: int = 0
    added: int = 0
    corrected: int = 0
    slices_done: int = 0
    slices_left: int = 0
    troubles: dict[str, str] = field(default_factory=dict)
    last: str = "starting"


class Collector:
    """Collects into a database that `open_database` opened; `run` does the work, `stop` ends it."""

    def __init__(
        self,
        config: CollectorConfig,
        engine: Engine,
        *,
        sources: Sequence[str] = (),
        lease_s: float = LEASE_S,
        on_progress: Callable[[CollectorProgress], None] = lambda progress: None,
    ) -> None:
        """Plan the jobs of `sources`, or of all that can be asked; nothing is asked yet.

        `lease_s`: how long after a collector's last sign of life another one may take over.

        Raises:
            InputError: no source can be asked, or a name is not known.
        """
        self.config = config
        clients, self.left_out = usable_sources(config)
        named = [name for name in sources if name != PACKAGED]
        chosen = choose_sources(clients, config, named) if named or not sources else {}
        self.jobs = plan_jobs(config, chosen, packaged=not sources or PACKAGED in sources)
        self.progress = CollectorProgress()
        self._asked = chosen
        self._engine = engine
        self._clock = clock = config.clock
        self._on_progress = on_progress
        self._lease = Lease(engine, COLLECTOR, lasts_s=lease_s)
        self._prices = PriceStore(engine, clock.now_us)
        self._texts = TextStore(engine, clock.now_us)
        self._fetches = FetchLog(engine)
        self._quotas = Quotas(engine, clock.now_us)
        self._states: dict[str, JobState] = {}
        self._clients: dict[str, SourceClient] = {}
        self._stopping = asyncio.Event()
        self._wakes = {job.name: asyncio.Event() for job in self.jobs}
        self._writing = asyncio.Lock()

    def stop(self) -> None:
        """End cleanly; requests in flight may take a few more seconds."""
        self._stopping.set()
        for wake in self._wakes.values():
            wake.set()

    async def run(self, *, once: bool = False, for_s: float | None = None, wait: bool = False) -> CollectorProgress:
        """Collect until `stop`, with `once` what is due now, or for some real seconds; return what was done.

        With `wait` it waits for another collector to end.

        Raises:
            BusyError: another collector is running.
            FencedError: this one was slow, and another one has taken over.
            QubicLabError: the database fails.
        """
        try:
            if not await self._take_lease(wait):
                return self.progress
            try:
                await self._run(once, for_s)
            finally:
                await asyncio.to_thread(self._lease.release)
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
            raise QubicLabError(f"the database failed ({reason}): what was collected before is stored") from error
        return self.progress

    async def _take_lease(self, wait: bool) -> bool:
        """Become the only collector; return False if stopped while waiting."""
        while (held := await asyncio.to_thread(self._lease.acquire)) is not None:
            if not wait:
                raise BusyError(f"another collector is running ({held}): stop it, or wait for it with --wait")
            self._report(last=f"waiting for another collector ({held})")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), LOOK_S)
                return False
        return True

    async def _run(self, once: bool, for_s: float | None) -> None:
        self._states = await self._read_states()
        if "history" in self._states:
            position, now = self._states["history"].position, self._clock.now_us()
            self._report(slices_left=slices_left(position, now, self.config.backfill_days))
        async with AsyncExitStack() as stack:
            for name, source in self._asked.items():
                now_us, sleep = self._clock.now_us, self._clock.sleep
                client = SourceClient(name, source, self._engine, key=key_of(source), clock=now_us, sleep=sleep)
                self._clients[name] = await stack.enter_async_context(client)
            self._turns = {name: asyncio.Lock() for name in self._asked}
            keeping = asyncio.ensure_future(self._keep_lease())
            once_us = self._clock.now_us() if once else None
            working = [asyncio.ensure_future(self._work(job, once_us)) for job in self.jobs]
            try:
                await self._wait_for(working, keeping, for_s)
            finally:
                await self._end(working, keeping)

    async def _wait_for(
        self, working: Sequence[asyncio.Future[None]], keeping: asyncio.Future[None], for_s: float | None
    ) -> None:
        """Wait until all jobs end, `stop` is called, the time is over, or an error occurs."""
        stopped: asyncio.Future[Any] = asyncio.ensure_future(self._stopping.wait())
        everything: asyncio.Future[Any] = asyncio.gather(*working)  # ends with the first error, too
        try:
            done, _ = await asyncio.wait(
                [everything, keeping, stopped], timeout=for_s, return_when=asyncio.FIRST_COMPLETED
            )
            for each in done - {stopped}:
                await each
        finally:
            stopped.cancel()
            if not everything.done():
                everything.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

    async def _end(self, working: Sequence[asyncio.Future[None]], keeping: asyncio.Future[None]) -> None:
        """Give the jobs a few seconds to finish their requests."""
        self.stop()
        _, pending = await asyncio.wait(working, timeout=STOP_S)
        for each in (*pending, keeping):
            each.cancel()
        await asyncio.gather(*working, keeping, return_exceptions=True)

    async def _keep_lease(self) -> None:
        reported: dict[str, str] = {}
        while True:
            await asyncio.sleep(self._lease.lasts_s / 3)
            # Without the lock of `_write`: a write may take longer than the lease lasts.
            with suppress(FullError):
                await asyncio.to_thread(self._lease.renew)
                circuits: dict[str, str] = {name: client.circuit.state for name, client in self._clients.items()}
                if circuits != reported:
                    about = JobState(COLLECTOR, self._clock.now_us(), {"circuits": circuits})
                    await self._write(partial(save_job, self._engine, about))
                    reported = circuits

    async def _read_states(self) -> dict[str, JobState]:
        known = await asyncio.to_thread(read_jobs, self._engine)
        now = self._clock.now_us()
        states = {job.name: known.get(job.name, JobState(job.name, now)) for job in self.jobs}
        if "history" in states:
            prices = next((job for job in self.jobs if job.kind == "prices"), None)
            missed = prices is not None and self._missed(prices, states[prices.name], now)
            states["history"] = _with_all_coins(states["history"], self.config.coins, only_new=not missed)
        return states

    def _missed(self, job: Job, state: JobState, now_us: int) -> bool:
        """Return whether prices are missing that only the history has."""
        seen_us = state.position.get("seen_us")
        return seen_us is not None and now_us - seen_us > GAP_PERIODS * job.period_s * SECOND_US

    async def _work(self, job: Job, once_us: int | None) -> None:
        """Do a job whenever it is due; with `once_us` only what was due at that instant."""
        while not self._stopping.is_set():
            state, wake = self._states[job.name], self._wakes[job.name]
            if once_us is not None and (state.done or state.due_us > once_us):
                return
            wake.clear()
            wait_s = _FAR_S if state.done else (state.due_us - self._clock.now_us()) / SECOND_US
            if wait_s > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(wake.wait(), self._clock.real_s(wait_s))
            else:
                try:
                    await self._do(job)
                except FullError as error:  # what was collected before is stored, and the rest is asked for again
                    await self._wait_for_room(job, error)

    async def _wait_for_room(self, job: Job, error: FullError) -> None:
        self.progress.troubles[job.name] = str(error)
        _log.error("%s: %s", job.name, error)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), FULL_RETRY_S)

    async def _do(self, job: Job) -> None:
        """Do a job now, by its first source that works."""
        errors: list[QubicLabError] = []
        for name in job.sources:
            if name == PACKAGED:
                await self._collect_packaged(job)
                continue
            async with self._turns[name]:
                if self._stopping.is_set():
                    return
                if not self._lease.lasts():  # for example, this host slept
                    await asyncio.to_thread(self._lease.renew)
                try:
                    await _STEPS[job.kind](self, job, self._clients[name])
                except (SourceError, InputError) as error:
                    await self._note_failure(job, error)
                    errors.append(error)
                else:
                    self.progress.troubles.pop(job.name, None)
                    return
        if errors:
            await self._postpone(job, errors)
        else:
            await self._save(replace(self._states[job.name], done=True, failures=0))

    async def _note_failure(self, job: Job, error: SourceError | InputError, coin: str = "") -> None:
        message = f"{coin}: {error}" if coin else str(error)
        self.progress.troubles[job.name] = message
        refused = isinstance(error, InputError) or error.kind == "refused"
        (_log.error if refused else _log.info)("%s: %s", job.name, message)
        sent = 0
        if isinstance(error, SourceError) and error.fetch.attempts:  # else its circuit is open, or its quota used up
            sent = 1
            await self._write(partial(self._fetches.record, replace(error.fetch, job=job.name)))
        progress = self.progress
        self._report(requests=progress.requests + sent, failed=progress.failed + sent, last=f"{job.name}: {message}")

    async def _postpone(self, job: Job, errors: Sequence[QubicLabError]) -> None:
        """Retry a failed job later; meanwhile the next sources of the same kind of texts are asked earlier."""
        state = self._states[job.name]
        waits = [wait for error in errors if (wait := getattr(error, "retry_after_s", None)) is not None]
        failures = state.failures + 1
        due = retry_due_us(self._clock.now_us(), failures, job.period_s, min(waits, default=None))
        await self._save(replace(state, failures=failures, due_us=due))
        for name in fallbacks(self.config, job.name) if failures == 1 else ():
            if name in self._states:
                await self._save(replace(self._states[name], due_us=0))
                self._wakes[name].set()

    # steps: each makes one request or one search, and saves when the job is due again

    async def _collect_prices(self, job: Job, client: SourceClient) -> None:
        batch = await coingecko.fetch_prices(client, self.config.coins)
        await self._keep(job, client, batch)
        now, seen_us = self._clock.now_us(), self._states[job.name].position.get("seen_us")
        if "history" in self._states and self._missed(job, self._states[job.name], now):
            await self._save(_with_all_coins(self._states["history"], self.config.coins, only_new=False))
            self._wakes["history"].set()
        await self._done(job, client, {"seen_us": now if batch.prices else seen_us})

    async def _collect_history(self, job: Job, client: SourceClient) -> None:
        now, position = self._clock.now_us(), self._states[job.name].position
        slice = next_slice(position, now, self.config.backfill_days)
        assert slice is not None, "else the job is done"
        config, (coin, start_us, end_us) = client.config, slice
        if self._quotas.spare(client.name, config.quotas(), config.period_s) <= SPARE:
            await self._save(replace(self._states[job.name], due_us=now + int(_FAR_S * SECOND_US)))
            self._report(last=f"history: waits: the rest of {client.name}'s quota is needed for polling")
            return
        fetching = coingecko.fetch_history(client, coin, start_us, end_us, now_us=now)
        batch = await self._keep_coin(job, client, coin, fetching)
        until, last = start_us, batch is None or end_us >= now
        if batch is not None:
            until = batch.until_us or end_us
            if until <= start_us and not last:
                until = end_us  # there is nothing, such as before a coin's first day
        state = self._states[job.name]  # may have changed meanwhile
        left = [each for each in state.position["left"] if not (last and each == coin)]
        until_us = {**state.position["until_us"], coin: until}
        position = {**state.position, "until_us": until_us, "left": left}
        await self._save(replace(state, position=position, failures=0, done=not left))
        self._report(
            slices_done=self.progress.slices_done + 1,
            slices_left=slices_left(position, now, self.config.backfill_days),
            last=f"history of {coin} up to {iso(until)}",
        )

    async def _collect_packaged(self, job: Job) -> None:
        """Store the prices that come with packages, once, if no source before them in order has a history."""
        if self._states[job.name].position.get(PACKAGED):
            return

        def keep() -> Added:
            files = [read_packaged(name, self._clock.now_us()) for name in DATASETS]
            return sum((keep_prices(self._prices, file.series, file.prices).added for file in files), Added())

        try:
            added = await self._write(keep)
        except QubicLabError as error:  # the package is not installed
            self._report(last=f"{job.name}: {error}")
            return
        state = self._states[job.name]
        await self._save(replace(state, position={**state.position, PACKAGED: True}))
        self._report(added=self.progress.added + added.added, last=f"{job.name}: {added.added} new rows from packages")

    async def _collect_bars(self, job: Job, client: SourceClient) -> None:
        state = self._states[job.name]
        number = state.position.get("next", 0) % len(self.config.coins)
        coin = self.config.coins[number]
        fetching = coingecko.fetch_bars(client, coin, now_us=self._clock.now_us())
        await self._keep_coin(job, client, coin, fetching)
        if number + 1 < len(self.config.coins):
            await self._save(replace(state, position={"next": number + 1}, failures=0))
        else:
            await self._done(job, client, {"next": 0}, requests=len(self.config.coins))

    async def _collect_texts(self, job: Job, client: SourceClient) -> None:
        state = self._states[job.name]
        shown_us = self._clock.now_us() - int(client.config.delay_s * SECOND_US)
        first_us = FIRST_TEXTS_US if client.config.quotas() else max(self.config.backfill_days, 1) * DAY_US
        start, end = search_range(state.position.get("until_us"), shown_us, first_us)
        fetch = newsapi.fetch_texts if client.name == "newsapi" else hacker_news.fetch_texts
        requests = 0
        async with aclosing(fetch(client, self.config.coins, start, end)) as batches:
            async for batch in batches:
                requests += batch.fetched.attempts
                await self._keep(job, client, batch)
                if self._stopping.is_set():
                    return
        if end < shown_us:
            await self._save(replace(state, position={"until_us": end}, failures=0))
        else:
            await self._done(job, client, {"until_us": end}, requests=requests)

    async def _collect_feed(self, job: Job, client: SourceClient) -> None:
        feed = next(feed for feed in self.config.feeds if feed.name == client.name)
        await self._keep(job, client, await feeds.fetch_feed(client, feed))
        await self._done(job, client, {})

    async def _done(self, job: Job, client: SourceClient, position: dict[str, Any], requests: int = 1) -> None:
        """Save that a job was done, and when it is due again: later if a quota would not last."""
        state = self._states[job.name]
        plan = self._quotas.plan(client.name, client.config.quotas(), job.period_s, max(requests, 1))
        due = next_due_us(state.due_us, self._clock.now_us(), plan)
        await self._save(replace(state, position=position, failures=0, due_us=due))

    async def _keep(self, job: Job, client: SourceClient, batch: Batch) -> None:
        """Store a batch; only then may the source be asked for later changes alone."""
        added = await self._write(partial(self._add, job, batch.at_most(client.config.most_items)))
        await client.keep(batch.fetched)
        self._report(
            requests=self.progress.requests + 1,
            added=self.progress.added + added.added,
            corrected=self.progress.corrected + added.corrected,
            last=f"{job.name}: {added.added} new rows from {client.name}",
        )

    async def _keep_coin(self, job: Job, client: SourceClient, coin: str, fetching: Awaitable[Batch]) -> Batch | None:
        """Store a coin's batch; None if the source refuses this coin, such as an unknown one: others must not wait."""
        try:
            batch = await fetching
        except SourceError as error:
            if error.kind != "refused" or error.fetch.status not in (400, 404, 422):
                raise
            await self._note_failure(job, error, coin)
            return None
        await self._keep(job, client, batch)
        return batch

    def _add(self, job: Job, batch: Batch) -> Added:
        given = sum(len(prices) for _, prices in batch.prices) + len(batch.texts)
        faults = "; ".join(batch.faults)[:2_000] or None
        fetch_id = self._fetches.record(replace(batch.fetched, job=job.name, error=faults))
        added = Added()
        for series, prices in batch.prices:
            kept = keep_prices(self._prices, series, prices, fetch_id=fetch_id)
            added += kept.added
            for line in kept.refused:
                _log.warning("%s: price of %s left out: %s", job.name, series.coin, line)
        if batch.texts:
            added += self._texts.add(batch.texts, fetch_id=fetch_id)
        self._fetches.brought(fetch_id, given, added.added)
        return added

    async def _save(self, state: JobState) -> None:
        self._states[state.job] = state
        await self._write(partial(save_job, self._engine, state))

    async def _write(self, write: Callable[[], T]) -> T:
        """Write to the database in a thread, one write at a time."""
        async with self._writing:
            return await asyncio.to_thread(write)

    def _report(self, **changes: Any) -> None:
        self.progress = replace(self.progress, **changes)
        self._on_progress(self.progress)


Step = Callable[[Collector, Job, SourceClient], Coroutine[Any, Any, None]]
_STEPS: dict[str, Step] = {
    "prices": Collector._collect_prices,
    "history": Collector._collect_history,
    "bars": Collector._collect_bars,
    "texts": Collector._collect_texts,
    "feed": Collector._collect_feed,
}


def _with_all_coins(state: JobState, coins: Sequence[str], *, only_new: bool) -> JobState:
    """Return the history's state with the coins left to do: those that were never begun, or all."""
    until_us = dict(state.position.get("until_us", {}))
    left = [coin for coin in state.position.get("left", ()) if coin in coins]
    left += [coin for coin in coins if coin not in left and (not only_new or coin not in until_us)]
    return replace(state, position={**state.position, "until_us": until_us, "left": left}, done=not left)
