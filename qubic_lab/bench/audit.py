"""Audits the look-ahead check itself on the corpus of `data/leaks`: planted leaks found, clean signals accused.

The corpus has two permanent parts. The check is mended on `development`; `held-out` says what it is worth.
"""

import hashlib
import importlib.util
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from qubic_lab.bench.backtest import run_parts
from qubic_lab.bench.result import MeasuredResult, Rate, Table
from qubic_lab.core import Progress, no_progress
from qubic_lab.errors import InputError, check_choice, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

    from qubic_lab.oracle.backtest.lookahead_runs import Signal

Part = Literal["development", "held-out"]
PARTS: tuple[Part, ...] = ("development", "held-out")
LEAST_FOUND, MOST_ACCUSED = 0.98, 0.02
_CHECKOUT = Path(__file__).parents[2] / "data" / "leaks"
FOLDER = _CHECKOUT if _CHECKOUT.is_dir() else Path(__file__).parent / "leaks"  # the latter in the installed package
_SPLIT = "leaks 1"
"""Seed of the split: a signal's part depends on this and its name alone, so that new ones move no others."""


@dataclass(frozen=True)
class LeakCase:
    """A signal of the corpus: its file without `.py`, its kind, and whether it looks ahead."""

    name: str
    kind: str
    file: str
    leaks: bool
    part: Part


@dataclass(frozen=True)
class AuditedCase:
    """What the check said about one signal, and its seconds of processor time.

    `right` means a leak that was called one, or a clean signal without any finding.
    """

    case: LeakCase
    right: bool
    text: str
    cuts: int
    seconds: float


@dataclass(frozen=True)
class AuditRates:
    """Shares of planted leaks that were found and of clean signals that were accused; None: there were none.

    The times are processor time of an audit.
    """

    part: str
    found: Rate | None
    accused: Rate | None
    median_s: float
    longest_s: float

    @classmethod
    def of(cls, part: str, audited: Sequence[AuditedCase]) -> "AuditRates":
        times = [each.seconds for each in audited]
        return cls(part, _rate(audited, True), _rate(audited, False), median(times), max(times))

    def cells(self) -> tuple[str, ...]:
        rates = [("-", "-") if each is None else (_count(each), each.text()) for each in (self.found, self.accused)]
        return (self.part, *rates[0], *rates[1], f"{self.median_s:.2f} s", f"{self.longest_s:.2f} s")


@dataclass(frozen=True)
class KindRates:
    """Leaks of one kind that were found, or clean signals of one kind that were accused; None: a part has none."""

    kind: str
    leaks: bool
    development: Rate | None
    held_out: Rate | None
    all: Rate

    def cells(self) -> tuple[str, ...]:
        parts = ("-" if each is None else _count(each) for each in (self.development, self.held_out))
        return (self.kind, "found" if self.leaks else "accused", *parts, self.all.text())


def _rate(audited: Sequence[AuditedCase], leaks: bool) -> Rate | None:
    """Return the share of the leaks that were found, or of the clean signals that were accused."""
    counted = [each.right == leaks for each in audited if each.case.leaks == leaks]
    return Rate.of(sum(counted), len(counted)) if counted else None


def _count(rate: Rate) -> str:
    return f"{rate.count} of {rate.runs}"


@dataclass(frozen=True)
class AuditResult(MeasuredResult):
    """Rates of each part, of all, and of each kind in each part, with 95 % intervals (Wilson); and every case."""

    parts: tuple[AuditRates, ...]
    kinds: tuple[KindRates, ...]
    cases: tuple[AuditedCase, ...]
    within_limits: bool
    seed: int
    seconds: float

    def report(self) -> Iterator[Table | str]:
        interval = "(95 % interval)"
        header = ("leaks found", interval, "clean accused", interval, "median CPU time", "longest")
        yield Table(("part", *header), [each.cells() for each in self.parts])
        yield Table(("kind", "counted", *PARTS, f"all {interval}"), [each.cells() for each in self.kinds])
        for each in self.cases:
            if not each.right:
                what = "MISSED" if each.case.leaks else "FALSELY ACCUSED"
                yield f"{what} ({each.case.part}, {each.case.kind}): {each.text}"
        verdict = "met" if self.within_limits else "MISSED"
        yield f"Limits (at least 98 % found, at most 2 % accused): {verdict}."


