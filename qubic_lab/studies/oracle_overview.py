"""The market oracle at a glance: pictures and sentences of `oracle_measures`, and how sure its sentiment model is."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qubic_lab.oracle.analysis.forecast import RULE
from qubic_lab.oracle.analysis.indicators import compute
from qubic_lab.oracle.analysis.rating import Rating
from qubic_lab.oracle.model.timestamps import DAY_US
from qubic_lab.oracle.sentiment.labelled import HEADLINES_FILE, read_examples
from qubic_lab.oracle.sentiment.models import read_head
from qubic_lab.oracle.sentiment.scores import LABELS, SentimentModel
from qubic_lab.stats import (
    Forecasts,
    bootstrap_interval,
    brier_parts,
    calibration_error,
    calibration_error_if_calibrated,
    calibration_error_interval,
    reliability_table,
)
from qubic_lab.studies.anomaly_trials import KINDS
from qubic_lab.studies.finding import Finding, answering, estimate, extent, say
from qubic_lab.studies.forecast_accuracy import ForecastStudy
from qubic_lab.studies.market_bars import MarketData
from qubic_lab.studies.oracle_measures import IndexOverTime, News, PastRatings, SimulatedCoverage
from qubic_lab.studies.oracle_results import AnomalyCurve, ConfidenceError, ConfidenceRecord, RecordedEstimate
from qubic_lab.studies.style import (
    DARK,
    INK,
    LINES,
    PALE,
    WIDE,
    WIDTH_INCHES,
    Dot,
    columns,
    date_axis,
    dots,
    plot,
    rows,
)

Row = dict[str, Any]

QUESTION = "prediction"
ANOMALIES = {str(each): str(each) for each in KINDS}
GOOD_OR_BAD = 0.15
"""A text of this score or more is good news, of less than its opposite bad news."""


def prices(market: MarketData, bars: int = 180) -> Figure:
    """Draw the last bars with their indicators and volumes."""
    closed = market.with_volume
    shown = np.s_[max(0, len(closed) - bars) :]
    values = {name: each[shown] for name, each in compute(closed).items()}
    times = closed.closed_us[shown] / DAY_US  # matplotlib counts days
    with plot((4, 1), (WIDE, 7.0), ncols=4, fontsize=9, sharex=True, height_ratios=[3, 1, 1, 1]) as (figure, panels):
        top, volume, rsi, macd = panels
        top.fill_between(
            times, values["bollinger_lower"], values["bollinger_upper"], color=PALE, alpha=0.5, label="Bollinger bands"
        )
        top.plot(times, closed.close[shown], color=INK, linewidth=1.4, label="close")
        for name, line in (("sma_50", "--"), ("sma_200", ":")):
            top.plot(times, values[name], line, color=DARK, linewidth=1.2, label=f"mean of {name[4:]} closes")
        top.set_ylabel("price (USD)")
        top.yaxis.set_major_formatter("{x:,.0f}")
        volume.bar(times, closed.volume[shown] / 1e3, width=closed.frame_us / DAY_US, color=PALE)
        volume.set_ylabel("volume\n(1,000 coins)")
        rsi.plot(times, values["rsi_14"], color=DARK, linewidth=1.2)
        for edge in (30, 70):
            rsi.axhline(edge, linestyle=":", color=INK, linewidth=1.0)
        rsi.set_ylabel("RSI\n(0 to 100)")
        rsi.set_ylim(0, 100)
        macd.bar(times, values["macd_histogram"], width=closed.frame_us / DAY_US, color=PALE)
        macd.plot(times, values["macd"], "-", color=DARK, linewidth=1.2)
        macd.plot(times, values["macd_signal"], "--", color=DARK, linewidth=1.0)
        macd.set_ylabel("MACD\n(USD)")
        date_axis(macd)
        figure.align_ylabels()
    return figure


def sentiment_index(news: News, series: IndexOverTime) -> Figure:
    """Draw the index over time with the texts that make it, and how many there were each day."""
    with plot((2, 1), (WIDE, 4.8), fontsize=9, sharex=True, height_ratios=[2, 1]) as (figure, (top, bottom)):
        times = np.array(series.at_us) / DAY_US
        index, spread = np.array(series.index), np.array(series.spread)
        low, high = np.maximum(-1.0, index - spread), np.minimum(1.0, index + spread)
        top.fill_between(times, low, high, color=PALE, alpha=0.5, label="spread of the texts' scores")
        top.plot(times, index, color=DARK, linewidth=1.6, label="index")
        at, scores = zip(*((text.at_us / DAY_US, text.score) for text in news.texts), strict=True)
        top.plot(at, scores, "o", color=INK, markersize=3.5, label="a text")
        top.axhline(0.0, color=INK, linewidth=0.8)
        top.set_ylim(-1, 1)
        top.set_ylabel("bad (-1) to good (1)")
        _draw_days(bottom, news)
        date_axis(bottom)
        figure.align_ylabels()
        if news.simulated:
            top.set_title("SIMULATION: invented sample texts, no real news", fontsize=10, loc="left")
    return figure


def _draw_days(axes: Axes, news: News) -> None:
    scores = np.array([text.score for text in news.texts])
    days, which = np.unique([text.at_us // DAY_US for text in news.texts], return_inverse=True)
    floor = np.zeros(len(days))
    for name, colour, told in (
        ("bad", "white", scores <= -GOOD_OR_BAD),
        ("neutral", PALE, np.abs(scores) < GOOD_OR_BAD),
        ("good", DARK, scores >= GOOD_OR_BAD),
    ):
        counts = np.bincount(which[told], minlength=len(days))
        look: dict[str, Any] = {"color": colour, "edgecolor": INK, "linewidth": 0.5, "label": f"{name} news"}
        axes.bar(days, counts, 0.9, floor, align="edge", **look)
        floor += counts
    axes.set_ylabel("texts a day")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def model_rows() -> list[Row]:
    """Return what models of texts reach on our headlines, each by a head that saw none of its group."""
    measures = ("accuracy", "macro_f1", "calibration_error")
    return [
        {"model": name, **{measure: figures[measure] for measure in measures}}
        for name, figures in read_head().measured.items()
        if isinstance(figures, Mapping)
    ]


def curves(injected: Sequence[AnomalyCurve]) -> Figure:
    """Draw hits against false alarms of each kind of anomaly, a line for each size."""
    kinds = list(dict.fromkeys(each.kind for each in injected))
    sizes = sorted({each.size for each in injected})
    options: dict[str, Any] = {"sharey": True, "squeeze": False, "ncols": len(sizes)}
    with plot((1, len(kinds)), (1.6 * WIDTH_INCHES, 3.1), **options) as (figure, panels):
        for axes, kind in zip(panels[0], kinds, strict=True):
            for each in (found for found in injected if found.kind == kind):
                line = LINES[(len(sizes) - 1 - sizes.index(each.size)) % len(LINES)]
                x, y = 100 * np.array(each.false_alarms), 100 * np.array(each.hits)
                axes.plot(x, y, line, color=DARK, drawstyle="steps-post", linewidth=1.4, label=f"size {each.size:g}")
                axes.set_title(f"{kind}\n({each.bars} bars)", fontsize=10)
            axes.plot([0, 100], [0, 100], color=INK, linewidth=0.6)
            axes.set_aspect("equal")
            axes.set_xticks([0, 50, 100])
            axes.set_yticks([0, 50, 100])
            axes.set_xlabel("false alarms (%)")
        panels[0][0].set_ylabel("found (%)")
    return figure


def curve_rows(injected: Sequence[AnomalyCurve]) -> list[Row]:
    """Return the areas under the curves with their intervals."""
    names = ("kind", "size", "bars", "anomalies", "others", "auc", "low", "high")
    return [columns(each, *names) for each in injected]


def accuracy(past: ForecastStudy, simulated: Sequence[SimulatedCoverage]) -> Figure:
    """Draw how many prices the intervals held, and the forecast's error against that of "the price stays"."""
    hours = [each.hours for each in past.horizons]
    with plot((1, 2), (WIDE, 3.2), grid="y", fontsize=9) as (figure, (held, error)):
        for name, mark, shift in (("random walk", "s", -0.2), ("trend with noise", "^", 0.2)):
            found = [each for each in simulated if each.series == name]
            shares = [Dot(each.held, each.low, each.high) for each in found]
            dots(held, [each.hours + shift for each in found], shares, mark, "white", f"simulated {name}", scale=100)
        dots(held, hours, [each.interval.held for each in past.horizons], label="the price", scale=100)
        held.axhline(100 * RULE.coverage, linestyle="--", color=INK, linewidth=1.0)
        held.set_ylabel("within the interval (%)")
        held.set_ylim(65, 95)
        dots(error, hours, [each.stays.error_ratio for each in past.horizons], scale=100)
        error.axhline(100, linestyle="--", color=INK, linewidth=1.0)
        error.set_ylabel('error (% of "the price stays")')
        for axes in (held, error):
            axes.set_xlabel("forecast ahead (h)")
            axes.set_xticks(hours)
    return figure


