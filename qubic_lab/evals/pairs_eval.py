"""How well rules recognize equal answers, on labelled pairs: thresholds from one half, results from the other.

There are two tasks: would a vote put the two answers into one class, and which label do they have: same, different or
contradicting? Embeddings, word overlap and the composite similarity alone solve them by thresholds chosen on the same
development half: one for the classes; two for the labels, with the best assignment of labels to the three ranges.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, permutations
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from qubic_lab.consensus.answer_readers import FinalAnswer
from qubic_lab.consensus.answers import final_answer
from qubic_lab.consensus.quality import FEWEST_WORDS, OFF_TOPIC_BELOW, OPEN_KINDS, cosines
from qubic_lab.consensus.similarity import (
    JOINING,
    SEPARATING,
    THRESHOLDS,
    Bond,
    Embed,
    Similarities,
    SimilarityThresholds,
    bonds,
    compare,
    foreign_script,
    words_of,
)
from qubic_lab.evals.questions import read_objects
from qubic_lab.provenance import data_file, source_commit
from qubic_lab.stats import Floats, Indices, bootstrap_interval, wilson_interval

PAIRS_FILE = data_file("consensus/pairs.jsonl", __file__)
LABELS = ("same", "different", "contradicting")
HALVES = ("dev", "test")
OURS = "rules and similarity"
RESAMPLES = 1000
GRID = np.arange(101) / 100
"""Candidate thresholds of the single measures."""
STEP = 0.05
"""Step of the composite's thresholds: coarse, so that single pairs rarely move them."""

Interval = tuple[float, float]
_SAME = LABELS.index("same")
_ALWAYS, _NEVER = SimilarityThresholds(-1.0, -1.0), SimilarityThresholds(2.0, 2.0)


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to a question, and whether they are the same, different or contradicting (one of LABELS)."""

    id: str
    language: str
    kind: str
    label: str
    question: str
    a: str
    b: str


def committed_pairs() -> tuple[AnswerPair, ...]:
    """Return the project's labelled pairs; `data/consensus/README.md` explains the labels."""
    return tuple(AnswerPair(**fields) for _, fields in read_objects(PAIRS_FILE, "pairs"))


def half_of(key: str) -> str:
    """Return the permanent half of a pair or question: choices are made on `dev` and measured on `test`."""
    return HALVES[hashlib.sha256(key.encode()).digest()[0] % 2]


@dataclass(frozen=True)
class MethodScore:
    """The scores of one method on the test half, and our lead over it.

    `class_f1` is the macro-F1 of being in one class or not, `label_f1` that of the three labels; the leads are ours
    less this method's, with intervals over the same pairs. `joined` is the share of the pairs of each label put into
    one class.
    """

    name: str
    class_f1: float
    class_f1_interval: Interval
    label_f1: float
    label_f1_interval: Interval
    joined: dict[str, float]
    class_lead: float
    class_lead_interval: Interval
    label_lead: float
    label_lead_interval: Interval


@dataclass(frozen=True)
class PairsResult:
    """Results on the test half (95 % bootstrap intervals over pairs), ours first.

    `chosen` are the thresholds that the development half gives; `used` are those of our method.
    """

    methods: tuple[MethodScore, ...]
    dev_pairs: int
    test_pairs: int
    test_labels: dict[str, int]
    with_embeddings: bool
    used: SimilarityThresholds
    chosen: SimilarityThresholds
    commit: str


def evaluate_pairs(pairs: Sequence[AnswerPair], embed: Embed | None = None, resamples: int = RESAMPLES) -> PairsResult:
    """Run all methods on the pairs, some in each half; without `embed` there are no embeddings in ours either."""
    dev, test = (_read(_half(pairs, half), embed) for half in ("dev", "test"))
    truth, dev_truth = _labels(test), _labels(dev)
    found = [each.bond(THRESHOLDS) for each in test]
    names = ["same" if bond in JOINING else "contradicting" if bond in SEPARATING else "different" for bond in found]
    ours = np.array([LABELS.index(name) for name in names])
    predictions = {OURS: (ours == _SAME, ours)}
    dev_scores = _scores(dev, embed)
    for name, scores in _scores(test, embed).items():
        least = best_threshold(dev_scores[name], dev_truth == _SAME)
        predictions[name] = scores >= least, best_ranges(dev_scores[name], dev_truth)(scores)
    return PairsResult(
        tuple(_method(name, *each, *predictions[OURS], truth, resamples) for name, each in predictions.items()),
        len(dev),
        len(test),
        {label: int((truth == code).sum()) for code, label in enumerate(LABELS)},
        embed is not None,
        THRESHOLDS,
        choose_thresholds(_half(pairs, "dev"), embed),
        str(source_commit()),
    )


