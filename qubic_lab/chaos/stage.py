"""What a case plays on: a cluster with nodes, whose members can be killed, stopped and started again."""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from qubic_lab.bench.echo_node import echo_text, echo_tokens
from qubic_lab.bench.local_cluster import LocalCluster
from qubic_lab.chaos.clients import Clock, Question
from qubic_lab.errors import QubicLabError

NODES = ("node-1", "node-2", "node-3")
TOKENS, TOKEN_S = 20, 0.05
"""Of an answer of an echo node."""
RESTART_S = 1.0
"""A member that ended is started again after this time, as by a supervisor, if the case says so."""


@dataclass
class Stage:
    """A running cluster, what ends with it, and the clock of the run, which begins with the first request."""

    cluster: LocalCluster
    stack: ExitStack
    folder: Path
    clock: Clock
    requests: int
    _ended_s: dict[str, float] = field(default_factory=dict)

    def start_echo(self, *names: str, **options: object) -> None:
        """Start an echo node for each name, in a process of its own, and wait until it may be chosen."""
        for name in names:
            self.cluster.start_echo(name, token_s=TOKEN_S, slots=self.requests, **options)  # type: ignore[arg-type]
        self.cluster.wait_for_nodes(*names)

    def busiest(self, names: Sequence[str] = NODES) -> str:
        """Return the node with the most requests.

        Raises:
            QubicLabError: no coordinator answers.
        """
        work = self.work()
        if not work:
            raise QubicLabError("no coordinator says which node is the busiest: see whether the machine is overloaded")
        return max(names, key=lambda name: work.get(name, -1))

    def work(self) -> dict[str, int]:
        """Return how many requests each node has now."""
        return {node["name"]: node["outstanding"]["requests"] for node in self.cluster.nodes()}

    def send_to_redis(self, number: signal.Signals) -> None:
        """Send a signal to the Redis server."""
        pid = self.cluster.redis.pid
        assert pid is not None, "it is not ended by us"
        os.kill(pid, number)

    def restart_ended(self) -> None:
        """Start the members again that have ended a while ago."""
        for name in self.cluster.ended():
            if time.monotonic() - self._ended_s.setdefault(name, time.monotonic()) > RESTART_S:
                del self._ended_s[name]
                self.cluster.start_again(name)


def echo_question(number: int, due_s: float, tokens: int = TOKENS, what: str = "") -> Question:
    """Return a question to echo nodes; no two have a token in common."""
    answer = tuple(echo_tokens(number * TOKENS, tokens))
    body = {"prompt": f"request {number} {what}", "max_new_tokens": tokens, "seed": number * TOKENS}
    return Question(number, due_s, body, (answer, echo_text(answer)))
