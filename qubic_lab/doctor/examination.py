"""Runs the checks, all at once, and mends what can be mended safely."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from qubic_lab.core import Progress
from qubic_lab.doctor import files, machine, redis_checks, services
from qubic_lab.doctor.finding import Finding, skip
from qubic_lab.doctor.subject import Subject
from qubic_lab.errors import QubicLabError, check_choice

LIMIT_S = 9.0
"""Time for all checks; what has not ended by then counts as not measured."""

CHECKS: dict[str, Callable[[Subject], Iterator[Finding]]] = {
    "driver": machine.driver,
    "cuda": machine.cuda,
    "torch": machine.torch,
    "packages": machine.packages,
    "memory": machine.memory,
    "disk": machine.disk,
    "compiler": machine.compile_kernels,
    "cores": machine.cores,
    "clock": services.clock,
    "dns": services.names,
    "ports": services.ports,
    "units": services.units,
    "network": services.links,
    "redis": redis_checks.redis_server,
    "database": services.databases,
    "certificates": files.certificates,
    "model": files.model,
}


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of checks, all of them if none is given, in their order.

    Raises:
        InputError: a name is unknown; the message has the closest one.
    """
    given = {check_choice("check", name, CHECKS) for name in names}
    return tuple(name for name in CHECKS if not given or name in given)


def examine(subject: Subject, names: Sequence[str], progress: Progress = lambda *_: None) -> list[Finding]:
    """Run checks at once, for LIMIT_S at most, and return what they found, in their order."""
    found: dict[str, list[Finding]] = {name: [] for name in names}
    threads = {name: threading.Thread(target=_run, args=(subject, name, found[name]), daemon=True) for name in names}
    deadline = time.monotonic() + LIMIT_S
    for thread in threads.values():
        thread.start()
    while (left := [name for name in names if threads[name].is_alive()]) and time.monotonic() < deadline:
        progress(f"waiting for {', '.join(left[:3])}", len(names) - len(left), len(names))
        threads[left[0]].join(0.05)
    for name in left:
        found[name].append(replace(skip(name, f"not measured within {LIMIT_S:g} s"), check=name))
    return [finding for name in names for finding in list(found[name])]


def _run(subject: Subject, name: str, found: list[Finding]) -> None:
    try:
        for finding in CHECKS[name](subject):
            remedy = finding.remedy or (subject.command(name) if finding.fix else "")
            found.append(replace(finding, check=name, remedy=remedy))
    except Exception as error:  # one check that fails must not hide the others
        reason = str(error) if isinstance(error, QubicLabError) else repr(error)
        remedy = f"qubic-lab --verbose doctor --only {name}"
        found.append(Finding(name, "this check failed", "fail", reason, remedy, check=name))


def mend(findings: Sequence[Finding], tell: Callable[[str], None]) -> set[str]:
    """Mend what has a safe fix, telling what was done; return the names of checks to repeat."""
    again = set()
    for finding in findings:
        if finding.fix is None or finding.verdict == "ok":
            continue
        again.add(finding.check)
        try:
            tell(f"mended {finding.check}: {finding.fix()}")
        except (QubicLabError, OSError) as error:
            tell(f"not mended, {finding.check}: {error}")
    return again
