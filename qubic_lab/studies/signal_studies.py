"""Does sentiment predict returns, or follow them? Coefficients by horizon, quantiles, events, and lead and lag.

Scores are those of collected texts, by source and by model, or simulated ones with a known effect, labelled as such.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.backtest.costs import Costs
from qubic_lab.oracle.inference.alignment import Aligned
from qubic_lab.oracle.inference.conditional_returns import (
    MOVES,
    EventStudy,
    QuantileSpread,
    buckets_of,
    event_studies,
    extremes,
    quantile_spread,
)
from qubic_lab.oracle.inference.information import HORIZONS, Coefficient, Decay, decay, information
from qubic_lab.oracle.inference.lead_lag import LeadLag, lead_lag
from qubic_lab.stats import holm_in_parts
from qubic_lab.studies.collected_signals import ALL_SOURCES, Collected
from qubic_lab.studies.finding import Finding, answering, estimate, say
from qubic_lab.studies.market_bars import StudyBars
from qubic_lab.studies.oracle_backtest import SENTIMENT, ScoredTexts
from qubic_lab.studies.style import columns

Row = dict[str, Any]
QUESTION = "prediction"
NO_TEXTS = "no collected texts"
"""Why real sentiment is not measured: no texts were collected at the time of the packaged prices."""
SPREAD_HORIZONS = (1, 4)
SIGNED = "both, by sign"
LEADS = {
    "neither": "neither side leads",
    "both": "each side leads the other",
    "unknown": "the lead is unknown",
    "price leads": "price leads",
    "sentiment leads": "sentiment leads",
}


@dataclass(frozen=True)
class ScoreSeries:
    """Scores of texts of one source by one model, with its version; `effect`: planted in simulated ones, else None."""

    bars: StudyBars
    source: str
    model: str
    effect: float | None
    texts: ScoredTexts

    @property
    def title(self) -> str:
        """Return what it is in short."""
        if self.effect is not None:
            return f"SIMULATION: effect {self.effect:g}, {self.bars.name}"
        return f"{self.source}, {self.model.partition('@')[0]}, {self.bars.name}"


@dataclass(frozen=True, eq=False)
class SignalStudy:
    """What was found of one series of scores; a bar's score is the mean over the `last` bars.

    Attributes:
        tests: coefficients that were looked at together, and count in `p_corrected`.
        shifts: that chance is known from; `least_shift`: their least length in bars.
        left_out: horizons that were asked for, and are too long for the number of bars.
    """

    scored: ScoreSeries
    last: int
    aligned: Aligned
    coefficients: tuple[Coefficient, ...]
    decay: Decay
    spreads: tuple[QuantileSpread, ...]
    events: tuple[EventStudy, ...]
    lead: LeadLag
    tests: int
    shifts: int
    least_shift: int
    left_out: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        """Return what it is in short."""
        return self.scored.title

    @property
    def simulated(self) -> bool:
        """Whether it is a simulation."""
        return self.scored.effect is not None

    @property
    def best(self) -> Coefficient | None:
        """The horizon with the smallest corrected p-value; None where no coefficient is known."""
        known = [row for row in self.coefficients if row.p_corrected is not None]
        return min(known, key=lambda row: (row.p_corrected or 0.0, row.p or 0.0, row.horizon), default=None)

    @property
    def evidence(self) -> bool:
        """Whether some horizon's coefficient is more than chance gives, all that was looked at together counted."""
        return any(row.evidence for row in self.coefficients)

    @property
    def signed_events(self) -> EventStudy:
        """Events of both signs together."""
        return next(each for each in self.events if each.kind == SIGNED)


def choose_scores(
    markets: Sequence[StudyBars], found: Collected | None, effects: Sequence[float], seed: int = 0
) -> list[list[ScoreSeries]]:
    """Return series of scores in groups; those of one group count together.

    Collected scores, if there are any, are one group with a series for each source and model. Otherwise each market and
    effect has a simulated series in a group of its own.
    """
    if found is None:
        return [
            [ScoreSeries(bars, SENTIMENT, SENTIMENT, effect, ScoredTexts.simulated(bars.bars, effect, seed))]
            for bars in markets
            for effect in effects
        ]
    return [
        [
            ScoreSeries(found.bars, source, model, None, ScoredTexts(f"sentiment of {source}", texts, (model,)))
            for source, texts in found.by_source.items()
            for model in found.models
            if any(model in text.scores for text in texts)
        ]
    ]


def traded(groups: Sequence[Sequence[ScoreSeries]], found: Collected | None) -> list[tuple[StudyBars, ScoredTexts]]:
    """Return the texts that strategies trade by: all collected ones at once, or each simulation."""
    if found is not None:
        return [(found.bars, found.scored)]
    return [(each.bars, each.texts) for group in groups for each in group]


def caption(studies: Sequence[SignalStudy], text: str) -> str:
    """Return a caption that says where it is of a simulation."""
    return f"SIMULATION: {text}" if any(study.simulated for study in studies) else text


