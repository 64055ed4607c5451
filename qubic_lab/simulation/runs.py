"""Several seeds, their sums, and the fewest faults by which a seed still fails."""

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime

from qubic_lab.bench.noise import MachineNoise
from qubic_lab.chaos.simulated import SimulationResult, Violation
from qubic_lab.lifeline import tied_pool
from qubic_lab.simulation.faults import KINDS
from qubic_lab.simulation.world import Report, World

Progress = Callable[[str, int, int], None]


def summed(reports: Sequence[Report], shrunk: Sequence[Report], noise: MachineNoise) -> SimulationResult:
    """Return the sums of at least one report; of a failed seed the run that was `shrunk`, if there is one."""
    struck = Counter(dict.fromkeys(KINDS, 0))
    sometimes, ended, digests = Counter[str](), Counter[str](), hashlib.sha256()
    for report in reports:
        struck.update(report.struck)
        sometimes.update(report.sometimes)
        ended.update(report.ended)
        digests.update(report.digest.encode())
    virtual_s = sum(report.virtual_s for report in reports)
    failed = shrunk or [report for report in reports if report.violation]
    return SimulationResult(
        first_seed=reports[0].seed,
        seeds=len(reports),
        hours=reports[0].hours,
        virtual_s=virtual_s,
        times_real=virtual_s / max(1e-9, sum(report.cpu_s for report in reports)),
        requests=sum(report.requests for report in reports),
        ended=dict(sorted(ended.items())),
        struck=dict(struck),
        sometimes=dict(sorted(sometimes.items())),
        violations=tuple(Violation(report.seed, report.violation, replay_of(report)) for report in failed),
        digest=digests.hexdigest(),
        measured_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        noise=noise,
    )


def replay_of(report: Report) -> str:
    """Return the command that does the same again."""
    only = ",".join(map(str, report.faults))
    return f"qubic-lab simulate --seed {report.seed} --hours {report.hours:g}" + (f" --only {only}" if only else "")


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
