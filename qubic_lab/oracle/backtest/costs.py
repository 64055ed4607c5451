"""Costs of trading and of holding."""

import math
from dataclasses import dataclass, fields

from qubic_lab.errors import InputError

BPS = 1e-4
MOST_RATE = 0.5
"""Upper bound of a trade's cost times leverage; above it an account could not pay for its own trades."""


@dataclass(frozen=True)
class Costs:
    """Costs of trades, by their size, and of positions, by time.

    A buy is filled at open × (1 + slip), a sale at open × (1 − slip), with
    slip = half spread + impact × participation ** `impact_exponent`; participation is the trade's share of the fill
    bar's volume. An exponent of 0.5 is the square-root law (Almgren et al., "Direct estimation of equity market
    impact", 2005; Tóth et al., Phys. Rev. X 1, 2011).

    Attributes:
        fee_bps: fee on the value at the fill's price.
        half_spread_bps: of the open.
        impact_bps: slippage of a trade as large as the bar's whole volume.
        most_participation: largest share of a bar's volume in one fill; the rest waits for the next bars. None: no
            limit, or the whole volume where `impact_bps` is not 0.
        funding_per_year: of a position's value; longs pay it, shorts receive it.
        borrow_per_year: of a short position's value.
        margin_per_year: of the cash owed after the last fill.
    """

    fee_bps: float = 0.0
    half_spread_bps: float = 0.0
    impact_bps: float = 0.0
    impact_exponent: float = 0.5
    most_participation: float | None = None
    funding_per_year: float = 0.0
    borrow_per_year: float = 0.0
    margin_per_year: float = 0.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            least = -math.inf if each.name == "funding_per_year" else 0.0
            if value is not None and not (math.isfinite(value) and value >= least):
                raise InputError(f"{each.name} is {value}: it must be a number, and not below 0")
        if self.impact_exponent == 0.0:
            raise InputError("impact_exponent is 0: it must be above; a cost that no size changes is half_spread_bps")
        if self.most_participation is not None and not 0.0 < self.most_participation <= 1.0:
            raise InputError(f"most_participation is {self.most_participation}: it must be above 0 and at most 1")

    @property
    def limit(self) -> float | None:
        """The largest share of a bar's volume in one fill; None: volume does not matter."""
        return 1.0 if self.most_participation is None and self.impact_bps else self.most_participation

    @property
    def holding(self) -> bool:
        """Whether holding positions costs anything."""
        return bool(self.funding_per_year or self.borrow_per_year or self.margin_per_year)

    @property
    def most_rate(self) -> float:
        """The largest cost of a trade, as a share of its value at the open."""
        slip: float = self.half_spread_bps * BPS + self.impact_bps * BPS * (self.limit or 0.0) ** self.impact_exponent
        return slip + self.fee_bps * BPS * (1.0 + slip)
