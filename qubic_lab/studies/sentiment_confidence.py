"""Whether a sentiment model is as often right as its probabilities say, on labelled headlines that it never saw."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from qubic_lab.oracle.sentiment.head import data_file
from qubic_lab.oracle.sentiment.scores import LABELS, SentimentModel
from qubic_lab.oracle.sentiment.train import read_examples
from qubic_lab.stats import (
    BINS,
    Forecasts,
    bootstrap_interval,
    brier_parts,
    calibration_error,
    calibration_error_if_calibrated,
    calibration_error_interval,
    reliability_table,
)
from qubic_lab.studies.style import DARK, INK, PALE, STYLE, WIDTH_INCHES

Row = dict[str, Any]
Measured = Mapping[str, Any]


def confidence(model: SentimentModel, bins: int = BINS, seed: int = 0) -> Row:
    """Return how right the probability is that a model gives to the label it says.

    It is judged on the test part of our headlines, from which no model learned. The record is plain values for JSON:
    model, headlines, groups, accuracy; "ece": {"value", "low", "high", "chance": mean error were it calibrated,
    "chance_95": 95 % of errors would be no more}; "brier": its score and parts; "brier_skill": {"value", "low", "high"}
    over always saying the accuracy, which it does not know beforehand; "bins": the reliability diagram. Intervals are
    of 95 %; that of the skill is by groups of like headlines, drawn anew.
    """
    examples = read_examples(data_file("sentiment", "headlines.jsonl"), "test")
    scores = model.score([each.text for each in examples])
    right = np.array([score.label == LABELS[each.label] for score, each in zip(scores, examples, strict=True)])
    forecasts = Forecasts.of([min(1.0, max(each.probabilities)) for each in scores], right, bins)
    _, group = np.unique([each.group for each in examples], return_inverse=True)
    error, chance = calibration_error(forecasts), calibration_error_if_calibrated(forecasts, seed=seed)
    low, high = calibration_error_interval(forecasts, seed=seed)
    return {
        "model": model.name,
        "headlines": len(forecasts),
        "groups": int(group.max()) + 1,
        "accuracy": float(right.mean()),
        "ece": {"value": error, "low": low, "high": high, "chance": chance[0], "chance_95": chance[1]},
        "brier": asdict(brier_parts(forecasts)),
        "brier_skill": _skill(forecasts, group, seed),
        "bins": [asdict(each) for each in reliability_table(forecasts)],
    }


def _skill(forecasts: Forecasts, group: Any, seed: int) -> Row:
    """Return the Brier skill over the share that is right; where all or none are, there is none."""
    squares = np.bincount(group, (forecasts.probability - forecasts.happened) ** 2)
    hits, sizes = np.bincount(group, forecasts.happened), np.bincount(group)

    def skill(drawn: Any) -> float:
        count, right = float(sizes[drawn].sum()), float(hits[drawn].sum())
        base = right * (1.0 - right / count)
        return 1.0 - float(squares[drawn].sum()) / base if base > 0.0 else np.nan

    value = skill(slice(None))
    if np.isnan(value):
        return {"value": None, "low": None, "high": None}
    low, high = bootstrap_interval(skill, len(sizes), seed=seed)
    return {"value": value, "low": low, "high": high}


def reliability(found: Measured) -> Figure:
    """Draw how often what a model says is right, against the probability that it gives; lines are 95 % intervals."""
    bins = found["bins"]
    with plt.rc_context(STYLE | {"axes.grid.axis": "both"}):
        figure, axes = plt.subplots(figsize=(WIDTH_INCHES, 3.4), layout="constrained")
        axes.plot([0, 100], [0, 100], ":", color=INK, linewidth=0.8, label="calibrated")
        at = [100 * each["mean"] for each in bins]
        low, high = ([100 * each[name] for each in bins] for name in ("share_low", "share_high"))
        axes.vlines(at, low, high, color=INK, linewidth=1.2)
        axes.plot(
            at, [100 * each["share"] for each in bins], "o-", color=DARK, markerfacecolor=PALE, label=found["model"]
        )
        axes.set_xlim(30, 101)
        axes.set_ylim(0, 101)
        axes.set_xlabel("probability of the label that it says (%)")
        axes.set_ylabel("right (%)")
        figure.legend(loc="outside upper left", ncols=2, fontsize=9)
    return figure


def sentence(found: Measured) -> str:
    """Say whether a model's confidence is calibrated."""
    error, skill = found["ece"], found["brier_skill"]
    told = "no evidence against its probabilities" if error["value"] <= error["chance_95"] else "more than chance"
    worth = (
        "it says nothing of which are right"
        if skill["value"] is None
        else f"Brier skill {skill['value']:+.2f} ({skill['low']:+.2f} to {skill['high']:+.2f})"
    )
    return (
        f"The confidence of the sentiment model {found['model']} on {found['headlines']} headlines that it never saw: "
        f"calibration error {error['value']:.3f}, by chance up to {error['chance_95']:.3f}, so {told}; {worth}."
    )
