"""Content of YAML files becomes dataclasses, or one line that names the place, the value and the remedy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from qubic_lab.checked_yaml import STRICT, check_content, read_yaml
from qubic_lab.errors import InputError


@dataclass(frozen=True)
class Wheel:
    __pydantic_config__ = STRICT

    name: str
    spokes: int = 32

    def __post_init__(self) -> None:
        if self.spokes < 1:
            raise InputError(f"spokes is {self.spokes}: it must be at least 1")


class Lamp(BaseModel):
    model_config = STRICT

    watts: Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Bicycle:
    __pydantic_config__ = STRICT

    wheels: tuple[Wheel, ...] = ()
    lamps: Mapping[Literal["front", "back"], Lamp] = field(default_factory=dict)
    frame: Literal["steel", "carbon"] | None = None
    bell: bool = False


def test_maps_and_lists_become_what_their_types_say() -> None:
    content = {"wheels": [{"name": "a"}], "lamps": {"front": {"watts": 3}}, "frame": "steel"}
    assert check_content(Bicycle, content) == Bicycle((Wheel("a"),), {"front": Lamp(watts=3.0)}, "steel")
    assert check_content(tuple[Wheel, ...], [{"name": "a", "spokes": 4}]) == (Wheel("a", 4),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"bel": True}, "file: unknown name 'bel': did you mean 'bell'?"),
        ({"bell": 1}, "file: bell is 1: it must be true or false"),
        ({"frame": "stel"}, "file: unknown frame 'stel': did you mean 'steel'?"),
        (
            {"wheels": [{"name": "a"}, {"name": "b", "spoke": 3}]},
            "file: wheels: 'b': unknown name 'spoke': did you me",
        ),
        ({"wheels": [{"spokes": 3}]}, "file: wheels: entry 1: 'name' is missing: add it"),
        ({"wheels": [{"name": "a", "spokes": 0}]}, "file: wheels: 'a': spokes is 0: it must be at least 1"),
        ({"wheels": ["a"]}, "file: wheels: entry 1 is 'a': it must be a map of names and values"),
        ({"lamps": {"frnt": {"watts": 1}}}, "file: lamps: unknown name 'frnt': did you mean 'front'?"),
        ({"lamps": {"back": {"watt": 1}}}, "file: lamps: back: unknown name 'watt': did you mean 'watts'?"),
        ([], "file: the content is []: it must be a map of names and values"),
    ],
)
def test_what_is_wrong_is_one_line_with_place_value_and_remedy(content: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_content(Bicycle, content, "file")
    assert str(caught.value).startswith(message)


def test_dates_are_not_taken_for_texts(tmp_path: Path) -> None:
    file = tmp_path / "wheels.yaml"
    file.write_text("wheels: [{name: 2026-01-01}]")
    with pytest.raises(InputError, match="2026-01-01 is read as a date: put it in quotes"):
        check_content(Bicycle, read_yaml(file))
    file.write_text("2026-01-01: [a]")
    with pytest.raises(InputError, match="names must be texts"):
        check_content(Bicycle, read_yaml(file))
