"""Watches the risk of coins: once, or repeatedly beside a collector, in its own thread.

Which alerts are due is a pure decision: it follows from the last alert and the levels of all bars so far. Nothing else
is remembered, so a new process continues where another one ended.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from qubic_lab.errors import InputError, NotFoundError, QubicLabError
from qubic_lab.oracle.alerts.delivery import Deliverer, Delivery, Webhook
from qubic_lab.oracle.alerts.store import UNKNOWN, AlertKind, AlertStore, EmittedAlert, NewAlert, PriceOutage, RiskAlert
from qubic_lab.oracle.config import OracleConfig
from qubic_lab.oracle.model.bars import Integers
from qubic_lab.oracle.model.coins import COINS
from qubic_lab.oracle.model.response import Missing, age_s
from qubic_lab.oracle.model.timestamps import DAY_US, age_text, iso, now_us
from qubic_lab.oracle.risk.inputs import RiskMarket, read_risk_market
from qubic_lab.oracle.risk.measures import LEVELS, RiskInputs
from qubic_lab.oracle.risk.rules import Assessment, assess, fit_rules, read_rules
from qubic_lab.oracle.store.snapshot import MarketStore, reading
from qubic_lab.oracle.store.transactions import Clock

EVERY_S = 60.0
JOIN_S = 5.0
"""The longest wait for the last check. An alert that it has not sent stays pending, and the next process sends it."""
QUIET_US = DAY_US
"""Missing prices are reported once per last bar, and at most once in this time."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DueAlert:
    """An alert to emit: `at_us` is the close of the bar that it is about, `level` the number of that bar's level."""

    kind: AlertKind
    level: int
    episode_us: int
    at_us: int


def decide(
    emitted: EmittedAlert | None, closed_us: Integers, levels: NDArray[np.int8], least: int, cool_down: int
) -> list[DueAlert]:
    """Return the alerts that are due, in order.

    Only the level of the last bar is emitted: a rise that ended before anybody looked is not news. The end of an
    episode that was emitted is due in any case.

    Args:
        emitted: the last alerts; None: there were none yet.
        closed_us: closes of the bars with a level, [bars]; the last one is fresh.
        levels: numbers of levels, [bars].
        least: number of the level that begins an episode.
        cool_down: number of bars in a row below it that end an episode.
    """
    start = 0 if emitted is None else int(np.searchsorted(closed_us, emitted.at_us, side="right"))
    if start == len(levels):
        return []
    running = None if emitted is None or emitted.over else emitted
    episode_us = running.episode_us if running else None
    due, below = [], 0
    for at_us, level in zip(closed_us[start:].tolist(), levels[start:].tolist(), strict=True):
        if level >= least:
            below = 0
            episode_us = at_us if episode_us is None else episode_us
        elif episode_us is not None:
            below += 1
            if below == cool_down:
                if running:
                    due.append(DueAlert("all-clear", level, episode_us, at_us))
                running, episode_us, below = None, None, 0
    if running and level > running.highest:
        due.append(DueAlert("escalated", level, running.episode_us, at_us))
    elif not running and episode_us is not None and level >= least:
        due.append(DueAlert("raised", level, episode_us, at_us))
    return due


@dataclass(frozen=True)
class WatchResult:
    """The result of a check: the level of each coin, or why it is not known, and the new alerts."""

    levels: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    emitted: list[RiskAlert] = field(default_factory=list)