def confidence(model: SentimentModel, seed: int = 0) -> ConfidenceRecord:
    """Judge the probability that a model gives to its own label on the part of our headlines that no model learned."""
    examples = read_examples(HEADLINES_FILE, "test")
    scores = model.score([each.text for each in examples])
    right = np.array([score.label == LABELS[each.label] for score, each in zip(scores, examples, strict=True)])
    forecasts = Forecasts.of([min(1.0, max(each.probabilities)) for each in scores], right)
    _, group = np.unique([each.group for each in examples], return_inverse=True)
    error, interval = calibration_error(forecasts), calibration_error_interval(forecasts, seed=seed)
    return ConfidenceRecord(
        model=model.name,
        headlines=len(forecasts),
        groups=int(group.max()) + 1,
        accuracy=float(right.mean()),
        ece=ConfidenceError(error, *interval, *calibration_error_if_calibrated(forecasts, seed=seed)),
        brier=brier_parts(forecasts),
        brier_skill=_skill(forecasts, group, seed),
        bins=tuple(reliability_table(forecasts)),
    )


def _skill(forecasts: Forecasts, group: Any, seed: int) -> RecordedEstimate:
    """Return the Brier skill over the share that is right; where all or none are, there is none."""
    squares = np.bincount(group, (forecasts.probability - forecasts.happened) ** 2)
    hits, sizes = np.bincount(group, forecasts.happened), np.bincount(group)

    def skill(drawn: Any) -> float:
        count, right = float(sizes[drawn].sum()), float(hits[drawn].sum())
        base = right * (1.0 - right / count)
        return 1.0 - float(squares[drawn].sum()) / base if base > 0.0 else np.nan

    return RecordedEstimate.of(skill(slice(None)), bootstrap_interval(skill, len(sizes), seed=seed))


