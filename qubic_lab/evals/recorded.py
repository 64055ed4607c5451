"""Recorded answers, which are asked for once and judged often: a frozen table, and its file of JSON lines."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from qubic_lab.checked_yaml import STRICT, check_content
from qubic_lab.errors import InputError
from qubic_lab.evals.json_lines import read_objects
from qubic_lab.evals.questions import Question
from qubic_lab.evals.scoring import is_checkable, is_right


@dataclass(frozen=True)
class RecordedSample:
    """One answer and what is known about it.

    `tokens` counts generated tokens. `group` numbers the answers of a question that say the same; None: no final answer
    and so no vote. `right` is None if no rule can decide. A `cut` answer reached the token limit. `weight` is its
    weight in a weighted vote. `signals` are named numbers, larger is better, such as the mean log probability.

    Raises:
        InputError: tokens or weight are negative, or a number is not finite.
    """

    __pydantic_config__ = STRICT
    text: str
    tokens: int
    group: int | None = None
    right: bool | None = None
    cut: bool = False
    weight: float = 1.0
    signals: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.tokens < 0:
            raise InputError(f"an answer has {self.tokens} tokens: there must be 0 or more")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise InputError(f"an answer's weight is {self.weight}: it must be 0 or more")
        for name, value in self.signals:
            if not math.isfinite(value):
                raise InputError(f"an answer's signal {name!r} is {value}: it must be a finite number")


@dataclass(frozen=True)
class RecordedQuestion:
    """A question with its greedy answer and its samples.

    `longer` holds greedy answers with k times the token limit, by k.

    Raises:
        InputError: there are no samples, the factors are not increasing, or only some answers are judged.
    """

    __pydantic_config__ = STRICT
    id: str
    kind: str
    question: str
    reference: str
    greedy: RecordedSample
    samples: tuple[RecordedSample, ...]
    longer: tuple[tuple[int, RecordedSample], ...] = ()

    def __post_init__(self) -> None:
        if not self.samples:
            raise InputError(f"question {self.id!r} has no samples: record at least one")
        factors = [factor for factor, _ in self.longer]
        if factors != sorted(set(factors)) or any(factor < 2 for factor in factors):
            raise InputError(f"question {self.id!r} has longer answers for {factors}: give increasing factors above 1")
        if len({sample.right is None for sample in self._all}) > 1:
            raise InputError(f"question {self.id!r} has answers with and without a judgement: judge all or none")

    @property
    def is_judged(self) -> bool:
        """Whether its answers are known to be right or wrong."""
        return self.greedy.right is not None

    @property
    def _all(self) -> tuple[RecordedSample, ...]:
        return (self.greedy, *self.samples, *(sample for _, sample in self.longer))


def judge(question: Question, text: str) -> bool | None:
    """Return whether a text answers a question correctly, or None if no rule can decide."""
    return is_right(question, text) if is_checkable(question) else None


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