class AlertWatch:
    """Checks the risk of the collected coins, stores the alerts that are due, and sends them.

    Args:
        engine: of a database that `open_database` opened.
        config: of the oracle; its `risk` says which alerts are emitted.
        webhook: receives the alerts; None: they are only logged.
        clock: gives the time of bars and alerts, in microseconds.
        after: called after each check while it runs.
    """

    def __init__(
        self,
        engine: Engine,
        config: OracleConfig,
        webhook: Webhook | None,
        clock: Clock = now_us,
        after: Callable[[], object] = lambda: None,
    ) -> None:
        self._config, self._after = config.risk, after
        self._coins = config.risk.coins or config.coins
        self._market = MarketStore(engine, clock, config.frequencies)
        self._weighting = config.sentiment
        self._rules = read_rules() if config.risk.rules is None else config.risk.rules
        self._store = AlertStore(engine, clock)
        self._deliverer = Deliverer(self._store, webhook, clock)
        self._ending = threading.Event()
        self._levels: dict[str, tuple[int, str]] = {}
        self.emitted = 0

    def check(self) -> WatchResult:
        """Check all coins once, and store the alerts that are due; none is sent yet.

        Raises:
            QubicLabError: the database cannot be read.
        """
        snapshot, found = self._market.snapshot(), WatchResult()
        for coin in self._coins:
            try:
                with reading():
                    market = read_risk_market(snapshot, coin, self._config.frame, self._weighting)
                    self._check_coin(coin, market, snapshot.at_us, found)
            except NotFoundError as error:  # no prices yet
                found.unknown[coin] = str(error)
            except InputError as error:  # the other coins are still watched
                found.unknown[coin] = str(error)
                _log.warning("risk of %s is not watched now: %s", coin, error)
        self.emitted += len(found.emitted)
        return found

    def deliver(self) -> Delivery:
        """Send pending alerts; a QubicLabError if the database cannot be read."""
        with reading():
            return self._deliverer.deliver()

    @contextmanager
    def running(self) -> Iterator["AlertWatch"]:
        """Check and send while the block runs, and once more at its end."""
        thread = threading.Thread(target=self._run, name="alerts", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ending.set()
            thread.join(JOIN_S)

    def _run(self) -> None:
        ended = False
        while not ended:
            ended = self._ending.wait(EVERY_S)
            try:
                self.check()
                self.deliver()
                self._after()
            except QubicLabError as error:  # of the database: the next check finds what is left
                _log.warning("risk is not watched now: %s", error)
            except Exception:  # a watch that ends unseen is worse than one that reports each time
                _log.exception("risk is not watched now")

    def _check_coin(self, coin: str, market: RiskMarket | Missing, at_us: int, found: WatchResult) -> None:
        if isinstance(market, Missing) or not len(market.bars):
            found.unknown[coin] = market.reason if isinstance(market, Missing) else "no bar has closed yet"
            return
        last_us = int(market.bars.closed_us[-1])
        if market.is_stale(at_us):
            found.unknown[coin] = f"no fresh prices: the last bar closed at {iso(last_us)}"
            if self._config.no_prices:
                found.emitted.extend(self._emit_outage(coin, last_us, at_us))
            return
        known, seen = self._levels.get(coin), _hash_of(market.inputs)
        if known is None or known[0] != seen:  # a bar may be corrected, and texts may come later
            assessment = assess(market.inputs, fit_rules(self._rules, market.bars.frame_us))
            if assessment.why_unknown:
                found.unknown[coin] = assessment.why_unknown
                return
            found.emitted.extend(self._emit_level(coin, market, assessment))
            known = self._levels[coin] = (seen, LEVELS[int(assessment.levels[-1])])
        found.levels[coin] = known[1]

    def _emit_level(self, coin: str, market: RiskMarket, assessment: Assessment) -> list[RiskAlert]:
        rows = np.s_[assessment.warm_up :]

        def due(emitted: EmittedAlert | None, outage: PriceOutage | None) -> list[NewAlert]:
            least, cool_down = LEVELS.index(self._config.level), self._config.cool_down
            alerts = decide(emitted, assessment.closed_us[rows], assessment.levels[rows], least, cool_down)
            return [self._alert(coin, market, assessment, each) for each in alerts]

        return self._store.emit(coin, self._config.frame, due)

    def _emit_outage(self, coin: str, last_us: int, at_us: int) -> list[RiskAlert]:
        since = f"the last bar of {self._config.frame} closed at {iso(last_us)}, {age_text(age_s(last_us, at_us))} ago"
        text = f"{COINS[coin].name}: no fresh prices, so its risk is not known: {since}"

        def due(emitted: EmittedAlert | None, outage: PriceOutage | None) -> list[NewAlert]:
            if outage is not None and (outage.last_us == last_us or abs(at_us - outage.made_us) < QUIET_US):
                return []
            return [NewAlert("no-prices", UNKNOWN, last_us, last_us, {"text": text, "evidence": []})]

        return self._store.emit(coin, self._config.frame, due)

    def _alert(self, coin: str, market: RiskMarket, assessment: Assessment, due: DueAlert) -> NewAlert:
        """Return an alert with its text and evidence."""
        bar = int(np.searchsorted(assessment.closed_us, due.at_us))
        level, evidence = LEVELS[due.level], [each.text for each in assessment.at(bar).evidence]
        series, price = market.source.series, float(market.bars.close[bar])
        since = f"in an episode of {self._config.level} or more since {iso(due.episode_us)}"
        what = {
            "raised": f"risk rose to {level}" if due.episode_us == due.at_us else f"risk is at {level}, {since}",
            "escalated": f"risk rose further, to {level}",
            "all-clear": f"risk is {level}, and was below {self._config.level} for {self._config.cool_down} bars",
        }[due.kind]
        text = (
            f"{COINS[coin].name}: {what}, by bars of {self._config.frame} up to {iso(due.at_us)}, at "
            f"{price:.8g} {series.currency} from {series.source}"
        )
        because = f": {'; '.join(evidence)}" if evidence else ""
        if due.kind == "all-clear":
            because = assessment.silent_rules(bar)
        content: dict[str, Any] = {"text": f"{text}{because}", "evidence": evidence}
        content |= {"price": price, "currency": series.currency, "source": series.source}
        return NewAlert(due.kind, level, due.episode_us, due.at_us, content)


def _hash_of(inputs: RiskInputs) -> int:
    """Return a number that changes with any value that levels are computed from."""
    bars = inputs.bars
    columns = (bars.closed_us, bars.open, bars.high, bars.low, bars.close, bars.volume, inputs.sentiment, inputs.other)
    return hash(tuple(None if each is None else each.tobytes() for each in columns))
