"""The measures of likeness, by hand."""

import numpy as np
import pytest

from qubic_lab.evals.identity import first_divergence, logits_max_abs, token_identity


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
    assert logits_max_abs(ours, theirs, None) == 8.0
    assert logits_max_abs(ours, theirs, 1) == 0.5, "the divergent token's own logits still come from equal contexts"
    assert logits_max_abs(ours, theirs, 0) == 0.0
