"""Train the default model's head: `python -m qubic_lab.oracle.sentiment.train`.

Everything is chosen by cross-validation within the training part of `data/sentiment/headlines.jsonl`; texts of a group
stay together. The test part is never read. The same data give the same file.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qubic_lab.model.embeddings import WEIGHTS_SHA256, Embedder
from qubic_lab.oracle.model.bars import Floats
from qubic_lab.oracle.sentiment.evaluation import confusion_of, macro_f1, read_examples
from qubic_lab.oracle.sentiment.lexicon import data_file, lexicon_hash
from qubic_lab.oracle.sentiment.models import COMPOUNDS, HEAD_FILE, Head, WordScale, head_features
from qubic_lab.oracle.sentiment.scores import LABELS, softmax
from qubic_lab.stats import Forecasts, calibration_error

FOLDS, SEEDS = 5, (0, 1, 2)
STRENGTHS = (0.5, 1.0, 2.0, 4.0)
"""The inverse strengths of the penalty that are tried."""
VADER_THRESHOLD = 0.05
"""VADER's own threshold."""

Labels = NDArray[np.intp]


def train(path: Path, embedder: Embedder) -> Head:
    """Return the head for the training part of a file of headlines."""
    examples = read_examples(path)
    texts = [each.text for each in examples]
    labels = np.array([each.label for each in examples], dtype=np.intp)
    groups = [each.group for each in examples]
    features = head_features(texts, embedder)
    tried = {strength: held_out(features, labels, groups, strength) for strength in STRENGTHS}
    chosen = min(STRENGTHS, key=lambda strength: _loss(softmax_of(tried[strength]), labels))
    temperature = fit_temperature(tried[chosen], labels)
    weights, intercept = fit(features, labels, chosen)
    compounds = {name: compound(texts) for name, compound in COMPOUNDS.items()}
    thresholds = {"vader": VADER_THRESHOLD}
    scales = {name: fit_scale(each, labels, thresholds.get(name)) for name, each in compounds.items()}
    measured = {
        "inverse penalty": chosen,
        "cross-validation": f"{FOLDS} folds by group, {len(SEEDS)} seeds, {len(examples)} texts",
        "default": _figures(softmax_of(tried[chosen], temperature), labels),
        **{name: _figures([scales[name].probabilities(each)], labels) for name, each in compounds.items()},
    }
    shares = np.bincount(labels, minlength=len(LABELS)) / len(labels)
    return Head(
        weights_CF=weights,
        intercept_C=intercept,
        temperature=temperature,
        scales=scales,
        shares=(float(shares[0]), float(shares[1]), float(shares[2])),
        hashes={
            "headlines": hashlib.sha256(path.read_bytes()).hexdigest(),
            "lexicon": lexicon_hash(),
            "embedder": WEIGHTS_SHA256,
        },
        measured=measured,
    )


def fit(features_NF: Floats, labels_N: Labels, strength: float) -> tuple[Floats, Floats]:
    """Return weights (3, F) and intercepts (3) of a multinomial logistic regression with a ridge penalty."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=5000, tol=1e-5).fit(features_NF, labels_N)
    return np.asarray(model.coef_, dtype=np.float64), np.asarray(model.intercept_, dtype=np.float64)


def held_out(features_NF: Floats, labels_N: Labels, groups: Sequence[str], strength: float) -> list[Floats]:
    """Return logits (N, 3) for each seed; those of a text come from a model that was fitted without its group."""
    from sklearn.model_selection import StratifiedGroupKFold

    found = []
    for seed in SEEDS:
        logits = np.zeros((len(labels_N), len(LABELS)))
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
        for seen, unseen in folds.split(features_NF, labels_N, groups):
            weights, intercept = fit(features_NF[seen], labels_N[seen], strength)
            logits[unseen] = features_NF[unseen] @ weights.T + intercept
        found.append(logits)
    return found


def softmax_of(logits: Sequence[Floats], temperature: float = 1.0) -> list[Floats]:
    """Return the probabilities of several arrays of logits."""
    return [softmax(each / temperature) for each in logits]


def fit_temperature(logits: Sequence[Floats], labels_N: Labels) -> float:
    """Return the temperature with the highest likelihood of the held-out labels.

    Source: C. Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    from scipy.optimize import minimize_scalar

    def loss(temperature: float) -> float:
        return _loss(softmax_of(logits, temperature), labels_N)

    return float(minimize_scalar(loss, bounds=(0.2, 5.0), method="bounded", options={"xatol": 1e-8}).x)


def fit_scale(compounds_N: Floats, labels_N: Labels, threshold: float | None = None) -> WordScale:
    """Return the scale with the highest likelihood; a given threshold stays."""
    from scipy.optimize import minimize

    def loss(values: Floats) -> float:
        return _loss([WordScale(*values.tolist()).probabilities(compounds_N)], labels_N)

    bounds = [(0.0, 0.9) if threshold is None else (threshold, threshold), (0.1, 100.0), (0.0, 1.0)]
    start = (0.1 if threshold is None else threshold, 4.0, 0.2)
    exactly = {"xatol": 1e-8, "fatol": 1e-14, "maxiter": 5_000}
    return WordScale(*minimize(loss, start, method="Nelder-Mead", bounds=bounds, options=exactly).x.tolist())


def _loss(probabilities: Sequence[Floats], labels_N: Labels) -> float:
    """Return the mean negative log probability of the labels."""
    rows = np.arange(len(labels_N))
    return float(np.mean([-np.log(np.maximum(each[rows, labels_N], 1e-12)).mean() for each in probabilities]))


def _figures(probabilities: Sequence[Floats], labels_N: Labels) -> dict[str, float]:
    """Return accuracy, macro-F1, loss and calibration error, each averaged over seeds."""
    every = []
    for each in probabilities:
        said = each.argmax(axis=1)
        error = calibration_error(Forecasts.of(each.max(axis=1), said == labels_N))
        score = float(macro_f1(confusion_of(labels_N, said)))
        every.append(((said == labels_N).mean(), score, _loss([each], labels_N), error))
    names = ("accuracy", "macro_f1", "log_loss", "calibration_error")
    return {name: round(float(value), 4) for name, value in zip(names, np.mean(every, axis=0), strict=True)}


def write_head(head: Head, path: Path) -> None:
    """Write a head with one row of weights per line."""
    lines = []
    for name, value in head.to_dict().items():
        if name == "weights":
            rows = ",\n".join("    " + json.dumps(row) for row in value)
            lines.append(f'  "weights": [\n{rows}\n  ]')
        else:
            lines.append(f"  {json.dumps(name)}: {json.dumps(value)}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def main() -> None:
    """Train on the committed headlines, and write the head next to them."""
    head = train(data_file("sentiment", "headlines.jsonl"), Embedder())
    write_head(head, HEAD_FILE)
    print(json.dumps(head.measured, indent=2))


if __name__ == "__main__":
    main()
