"""The measurement of votes: what it votes on, and that its figures belong together. No time is judged here."""

import random

import pytest
from embedder import embedder, needs_embedder

from qubic_lab.bench.deliberation import (
    LIMIT_MS,
    STEPS,
    SUM,
    WHY,
    bench_voting,
    calculations,
    explanations,
    near_copies,
)
from qubic_lab.consensus.answer_readers import NUMBER, PROSE
from qubic_lab.consensus.answers import final_answer
from qubic_lab.consensus.similarity import THRESHOLDS, compare
from qubic_lab.errors import InputError


def test_figures_belong_together():
    result = bench_voting(answers=4, votes=3)
    assert [each.kind for each in result.times] == ["calculations", "explanations", "near copies"]
    assert not any(each.with_embeddings for each in result.times)
    for each in result.times:
        assert 0 < each.fastest_ms <= each.median_ms <= each.slowest_ms
        assert tuple(each.steps_ms) == STEPS
        assert each.within_limit == (each.median_ms < LIMIT_MS[False])
    assert (result.answers, result.votes, result.embedding_ms) == (4, 3, None)
    with pytest.raises(InputError, match="answers is 0"):
        bench_voting(answers=0)


@needs_embedder
def test_with_an_embedder_each_kind_is_also_timed_with_vectors_that_are_known():
    result = bench_voting(answers=2, votes=1, embedder=embedder())
    assert [each.with_embeddings for each in result.times] == [False, True] * 3
    assert result.embedding_ms is not None


def test_calculations_are_decided_by_their_numbers_and_explanations_are_prose():
    draw = random.Random(0)
    found = [final_answer(text, SUM) for text in calculations(draw, 16)]
    assert {answer.kind for answer in found} == {NUMBER}
    assert len({answer.number for answer in found}) == 3
    for write in (explanations, near_copies):
        assert {final_answer(text, WHY).kind for text in write(draw, 16)} == {PROSE}


def test_near_copies_are_alike_and_explanations_are_not():
    draw = random.Random(0)
    least = THRESHOLDS.without_embedding
    assert (compare(near_copies(draw, 8)).values_NN >= least).mean() > 0.8
    assert (compare(explanations(draw, 8)).values_NN >= least).sum() == 8  # each with itself
