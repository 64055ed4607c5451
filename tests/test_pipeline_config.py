"""What a pipeline is asked to run is checked before any process starts."""

from dataclasses import replace
from pathlib import Path

import pytest

from qubic_lab.errors import InputError
from qubic_lab.pipeline import PipelineConfig
from qubic_lab.pipeline.config import resolve_config


def test_layers_can_be_given_rank_by_rank(tiny: Path) -> None:
    resolved = resolve_config(PipelineConfig(str(tiny), layers=(1, 2, 1)))
    assert (resolved.layers, resolved.ranks, resolved.lanes, resolved.strategy) == ((1, 2, 1), 3, 3, "given")


@pytest.mark.parametrize(
    ("layers", "others", "message"),
    [
        ((2, 3), {}, "2/3: the model has 4"),
        ((4, 0), {}, "4/0: the model has 4, and each rank needs at least one"),
        ((), {}, "the model has 4"),
        ((2, 2), {"strategy": "B"}, "strategy is B: give one of the two"),
        ((2, 2), {"cut": 2}, "cut is 2: give one of the two"),
        ((2, 2), {"ranks": 3}, "for 2 ranks, but ranks is 3"),
    ],
)
def test_layers_that_do_not_fit(layers: tuple[int, ...], others: dict[str, object], message: str, tiny: Path) -> None:
    with pytest.raises(InputError, match=message):
        resolve_config(replace(PipelineConfig(str(tiny), layers=layers), **others))
