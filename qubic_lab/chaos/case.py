"""What a case of chaos is: a cluster, a fault that strikes it, and its end."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

from qubic_lab.chaos.clients import Answered, Question
from qubic_lab.chaos.stage import NODES, Stage, echo_question

KILLED_S, SILENT_S = 10.0, 45.0
"""A cluster has recovered within this time: from what ends, and from what is silent."""


class ChaosCase:
    """One kind of fault; a subclass says what `strike` does, and `mend` after `lasts_s`.

    Attributes:
        name: as `--case` takes it.
        does: what happens, in a few words.
        limit_s: the most time to recover.
        lasts_s: from the strike to its end.
        coordinators: how many run.
        restarts: whether members that end are started again, as by a supervisor.
    """

    name: ClassVar[str]
    does: ClassVar[str]
    limit_s: ClassVar[float] = KILLED_S
    lasts_s: ClassVar[float] = 5.0
    coordinators: ClassVar[int] = 1
    restarts: ClassVar[bool] = False

    def missing(self) -> str:
        """Return why it cannot be played on this machine; empty: it can."""
        return ""

    def prepare(self, folder: Path, stack: ExitStack) -> Mapping[str, str]:
        """Prepare the empty folder of the cluster; return the settings of its processes."""
        return {}

    def start(self, stage: Stage) -> None:
        """Start the nodes."""
        stage.start_echo(*NODES)

    def questions(self, stage: Stage, due_s: Sequence[float], struck_s: float) -> list[Question]:
        """Return the requests, which are due at these times."""
        return [echo_question(number, at_s) for number, at_s in enumerate(due_s)]

    def begin(self, stage: Stage, struck_s: float) -> None:
        """Do what must be done when the first request is sent."""

    def strike(self, stage: Stage) -> None:
        """Do the fault."""
        raise NotImplementedError

    def mend(self, stage: Stage) -> None:
        """End the fault, where it does not end by itself."""

    def culprits(self, stage: Stage) -> list[Callable[[], Answered]]:
        """Return what further clients do, who are the fault themselves, from the strike on."""
        return []
