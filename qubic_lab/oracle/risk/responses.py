"""What the oracle answers about risk, as clients read it; see `answers` for instants, ages, shares and what is absent.

Losses and volatilities are log returns, in per cent.
"""

from typing import Annotated, Literal

from pydantic import Field

from qubic_lab.oracle.model.response import AgeS, Frame, Missing, Money, Share
from qubic_lab.oracle.risk.rules import Level
from qubic_lab.oracle.serving.responses import Answer, Instant, Origin, Part

PValue = Annotated[float | None, Field(description="p-value; null: too little to test")]
Loss = Annotated[float, Field(description="per cent that the next bar loses; a log return with its sign turned")]


class RiskBars(Origin):
    """The bars that were looked at: at most a fixed number of the last closed ones, and the earlier ones not at all.

    Attributes:
        missing: so many are not there between the first and the last; they are not filled in.
        stale: the last one is older than three bars and the source's usual delay.
        volume: whether its volume is known.
        other: the asset whose correlation is watched.
        sentiment: whose scores of texts, as each was known at each close.
    """

    bars: int
    first: Instant
    last: Instant
    age_s: AgeS
    missing: int
    stale: bool
    volume: bool
    other: str | Missing
    sentiment: str | Missing


class RiskEvidence(Part):
    """A rule at the level of the answer: its measure's value at the last bar, and the least one for the level.

    `value` is null where this bar has none, and may be below `threshold` while the level is still to be left.
    """

    rule: str
    measure: str
    level: Level
    value: float | None
    threshold: float
    unit: str
    text: str


class RiskLevel(Part):
    """The level at the close of the last bar: that of the highest rule.

    `before`: what it was until then; null: the same since rules had values. `bars`: so many bars ago it became so.
    """

    level: Level
    since: Instant
    before: Level | None
    bars: int
    evidence: list[RiskEvidence]
    text: str


class RiskRule(Part):
    """A rule at the last bar: its level, what its measure must reach for each, and how much is missing to the next.

    `clears_below`: the level is left once the measure was below this for `hold` bars in a row; null: it is calm.
    """

    measure: str
    level: Level
    value: float | None
    unit: str
    watch: float
    warning: float
    alarm: float
    hold: int
    next_level: Level | None
    to_next: float | None
    clears_below: float | None


class RiskMeasure(Part):
    """A measure at the last bar; greater is worse.

    `percentile`: the share of its `bars` earlier values that are not above it. `parameters`: in bars.
    """

    value: float | None
    percentile: Annotated[float | None, Field(description="between 0 and 1; null: not known")]
    bars: int
    unit: str
    description: str
    parameters: dict[str, int]


class Volatility(Part):
    """A standard deviation of log returns: of a bar, and of a year of a market that never closes."""

    bar_pct: float
    year_pct: float


class VolatilityForecast(Volatility):
    """What a GARCH(1,1) model with Student's t says of the next bar; fitted so often, of which `failed` did not end."""

    fits: int
    failed: int
    refit_bars: int


class RiskVolatility(Part):
    """Volatility of the last `bars` bars by estimator, and of the next one."""

    bars: int
    realised: dict[str, Volatility | Missing]
    forecast: VolatilityForecast | Missing


class TailRisk(Part):
    """What the next bar may lose at a probability, by one model; and how the model's past forecasts stood.

    Attributes:
        value_at_risk_pct: the loss that is exceeded with that probability.
        shortfall_pct: expected shortfall: the mean loss where it is.
        tested: past bars with a forecast made before them, of which `beyond` lost more; `expected`: so many should.
        kupiec_p: are they as many as they should be? `independence_p`: does none follow another more often than it
            should? `christoffersen_p`: both at once. `shortfall_p`: are they no larger than expected shortfall?
        rejected_by: tests whose p-value is below 0.05: by them the model is not to be trusted here. With several
            models and tests some are rejected by chance.
        not_tested: why it could not be tested; empty where it was.
    """

    model: str
    probability: float
    value_at_risk_pct: Loss
    shortfall_pct: Loss
    tested: int
    beyond: int
    expected: float
    kupiec_p: PValue
    independence_p: PValue
    christoffersen_p: PValue
    shortfall_p: PValue
    rejected_by: list[str]
    not_tested: str


