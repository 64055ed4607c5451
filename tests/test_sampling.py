"""The sampler: its distribution, its cuts, and that a seed alone decides."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qubic_lab.pipeline.message import Work
from qubic_lab.pipeline.sampling import choose_token

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -20.0])


def draws(count: int = 4000, **options: float) -> torch.Tensor:
    """Shares with which tokens are chosen over many token indices."""
    work = [Work(0, 0, 0, sample=i, **{"temperature": 1.0, "seed": 7, **options}) for i in range(count)]  # type: ignore[arg-type]
    return torch.bincount(torch.tensor([choose_token(LOGITS, w) for w in work]), minlength=6) / count


def test_temperature_0_takes_the_first_of_the_largest() -> None:
    assert choose_token(torch.tensor([0.0, 3.0, 3.0]), Work(0, 0, 0, sample=0)) == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_softmax_says(temperature: float) -> None:
    expected = torch.softmax(LOGITS / temperature, dim=0)
    # 4000 draws: three standard errors of a share are below 0.024
    assert (draws(temperature=temperature) - expected).abs().max() < 0.03


def test_top_k_keeps_the_k_likeliest_with_their_ratios() -> None:
    shares = draws(top_k=2)
    assert shares[2:].sum() == 0
    assert abs(shares[0] - torch.softmax(LOGITS[:2], dim=0)[0]) < 0.03


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    probabilities = torch.softmax(LOGITS, dim=0)
    just_below_two = float(probabilities[0] + probabilities[1]) - 0.01
    just_above_two = float(probabilities[0] + probabilities[1]) + 0.01
    assert int((draws(top_p=just_below_two) > 0).sum()) == 2
    assert int((draws(top_p=just_above_two) > 0).sum()) == 3
    assert int((draws(top_p=1e-9) > 0).sum()) == 1


@given(seed=st.integers(0, 2**63 - 1), sample=st.integers(0, 10_000))
def test_seed_and_index_decide_and_nothing_else(seed: int, sample: int) -> None:
    one = Work(slot=0, request=1, position=5, sample=sample, temperature=1.0, seed=seed)
    other = Work(slot=3, request=9, position=50, sample=sample, temperature=1.0, seed=seed)
    assert choose_token(LOGITS, one) == choose_token(LOGITS, other)


def test_seeds_and_indices_give_different_draws() -> None:
    flat = torch.zeros(1000)
    by_index = {choose_token(flat, Work(0, 0, 0, sample=i, temperature=1.0, seed=0)) for i in range(50)}
    by_seed = {choose_token(flat, Work(0, 0, 0, sample=0, temperature=1.0, seed=s)) for s in range(50)}
    assert len(by_index) > 40
    assert len(by_seed) > 40
