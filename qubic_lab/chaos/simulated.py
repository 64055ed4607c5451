"""What simulated clusters have shown, in the form that `qubic-lab simulate --json` prints and studies read."""

from collections.abc import Iterator
from dataclasses import dataclass

from qubic_lab.bench.result import MeasuredResult, Table

UNDECIDED = "history not decided"
"""In `sometimes`: histories whose search was given up."""
PROMISES = (
    "each accepted task ends exactly once",
    "an answer equals the undisturbed one: no token twice, none missing, all in order",
    "only a task that ends every node that runs it, or whose last try was lost, has no answer",
    "when faults stop, all requests and tasks end within three minutes",
    "no part of the cluster fails in a way that its code does not expect",
    "every answer of Redis is that of a model: leases never overlap, and only the latest one writes",
    "the history of each task is linearizable, as those who called saw it",
    "no coordinator gives a node more requests than it has slots",
)
_ENDS = {
    "RankError": "without an answer: each of its tries was lost",
    "gone": "its client hung up",
    "unkeyed": "lost with its coordinator, as it had no key",
}


@dataclass(frozen=True)
class Violation:
    """What must never happen and happened, and the command that does the same again."""

    seed: int
    what: str
    replay: str


@dataclass(frozen=True)
class MutantsFound:
    """Defects that were planted, how many of them were found, and the CPU time of all searches in seconds."""

    planted: int
    found: int
    cpu_s: float


@dataclass(frozen=True)
class SimulationResult(MeasuredResult):
    """Runs of several seeds.

    Attributes:
        first_seed: the others follow it.
        seeds: how many.
        hours: virtual hours with requests, of each.
        virtual_s: virtual time in all, with the calm at each end.
        times_real: virtual time by the time of the CPU.
        requests: how many were sent.
        ended: how many of them ended how.
        struck: how often each kind of fault really struck.
        sometimes: how often each way of recovery was really taken.
        violations: seeds that broke a promise.
        digest: SHA-256 of all event logs, in the order of the seeds.
        measured_utc: when they ended.
        mutants: of `tests/mutants.py`; None: nobody looked for them.
    """

    first_seed: int
    seeds: int
    hours: float
    virtual_s: float
    times_real: float
    requests: int
    ended: dict[str, int]
    struck: dict[str, int]
    sometimes: dict[str, int]
    violations: tuple[Violation, ...]
    digest: str
    measured_utc: str
    mutants: MutantsFound | None = None

    @property
    def undecided(self) -> int:
        """Number of histories of which nobody knows whether they are linearizable."""
        return self.sometimes.get(UNDECIDED, 0)

    def report(self) -> Iterator[Table | str]:
        yield (
            f"{self.seeds:,} seed{'s' * (self.seeds != 1)}, {self.virtual_s / 3_600:.2f} virtual hours, "
            f"{self.requests:,} requests, {self.times_real:.0f} × real time on one core\n\nPromised:"
        )
        yield "".join(f"- {promise}\n" for promise in PROMISES)
        for header, counts in (
            (("fault", "struck"), self.struck),
            (("happened", "times"), self.sometimes),
            (("request", "number"), {_ENDS.get(how, how): number for how, number in self.ended.items()}),
        ):
            yield Table(header, [(what, f"{count:,}") for what, count in counts.items()])
        if self.undecided:
            yield f"Histories that were not decided, as their search was given up: {self.undecided:,}"
        yield "Violations:" if self.violations else "Violations: none"
        for each in self.violations:
            yield f"- seed {each.seed}, {each.what}\n  replay: {each.replay}"