def corpus() -> tuple[LeakCase, ...]:
    """Return all signals of the corpus, file by file.

    Those of the files `…_first.py`, with which the check was written, are all in the development part.

    Raises:
        InputError: a name occurs twice.
    """
    cases: dict[str, LeakCase] = {}
    for path in sorted(FOLDER.glob("*_*.py")):
        for kind, signals in load_module(path.stem).KINDS.items():
            for name in signals:
                if name in cases:
                    raise InputError(f"signal {name!r} occurs twice in the corpus: give each its own name")
                first = path.stem.endswith("_first")
                part = PARTS[0 if first else hashlib.sha256(f"{_SPLIT} {name}".encode()).digest()[0] % 2]
                cases[name] = LeakCase(name, kind, path.stem, path.stem.startswith("leaks_"), part)
    return tuple(cases.values())


def load_module(name: str) -> ModuleType:
    """Run a file of the corpus anew, so that what its signals kept is gone."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_case(case: LeakCase, seed: int = 0) -> "tuple[Signal, pd.DataFrame]":
    """Return a signal that has kept nothing, and the frame on which it is audited."""
    module = load_module(case.file)
    frame: pd.DataFrame = getattr(load_module("frames"), getattr(module, "FRAME", "bars"))(seed=seed)
    signal: Signal = module.KINDS[case.kind][case.name]
    return signal, frame


def audit_case(case: LeakCase, seed: int = 0, cuts: int | None = None) -> AuditedCase:
    """Audit one signal; `seed` is that of the bars, and of cuts and changed futures; `cuts` None: the default."""
    from qubic_lab.oracle.backtest.lookahead import CUTS, check_lookahead

    signal, frame = load_case(case, seed)
    before_s = _used_s()
    report = check_lookahead(signal, frame, cuts or CUTS, seed)
    seconds = _used_s() - before_s
    right = report.leaks if case.leaks else report.passed
    text = str(report).replace(report.name, case.name, 1)
    return AuditedCase(case, right, text, len(report.cuts), seconds)


def _used_s() -> float:
    """Return the processor time of this process and of those that it waited for."""
    return sum(os.times()[:4])


def bench_audit(
    part: str = "all",
    only: Sequence[str] = (),
    seed: int = 0,
    cuts: int | None = None,
    progress: Progress = no_progress,
) -> AuditResult:
    """Audit the signals of one part or all of the corpus, or only those that are named.

    Raises:
        InputError: an unknown part or name.
    """
    check_choice("--part", part, ("all", *PARTS))
    started, cases = time.perf_counter(), corpus()
    known = {each.name: each for each in cases}
    for name in only:
        if name not in known:
            raise InputError(f"the corpus has no signal {name!r}: {did_you_mean(name, known)}")
    cases = tuple(each for each in cases if part in ("all", each.part) and (not only or each.name in only))
    if not cases:
        raise InputError(f"the {part} part has none of {', '.join(only)}: leave --part out")
    run = partial(_audit_number, cases, seed, cuts)
    audited: list[AuditedCase] = run_parts({"audits": (run, len(cases))}, progress)["audits"]
    return sum_up_audits(audited, seed, time.perf_counter() - started)


def _audit_number(cases: Sequence[LeakCase], seed: int, cuts: int | None, number: int) -> AuditedCase:
    return audit_case(cases[number], seed, cuts)


def sum_up_audits(audited: Sequence[AuditedCase], seed: int, seconds: float) -> AuditResult:
    """Summarize audits; the limits apply to all of them together."""
    split: dict[str, list[AuditedCase]] = {part: [each for each in audited if each.case.part == part] for part in PARTS}
    parts = [AuditRates.of(part, chosen) for part, chosen in split.items() if chosen]
    rows = []
    for leaks, kind in sorted({(each.case.leaks, each.case.kind) for each in audited}, reverse=True):
        of_kind = {
            part: [each for each in chosen if (each.case.leaks, each.case.kind) == (leaks, kind)]
            for part, chosen in (split | {"all": [*audited]}).items()
        }
        rates = {part: _rate(chosen, leaks) for part, chosen in of_kind.items()}
        assert rates["all"] is not None
        rows.append(KindRates(kind, leaks, rates["development"], rates["held-out"], rates["all"]))
    whole = AuditRates.of("all", audited)
    return AuditResult(
        parts=(*parts, whole) if len(parts) > 1 else tuple(parts),
        kinds=tuple(rows),
        cases=tuple(audited),
        within_limits=(whole.found is None or whole.found.value >= LEAST_FOUND)
        and (whole.accused is None or whole.accused.value <= MOST_ACCUSED),
        seed=seed,
        seconds=seconds,
    )
