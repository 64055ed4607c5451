"""Several seeds, their sums, and the fewest faults by which a seed still fails."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from qubic_lab.lifeline import tied_pool
from qubic_lab.simulation.faults import KINDS
from qubic_lab.simulation.world import Report, World

Progress = Callable[[str, int, int], None]
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


@dataclass(frozen=True)
class Summary:
    """Runs of several seeds.

    Attributes:
        reports: one for each seed.
        struck: how often each kind of fault really struck, over all seeds.
        sometimes: how often each way of recovery was really taken.
        ended: how many requests ended how.
    """

    reports: tuple[Report, ...]
    struck: dict[str, int]
    sometimes: dict[str, int]
    ended: dict[str, int]

    @classmethod
    def of(cls, reports: Sequence[Report]) -> "Summary":
        """Sum up reports."""
        struck = Counter(dict.fromkeys(KINDS, 0))
        sometimes, ended = Counter[str](), Counter[str]()
        for report in reports:
            struck.update(report.struck)
            sometimes.update(report.sometimes)
            ended.update(report.ended)
        return cls(tuple(reports), dict(struck), dict(sorted(sometimes.items())), dict(sorted(ended.items())))

    @property
    def requests(self) -> int:
        """Number of requests."""
        return sum(report.requests for report in self.reports)

    @property
    def failed(self) -> list[Report]:
        """The seeds with a violation."""
        return [report for report in self.reports if report.violation]

    @property
    def virtual_s(self) -> float:
        """Virtual time in all."""
        return sum(report.virtual_s for report in self.reports)

    @property
    def times_real(self) -> float:
        """Virtual time by the time of the CPU."""
        return self.virtual_s / max(1e-9, sum(report.cpu_s for report in self.reports))


def run_seed(seed: int, hours: float, kept: Iterable[int] | None = None) -> Report:
    """Run one seed, with all faults of its plan or those `kept`."""
    return World(seed, hours, None if kept is None else frozenset(kept)).run()


def run_seeds(seeds: Sequence[int], hours: float, jobs: int) -> Iterator[Report]:
    """Run seeds in `jobs` processes; yield their reports in the order of the seeds."""
    with tied_pool(min(jobs, len(seeds))) as pool:
        running = deque(pool.submit(run_seed, seed, hours) for seed in seeds)
        while running:
            yield running.popleft().result()


def fewest(numbers: Sequence[int], fails: Callable[[Sequence[int]], bool]) -> list[int]:
    """Return a part of `numbers` with which it still `fails`, while it does not without any one of them.

    Source: A. Zeller and R. Hildebrandt, "Simplifying and isolating failure-inducing input", IEEE Transactions on
    Software Engineering 28 (2002), 183-200: the algorithm ddmin.
    """
    left, parts = list(numbers), 2
    if fails([]):
        return []
    while len(left) > 1:
        size = -(-len(left) // parts)
        pieces = [left[place : place + size] for place in range(0, len(left), size)]
        rests = [[each for each in left if each not in piece] for piece in pieces]
        smaller = next((piece for piece in pieces if fails(piece)), None)
        if smaller is not None:
            left, parts = smaller, 2
        elif (rest := next((rest for rest in rests if rest and fails(rest)), None)) is not None:
            left, parts = rest, max(2, parts - 1)
        elif parts >= len(left):
            break
        else:
            parts = min(len(left), 2 * parts)
    return left


def shrink(report: Report, progress: Progress) -> Report:
    """Return the run of a failed seed with the fewest faults by which it still fails."""
    shown: dict[tuple[int, ...], Report] = {}

    def fails(numbers: Sequence[int]) -> bool:
        key = tuple(numbers)
        if key not in shown:
            shown[key] = run_seed(report.seed, report.hours, key)
            progress(f"shrinking seed {report.seed}, now {len(numbers)} faults", len(shown), 0)
        return bool(shown[key].violation)

    kept = tuple(fewest(report.faults, fails))
    return shown.get(kept) or report
