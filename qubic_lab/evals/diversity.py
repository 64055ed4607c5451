"""What can be said of answers to creative questions, which are neither right nor wrong: how varied and repetitive.

Words are runs of letters and digits in small letters; a Chinese or Japanese character is a word of its own.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from qubic_lab.errors import InputError
from qubic_lab.evals.paired import MeanEstimate, mean_estimate
from qubic_lab.evals.recorded import RecordedQuestion

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


@dataclass(frozen=True)
class Diversity:
    """Samples of creative questions, each figure the mean over `questions` with its interval; no claim of quality.

    `distinct_1` and `distinct_2`: different words and pairs of words ÷ all, over a question's samples together; longer
    answers have lower ones. `self_overlap`: the mean share of words that two samples have in common (Jaccard).
    `repetition`: the share of an answer's three-word runs that it has already said. `empty`: of samples without a word.
    `words`, `tokens`: the mean length of a sample.
    """

    questions: int
    samples: int
    distinct_1: MeanEstimate
    distinct_2: MeanEstimate
    self_overlap: MeanEstimate | None
    repetition: MeanEstimate
    empty: MeanEstimate
    words: float
    tokens: float


def diversity(rows: Sequence[RecordedQuestion], seed: int = 0) -> Diversity:
    """Return how varied the samples of creative questions are; `self_overlap` is None with one sample each.

    Raises:
        InputError: there are no rows.
    """
    if not rows:
        raise InputError("there are no recorded questions: give at least one")
    answers = [[words_of(sample.text) for sample in row.samples] for row in rows]
    samples = [words for each in answers for words in each]
    overlaps = [self_overlap(each) for each in answers if len(each) > 1]
    return Diversity(
        questions=len(rows),
        samples=len(samples),
        distinct_1=mean_estimate([distinct(each, 1) for each in answers], seed),
        distinct_2=mean_estimate([distinct(each, 2) for each in answers], seed),
        self_overlap=mean_estimate(overlaps, seed) if overlaps else None,
        repetition=mean_estimate([sum(map(repetition, each)) / len(each) for each in answers], seed),
        empty=mean_estimate([sum(not words for words in each) / len(each) for each in answers], seed),
        words=sum(map(len, samples)) / len(samples),
        tokens=sum(sample.tokens for row in rows for sample in row.samples) / len(samples),
    )


def words_of(text: str) -> list[str]:
    """Return the words of a text in small letters."""
    return _WORD.findall(text.casefold())


def distinct(answers: Sequence[Sequence[str]], length: int) -> float:
    """Return the different runs of `length` words ÷ all of them, over answers given as words; 0 where there are none.

    Source: J. Li et al., "A diversity-promoting objective function for neural conversation models", NAACL 2016,
    section 5.
    """
    runs = [run for words in answers for run in _runs(words, length)]
    return len(set(runs)) / len(runs) if runs else 0.0


def self_overlap(answers: Sequence[Sequence[str]]) -> float:
    """Return the mean over pairs of answers of the words in both ÷ the words in either; two empty ones are alike."""
    pairs = [(set(one), set(other)) for one, other in itertools.combinations(answers, 2)]
    return sum(len(one & other) / len(one | other) if one | other else 1.0 for one, other in pairs) / len(pairs)


def repetition(words: Sequence[str]) -> float:
    """Return the share of an answer's runs of three words that it has said before; 0 below three words."""
    runs = _runs(words, 3)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _runs(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]
