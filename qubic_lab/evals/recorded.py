"""Recorded answers, which are asked for once and judged often: a frozen table, and its file of JSON lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from qubic_lab.checked_yaml import STRICT, check_content
from qubic_lab.errors import InputError
from qubic_lab.evals.questions import read_objects


@dataclass(frozen=True)
class RecordedSample:
    """One answer and what is known about it.

    `tokens` counts generated tokens. `group` numbers the answers of a question that say the same; None: no final answer
    and so no vote. `right` is None if no rule can decide. A `cut` answer reached the token limit; without a conclusion
    it is wrong and has no vote. `weight` is its weight in a weighted vote. `signals` are named numbers, larger is
    better, such as the mean log probability.
    """

    __pydantic_config__ = STRICT
    text: str
    tokens: int
    group: int | None = None
    right: bool | None = None
    cut: bool = False
    weight: float = 1.0
    signals: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class RecordedQuestion:
    """A question with its greedy answer and at least one sample, all judged or none.

    `longer` holds greedy answers with k times the token limit, by increasing k.
    """

    __pydantic_config__ = STRICT
    id: str
    kind: str
    question: str
    reference: str
    greedy: RecordedSample
    samples: tuple[RecordedSample, ...]
    longer: tuple[tuple[int, RecordedSample], ...] = ()

    @property
    def is_judged(self) -> bool:
        """Whether its answers are known to be right or wrong."""
        return self.greedy.right is not None


def halves(
    rows: Sequence[RecordedQuestion], seed: int = 0
) -> tuple[tuple[RecordedQuestion, ...], tuple[RecordedQuestion, ...]]:
    """Return a development half, for choices, and a held-out half, for judging them.

    Each question type is split evenly by a seed, in the given order; of an odd number the held-out half gets one more.
    """
    chosen: set[str] = set()
    for kind in sorted({row.kind for row in rows}):
        ids = sorted(row.id for row in rows if row.kind == kind)
        chosen.update(Random(f"{seed} {kind}").sample(ids, len(ids) // 2))
    return tuple(row for row in rows if row.id in chosen), tuple(row for row in rows if row.id not in chosen)


def read_recorded(file: Path) -> tuple[RecordedQuestion, ...]:
    """Read a table: one question per line, as `recording.record_answers` writes it.

    Raises:
        InputError: the file cannot be read, is empty, or has a repeated id or an invalid row; names the row.
    """
    content = [fields for _, fields in read_objects(file, "recorded answers")]
    rows = check_content(tuple[RecordedQuestion, ...], content, file)
    if len({row.id for row in rows}) < len(rows):
        raise InputError(f"recorded answers file {file} has a question twice: ids must differ")
    return rows
