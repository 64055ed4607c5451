"""The sampler: its distribution, its cuts, and that a seed alone decides."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qubic_lab.core import MAX_SEED
from qubic_lab.model.checkpoint import Checkpoint
from qubic_lab.model.layout import stage_ranges
from qubic_lab.model.native import NativeDecoder
from qubic_lab.pipeline import sampling
from qubic_lab.pipeline.message import NO_TOKEN, Work
from qubic_lab.pipeline.sampling import adjusted, choose_tokens, log_probabilities, non_finite_rows, score_rows

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -20.0])


def choose_token(logits_V: torch.Tensor, work: Work) -> int:
    [token] = choose_tokens(logits_V[None], [work])
    return token


def sorted_choice(logits_V: torch.Tensor, work: Work) -> int:
    """What a sampled token is by definition, with a stable sort and sums over the whole vocabulary."""
    values, tokens = logits_V.double() / work.temperature, torch.arange(len(logits_V))
    if work.top_k or work.top_p < 1.0 or work.min_p:
        values, tokens = torch.sort(values, descending=True, stable=True)
    if work.min_p:
        values = values[values >= values[0] + np.log(work.min_p)]
    probabilities = torch.softmax(values[: work.top_k or None], dim=0)
    if work.top_p < 1.0:
        probabilities = probabilities[probabilities.cumsum(0) - probabilities < work.top_p]
    cumulative = probabilities.cumsum(0)
    uniform = np.random.Generator(np.random.Philox(key=work.seed, counter=work.sample)).random()
    index = int(torch.searchsorted(cumulative, uniform * float(cumulative[-1]), right=True))
    return int(tokens[min(index, len(cumulative) - 1)])


def logits_of_kind(kind: str, size: int, seed: int) -> torch.Tensor:
    normal = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3
    kinds = {
        "normal": normal,
        "peaked": torch.where(torch.arange(size) == size // 2, 25.0, normal),
        "rounded": normal.bfloat16().float(),  # with many equal ones
        "equal": torch.where(normal > 3, 1.0, normal * 0.0),  # with zeros of both signs
        "wide": normal * 1000,
    }
    return kinds[kind]


def draws(count: int = 4000, **options: float) -> torch.Tensor:
    """Shares with which tokens are chosen over many token indices."""
    works = [Work(0, 0, 0, sample=i, **{"temperature": 1.0, "seed": 7, **options}) for i in range(count)]  # type: ignore[arg-type]
    return torch.bincount(torch.tensor(choose_tokens(LOGITS.expand(count, -1), works)), minlength=6) / count


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


@pytest.mark.parametrize("kind", ["normal", "peaked", "rounded", "equal", "wide"])
@pytest.mark.parametrize(
    "cut",
    [
        {},
        {"top_p": 0.95},
        {"top_p": 0.3},
        {"top_p": 1 - 1e-12},
        {"top_k": 40},
        {"top_k": 1500, "top_p": 0.8},
        {"min_p": 0.02},
        {"min_p": 1e-6, "top_k": 40, "top_p": 0.8},
        {"min_p": 1.0},
    ],
    ids=str,
)
def test_tokens_are_those_of_a_full_sort(kind: str, cut: dict[str, float]) -> None:
    for seed in range(12):
        logits = logits_of_kind(kind, [3, 200, 2048, 5000][seed % 4], seed)
        for sample in range(10):
            temperature = [0.7, 1.0, 1e-6, 3.0][sample % 4]
            work = Work(0, 0, 0, sample=sample, temperature=temperature, seed=seed, **cut)  # type: ignore[arg-type]
            assert choose_token(logits, work) == sorted_choice(logits, work)


@pytest.mark.parametrize("cut", [{}, {"top_p": 0.95}, {"top_k": 50}], ids=str)
def test_tokens_are_those_of_a_full_sort_in_a_large_vocabulary(cut: dict[str, float]) -> None:
    for seed, kind in enumerate(["normal", "peaked", "rounded"]):
        logits = logits_of_kind(kind, 151_936, seed)
        work = Work(0, 0, 0, sample=1, temperature=0.8, seed=seed, **cut)  # type: ignore[arg-type]
        assert choose_token(logits, work) == sorted_choice(logits, work)


def test_a_nucleus_is_found_without_sorting_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sampling, "_largest")
    for seed in range(20):
        work = Work(0, 0, 0, sample=0, temperature=1.0, top_p=0.9, seed=seed)
        assert choose_token(logits_of_kind("rounded", 5000, seed), work) != NO_TOKEN


def test_the_smallest_temperature_takes_the_largest() -> None:
    assert choose_token(LOGITS, Work(0, 0, 0, sample=0, temperature=5e-324)) == 0


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


def test_other_rows_and_threads_change_no_token() -> None:
    logits = torch.stack([logits_of_kind("normal", 40_000, seed) for seed in range(6)])
    logits[4, 7] = torch.nan
    works = [
        Work(0, 0, 0, sample=3, seed=5),
        Work(0, 0, 0, sample=3, seed=5, temperature=1.0),
        Work(0, 0, 0, sample=3, seed=5, temperature=1.0, top_p=0.9),
        Work(0, 0, 0, sample=3, seed=5, temperature=1.0, top_k=9),
        Work(0, 0, 0, sample=3, seed=5, temperature=1.0, fault=0),
        Work(0, 0, 0, sample=3, fault=0),
    ]
    together = choose_tokens(logits, works)
    assert together[4:] == [NO_TOKEN, NO_TOKEN]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert [choose_token(row, work) for row, work in zip(logits, works, strict=True)] == together
    finally:
        torch.set_num_threads(threads)


def native_decoder(folder: Path, threads: int) -> NativeDecoder:
    checkpoint = Checkpoint.open(folder)
    return NativeDecoder(checkpoint, stage_ranges((checkpoint.config.layers,))[0], torch.bfloat16, threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("by_kernels", [False, True])
def test_rows_with_infinities_and_nans_are_found(dtype: torch.dtype, by_kernels: bool, tiny: Path) -> None:
    native = native_decoder(tiny, threads=1) if by_kernels else None
    logits = torch.zeros(7, 1024, dtype=dtype)[:, :1000]
    logits[5] = 3e38  # finite, but not their sum
    assert non_finite_rows(logits, native) == set()
    for row, token, value in ((3, 999, torch.inf), (6, 0, -torch.inf), (2, 500, torch.nan), (2, 991, torch.nan)):
        logits[row, token] = value
        assert non_finite_rows(logits, native) == {row}
        logits[row, token] = 0
    logits[0, 999] = logits[1, 0] = torch.inf
    logits[1, 5] = logits[2, 5] = -torch.inf
    logits[4, 500] = torch.nan
    assert non_finite_rows(logits, native) == {0, 1, 2, 4}


def test_log_probabilities_of_the_rows_that_ask() -> None:
    logits = torch.stack([logits_of_kind("rounded", 3000, seed) for seed in range(5)])
    logits[3] = 0.0  # all equally likely
    works = [
        Work(0, 0, 0, token=17, logprobs=5),
        Work(0, 0, 0, token=17),
        Work(0, 0, 0, token=NO_TOKEN, logprobs=5),
        Work(0, 0, 0, token=17, logprobs=3),
        Work(0, 0, 0, token=17, logprobs=0),
    ]
    found = log_probabilities(logits, works)
    first = torch.log_softmax(logits[0].double(), dim=0)
    values, tokens = torch.sort(first, descending=True, stable=True)
    assert found[0, 0] == first[17]
    assert found[0, 1:11:2].tolist() == tokens[:5].tolist()
    assert found[0, 2:12:2].tolist() == values[:5].tolist()
    assert found[0, 11:].count_nonzero() == found[1:3].count_nonzero() == 0
    assert found[3, 1:7:2].tolist() == [0, 1, 2]
    assert found[4].nonzero().tolist() == [[0]]


def test_scores_of_rows_do_not_depend_on_the_rows_beside_them() -> None:
    logits = torch.stack([logits_of_kind(kind, 3001, 3) for kind in ("normal", "peaked", "rounded", "wide")] * 8)
    tokens, counts = torch.arange(32) * 90, [row % 4 * 5 for row in range(32)]
    together = score_rows(logits, tokens, counts)
    assert together.shape == (32, 31)
    for row, count in enumerate(counts):
        [alone] = score_rows(logits[row : row + 1], tokens[row : row + 1], [count])
        assert together[row, : 1 + 2 * count].tolist() == alone.tolist()
        assert alone[0] == torch.log_softmax(logits[row].double(), dim=0)[tokens[row]]


def test_adjustments_change_their_places_alone() -> None:
    changes = [(0, 2, 1.5), (1, 0, -100.0), (1, 5, 0.25)]
    logits = LOGITS.repeat(3, 1)
    found = adjusted(logits, torch.tensor(changes, dtype=torch.float64).view(torch.int64))
    expected = LOGITS.repeat(3, 1)
    for row, token, change in changes:
        expected[row, token] += change
    assert torch.equal(found, expected) and torch.equal(logits, LOGITS.repeat(3, 1))


@pytest.mark.parametrize("kind", ["normal", "peaked", "equal", "wide"])
@pytest.mark.parametrize("threads", [1, 2])
def test_kernels_draw_the_same_tokens(kind: str, threads: int, tiny: Path) -> None:
    """Vocabularies with and without a rest, a temperature below those of the kernels, any seed."""
    native = native_decoder(tiny, threads)
    for vocabulary, temperature in product((7, 517, 49_152), (1e-3, 0.01, 0.7, 3.0)):
        logits = torch.stack([logits_of_kind(kind, vocabulary, seed) for seed in range(4)])
        works = [Work(0, 0, 0, sample=3**row, seed=MAX_SEED // 7**row, temperature=temperature) for row in range(4)]
        by_definition = [sorted_choice(row, work) for row, work in zip(logits, works, strict=True)]
        assert choose_tokens(logits, works, native) == by_definition
