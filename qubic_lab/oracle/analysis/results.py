"""What the analysis of closed bars returns: the parts of a response. They can be imported without TA-Lib."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from qubic_lab.oracle.model.response import AgeS, Instant, Missing, Money, Part, PriceOrigin, Share


@dataclass(frozen=True, kw_only=True)
class AnalysedBars(PriceOrigin):
    """The bars that were analysed.

    `missing`: how many bars are missing between the first and the last one; they are not filled in.
    """

    bars: Annotated[int, Field(description="number of closed bars")]
    first_us: Instant
    last_us: Instant
    age_s: Annotated[float, Field(description="of the last bar, seconds before as_of")]
    missing: int
    notes: Annotated[tuple[str, ...], Field(description="what to know about these bars")]


@dataclass(frozen=True, kw_only=True)
class IndicatorValue(Part):
    """An indicator at the last bar. `warm_up`: how many bars come before its first value."""

    value: Annotated[float, Field(description="at the last bar")]
    unit: Annotated[str, Field(description="of the value")]
    warm_up: int
    age_s: AgeS
    description: Annotated[str, Field(description="what the indicator says, and its parameters")]


@dataclass(frozen=True, kw_only=True)
class SeenPattern(Part):
    """A candle pattern. `direction`: what books expect after it; nothing here shows that they are right."""

    name: Annotated[str, Field(description="the pattern's name")]
    direction: Literal["rise", "fall"]
    at_us: Instant
    meaning: Annotated[str, Field(description="what it looks like")]


@dataclass(frozen=True, kw_only=True)
class Trend(Part):
    """The direction of the price at the last bar, and how sure it is.

    Attributes:
        direction: rising or falling if `drift` is beyond ±1.96, otherwise none.
        strong: whether `adx` is at least 25; None if it is not known.
        slope_pct_per_hour: of the regression line over `window` bars.
        slope_t: slope of the line over its standard error, which is no test (see `trend.RegressionLines`); None if the
            line fits exactly.
        fit: share of the variance that the line explains; None if nothing moved.
        drift: move over `window` bars in standard deviations of a random walk; None if nothing moved.
    """

    direction: Literal["rising", "falling", "none"]
    strong: bool | None
    slope_pct_per_hour: float
    slope_t: float | None
    fit: float | None
    drift: float | None
    adx: Annotated[float | None, Field(description="average directional index; null: not known")]
    window: Annotated[int, Field(description="number of bars behind it")]
    text: Annotated[str, Field(description="the same in words")]


@dataclass(frozen=True, kw_only=True)
class PriceLevel(Part):
    """Prices between `low` and `high` at which several moves ended; `price` is their mean, weighted by recency.

    Attributes:
        kind: support below the close, resistance above it, "at" if the close lies within.
        touches: number of turning points.
        strength: sum of 0.5 to the power of each turning point's age in half-lives.
        distance_pct: distance of the price from the close.
        first_us, last_us: closes of the bars of the first and the last turning point.
    """

    kind: Literal["support", "resistance", "at"]
    price: Money
    low: Money
    high: Money
    touches: int
    strength: float
    distance_pct: float
    first_us: Instant
    last_us: Instant


@dataclass(frozen=True, kw_only=True)
class Breakout(Part):
    """A close beyond a level that was known before, when the last close outside it was on the other side.

    Attributes:
        margin: distance beyond the level, in average true ranges.
        volume_ratio: the volume of the bar over the median before it; None if it is not known.
        confirmed: whether the volume ratio reaches that of the rule.
    """

    direction: Annotated[Literal["up", "down"], Field(description="up: above the level")]
    at_us: Instant
    close: Money
    level: PriceLevel
    margin: float
    volume_ratio: float | None
    confirmed: bool


@dataclass(frozen=True, kw_only=True)
class PriceForecast(Part):
    """The price that is expected some hours after the last bar.

    Attributes:
        at_us: the time that the forecast is about.
        price: the median. `coverage` of later prices should lie between `low` and `high`.
        held: share of later prices inside the intervals of `held_of` past forecasts; None if there were none.
        skill: 1 − mean squared error / that of "the price stays": above 0 is better. None if the price stood still.
        skill_t: difference of the squared errors over its standard error (see `forecast.skill_against_staying`): below
            1.96 the skill may be chance.
    """

    hours: Annotated[int, Field(description="from the last bar to the time that the forecast is about")]
    at_us: Instant
    price: Money
    low: Money
    high: Money
    coverage: Share
    errors: Annotated[int, Field(description="past forecasts whose errors set the interval")]
    held: float | None
    held_of: Annotated[int, Field(description="number of past forecasts that were checked")]
    skill: float | None
    skill_t: float | None
    text: Annotated[str, Field(description="the same in words")]


@dataclass(frozen=True, kw_only=True)
class UnusualBar(Part):
    """An unusual bar, and the numbers that make it so."""

    kind: Annotated[Literal["outlier", "jump", "volume", "zero-volume"], Field(description="what is unusual")]
    at_us: Instant
    score: Annotated[float | None, Field(description="how unusual it is; null: it has no measure")]
    evidence: Annotated[dict[str, float], Field(description="the numbers behind it, by name")]
    text: Annotated[str, Field(description="the same in words")]


@dataclass(frozen=True, kw_only=True)
class JumpTest(Part):
    """Whether there were jumps among the last returns: a small p-value says so.

    Attributes:
        statistic: about standard normal without jumps.
        p_value: one-sided.
        jump_share: share of the variance that bipower variation does not explain, at least 0.
    """

    statistic: float
    p_value: float
    jump_share: Share
    returns: Annotated[int, Field(description="how many returns were tested")]


HintKind = Literal["pump-and-dump", "wash-trading"]


@dataclass(frozen=True, kw_only=True)
class ManipulationHint(Part):
    """A shape that manipulation leaves, but other causes leave as well: a hint with its numbers, no proof."""

    kind: Annotated[HintKind, Field(description="the shape")]
    at_us: Instant
    score: Annotated[float, Field(description="the more, the clearer")]
    evidence: Annotated[dict[str, float], Field(description="the numbers behind it, by name")]
    text: Annotated[str, Field(description="the same in words")]


@dataclass(frozen=True, kw_only=True)
class Anomalies(Part):
    """What was unusual in the last 24 bars. `jump_test` covers the last 96 returns."""

    outliers: tuple[UnusualBar, ...] | Missing
    jumps: tuple[UnusualBar, ...] | Missing
    jump_test: JumpTest | Missing
    volumes: tuple[UnusualBar, ...] | Missing
    manipulation: tuple[ManipulationHint, ...] | Missing


@dataclass(frozen=True, kw_only=True)
class BarAnalysis(Part):
    """What the closed bars of a frame say at an instant."""

    analysed: AnalysedBars | Missing
    indicators: dict[str, IndicatorValue | Missing] | Missing
    patterns: Annotated[tuple[SeenPattern, ...] | Missing, Field(description="of the last 3 bars")]
    trend: Annotated[Trend | Missing, Field(alias="trend_details")]
    levels: Annotated[tuple[PriceLevel, ...] | Missing, Field(description="the strongest first")]
    breakouts: Annotated[tuple[Breakout, ...] | Missing, Field(description="of the last 24 bars")]
    forecasts: dict[str, PriceForecast | Missing] | Missing
    anomalies: Anomalies | Missing

    @classmethod
    def missing(cls, reason: str) -> "BarAnalysis":
        """Return an analysis of which every part is missing for one reason."""
        return cls(**dict.fromkeys(cls.__dataclass_fields__, Missing(reason)))
