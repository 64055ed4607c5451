"""What a check found: the thing that it looked at, its value, a verdict, and the command that mends it. Pure."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from qubic_lab.core import attributes

Verdict = Literal["ok", "warn", "fail", "skip"]
"""`skip`: not applicable here, or not measured; the reason says which."""


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    `remedy` is one command line. `fix` does the same in this process, where that is safe, and returns what it did;
    its remedy is `qubic-lab doctor --fix`. `check` is the name of the check.
    """

    looked_at: str
    value: str
    verdict: Verdict = "ok"
    reason: str = ""
    remedy: str = ""
    fix: Callable[[], str] | None = field(default=None, repr=False, compare=False)
    check: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        told = attributes(self, "check", "looked_at", "value", "verdict", "reason", "remedy")
        return told | {"can_fix": self.fix is not None}


def skip(looked_at: str, reason: str, remedy: str = "") -> Finding:
    """Return the finding of a check that does not apply, or was not measured."""
    return Finding(looked_at, "", "skip", reason, remedy)


def as_root(command: str) -> str:
    """Return a command that needs an administrator, with sudo where this process is none."""
    return command if os.geteuid() == 0 else f"sudo {command}"
