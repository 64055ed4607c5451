"""How alike two runs of the same model are, token by token and logit by logit: pure functions."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def equal_tokens(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Return at how many positions two answers hold the same token."""
    return sum(a == b for a, b in zip(ours, theirs, strict=False))


def first_divergence(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Return the first position at which two answers differ (or one ends), or None when they are equal."""
    for position, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return position
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


def token_identity(answers: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float:
    """Return the share of equal tokens over pairs of answers; a missing token counts as different."""
    total = sum(max(len(ours), len(theirs)) for ours, theirs in answers)
    return sum(equal_tokens(ours, theirs) for ours, theirs in answers) / total if total else 1.0


def logits_max_abs(
    ours_TV: npt.NDArray[np.float32], theirs_TV: npt.NDArray[np.float32], divergence: int | None
) -> float:
    """Return the largest difference of two answers' logits, as long as both saw the same tokens before.

    That is up to and with the first divergent position: its logits come from equal contexts.
    """
    steps = min(len(ours_TV), len(theirs_TV))
    if divergence is not None:
        steps = min(steps, divergence + 1)
    return float(np.abs(ours_TV[:steps] - theirs_TV[:steps]).max(initial=0.0))
