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


def kl_divergences(base_TV: npt.NDArray[np.float32], other_TV: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return KL(base || other) of the next-token distributions at each position, in nats, shape (T,).

    Equal logits give 0 exactly.

    Source: S. Kullback and R. A. Leibler, Annals of Mathematical Statistics 22 (1951), 79-86.
    """
    base, other = _log_softmax(base_TV), _log_softmax(other_TV)
    return np.asarray(np.maximum(0.0, (np.exp(base) * (base - other)).sum(axis=-1)))  # rounding can leave -1e-17


def top_margins(logits_TV: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return by how much the best logit leads the second one at each position, shape (T,)."""
    best_two = np.partition(logits_TV, -2, axis=-1)[:, -2:]
    return np.asarray(best_two[:, 1] - best_two[:, 0])


def _log_softmax(logits_TV: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted = logits_TV.astype(np.float64) - logits_TV.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
