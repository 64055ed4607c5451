"""Statistics of creative answers, which are neither right nor wrong: variety and repetition.

Words are lowercase runs of letters and digits; each Chinese or Japanese character is a word.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from qubic_lab.evals.paired import MeanEstimate, mean_estimate
from qubic_lab.evals.recorded import RecordedQuestion

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


@dataclass(frozen=True)
class Diversity:
    """Statistics of samples of creative questions, each the mean over `questions` with its interval; not a quality.

    `distinct_1` and `distinct_2`: distinct words and word pairs ÷ all, over a question's samples; longer answers have
    lower values. `self_overlap`: mean Jaccard similarity of two samples' words. `repetition`: share of repeated word
    trigrams. `empty`: share of samples without a word. `words`, `tokens`: mean length of a sample.
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
    """Return the statistics of creative questions, at least one; `self_overlap` is None with one sample each."""
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
    """Return the lowercase words of a text."""
    return _WORD.findall(text.casefold())


def distinct(answers: Sequence[Sequence[str]], length: int) -> float:
    """Return the distinct word n-grams ÷ all of them over tokenized answers; 0 without any.

    Source: J. Li et al., "A diversity-promoting objective function for neural conversation models", NAACL 2016, section
    5.
    """
    runs = [tuple(words[start : start + length]) for words in answers for start in range(len(words) - length + 1)]
    return len(set(runs)) / len(runs) if runs else 0.0


def self_overlap(answers: Sequence[Sequence[str]]) -> float:
    """Return the mean Jaccard similarity of the words of two answers; two empty answers have 1."""
    pairs = [(set(one), set(other)) for one, other in itertools.combinations(answers, 2)]
    return sum(len(one & other) / len(one | other) if one | other else 1.0 for one, other in pairs) / len(pairs)


def repetition(words: Sequence[str]) -> float:
    """Return the share of repeated word trigrams; 0 below three words."""
    return 1 - distinct([words], 3) if len(words) >= 3 else 0.0
