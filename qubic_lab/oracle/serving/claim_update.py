"""Keeps the claims of the ledger up to date: scores those whose outcome is known, and enters what is said now."""

from collections.abc import Iterator
from dataclasses import dataclass

from qubic_lab.errors import NotFoundError
from qubic_lab.oracle.backtest.price_claims import forecast_claims, price_outcome
from qubic_lab.oracle.config import OracleConfig
from qubic_lab.oracle.model.response import FRAME_S, Frame, Missing
from qubic_lab.oracle.model.timestamps import DAY_US, SECOND_US
from qubic_lab.oracle.risk.inputs import read_risk_market
from qubic_lab.oracle.risk.measures import LEVELS
from qubic_lab.oracle.risk.rules import assess, fit_rules, read_rules
from qubic_lab.oracle.risk.warning_scores import FALLS, fall_outcome, warning_claim
from qubic_lab.oracle.serving.prices import ANALYSED
from qubic_lab.oracle.store.claims import Claim, ClaimLedger, ClaimOutcome
from qubic_lab.oracle.store.snapshot import MarketStore, Snapshot, reading

FORECAST_FRAMES: tuple[Frame, ...] = ("1h", "4h")
HORIZONS_BEFORE = 5
"""Horizons of bars before a warning that show which falls were under way."""
GIVEN_UP_US = 7 * DAY_US
"""How long prices may be missing after a claim was due; then its outcome cannot be known."""


@dataclass(frozen=True)
class ClaimUpdate:
    """The claims that were entered and scored, and those that are due and wait for prices."""

    entered: int
    scored: int
    waiting: int


@reading()
def update_claims(market: MarketStore, ledger: ClaimLedger, config: OracleConfig) -> ClaimUpdate:
    """Score the claims that are due, then enter the forecasts and the warnings of the coins that are collected.

    Forecasts are those that the service gives, of bars of 1 and 4 h. A warning claims a fall within the horizon of its
    frame, and so does its absence that there is none: only both together show skill.

    Raises:
        QubicLabError: a database cannot be read.
    """
    snapshot = market.snapshot()
    due = ledger.unscored()
    found = [(each.number, outcome) for each in due if (outcome := _outcome(snapshot, each.claim)) is not None]
    scored = sum(ledger.score(number, outcome) for number, outcome in found)
    claims = [claim for coin in config.coins for claim in _claims_of(snapshot, coin, config)]
    entered = sum(ledger.enter(claim) is not None for claim in claims if claim.due_us > snapshot.store.clock())
    return ClaimUpdate(entered, scored, len(due) - len(found))


def _claims_of(snapshot: Snapshot, coin: str, config: OracleConfig) -> Iterator[Claim]:
    """Yield what is claimed of a coin now; nothing if it has no prices."""
    try:
        sources = snapshot.sources(coin)
    except NotFoundError:
        return
    for frame in FORECAST_FRAMES:
        frame_us = FRAME_S[frame] * SECOND_US
        source = next((each for each in sources if each.series.makes(frame_us)), None)
        if source is not None and len(bars := snapshot.bars(source, frame_us, ANALYSED[frame])):
            yield from forecast_claims(bars, source.series, frame)
    risk = config.risk
    market = read_risk_market(snapshot, coin, risk.frame, config.sentiment)
    if isinstance(market, Missing) or not len(market.bars) or market.is_stale(snapshot.at_us):
        return
    rules = read_rules() if risk.rules is None else risk.rules
    assessment = assess(market.inputs, fit_rules(rules, market.bars.frame_us))
    if not assessment.why_unknown:
        warned = bool(assessment.levels[-1] >= LEVELS.index(risk.level))
        yield warning_claim(market.bars, market.source.series, risk.frame, warned, *FALLS[risk.frame])


def _outcome(snapshot: Snapshot, claim: Claim) -> ClaimOutcome | None:
    """Return what came of a claim by the prices that decide; None: they are not here, or not yet."""
    if claim.series not in snapshot.series.get(claim.series.coin, ()):
        return None
    source, is_fall, outcome = snapshot.priced(claim.series), "drop" in claim.details, None
    if source is not None and source.last.closed_us >= claim.due_us:
        before_us = HORIZONS_BEFORE * (claim.due_us - claim.at_us) if is_fall else 0
        count = (source.last.closed_us - claim.at_us + before_us) // claim.frame_us + 2
        bars = snapshot.bars(source, claim.frame_us, count)
        outcome = fall_outcome(claim, bars) if is_fall else price_outcome(claim, bars)
    return outcome or (ClaimOutcome(None) if snapshot.at_us - claim.due_us > GIVEN_UP_US else None)