def reliability(sure: ConfidenceRecord) -> Figure:
    """Draw the share of labels that are right against their probability; lines are 95 % intervals."""
    with plot(size=(WIDTH_INCHES, 3.4), ncols=2, fontsize=9) as (figure, axes):
        axes.plot([0, 100], [0, 100], ":", color=INK, linewidth=0.8, label="calibrated")
        shares = [Dot(each.share, each.share_low, each.share_high) for each in sure.bins]
        dots(axes, [100 * each.mean for each in sure.bins], shares, "o-", PALE, sure.model, scale=100)
        axes.set_xlim(30, 101)
        axes.set_ylim(0, 101)
        axes.set_xlabel("probability of the label (%)")
        axes.set_ylabel("right (%)")
    return figure


def after_ratings(ratings: PastRatings) -> Figure:
    """Draw what the price did after each step of the rating, with 95 % intervals."""
    with rows([f"{each.rating} ({each.times})" for each in ratings.steps]) as (figure, axes):
        changes = [Dot(each.mean_pct, each.low_pct, each.high_pct) for each in ratings.steps]
        dots(axes, range(len(changes)), changes, across=True)
        axes.axvline(0.0, linestyle="--", color=INK, linewidth=1.0, label="no change")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel(f"mean change in the {ratings.ahead_h} h after (%)")
    return figure


