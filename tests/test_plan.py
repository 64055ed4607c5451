from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubic_lab.errors import InputError
from qubic_lab.model.config import ModelConfig, parse_config
from qubic_lab.model.cost import PartTimes
from qubic_lab.model.plan import STRATEGIES, balanced_layers, plan_layers
from qubic_lab.model.predict import stage_seconds
from qubic_lab.model.random_model import read_shape

DEEPSEEK = parse_config(read_shape("deepseek"))
SMOLLM2 = parse_config(read_shape("smollm2"))


@pytest.mark.parametrize(
    ("config", "ranks", "strategy", "cut", "layers"),
    [
        (DEEPSEEK, 2, "C", None, (17, 11)),  # the head and its logits weigh a little more than five layers
        (DEEPSEEK, 3, "C", None, (11, 11, 6)),
        (SMOLLM2, 2, "C", None, (19, 11)),
        (DEEPSEEK, 2, "A", None, (14, 14)),
        (replace(DEEPSEEK, layers=5), 2, "A", None, (3, 2)),
        (replace(DEEPSEEK, layers=5), 2, "A", 4, (4, 1)),
        (DEEPSEEK, 3, "B", None, (10, 9, 9)),
        (DEEPSEEK, 28, "B", None, (1,) * 28),
        *((DEEPSEEK, 1, strategy, None, (28,)) for strategy in STRATEGIES),
    ],
)
def test_each_strategy_has_its_layers(
    config: ModelConfig, ranks: int, strategy: str, cut: int | None, layers: tuple[int, ...]
) -> None:
    assert plan_layers(config, ranks, strategy, cut) == layers


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


seconds = st.integers(0, 20)
times = st.builds(PartTimes, seconds, st.integers(1, 20), seconds, seconds)


@given(rank_times=st.lists(times, min_size=1, max_size=4), layers=st.integers(1, 8), data=st.data())
def test_c_is_the_best_of_all_divisions(rank_times: list[PartTimes], layers: int, data: st.DataObject) -> None:
    ranks = len(rank_times)
    room = data.draw(st.one_of(st.none(), st.lists(st.integers(0, 9), min_size=ranks, max_size=ranks)))
    ends = [(0, *cuts, layers) for cuts in combinations(range(1, layers), ranks - 1)]
    divisions = [tuple(end - begin for begin, end in pairwise(division)) for division in ends]
    fitting = [d for d in divisions if room is None or all(n <= most for n, most in zip(d, room, strict=True))]

    def slowest_and_last(division: tuple[int, ...]) -> tuple[float, float]:
        stage_s = stage_seconds(rank_times, division)
        return max(stage_s), stage_s[-1]

    if not fitting:
        with pytest.raises(InputError, match="cannot be divided"):
            balanced_layers(rank_times, layers, room)
        return
    found = balanced_layers(rank_times, layers, room)
    assert found in fitting
    assert slowest_and_last(found) == min(map(slowest_and_last, fitting))
