"""The evaluation on labelled pairs: its arithmetic by hand, and that the stored thresholds are those of the data."""

from collections.abc import Sequence

import numpy as np
import pytest
from embedder import embedder, needs_embedder

from qubic_lab.consensus.similarity import THRESHOLDS
from qubic_lab.evals.pairs_eval import (
    LABELS,
    OURS,
    AnswerPair,
    best_ranges,
    best_threshold,
    choose_thresholds,
    committed_pairs,
    evaluate_pairs,
    evaluate_relevance,
    half_of,
    macro_f1,
)
from qubic_lab.model.embeddings import DIMENSIONS, Embedded

DEV = [pair for pair in committed_pairs() if half_of(pair.id) == "dev"]


def numbered(count: int) -> list[AnswerPair]:
    """Return pairs whose rules are easy: every third is the same number, the others are other numbers."""
    pairs = []
    for i in range(count):
        label = "same" if i % 3 == 0 else "contradicting"
        b = f"There are {i if label == 'same' else i + 1}."
        pairs.append(AnswerPair(f"pair-{i}", "en", "number", label, f"How many apples has crate {i}?", str(i), b))
    return pairs


def test_macro_f1_by_hand():
    truth, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 2])
    # 0: 2·2/(3+2), 1: 2·1/(2+2), 2: 2·1/(1+2)
    assert macro_f1(truth, predicted, 3) == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)
    assert macro_f1(np.array([0, 0]), np.array([0, 0]), 3) == 1.0


def test_the_best_threshold_is_the_middle_of_the_longest_run():
    scores = np.array([0.1, 0.2, 0.6, 0.9])
    assert best_threshold(scores, np.array([False, False, True, True])) == pytest.approx(0.41, abs=0.011)
    # one of the same pairs is unlike: 0.11 to 0.2 errs twice, 0.61 to 0.9 once
    assert best_threshold(scores, np.array([True, False, False, True])) == pytest.approx(0.76, abs=0.011)


def test_the_best_ranges_may_give_any_label_to_any_range():
    scores = np.array([0.1, 0.2, 0.5, 0.6, 0.8, 0.9])
    truth = np.array([1, 1, 0, 0, 2, 2])
    rule = best_ranges(scores, truth)
    assert rule(scores).tolist() == truth.tolist()
    assert rule(np.array([0.0, 0.55, 1.0])).tolist() == [1, 0, 2]


def test_where_rules_decide_everything_ours_is_right():
    result = evaluate_pairs(numbered(60), resamples=50)
    ours = result.methods[0]
    assert (ours.name, ours.class_f1, ours.class_f1_interval) == (OURS, 1.0, (1.0, 1.0))
    assert ours.joined == {"same": 1.0, "contradicting": 0.0}
    assert (ours.class_lead, ours.class_lead_interval) == (0.0, (0.0, 0.0))
    assert [method.name for method in result.methods] == [OURS, "similarity", "word overlap"]
    for method in result.methods[1:]:
        assert method.class_lead == pytest.approx(1 - method.class_f1)
        low, high = method.class_lead_interval
        assert low <= method.class_lead <= high
    assert result.dev_pairs + result.test_pairs == 60
    assert sum(result.test_labels.values()) == result.test_pairs
    assert not result.with_embeddings


def test_plain_embeddings_read_every_script():
    def embed(texts: Sequence[str]) -> Embedded:
        vectors = np.zeros((len(texts), DIMENSIONS), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            row[sum(text.encode()) % 7] = 1
        return Embedded(vectors, (False,) * len(texts))

    chinese = [
        AnswerPair(f"zh-{i}", "zh", "span", LABELS[i % 3], "什么？", f"回答{i}", f"回答{i % 5}") for i in range(30)
    ]
    names = [method.name for method in evaluate_pairs(chinese, embed, resamples=10).methods]
    assert names == [OURS, "similarity", "word overlap", "embeddings"]


def test_the_stored_threshold_is_what_the_development_half_gives():
    assert choose_thresholds(DEV).without_embedding == THRESHOLDS.without_embedding


@needs_embedder
@pytest.mark.slow
def test_stored_thresholds_with_embeddings_are_what_the_development_half_gives():
    assert choose_thresholds(DEV, embedder().embed) == THRESHOLDS


@needs_embedder
def test_ours_is_ahead_of_plain_embeddings_and_plain_overlap():
    """The acceptance row, on pairs that no threshold was chosen on."""
    pairs = committed_pairs()
    assert len(pairs) >= 200
    result = evaluate_pairs(pairs, embedder().embed, resamples=200)
    for method in result.methods[1:]:
        assert method.class_lead_interval[0] > 0
        assert method.label_lead_interval[0] > 0


@needs_embedder
@pytest.mark.slow
def test_most_answers_to_other_questions_are_off_topic_and_few_to_their_own():
    relevance = evaluate_relevance(committed_pairs(), embedder().embed)
    assert relevance.dropped_interval[1] < 0.2
    assert relevance.found_interval[0] > 0.7
    assert relevance.used == relevance.chosen
