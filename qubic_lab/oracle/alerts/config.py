"""What is told of risk: by which rules, of which coins and bars, and from which level on."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from qubic_lab.checked_yaml import STRICT
from qubic_lab.errors import check_choice
from qubic_lab.oracle.alerts.decide import COOL_DOWN_BARS, Policy
from qubic_lab.oracle.model.coins import coin_ids
from qubic_lab.oracle.model.response import FRAME_S, Frame
from qubic_lab.oracle.risk.rules import Level, Rule


@dataclass(frozen=True)
class RiskConfig:
    """The settings of risk and its alerts.

    Attributes:
        rules: of the levels; None: those that come with the project.
        alerts: whether a collector tells of risk at all.
        coins: those that it tells of, by id; none: all that are collected.
        frame: the bars that it looks at.
        level: the least level that is told.
        cool_down: an episode is over after so many bars in a row below it.
        no_prices: tell of coins without fresh prices, too: of their risk nothing can be told.

    Raises:
        InputError: a frame or a level that is none, or a number that is too small.
    """

    __pydantic_config__ = STRICT

    rules: tuple[Rule, ...] | None = None
    alerts: bool = True
    coins: Annotated[tuple[str, ...], AfterValidator(coin_ids)] = ()
    frame: Frame = "1h"
    level: Level = "warning"
    cool_down: int = COOL_DOWN_BARS
    no_prices: bool = True

    def __post_init__(self) -> None:
        check_choice("frame", self.frame, FRAME_S)
        Policy(self.level, self.cool_down)

    @property
    def policy(self) -> Policy:
        """What is worth telling."""
        return Policy(self.level, self.cool_down)


RISK = RiskConfig()
