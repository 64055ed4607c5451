"""Is a sentiment model as often right as its probabilities say, on labelled headlines that it never saw?"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from qubic_lab.oracle.sentiment.lexicon import data_file
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
from qubic_lab.studies.oracle_results import ConfidenceError, ConfidenceRecord, RecordedEstimate, estimate_text
from qubic_lab.studies.style import DARK, INK, PALE, WIDTH_INCHES, plot


def confidence(model: SentimentModel, bins: int = BINS, seed: int = 0) -> ConfidenceRecord:
    """Judge the probability that a model gives to its own label on the test part of our headlines.

    No model learned from that part. Intervals are of 95 %.
    """
    examples = read_examples(data_file("sentiment", "headlines.jsonl"), "test")
    scores = model.score([each.text for each in examples])
    right = np.array([score.label == LABELS[each.label] for score, each in zip(scores, examples, strict=True)])
    forecasts = Forecasts.of([min(1.0, max(each.probabilities)) for each in scores], right, bins)
    _, group = np.unique([each.group for each in examples], return_inverse=True)
    error = calibration_error(forecasts)
    return ConfidenceRecord(
        model=model.name,
        headlines=len(forecasts),
        groups=int(group.max()) + 1,
        accuracy=float(right.mean()),
        ece=ConfidenceError(
            error,
            *calibration_error_interval(forecasts, seed=seed),
            *calibration_error_if_calibrated(forecasts, seed=seed),
        ),
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

    value = skill(slice(None))
    if np.isnan(value):
        return RecordedEstimate(None, None, None)
    return RecordedEstimate(value, *bootstrap_interval(skill, len(sizes), seed=seed))


def reliability(found: ConfidenceRecord) -> Figure:
    """Draw the share of labels that are right against their probability; lines are 95 % intervals."""
    with plot(size=(WIDTH_INCHES, 3.4), ncols=2, fontsize=9) as (figure, axes):
        axes.plot([0, 100], [0, 100], ":", color=INK, linewidth=0.8, label="calibrated")
        at = [100 * each.mean for each in found.bins]
        low, high = [100 * each.share_low for each in found.bins], [100 * each.share_high for each in found.bins]
        axes.vlines(at, low, high, color=INK, linewidth=1.2)
        shares = [100 * each.share for each in found.bins]
        axes.plot(at, shares, "o-", color=DARK, markerfacecolor=PALE, label=found.model)
        axes.set_xlim(30, 101)
        axes.set_ylim(0, 101)
        axes.set_xlabel("probability of the label (%)")
        axes.set_ylabel("right (%)")
    return figure


def sentences(found: ConfidenceRecord) -> list[str]:
    """Say whether a model's confidence is calibrated."""
    error, skill = found.ece, found.brier_skill
    verdict = "no evidence against its probabilities" if error.value <= error.chance_95 else "more than chance"
    worth = f"Its Brier skill is {estimate_text(skill, digits=2)}."
    if skill.value is None:
        worth = "Its confidence does not tell right labels from wrong ones."
    return [
        f"The confidence of {found.model} has a calibration error of {error.value:.3f} on {found.headlines} unseen "
        f"headlines (by chance up to {error.chance_95:.3f}): {verdict}.",
        worth,
    ]