@dataclass(frozen=True)
class RelevanceResult:
    """How well the similarity of question and answer recognizes answers to other questions, on the test half.

    `own` and `others` count the answers with their own and with other questions. `dropped` and `found` are the shares
    of them that are off topic, with Wilson intervals. `chosen` is the threshold of the development half.
    """

    own: int
    others: int
    dropped: float
    dropped_interval: Interval
    found: float
    found_interval: Interval
    used: float
    chosen: float


def evaluate_relevance(pairs: Sequence[AnswerPair], embed: Embed) -> RelevanceResult:
    """Test whether each answer is off topic for its own question and for that of another pair.

    Answers without a relevance are left out: short ones, those with a number or similar as final answer, and those
    whose embeddings do not count.
    """
    own, other = _nearness(_half(pairs, "test"), embed)
    dropped, found = int((own < OFF_TOPIC_BELOW).sum()), int((other < OFF_TOPIC_BELOW).sum())
    return RelevanceResult(
        own=len(own),
        others=len(other),
        dropped=dropped / len(own),
        dropped_interval=wilson_interval(dropped, len(own)),
        found=found / len(other),
        found_interval=wilson_interval(found, len(other)),
        used=OFF_TOPIC_BELOW,
        chosen=choose_off_topic(_half(pairs, "dev"), embed),
    )


def choose_off_topic(pairs: Sequence[AnswerPair], embed: Embed) -> float:
    """Return the highest threshold on GRID that drops no answer to its own question.

    A lost vote costs more than a useless one.
    """
    own, _ = _nearness(pairs, embed)
    return float(GRID[own.min() >= GRID].max(initial=0.0))


