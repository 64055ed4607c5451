"""A user's own signals, as MODULE:FUNCTION: audited first, in a process of their own, then tried as all others are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from qubic_lab.errors import InputError
from qubic_lab.oracle.backtest.evaluate import Strategy, signal_frame
from qubic_lab.oracle.backtest.lookahead import LookaheadReport, check_by_name, load_function
from qubic_lab.oracle.inference.alignment import AvailableText, assumption
from qubic_lab.studies.market_bars import StudyBars

OWN_SIGNALS = "own signals"


@dataclass(frozen=True)
class OwnSignal:
    """A signal and the report of its audit on the bars that it is tried on."""

    strategy: Strategy
    report: LookaheadReport


def audit_signal(target: str, bars: StudyBars, texts: Sequence[AvailableText] = (), **options: Any) -> LookaheadReport:
    """Return whether a signal looks ahead on some bars; `options` are those of `check_by_name`, errors as there."""
    report = check_by_name(target, signal_frame(bars.bars, texts), **options)
    told = [f"{note}; if they were known later, this looks ahead" for note in bars.notes if note.endswith("(assumed)")]
    return replace(report, notes=(*report.notes, *told, *assumption(texts)))


def own_signals(
    targets: Sequence[str], bars: StudyBars, texts: Sequence[AvailableText] = (), **options: Any
) -> tuple[OwnSignal, ...]:
    """Return signals that have passed their audit; only then their code is loaded into this process.

    Raises:
        InputError: a signal that cannot be found, that looks ahead, or that cannot be trusted.
    """
    reports = {target: audit_signal(target, bars, texts, **options) for target in dict.fromkeys(targets)}
    for target, report in reports.items():
        if not report.passed:
            raise InputError(f"signal {target} is refused: {report}")
    return tuple(OwnSignal(load_strategy(target), report) for target, report in reports.items())


def load_strategy(target: str) -> Strategy:
    """Return a signal by its name as a strategy; errors as of `load_function`."""
    return Strategy(load_function(target))