def study_signals(
    groups: Sequence[Sequence[ScoreSeries]],
    horizons: Sequence[int] = HORIZONS,
    last: int = 1,
    resamples: int = 1000,
    seed: int = 0,
) -> list[SignalStudy]:
    """Study series of scores; those of one group are on the same bars and are corrected for together.

    `horizons` are of returns, in bars; a bar's score is the mean over the `last` bars, and with 1 bars without a text
    have none; `resamples` are of bootstraps, drawn by the seed.

    Raises:
        InputError: no scores, a seed below 0, or too few bars for the shortest horizon.
    """
    check_at_least("seed", seed, 0)
    if not any(groups):
        raise InputError("there are no scores to study: give at least one effect, or collected texts")
    return [study for group in groups if group for study in _study_group(group, horizons, last, resamples, seed)]


def _study_group(
    group: Sequence[ScoreSeries], horizons: Sequence[int], last: int, resamples: int, seed: int
) -> list[SignalStudy]:
    market, drawn = group[0].bars.bars, {"resamples": resamples, "seed": seed}
    aligned = {each.title + each.model: Aligned.of(market, each.texts.texts, each.model, last) for each in group}
    found = information(aligned, horizons)
    leads = holm_in_parts([lead_lag(each) for each in aligned.values()], "ahead", "before")
    around = [event_studies(each, **drawn) for each in aligned.values()]
    all_events = iter(holm_in_parts([each for studies in around for each in studies], *MOVES))
    made = []
    for (name, one), scored, studies, lead in zip(aligned.items(), group, around, leads, strict=True):
        coefficients = found.of(name)
        made.append(
            SignalStudy(
                scored=scored,
                last=last,
                aligned=one,
                coefficients=coefficients,
                decay=decay(one, min(coefficients, key=lambda row: row.horizon).band),
                spreads=tuple(quantile_spread(one, each, **drawn) for each in SPREAD_HORIZONS),
                events=tuple(next(all_events) for _ in studies),
                lead=lead,
                tests=found.tests,
                shifts=len(found.shift_test.shifts),
                least_shift=found.least_shift,
                left_out=tuple(sorted(set(horizons) - {row.horizon for row in coefficients})),
            )
        )
    return made


def looks_ahead(studies: Sequence[SignalStudy]) -> list[str]:
    """Return the series whose scores, buckets or events of the first half of bars change when the rest is cut off."""
    guilty = []
    for study in studies:
        half = len(study.aligned) // 2
        scored = study.scored
        short = Aligned.of(scored.bars.bars.slice(0, half), scored.texts.texts, scored.model, study.last)
        both = [(each.score, buckets_of(each.score), each.texts) for each in (study.aligned, short)]
        early = [places[places < half] for places in extremes(study.aligned.score)]
        alike = all(np.array_equal(one[:half], other, equal_nan=True) for one, other in zip(*both, strict=True))
        if not alike or not all(map(np.array_equal, early, extremes(short.score))):
            guilty.append(study.title)
    return guilty


def to_dict(studies: Sequence[SignalStudy]) -> Row:
    """Return all results as plain values for JSON, which `oracle_results.SignalsRecord` reads a part of.

    `ic` has a row for each horizon: Spearman's coefficient with its HAC error and 95 % interval, two-sided p-values and
    the smallest coefficient detectable with 80 % power. Quantiles are log returns. Unknown numbers are null.
    """
    simulation = all(study.simulated for study in studies)
    return {
        "simulation": simulation,
        "measured": not simulation,
        "reason": NO_TEXTS if simulation else None,
        "correction": "Westfall-Young: the largest of all coefficients looked at together, at each circular shift",
        "studies": [_study_dict(study) for study in studies],
    }


def _study_dict(study: SignalStudy) -> Row:
    bars, best = study.scored.bars.row(), study.best
    return {
        "bars": bars["bars of"],
        **{name: bars[name] for name in ("coin", "from", "to")},
        **columns(study.scored, "source", "model", "effect"),
        **columns(study, "title", "tests", "shifts", "evidence"),
        "scored_bars": study.aligned.scored,
        "least_shift_bars": study.least_shift,
        "ic": [row.to_dict() for row in study.coefficients],
        "best": None if best is None else best.to_dict(),
        "p_corrected": None if best is None else best.p_corrected,
        "decay": {
            "half_life_bars": study.decay.half_life,
            **columns(study.decay, "low", "high", "absent"),
            "ic": [
                {"ahead": ahead, **columns(each, "ic", "low", "high", "pairs")}
                for ahead, each in enumerate(study.decay.by_bar, start=1)
            ],
        },
        "quantiles": [asdict(each) for each in study.spreads],
        "events": [each.to_dict() for each in study.events],
        "lead": study.lead.verdict,
        "lead_lag": study.lead.to_dict(),
    }