def rule_rows(rating: Rating) -> list[Row]:
    """Return a rating's rules with their votes and numbers; then those that could not vote."""
    voted = [{"rule": each.name, "vote": f"{each.vote:+d}", "because": each.text} for each in rating.rules]
    return voted + [{"rule": name, "vote": "", "because": why} for name, why in rating.left_out.items()]


def findings(
    news: News,
    injected: Sequence[AnomalyCurve],
    simulated: Sequence[SimulatedCoverage],
    ratings: PastRatings,
    sure: ConfidenceRecord,
) -> list[Finding]:
    """Say how ratings, anomalies, texts, the confidence of their model and simulated intervals did.

    Forecasts of past prices are those of the oracle's backtest, which judges more of them.
    """
    size = min(each.size for each in injected)
    areas = [
        say("{kind} {area:.2f}", kind=say(ANOMALIES[each.kind]), area=estimate(each.auc, each.low, each.high))
        for each in injected
        if each.size == size
    ]
    texts = "The sentiment index uses {texts} collected texts, scored by {model}."
    if news.simulated:
        texts = "The sentiment index uses {texts} invented sample texts, so it is a simulation, scored by {model}."
    found = [
        *_rating_findings(ratings),
        say(
            "For planted anomalies of {size:g} deviations, the area under the ROC curve is: {areas}.",
            size=size,
            areas=areas,
        ),
        say(texts, texts=len(news.texts), model=news.model),
        *_confidence_findings(sure),
        say(
            "On simulated series, intervals of {level:percent} held {held:.0f} % of prices.",
            level=RULE.coverage,
            held=extent(100 * each.held for each in simulated),
        ),
    ]
    return answering(QUESTION, found)


def _rating_findings(ratings: PastRatings) -> list[Finding]:
    found = ratings.correlation
    values: Row = {"ratings": ratings.ratings, "weeks": ratings.weeks, "ahead": ratings.ahead_h}
    if found.value is None:
        text = (
            "All of {ratings} past ratings over {weeks:week} were equal: nothing can be said of their predictive value."
        )
        return [say(text, **values)]
    if found.low is None or found.high is None:
        text = "{ratings} past ratings over {weeks:week} are too few to say anything of their predictive value."
        return [say(text, **values)]
    values |= {"key": found.value, "low": found.low, "high": found.high, "unit": say("correlation")}
    if found.low <= 0.0 <= found.high:
        text = (
            "{ratings} past ratings over {weeks:week} show no relation to the price {ahead} h later (correlation "
            "{key:+.2f})."
        )
    else:
        text = (
            "{ratings} past ratings over {weeks:week} show a relation to the price {ahead} h later (correlation "
            "{key:+.2f})."
        )
    return [say(text, **values), say("The rating summarizes the present and is no advice.")]


def _confidence_findings(found: ConfidenceRecord) -> list[Finding]:
    error, skill = found.ece, found.brier_skill
    text = (
        "The confidence of {model} has a calibration error of {error:.3f} on {headlines} unseen headlines (by chance "
        "up to {chance:.3f}): more than chance."
    )
    if error.value <= error.chance_95:
        text = (
            "The confidence of {model} has a calibration error of {error:.3f} on {headlines} unseen headlines (by "
            "chance up to {chance:.3f}): no evidence against its probabilities."
        )
    worth = say("Its confidence does not tell right labels from wrong ones.")
    if skill.value is not None:
        worth = say("Its Brier skill is {skill:.2f}.", skill=estimate(skill.value, skill.low, skill.high))
    calibrated = say(text, model=found.model, error=error.value, headlines=found.headlines, chance=error.chance_95)
    return [calibrated, worth]
