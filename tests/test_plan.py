from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubic_lab.errors import InputError
from qubic_lab.model.config import parse_config
from qubic_lab.model.plan import STRATEGIES, balanced_counts, plan_layers
from qubic_lab.model.random_model import read_shape

DEEPSEEK = parse_config(read_shape("deepseek"))
SMOLLM2 = parse_config(read_shape("smollm2"))


def test_the_head_of_deepseek_weighs_five_layers() -> None:
    assert plan_layers(DEEPSEEK, 2, "C") == (16, 12)
    assert plan_layers(DEEPSEEK, 3, "C") == (11, 11, 6)
    assert plan_layers(SMOLLM2, 2, "C") == (19, 11)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_rank_is_the_whole_model(strategy: str) -> None:
    assert plan_layers(DEEPSEEK, 1, strategy) == (28,)


def test_a_cuts_in_half_or_where_it_is_told() -> None:
    odd = replace(DEEPSEEK, layers=5)
    assert plan_layers(DEEPSEEK, 2, "A") == (14, 14)
    assert plan_layers(odd, 2, "A") == (3, 2)
    assert plan_layers(odd, 2, "A", cut=1) == (1, 4)
    assert plan_layers(odd, 2, "A", cut=4) == (4, 1)


def test_b_gives_the_rest_to_the_first_ranks() -> None:
    assert plan_layers(DEEPSEEK, 3, "B") == (10, 9, 9)
    assert plan_layers(DEEPSEEK, 28, "B") == (1,) * 28


@pytest.mark.parametrize(
    ("ranks", "strategy", "cut", "said"),
    [
        (2, "D", None, "unknown strategy 'D'"),
        (0, "C", None, "ranks is 0"),
        (29, "B", None, "more than the model's 28 layers"),
        (3, "A", None, "give strategy B or C"),
        (2, "A", 0, "between 1 and 27"),
        (2, "A", 28, "between 1 and 27"),
        (2, "C", 14, "it is for strategy A"),
        (1, "A", 14, "it is for strategy A"),
    ],
)
def test_impossible_plans_are_refused(ranks: int, strategy: str, cut: int | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        plan_layers(DEEPSEEK, ranks, strategy, cut)


costs = st.integers(0, 20)


@given(layer_costs=st.lists(costs, min_size=1, max_size=8), first=costs, last=costs, data=st.data())
def test_c_is_the_best_of_all_divisions(layer_costs: list[int], first: int, last: int, data: st.DataObject) -> None:
    ranks = data.draw(st.integers(1, len(layer_costs)))

    def dearest_and_last(counts: tuple[int, ...]) -> tuple[float, float]:
        ends = [sum(counts[:rank]) for rank in range(ranks + 1)]
        stages = [float(sum(layer_costs[begin:end])) for begin, end in pairwise(ends)]
        stages[0] += first
        stages[-1] += last
        return max(stages), stages[-1]

    divisions = [
        tuple(end - begin for begin, end in pairwise((0, *ends, len(layer_costs))))
        for ends in combinations(range(1, len(layer_costs)), ranks - 1)
    ]
    counts = balanced_counts(layer_costs, ranks, first, last)
    assert counts in divisions
    assert dearest_and_last(counts) == min(map(dearest_and_last, divisions))