def findings(studies: Sequence[SignalStudy], costs: Costs) -> list[Finding]:
    """Say for each series whether its scores predict returns, whether that pays, and which side leads."""
    left_out = {
        study.scored.bars.name: say(
            "Horizons of {horizons} bars were left out: {bars} bars of {name} are too few.",
            horizons=study.left_out,
            bars=len(study.aligned),
            name=study.scored.bars.name,
        )
        for study in studies
        if study.left_out
    }
    return answering(QUESTION, [*(each for study in studies for each in _findings(study, costs)), *left_out.values()])


def _findings(study: SignalStudy, costs: Costs) -> list[Finding]:
    best = study.best
    values: Row = {"scores": _named(study.scored)}
    if best is None or best.found.ic is None:
        text = "{scores}: scores cannot be compared with returns: {reason}."
        return [say(text, reason=study.coefficients[0].found.absent, **values)]
    found, against = best.found, best.found.ic < 0.0
    text = (
        "{scores}: no evidence that scores predict returns (best IC {ic:+.3f}, corrected p {p:p}, {tests:test}); "
        "{lead}."
    )
    if study.evidence and against:
        text = (
            "{scores}: scores predict returns of the opposite sign (IC {ic:+.3f} over {bars:bar}, corrected p {p:p}, "
            "{tests:test}); {lead}."
        )
    elif study.evidence:
        text = (
            "{scores}: scores predict returns (IC {ic:+.3f} over {bars:bar}, corrected p {p:p}, {tests:test}); {lead}."
        )
    said = [
        say(
            text,
            ic=estimate(found.ic, found.low, found.high),
            bars=best.horizon,
            p=best.p_corrected,
            tests=study.tests,
            lead=say(LEADS[study.lead.verdict]),
            **values,
        )
    ]
    edge = study.spreads[0].edge_bps
    if study.evidence and edge is not None:
        values |= {
            "way": say("against") if against else say("by"),
            "gain": -edge if against else edge,
            "cost": round_trip_bps(costs),
        }
        if values["gain"] > values["cost"]:
            text = "{scores}: a trade {way} them gains {gain:.0f} bp over a bar, more than its cost of {cost:.0f} bp."
        else:
            text = "{scores}: a trade {way} them gains {gain:.0f} bp over a bar, less than its cost of {cost:.0f} bp."
        said.append(say(text, **values))
    return said


def _named(scored: ScoreSeries) -> Finding:
    bars = scored.bars.name
    if scored.effect is not None:
        return say("SIMULATION: effect {effect:g}, {bars}", effect=scored.effect, bars=bars)
    source = say("All sources") if scored.source == ALL_SOURCES else scored.source
    return say("{source}, {model}, {bars}", source=source, model=scored.model.partition("@")[0], bars=bars)


def round_trip_bps(costs: Costs) -> float:
    """Return the cost of opening and closing a position in basis points, without market impact."""
    return 2.0 * (costs.fee_bps + costs.half_spread_bps)


def shown(studies: Sequence[SignalStudy], most: int) -> list[SignalStudy]:
    """Return the studies to draw: those of all sources first, then by their corrected p-values."""
    if len(studies) <= most:
        return list(studies)

    def rank(study: SignalStudy) -> tuple[bool, float]:
        p = None if study.best is None else study.best.p_corrected
        return study.scored.source != ALL_SOURCES, 1.0 if p is None else p

    return sorted(studies, key=rank)[:most]


def information_rows(studies: Sequence[SignalStudy]) -> list[Row]:
    """Return every coefficient that was looked at."""
    return [
        {
            "scores": study.title,
            "horizon": row.horizon,
            **columns(row.found, "pairs", "effective", "ic", "low", "high", "pearson"),
            "p alone": row.p,
            "p by Holm": row.p_holm,
            "p corrected": row.p_corrected,
            **columns(row, "detectable", "evidence"),
            "why not": row.found.absent,
        }
        for study in studies
        for row in study.coefficients
    ]


def summary_rows(studies: Sequence[SignalStudy], costs: Costs) -> list[Row]:
    """Return one row for each series: its best horizon, how soon it fades, what it would earn, and who leads.

    `edge_bps`: half of the spread over one bar, what one trade gains; `round_trip_bps`: what it costs to go in and out.
    """
    return [
        {
            "scores": study.title,
            "bars with a score": study.aligned.scored,
            "best horizon": None if study.best is None else study.best.horizon,
            "ic": None if study.best is None else study.best.found.ic,
            "p corrected": None if study.best is None else study.best.p_corrected,
            "half-life, bars": study.decay.half_life,
            "edge_bps": study.spreads[0].edge_bps,
            "round_trip_bps": round_trip_bps(costs),
            "leads": study.lead.verdict,
            "before_events_pct": _percent(study.signed_events, "before"),
            "after_events_pct": _percent(study.signed_events, "after"),
            "evidence": study.evidence,
        }
        for study in studies
    ]


def _percent(study: EventStudy, name: str) -> float | None:
    move = getattr(study, name)
    return None if move is None else 100.0 * float(move.mean)