def _nearness(pairs: Sequence[AnswerPair], embed: Embed) -> tuple[Floats, Floats]:
    """Return the cosines of answers with their own questions, and with those of pairs half the list away."""
    own: list[float] = []
    other: list[float] = []
    read = [pair for pair in pairs if not foreign_script(pair.question)]
    for place, pair in enumerate(read):
        far = read[(place + len(read) // 2) % len(read)]
        for found, question in ((own, pair.question), (other, far.question)):
            texts = [
                text
                for text in (pair.a, pair.b)
                if len(words_of(text)) >= FEWEST_WORDS and final_answer(text, question).kind in OPEN_KINDS
            ]
            found += [cosine for cosine in cosines(question, texts, embed) if cosine is not None]
    return np.array(own), np.array(other)


def choose_thresholds(pairs: Sequence[AnswerPair], embed: Embed | None = None) -> SimilarityThresholds:
    """Return the lowest multiples of STEP at which similarity joins no two different answers of these pairs.

    Joining different answers can make a wrong one win; separating equal ones costs a decision at worst. The threshold
    with embeddings is chosen on the pairs whose embeddings count (without `embed` it is the one in use).
    """
    with_embedding = THRESHOLDS.with_embedding
    if embed is not None:
        with_embedding = _choose(
            [each for each in _read(pairs, embed) if not np.isnan(each.similarities.embedding_NN[0, 1])]
        )
    return SimilarityThresholds(with_embedding, _choose(_read(pairs, None)))


def _choose(pairs: Sequence["_Read"]) -> float:
    """Return the lowest multiple of STEP above the similarity of every wrong pair that the rules leave open."""
    wrong = [
        float(each.similarities.values_NN[0, 1])
        for each in pairs
        if each.pair.label != "same" and each.bond(_NEVER) not in JOINING and each.bond(_ALWAYS) in JOINING
    ]
    return round(STEP * (math.floor(max(wrong, default=0.0) / STEP) + 1), 2)


def best_threshold(scores: Floats, is_same: npt.NDArray[np.bool_]) -> float:
    """Return the threshold on GRID with the best macro-F1, in the middle of the longest run of equally good ones."""
    quality = [macro_f1(is_same, scores >= least, 2) for least in GRID]
    runs = [list(run) for best, run in groupby(range(len(GRID)), lambda i: quality[i] == max(quality)) if best]
    longest = max(runs, key=len)
    return float(GRID[longest[len(longest) // 2]])


def best_ranges(scores: Floats, truth: Indices) -> Callable[[Floats], Indices]:
    """Return the best rule, by macro-F1, that gives a label to each range between two thresholds on GRID."""
    passed = np.searchsorted(GRID, scores, side="right")  # the number of thresholds that a score passes
    codes = range(len(LABELS))
    below_LG = np.array([np.bincount(passed[truth == code], minlength=len(GRID) + 1).cumsum()[:-1] for code in codes])
    sizes = np.bincount(truth, minlength=len(LABELS))
    low_LGG, high_LGG = np.broadcast_arrays(below_LG[:, :, None], below_LG[:, None, :])
    ranges = low_LGG, high_LGG - low_LGG, sizes[:, None, None] - high_LGG
    best, rule = -1.0, (0, 0, tuple(codes))
    for labels in permutations(codes):
        parts = zip(labels, ranges, strict=True)
        quality_GG = sum(2 * each[code] / np.maximum(1, sizes[code] + each.sum(axis=0)) for code, each in parts)
        quality_GG = np.triu(quality_GG)  # the lower threshold first
        if quality_GG.max() > best:
            low, high = divmod(int(quality_GG.argmax()), len(GRID))
            best, rule = float(quality_GG.max()), (low, high, labels)
    low, high, labels = rule
    return lambda found: np.array(labels)[(found >= GRID[low]).astype(int) + (found >= GRID[high])]


def macro_f1(truth: npt.NDArray[Any], predicted: npt.NDArray[Any], classes: int) -> float:
    """Return the mean F1 over classes; a class that is neither present nor predicted does not count."""
    found = []
    for each in range(classes):
        size = int((truth == each).sum() + (predicted == each).sum())
        if size:
            found.append(2 * int(((truth == each) & (predicted == each)).sum()) / size)
    return float(np.mean(found))


def _method(
    name: str,
    joined: npt.NDArray[np.bool_],
    labels: Indices,
    our_joined: npt.NDArray[np.bool_],
    our_labels: Indices,
    truth: Indices,
    resamples: int,
) -> MethodScore:
    is_same = truth == _SAME

    def class_f1(rows: Indices, predicted: npt.NDArray[np.bool_] = joined) -> float:
        return macro_f1(is_same[rows], predicted[rows], 2)

    def label_f1(rows: Indices, predicted: Indices = labels) -> float:
        return macro_f1(truth[rows], predicted[rows], len(LABELS))

    statistics: dict[str, Callable[[Indices], float]] = {
        "class_f1": class_f1,
        "label_f1": label_f1,
        "class_lead": lambda rows: class_f1(rows, our_joined) - class_f1(rows),
        "label_lead": lambda rows: label_f1(rows, our_labels) - label_f1(rows),
    }
    scores: dict[str, Any] = {}
    for field, statistic in statistics.items():
        scores[field] = statistic(np.arange(len(truth)))
        scores[f"{field}_interval"] = bootstrap_interval(statistic, len(truth), resamples=resamples)
    joined_share = {
        label: float(joined[truth == code].mean()) for code, label in enumerate(LABELS) if (truth == code).any()
    }
    return MethodScore(name=name, joined=joined_share, **scores)


@dataclass(frozen=True)
class _Read:
    """A pair with its final answers and similarities."""

    pair: AnswerPair
    answers: tuple[FinalAnswer, ...]
    similarities: Similarities

    def bond(self, thresholds: SimilarityThresholds) -> Bond:
        return bonds(self.answers, self.similarities, thresholds)[0][1]


def _read(pairs: Sequence[AnswerPair], embed: Embed | None) -> list[_Read]:
    if embed is not None:
        embed([text for pair in pairs for text in (pair.a, pair.b)])  # many at once are faster
    return [
        _Read(
            pair,
            tuple(final_answer(text, pair.question) for text in (pair.a, pair.b)),
            compare([pair.a, pair.b], embed),
        )
        for pair in pairs
    ]


def _half(pairs: Sequence[AnswerPair], half: str) -> list[AnswerPair]:
    return [pair for pair in pairs if half_of(pair.id) == half]


def _labels(pairs: Sequence[_Read]) -> Indices:
    return np.array([LABELS.index(each.pair.label) for each in pairs])


def _scores(pairs: Sequence[_Read], embed: Embed | None) -> dict[str, Floats]:
    """Return the scores of each single measure."""
    scores = {
        "similarity": np.array([each.similarities.values_NN[0, 1] for each in pairs]),
        "word overlap": np.array([each.similarities.words_NN[0, 1] for each in pairs]),
    }
    if embed is not None:  # for all pairs: plain embeddings ignore scripts
        sides = [
            embed([text(each.pair) for each in pairs]).vectors_ND.astype(float)
            for text in (attrgetter("a"), attrgetter("b"))
        ]
        scores["embeddings"] = np.sum(sides[0] * sides[1], axis=1)
    return scores
