"""Watches the risk of coins: once now, or again and again beside a collector, in a thread of its own."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from sqlalchemy import Engine

from qubic_lab.errors import InputError, NotFoundError, QubicLabError
from qubic_lab.oracle.alerts.decide import Due, Told, decide
from qubic_lab.oracle.alerts.delivery import Deliverer, Delivery, Webhook
from qubic_lab.oracle.alerts.store import UNKNOWN, AlertStore, Gone, NewAlert
from qubic_lab.oracle.analysis.summary import age
from qubic_lab.oracle.config import OracleConfig
from qubic_lab.oracle.model.coins import COINS
from qubic_lab.oracle.model.response import Missing, age_s
from qubic_lab.oracle.model.timestamps import DAY_US, iso, now_us
from qubic_lab.oracle.risk.market import RiskMarket
from qubic_lab.oracle.risk.measures import Market
from qubic_lab.oracle.risk.parts import assess_market, silent_rules, why_no_level
from qubic_lab.oracle.risk.responses import RiskAlert
from qubic_lab.oracle.risk.rules import LEVELS
from qubic_lab.oracle.risk.warnings import Assessment
from qubic_lab.oracle.serving.price_parts import frequencies_of
from qubic_lab.oracle.serving.queries import Queries, reading
from qubic_lab.oracle.store.transactions import Clock

EVERY_S = 60.0
JOIN_S = 5.0
"""So long may a last look take: what it has not sent is pending, and the next process sends it."""
QUIET_US = DAY_US
"""That there are no fresh prices is told once for each last bar, and once in so long."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checked:
    """What a look at all coins came to.

    Attributes:
        levels: of coins whose risk is known now.
        unknown: why it is not, by coin.
        told: alerts that are new.
    """

    levels: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    told: list[RiskAlert] = field(default_factory=list)


