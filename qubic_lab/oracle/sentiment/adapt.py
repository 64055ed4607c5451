"""Adapt the default model to a user's own labels: a correction of its head that stays near it, and what that gains.

The head of the package is the centre of the penalty, so few labels change little and many change much.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qubic_lab.errors import InputError
from qubic_lab.model.embeddings import Embedder
from qubic_lab.oracle.model.bars import Floats
from qubic_lab.oracle.sentiment.evaluation import ModelComparison, compare
from qubic_lab.oracle.sentiment.labelled import LabelledTexts
from qubic_lab.oracle.sentiment.models import Head, head_features
from qubic_lab.oracle.sentiment.scores import LABELS, as_scores, softmax
from qubic_lab.oracle.sentiment.train import Labels, fit_temperature, folds, log_loss, softmax_of

FOLDS = 5
LEAST_TEXTS, LEAST_OF_A_LABEL = 50, 5
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""The variances of the correction's weights that are tried; smaller ones keep the head nearer to the package's."""
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True)
class Adapted:
    """The adapted head, and the comparison of the models `before` and `after` on texts that the latter did not see."""

    head: Head
    strength: float
    comparison: ModelComparison


@dataclass(frozen=True)
class _Correction:
    """What is added to the logits of a head: weights (3, F) of features, and intercepts (3); then a temperature."""

    weights_CF: Floats
    intercept_C: Floats
    strength: float
    temperature: float

    def logits(self, logits_NC: Floats, features_NF: Floats) -> Floats:
        return (logits_NC + features_NF @ self.weights_CF.T + self.intercept_C) / self.temperature


def adapt(head: Head, labelled: LabelledTexts, file: Path, embedder: Embedder, seed: int = 0) -> Adapted:
    """Return a head that is adapted to labelled texts, judged by nested cross-validation with groups kept together.

    Within each fold the strength and the temperature are chosen by a cross-validation of its training part.

    Raises:
        InputError: too few texts, or too few labels.
        ModelError: the embedder's weights are not installed.
    """
    labels = np.array([LABELS.index(label) for label in labelled.labels], np.intp)
    _check(labelled, labels)
    groups = labelled.groups or labelled.texts  # a repeated text is not held out
    features = head_features(labelled.texts, embedder)
    before = (features @ head.weights_CF.T + head.intercept_C) / head.temperature
    after = np.zeros_like(before)
    for seen, unseen in folds(features, labels, groups, FOLDS, seed):
        found = _fit(before[seen], features[seen], labels[seen], [groups[row] for row in seen], seed)
        after[unseen] = found.logits(before[unseen], features[unseen])
    scores = {name: as_scores(softmax(each), name, "") for name, each in ((BEFORE, before), (AFTER, after))}
    comparison = compare(labelled.labels, scores, groups, seed, baselines=(BEFORE,))
    whole = _fit(before, features, labels, groups, seed)
    shares = np.bincount(labels, minlength=len(LABELS)) / len(labels)
    adapted = Head(
        weights_CF=head.weights_CF / head.temperature + whole.weights_CF,
        intercept_C=head.intercept_C / head.temperature + whole.intercept_C,
        temperature=whole.temperature,
        scales=head.scales,
        shares=(float(shares[0]), float(shares[1]), float(shares[2])),
        hashes={**head.hashes, "labels": hashlib.sha256(file.read_bytes()).hexdigest()},
        measured={
            "adapted": f"{len(labels)} texts of {labelled.file}, {FOLDS} folds, strength {whole.strength:g}",
            **{
                each.model: {
                    "accuracy": each.accuracy.value,
                    "macro_f1": each.macro_f1.value,
                    "calibration_error": each.calibration_error,
                }
                for each in comparison.evaluations
            },
        },
    )
    return Adapted(adapted, whole.strength, comparison)


def _check(labelled: LabelledTexts, labels_N: Labels) -> None:
    if len(labels_N) < LEAST_TEXTS:
        raise InputError(f"{labelled.file}: {len(labels_N)} labelled texts: give at least {LEAST_TEXTS}")
    counts = np.bincount(labels_N, minlength=len(LABELS))
    rare = [f"{count} {label}" for label, count in zip(LABELS, counts, strict=True) if 0 < count < LEAST_OF_A_LABEL]
    if rare:
        raise InputError(f"{labelled.file}: {', '.join(rare)}: give at least {LEAST_OF_A_LABEL} texts of each label")
    if (counts > 0).sum() < 2:
        raise InputError(f"{labelled.file}: all labels are {LABELS[int(counts.argmax())]}: give texts of others too")


def _fit(logits_NC: Floats, features_NF: Floats, labels_N: Labels, groups: Sequence[str], seed: int) -> _Correction:
    """Return the correction for some texts, with the strength and the temperature that suit held-out ones best."""
    tried = {strength: np.zeros_like(logits_NC) for strength in STRENGTHS}
    for seen, unseen in folds(features_NF, labels_N, groups, FOLDS, seed):
        for strength, held_out in tried.items():
            weights, intercept = fit_near(logits_NC[seen], features_NF[seen], labels_N[seen], strength)
            held_out[unseen] = logits_NC[unseen] + features_NF[unseen] @ weights.T + intercept
    chosen = min(STRENGTHS, key=lambda strength: log_loss(softmax_of([tried[strength]]), labels_N))
    return _Correction(
        *fit_near(logits_NC, features_NF, labels_N, chosen), chosen, fit_temperature([tried[chosen]], labels_N)
    )


def fit_near(logits_NC: Floats, features_NF: Floats, labels_N: Labels, strength: float) -> tuple[Floats, Floats]:
    """Return weights (3, F) and intercepts (3) that are added to logits: the most likely ones, with a normal prior.

    The prior has mean 0 and the variance `strength`, so the correction shrinks to nothing where labels are few.
    """
    from scipy.optimize import minimize

    design = np.hstack([features_NF, np.ones((len(features_NF), 1))])
    truth = np.eye(len(LABELS))[labels_N]
    shape = (len(LABELS), design.shape[1])

    def loss(values: Floats) -> tuple[float, Floats]:
        added = values.reshape(shape)
        probabilities = softmax(logits_NC + design @ added.T)
        right = np.maximum((probabilities * truth).sum(axis=1), 1e-300)
        slope = (probabilities - truth).T @ design + added / strength
        return float(-np.log(right).sum() + (added**2).sum() / (2.0 * strength)), slope.ravel()

    found = minimize(loss, np.zeros(shape[0] * shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    added = found.x.reshape(shape)
    return added[:, :-1], added[:, -1]
