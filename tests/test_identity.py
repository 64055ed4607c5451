"""The measures of likeness, by hand."""

import numpy as np
import pytest

from qubic_lab.evals.comparison import (
    GreedyAnswer,
    first_divergence,
    kl_divergences,
    likeness,
    logits_max_abs,
    paired_accuracy,
    score,
    token_identity,
    top_margins,
)
from qubic_lab.evals.questions import Question


@pytest.mark.parametrize(
    ("ours", "theirs", "position"),
    [([], [], None), ([1, 2], [1, 2], None), ([1, 2, 3], [1, 9, 3], 1), ([1, 2], [1, 2, 3], 2), ([], [5], 0)],
)
def test_first_divergence(ours: list[int], theirs: list[int], position: int | None) -> None:
    assert first_divergence(ours, theirs) == position
    assert first_divergence(theirs, ours) == position


def test_a_missing_token_counts_as_different() -> None:
    assert token_identity([([1, 2], [1, 2]), ([1], [1, 2])]) == 0.75
    assert token_identity([([], [])]) == 1.0


def test_logits_are_compared_while_contexts_are_equal() -> None:
    ours = np.zeros((3, 4), np.float32)
    theirs = ours.copy()
    theirs[1, 2], theirs[2, 0] = 0.5, -8.0
    assert [logits_max_abs(ours, theirs, steps) for steps in (3, 2, 1)] == [8.0, 0.5, 0.0]


def test_kl_of_two_coins_by_hand() -> None:
    base = np.log(np.array([[0.5, 0.5], [0.75, 0.25]], np.float32))
    other = np.log(np.array([[0.75, 0.25], [0.75, 0.25]], np.float32))
    by_hand = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    assert kl_divergences(base, other) == pytest.approx([by_hand, 0.0], abs=1e-7)
    assert kl_divergences(base + 5, base)[0] == pytest.approx(0.0, abs=1e-12), "a common shift changes no probability"
    assert (kl_divergences(base, base) == 0.0).all()


def test_margin_is_the_lead_of_the_best() -> None:
    assert top_margins(np.array([[1.0, 4.0, 3.5], [2.0, 2.0, 0.0]], np.float32)).tolist() == [0.5, 0.0]


def answer(*token_ids: int, text: str = "", cut: bool = False) -> GreedyAnswer:
    return GreedyAnswer(token_ids, text, cut)


def test_likeness_looks_no_further_than_the_first_divergence() -> None:
    base = np.array([[0.0, 1.0], [0.0, 0.25], [0.0, 9.0]], np.float32)
    other = np.array([[0.0, 1.0], [0.5, 0.0], [7.0, 0.0]], np.float32)
    found = likeness(["a", "b"], [(answer(1, 1, 1), base)] * 2, [(answer(1, 0, 0), other), (answer(1, 1, 1), base)])
    [divergence] = found.divergences
    assert (divergence.id, divergence.position, divergence.margin) == ("a", 1, 0.25)
    assert (found.questions, found.tokens, found.token_identity) == (2, 6, 4 / 6)
    assert (found.logits_max_abs, found.margin_min) == (0.5, 0.25)
    assert found.kl_max == pytest.approx(5 * found.kl_mean), "one of five compared positions differs"


def test_pairs_are_counted_over_checkable_questions() -> None:
    questions = [Question(str(n), "?", str(n), "creative" if n == 4 else "") for n in range(5)]
    whole = [answer(n, text=f"The answer is {n}. But" if n == 0 else str(n), cut=n == 0) for n in range(5)]
    other = [answer(n, text="7" if n in (1, 2) else str(n)) for n in range(5)]
    first, second = score(questions, whole), score(questions, other)
    assert (first.right, sum(first.cut)) == ((True,) * 4, 1)
    same = paired_accuracy("fp32", ("whole", first), ("other", second))
    assert (same.both, same.only_baseline, same.identical, same.tests) == (2, 2, True, None), "tokens decide identity"
    moved = paired_accuracy("fp32", ("whole", first), ("other", score(questions, [*other[:4], answer(9)])))
    assert not moved.identical and moved.tests is not None
    assert (moved.questions, moved.tests.difference, moved.tests.mcnemar_p) == (4, -0.5, 0.5)


def test_thoughts_that_the_prompt_began_do_not_count() -> None:
    questions = [Question("a", "?", "7")]
    assert score(questions, [answer(text="It may be 7")], opening="<think>").right == (False,)
    assert score(questions, [answer(text="It may be 5</think>7")], opening="<think>").right == (True,)
