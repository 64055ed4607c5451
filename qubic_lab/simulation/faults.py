"""Which faults strike when: plain values from a seed; the world does them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

KINDS = {
    "coordinator killed": 3,
    "coordinator stopped": 1,
    "coordinator paused": 2,
    "node killed": 4,
    "node stopped": 1,
    "node paused": 2,
    "node slow": 2,
    "rank lost": 2,
    "Redis killed": 2,
    "Redis paused": 2,
    "Redis's disk full": 1,
    "Redis's memory full": 1,
    "hosts cut off": 3,
    "hosts cut off one way": 3,
    "link slow": 2,
    "link lossy": 2,
    "clock set": 3,
    "certificate expired": 2,
    "poison task": 2,
    "client vanished": 4,
    "request sent twice": 4,
}
"""Kinds of faults, and how often they strike relative to each other."""
_MEAN_S, _LONGEST_S = (1.0, 6.0, 25.0), 90.0
"""Faults are short, or as long as time limits, or longer than all of them."""
_SETTLE_S = 5.0
"""Before the first fault all parts have come up."""


@dataclass(frozen=True)
class Fault:
    """A fault of a run.

    Attributes:
        number: its place in the run's plan, by which it is kept or left out.
        kind: one of `KINDS`.
        at_s: when it strikes.
        lasts_s: how long; at the end the part is started again, the link healed and so on.
        target: the part or host, where its kind does not say it.
        other: of a cut link the other host; empty: all others.
        size: a number from 0 to 1: how slow, how lossy, how far a clock is set.
    """

    number: int
    kind: str
    at_s: float
    lasts_s: float
    target: str
    other: str
    size: float

    def __str__(self) -> str:
        """Return it as one line."""
        where = f" {self.target}" if self.target else ""
        where += f" from {self.other or 'all'}" if "cut" in self.kind or "link" in self.kind else ""
        return f"#{self.number} {self.kind}{where} at {self.at_s:.1f} s for {self.lasts_s:.1f} s"


def plan_faults(seed: int, seconds: float, coordinators: Sequence[str], nodes: Sequence[str]) -> list[Fault]:
    """Return the faults of a run, by time; the seed also decides how dense they are."""
    draw = random.Random(f"{seed} faults")
    every_s = draw.choice((4.0, 8.0, 15.0, 30.0))
    hosts = [*coordinators, *nodes, "redis", "clients"]
    faults: list[Fault] = []
    at_s = _SETTLE_S
    while (at_s := at_s + draw.expovariate(1 / every_s)) < seconds:
        kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
        lasts_s = min(draw.expovariate(1 / draw.choice(_MEAN_S)), _LONGEST_S)
        if kind.startswith("coordinator"):
            target, other = draw.choice(coordinators), ""
        elif kind.startswith(("node", "rank")):
            target, other = draw.choice(nodes), ""
        elif kind.startswith(("hosts", "link")):
            target, other = draw.sample(hosts, 2)
            other = other if draw.random() < 0.6 else ""
        elif kind.startswith(("clock", "certificate")):
            target, other = draw.choice(hosts[:-1]), ""
        else:
            target = other = ""
        times = round(at_s, 3), round(lasts_s, 3)
        faults.append(Fault(len(faults), kind, *times, target, other, round(draw.random(), 3)))
    return faults