class AlertWatch:
    """Looks at the risk of the coins that are collected, keeps what is to be told, and sends it.

    Args:
        engine: of a database that `open_database` opened.
        config: of the collector, with what is worth telling.
        webhook: where it is sent; None: it is logged alone.
        clock: what bars and alerts go by, in microseconds.
        every_s: between two looks, in real seconds.
    """

    def __init__(
        self,
        engine: Engine,
        config: OracleConfig,
        webhook: Webhook | None,
        clock: Clock = now_us,
        every_s: float = EVERY_S,
    ) -> None:
        self._config, self._every_s = config.risk, every_s
        self._coins = config.risk.coins or config.coins
        self._queries = Queries(
            engine, clock, frequencies_of(config), weighting=config.sentiment, rules=config.risk.rules
        )
        self._store = AlertStore(engine, clock)
        self._deliverer = Deliverer(self._store, webhook, clock)
        self._ending = threading.Event()
        self._levels: dict[str, tuple[int, str]] = {}
        self._gone: dict[str, int] = {}
        self._failed: dict[str, str] = {}
        self.told = 0

    def check(self) -> Checked:
        """Look at all coins once, and keep what is to be told; nothing is sent yet.

        Raises:
            QubicLabError: the database cannot be read.
        """
        at, found = self._queries.clock(), Checked()
        for coin in self._coins:
            try:
                with reading():
                    market = self._queries.risk_markets.read(coin, self._config.frame, at, None)
                    self._look(coin, market, at, found)
                self._failed.pop(coin, None)
            except NotFoundError as error:  # no prices yet
                found.unknown[coin] = str(error)
            except InputError as error:  # some that make no bars, or of which a measure cannot be had
                found.unknown[coin] = str(error)
                self._log_failure(coin, str(error))
        self.told += len(found.told)
        return found

    def deliver(self, attempts: int | None = None) -> Delivery:
        """Send what is pending; see `Deliverer.deliver`.

        Raises:
            QubicLabError: the database cannot be read.
        """
        with reading():
            return self._deliverer.deliver(attempts)

    @contextmanager
    def running(self) -> Iterator["AlertWatch"]:
        """Look and send while the block runs, and once more at its end."""
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
            ended = self._ending.wait(self._every_s)
            try:
                self.check()
                self.deliver(1 if ended else None)
            except QubicLabError as error:  # of the database: the next look finds what is left
                _log.warning("risk is not watched now: %s", error)
            except Exception:  # a watch that ends unseen is worse than one that says so each time
                _log.exception("risk is not watched now")

    def _log_failure(self, coin: str, reason: str) -> None:
        """Say why nothing can be told of a coin, once until it is another reason."""
        if self._failed.get(coin) != reason:
            self._failed[coin] = reason
            _log.warning("risk of %s is not watched now: %s", coin, reason)

    def _look(self, coin: str, market: RiskMarket | Missing, at_us: int, found: Checked) -> None:
        if isinstance(market, Missing) or not len(market.candles):
            found.unknown[coin] = market.reason if isinstance(market, Missing) else "no bar has closed yet"
            return
        last_us = int(market.candles.closed_us[-1])
        if market.is_stale(at_us):
            found.unknown[coin] = f"no fresh prices: the last bar closed at {iso(last_us)}"
            if self._config.no_prices and self._gone.get(coin) != last_us:
                found.told.extend(self._tell_no_prices(coin, last_us, at_us))
            return
        known, seen = self._levels.get(coin), _hash_of(market.market)
        if known is None or known[0] != seen:  # a bar may be corrected; texts come later
            assessment = assess_market(market.market, self._queries.rules)
            if reason := why_no_level(assessment):
                found.unknown[coin] = reason
                return
            found.told.extend(self._tell_level(coin, market, assessment))
            known = self._levels[coin] = (seen, LEVELS[int(assessment.levels[-1])])
        found.levels[coin] = known[1]

    def _tell_level(self, coin: str, market: RiskMarket, assessment: Assessment) -> list[RiskAlert]:
        closed = assessment.closed_us[assessment.warm_up :]
        levels, policy = assessment.levels[assessment.warm_up :], self._config.policy

        def due(told: Told | None, gone: Gone | None) -> list[NewAlert]:
            return [self._alert(coin, market, assessment, each) for each in decide(told, closed, levels, policy)]

        return self._store.tell(coin, self._config.frame, due)

    def _tell_no_prices(self, coin: str, last_us: int, at_us: int) -> list[RiskAlert]:
        since = f"the last bar of {self._config.frame} closed at {iso(last_us)}, {age(age_s(last_us, at_us))} ago"
        text = f"{COINS[coin].name}: no fresh prices, so its risk is not known: {since}"
        again = False

        def due(told: Told | None, gone: Gone | None) -> list[NewAlert]:
            nonlocal again
            if gone is not None and gone.last_us == last_us:
                return []
            if gone is not None and abs(at_us - gone.made_us) < QUIET_US:
                again = True
                return []
            return [NewAlert("no-prices", UNKNOWN, last_us, last_us, {"text": text, "evidence": []})]

        found = self._store.tell(coin, self._config.frame, due)
        if not again:  # else a later look tells of it, if there are none still
            self._gone[coin] = last_us
        return found

    def _alert(self, coin: str, market: RiskMarket, assessment: Assessment, due: Due) -> NewAlert:
        """Return an alert with its evidence, in words."""
        bar = int(np.searchsorted(assessment.closed_us, due.at_us))
        level, evidence = LEVELS[due.level], [str(each) for each in assessment.at(bar).evidence]
        series, price = market.candidate.series, float(market.candles.close[bar])
        since = f"in an episode of {self._config.level} or more since {iso(due.episode_us)}"
        said = {
            "raised": f"risk rose to {level}" if due.episode_us == due.at_us else f"risk is at {level}, {since}",
            "escalated": f"risk rose further, to {level}",
            "all-clear": f"risk is {level}, and was below {self._config.level} for {self._config.cool_down} bars",
        }[due.kind]
        text = (
            f"{COINS[coin].name}: {said}, by bars of {self._config.frame} up to {iso(due.at_us)}, at "
            f"{price:.8g} {series.currency} from {series.source}"
        )
        because = f": {'; '.join(evidence)}" if evidence else ""
        if due.kind == "all-clear":
            because = silent_rules(assessment, bar)
        content = {
            "text": f"{text}{because}",
            "evidence": evidence,
            "price": price,
            "currency": series.currency,
            "source": series.source,
        }
        return NewAlert(due.kind, level, due.episode_us, due.at_us, content)


def _hash_of(market: Market) -> int:
    """Return a number that differs where anything does that levels are made from."""
    candles = market.candles
    bars = (candles.closed_us, candles.open, candles.high, candles.low, candles.close, candles.volume)
    return hash(tuple(None if each is None else each.tobytes() for each in (*bars, market.sentiment, market.other)))
