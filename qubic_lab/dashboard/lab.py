"""What the dashboard reads and does, at a coordinator; without one, the oracle of this machine's database."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from qubic_lab.api.client import CoordinatorClient
from qubic_lab.core import ChatMessage
from qubic_lab.dashboard.cluster_view import http_counts, node_tokens
from qubic_lab.dashboard.traces import Traces
from qubic_lab.dashboard.watch import Watch
from qubic_lab.database import open_database
from qubic_lab.errors import NotFoundError, QubicLabError, RefusedError, UnreachableError
from qubic_lab.oracle.alerts.store import AlertStore, RiskAlerts
from qubic_lab.oracle.model.response import to_plain
from qubic_lab.oracle.model.timestamps import read_iso
from qubic_lab.oracle.risk.report import read_risk
from qubic_lab.oracle.serving import overview, prices
from qubic_lab.oracle.store.snapshot import MarketStore, reading

METRICS = "/api/cluster/metrics"
NODES = "/api/cluster/nodes"
ORACLE = "/api/oracle/"
ANSWER_S = 20.0
"""A coordinator that takes longer to answer a look counts as lost."""
MOST_FOLLOWED, MOST_EVENTS = 4, 500
Event = tuple[str, dict[str, Any]]


@dataclass
class Followed:
    """A vote that is being held: its question and its events so far."""

    question: str
    events: list[Event] = field(default_factory=list)


class Lab:
    """A coordinator at `url`, and what is done there; `read_only`: nothing. Used by all pages, from any thread.

    Raises:
        InputError: see `CoordinatorClient`.
    """

    def __init__(self, url: str | None = None, token: str | None = None, read_only: bool = False) -> None:
        self._looking = CoordinatorClient(url, token, answer_s=ANSWER_S)
        self._asking = CoordinatorClient(url, token)
        self.url, self.read_only = self._looking.url, read_only
        self.oracle_is_local = False
        self.traces = Traces()
        self._store: MarketStore | None = None
        self.followed: dict[str, Followed] = {}
        self._lock = threading.Lock()

    def watch(self, pace: float = 1.0) -> Watch:
        """Return a watch of this lab, which is not started yet."""
        return Watch(self.read, {METRICS: lambda counts: counts, NODES: node_tokens}, pace)

    def read(self, path: str) -> Any:
        """Return the answer of a path of the interface.

        Raises:
            QubicLabError: there is none.
        """
        if path == METRICS:
            return http_counts(self._looking.text("GET", path))
        if not path.startswith(ORACLE):
            return self._looking.call("GET", path)
        try:
            answer = self._looking.call("GET", path)
        except UnreachableError:
            answer = self._read_store(path)
            self.oracle_is_local = True
        else:
            self.oracle_is_local = False
        return answer

    def drain(self, node: str, draining: bool) -> None:
        """Let a node finish its requests and get no new ones, or let it get requests again.

        Raises:
            RefusedError: the dashboard only reads, or the token may not do this.
            QubicLabError: the coordinator does not do it.
        """
        self._check_may_act()
        self._looking.call("POST" if draining else "DELETE", f"{NODES}/{quote(node, safe='')}/drain")

    def ask(self, question: str, most_tokens: int, temperature: float, parent: str) -> Iterator[dict[str, Any]]:
        """Yield the chunks of an answer as they come, the last one with its trace; closing it ends the answer.

        Raises:
            RefusedError: the dashboard only reads.
            QubicLabError: there is no answer.
        """
        self._check_may_act()
        said = [ChatMessage("user", question)]
        return self._asking.chat(
            said, trace=True, parent=parent, max_completion_tokens=most_tokens, temperature=temperature
        )

    def vote(self, question: str, most_tokens: int, temperature: float) -> dict[str, Any]:
        """Return the trail of a vote on a question; a temperature of 0 would let a model only repeat itself.

        Raises:
            RefusedError: the dashboard only reads.
            QubicLabError: no vote could be held.
        """
        self._check_may_act()
        held = self._asking.vote(question, mode="consensus", max_new_tokens=most_tokens, temperature=temperature or 0.7)
        return held.trail or {}

    def follow(self, running: list[dict[str, Any]]) -> dict[str, Followed]:
        """Return the votes that are being held with their events so far, of at most four."""
        with self._lock:
            ids = {each["id"] for each in running}
            for id in self.followed.keys() - ids:
                del self.followed[id]
            for each in running[:MOST_FOLLOWED]:
                if each["id"] not in self.followed:
                    self.followed[each["id"]] = Followed(each["question"])
                    threading.Thread(target=self._follow, args=(each["id"],), daemon=True).start()
            return dict(self.followed)

    def _follow(self, id: str) -> None:
        try:
            for event in self._asking.follow_vote(id):
                followed = self.followed.get(id)
                if followed is None:
                    return
                followed.events = [*followed.events, event][-MOST_EVENTS:]
        except QubicLabError:  # it has ended, or the coordinator has; the next look says so
            return

    def _check_may_act(self) -> None:
        if self.read_only:
            raise RefusedError("this dashboard only reads: start it without --read-only to ask and to change")

    def _read_store(self, path: str) -> Any:
        """Return what the oracle of this machine's database says."""
        split = urlsplit(path)
        about, asked = split.path.removeprefix(ORACLE), dict(parse_qsl(split.query))
        if self._store is None:
            self._store = MarketStore(open_database())
        as_of_us = read_iso(asked["as_of"]) if "as_of" in asked else None
        snapshot = self._store.snapshot(as_of_us, asked.get("assumed") == "true")
        coin, frame = asked.get("coin", ""), asked.get("frame", "1h")
        match about:
            case "market_overview":
                return to_plain(overview.market_overview(snapshot))
            case "price_analysis":
                return to_plain(prices.price_analysis(snapshot, coin, frame))  # type: ignore[arg-type]
            case "risk":
                return to_plain(read_risk(snapshot, coin, frame))  # type: ignore[arg-type]
            case "sentiment":
                return to_plain(overview.sentiment(snapshot, coin, asked.get("window", "24h")))  # type: ignore[arg-type]
            case "texts":
                return to_plain(overview.text_history(snapshot, coin, limit=int(asked["limit"])))
            case "alerts":
                with reading():
                    alerts = AlertStore(snapshot.store.engine).last(int(asked["limit"]), None, None)
                return to_plain(RiskAlerts(as_of_us=snapshot.at_us, alerts=tuple(alerts)))
        raise NotFoundError(f"{path} needs a coordinator: start one with qubic-lab cluster up")
