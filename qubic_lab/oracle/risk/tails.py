"""What several models say that the next bar may lose, and how each stood against what came."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qubic_lab.errors import check_choice
from qubic_lab.oracle.model.candles import Floats
from qubic_lab.oracle.risk.rules import Windows
from qubic_lab.oracle.risk.tail_tests import TailTest, evaluate_tail
from qubic_lab.oracle.risk.value_at_risk import TailForecast, filtered_historical, historical, normal, student_t
from qubic_lab.oracle.risk.volatility import LEAST_FIT, VolatilityForecast

_Model = Callable[[Floats, VolatilityForecast, float, int], TailForecast]
MODELS: dict[str, _Model] = {
    "GARCH-t": lambda returns, volatility, level, bars: student_t(volatility, level),
    "filtered historical": filtered_historical,
    "historical": lambda returns, volatility, level, bars: historical(returns, level, bars),
    "constant normal": lambda returns, volatility, level, bars: normal(returns, level),
}
"""By name; the last one is a foil: it should be rejected."""


@dataclass(frozen=True, eq=False)
class Tail:
    """A model's forecasts of losses and how they stood the tests."""

    model: str
    forecast: TailForecast
    test: TailTest


def evaluate_models(
    returns: Floats,
    volatility: VolatilityForecast,
    levels: Sequence[float],
    lengths: Windows,
    models: Sequence[str] = tuple(MODELS),
) -> tuple[Tail, ...]:
    """Return the forecasts of each level and model, all tested on the same bars.

    Args:
        returns: log returns per bar, [bars].
        volatility: forecasts for the bar after each.
        levels: probabilities of the losses.
        lengths: of windows.
        models: by name.

    Raises:
        InputError: a level or a model that is none.
    """
    first = LEAST_FIT + lengths.tail_bars + 1  # from here on each of them has a forecast
    found = []
    for level in levels:
        for model in models:
            made = MODELS[check_choice("model", model, MODELS)](returns, volatility, level, lengths.tail_bars)
            cut = TailForecast(level, made.var.copy(), made.es.copy())
            cut.var[:first] = cut.es[:first] = np.nan
            found.append(Tail(model, made, evaluate_tail(returns, cut)))
    return tuple(found)