class RiskDrawdown(Part):
    """How far the last close is below the highest of all bars looked at, and of the last `recent_bars`."""

    drawdown_pct: float
    highest: Money
    highest_at: Instant
    recent_pct: float | None
    recent_bars: int


class PastWarning(Part):
    """A rise of the level in the past, and why."""

    at: Instant
    level: Level
    before: Level
    evidence: list[str]


class Interval(Part):
    """A number with its interval of 95 %; null where there is nothing, or too little, to estimate it from."""

    value: float | None
    low: float | None
    high: float | None


class WarningRecord(Part):
    """What warnings were worth in the period.

    Attributes:
        warnings: raised while none stood; `right`: those with a fall within the horizon; `precision`: their share.
        falls: that were to be warned of; `found`: those with a warning within the horizon before; `recall`: their
            share.
        precision_by_chance: of warnings at random times; `recall_by_chance`: of random falls, which is the share of
            the time under warning.
        false_alarms_a_month: of 365 / 12 days.
        lead_h: median hours from the first warning within the horizon to its fall.
    """

    warnings: int
    right: int
    precision: Interval
    precision_by_chance: Share
    falls: int
    found: int
    recall: Interval
    recall_by_chance: Share
    false_alarms_a_month: Interval
    lead_h: Interval


class RiskRecord(Part):
    """How good such warnings were in this coin's own past, beside a naive rule with as much time under warning.

    It is worked out now, by today's rules, from the bars that were looked at; no warning was sent at that time.

    Attributes:
        level: from which on a level counts as a warning.
        horizon_h, drop_pct: a warning is right where the close falls so far below a recent high within the horizon.
        naive: of a rule that warns where volatility is above one of its own quantiles; the quantile is chosen for
            equal time under warning, without a look at what came.
        only_ours, only_naive, p: falls that only one of them found, and the exact McNemar test of the difference.
        fallen_pct: how far below its recent high the price was already, in the median, at the first warning of a fall
            that was found.
    """

    level: Level
    horizon_h: float
    drop_pct: float
    start: Instant
    end: Instant
    months: float
    ours: WarningRecord
    naive: WarningRecord
    naive_quantile: Share
    only_ours: int
    only_naive: int
    p: float
    fallen_pct: float | None
    text: str


class Risk(Answer):
    """The level of risk of a coin by rules, with its evidence, and how good such warnings were in the coin's past.

    All of it is of bars that were closed at `as_of`, and of what was known then. It is no advice.
    """

    coin: str
    symbol: str
    name: str
    frame: Frame
    as_of: Instant
    analysed: RiskBars | Missing
    level: RiskLevel | Missing
    rules: dict[str, RiskRule | Missing]
    measures: dict[str, RiskMeasure | Missing]
    volatility: RiskVolatility | Missing
    tails: list[TailRisk] | Missing
    drawdown: RiskDrawdown | Missing
    warnings: Annotated[list[PastWarning] | Missing, Field(description="the last ones, the newest first")]
    record: RiskRecord | Missing


class RiskAlert(Part):
    """An alert as it is kept: what was told, and what became of it.

    Attributes:
        kind: raised and escalated: the level rose; all-clear: it was below the least level for long enough;
            no-prices: there are no fresh prices, so nothing else can be told.
        episode: the close of the bar with which the level rose to the least one that is told of; of no-prices: the
            last close that is known.
        at: the close of the bar that it tells of; `made`: when it was decided on.
        state: pending, sent (without a webhook: logged) or failed; `done`: since when it is one of the latter two.
        attempts: so often was its delivery begun; each time it is posted up to three times.
        last_error: of the last time that failed; null: none did, or it was sent in the end.
    """

    id: int
    key: Annotated[str, Field(description="the same at each attempt to deliver it")]
    kind: Literal["raised", "escalated", "all-clear", "no-prices"]
    coin: str
    frame: Frame
    level: Level | None
    episode: Instant
    at: Instant
    made: Instant
    text: str
    evidence: list[str]
    price: Money | None
    currency: str | None
    source: Annotated[str | None, Field(description="of the prices")]
    state: Literal["pending", "sent", "failed"]
    attempts: int
    last_error: str | None
    done: Instant | None


class RiskAlerts(Part):
    """The last alerts, the newest first."""

    as_of: Instant
    alerts: list[RiskAlert]
