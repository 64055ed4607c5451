"""Train the default model's head: `python -m qubic_lab.oracle.sentiment.train`.

It learns from the training part of `data/sentiment/headlines.jsonl` and from published tweets on finance; all labels
weigh the same. Users' texts are like neither, so penalty and temperature are chosen for texts from elsewhere: a head of
the headlines judges the tweets, and one of the tweets judges the headlines. The test part is never read, nor any other
file. The same data give the same file.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qubic_lab.errors import InputError
from qubic_lab.model.embeddings import WEIGHTS_SHA256, Embedder
from qubic_lab.oracle.model.bars import Floats
from qubic_lab.oracle.sentiment.evaluation import confusion_of, macro_f1
from qubic_lab.oracle.sentiment.labelled import HEADLINES_FILE, Columns, LabelledTexts, read_examples, read_labelled
from qubic_lab.oracle.sentiment.lexicon import lexicon_hash
from qubic_lab.oracle.sentiment.models import COMPOUNDS, HEAD_FILE, Head, WordScale, head_features
from qubic_lab.oracle.sentiment.scores import LABELS, softmax
from qubic_lab.provenance import data_file
from qubic_lab.stats import Forecasts, calibration_error

TWEETS = "zeroshot/twitter-financial-news-sentiment, sent_train.csv"
"""Where the tweets are published, on the Hugging Face Hub, under the MIT licence."""
TWEETS_SHA256 = "71aa99d0d37feced03c999ec23b5b25302c92f39d69b6acb0a37aa076c5420e8"
"""SHA-256 of that file with line feeds at its ends of lines."""
TWEETS_FILE = data_file("sentiment/sent_train.csv", __file__)
"""Where it is looked for; it is not part of this project."""
TWEETS_COLUMNS = Columns("text", "label", {"0": "negative", "1": "positive", "2": "neutral"})
FOLDS, SEEDS = 5, (0, 1, 2)
STRENGTHS = (0.1, 0.25, 0.5, 1.0, 2.0)
"""The inverse strengths of the penalty that are tried."""
OWN_WEIGHT = 4.0
"""Weight of a headline beside a tweet's: headlines are on digital assets, and eleven times fewer."""
VADER_THRESHOLD = 0.05
"""VADER's own threshold."""

Labels = NDArray[np.intp]


def read_tweets(path: Path) -> LabelledTexts:
    """Return the published tweets; an InputError if the file is missing, or another one."""
    tweets = read_labelled(path, TWEETS_COLUMNS)
    if hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest() != TWEETS_SHA256:
        raise InputError(f"{path} is not the published file: fetch {TWEETS} from the Hugging Face Hub")
    return tweets


def train(path: Path, tweets: LabelledTexts, embedder: Embedder) -> Head:
    """Return the head for the training part of a file of headlines, and tweets."""
    examples = read_examples(path)
    own = np.arange(len(examples) + len(tweets.texts)) < len(examples)
    texts = [*(each.text for each in examples), *tweets.texts]
    labels = np.array([*(each.label for each in examples), *map(LABELS.index, tweets.labels)], dtype=np.intp)
    groups = [*(each.group for each in examples), *(f"tweet {number}" for number in range(len(tweets.texts)))]
    features = head_features(texts, embedder)
    weights = balanced(labels) * np.where(own, OWN_WEIGHT, 1.0)
    weights /= weights.mean()
    even = np.zeros(len(labels))  # weights with which both sources, and the labels in each, weigh the same
    for source in (own, ~own):
        even[source] = balanced(labels[source]) / source.sum()
    tried = {strength: across(features, labels, own, strength) for strength in STRENGTHS}
    fitted = {strength: fit_temperature([logits], labels, even) for strength, logits in tried.items()}
    chosen = min(
        STRENGTHS, key=lambda strength: log_loss(softmax_of([tried[strength]], fitted[strength]), labels, even)
    )
    temperature = fitted[chosen]
    coefficients, intercept = fit(features, labels, weights, chosen)
    headlines = [each.text for each in examples]
    compounds = {name: compound(headlines) for name, compound in COMPOUNDS.items()}
    thresholds = {"vader": VADER_THRESHOLD}
    scales = {name: fit_scale(each, labels[own], thresholds.get(name)) for name, each in compounds.items()}
    probabilities = softmax_of(held_out(features, labels, weights, groups, chosen), temperature)
    measured = {
        "inverse penalty": chosen,
        "cross-validation": f"{FOLDS} folds by group, {len(SEEDS)} seeds, {len(examples)} headlines beside tweets",
        "default": _figures([each[own] for each in probabilities], labels[own]),
        **{name: _figures([scales[name].probabilities(each)], labels[own]) for name, each in compounds.items()},
    }
    shares = np.bincount(labels[own], minlength=len(LABELS)) / len(examples)
    return Head(
        weights_CF=coefficients,
        intercept_C=intercept,
        temperature=temperature,
        scales=scales,
        shares=(float(shares[0]), float(shares[1]), float(shares[2])),
        hashes={
            "headlines": hashlib.sha256(path.read_bytes()).hexdigest(),
            "tweets": TWEETS_SHA256,
            "lexicon": lexicon_hash(),
            "embedder": WEIGHTS_SHA256,
        },
        measured=measured,
    )


def balanced(labels_N: Labels) -> Floats:
    """Return weights of texts (N), 1 on average, with which each label weighs the same."""
    counts = np.bincount(labels_N, minlength=len(LABELS))
    return np.asarray(len(labels_N) / (np.count_nonzero(counts) * counts[labels_N]), dtype=np.float64)


def fit(features_NF: Floats, labels_N: Labels, weights_N: Floats, strength: float) -> tuple[Floats, Floats]:
    """Return weights (3, F) and intercepts (3) of a multinomial logistic regression with a ridge penalty."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=5000, tol=1e-5).fit(features_NF, labels_N, weights_N)
    return np.asarray(model.coef_, dtype=np.float64), np.asarray(model.intercept_, dtype=np.float64)


def across(features_NF: Floats, labels_N: Labels, own_N: NDArray[np.bool_], strength: float) -> Floats:
    """Return logits (N, 3) of two sources' texts; those of a text come from a head that was fitted to the other one."""
    logits = np.zeros((len(labels_N), len(LABELS)))
    for source in (own_N, ~own_N):
        weights, intercept = fit(features_NF[source], labels_N[source], balanced(labels_N[source]), strength)
        logits[~source] = features_NF[~source] @ weights.T + intercept
    return logits


def folds(
    features_NF: Floats, labels_N: Labels, groups: Sequence[str], count: int, seed: int
) -> Iterator[tuple[Labels, Labels]]:
    """Yield the rows that are seen and those that are not, with labels spread evenly and groups kept together."""
    from sklearn.model_selection import StratifiedGroupKFold

    yield from StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(features_NF, labels_N, groups)


def held_out(
    features_NF: Floats, labels_N: Labels, weights_N: Floats, groups: Sequence[str], strength: float
) -> list[Floats]:
    """Return logits (N, 3) for each seed; those of a text come from a model that was fitted without its group."""
    found = []
    for seed in SEEDS:
        logits = np.zeros((len(labels_N), len(LABELS)))
        for seen, unseen in folds(features_NF, labels_N, groups, FOLDS, seed):
            weights, intercept = fit(features_NF[seen], labels_N[seen], weights_N[seen], strength)
            logits[unseen] = features_NF[unseen] @ weights.T + intercept
        found.append(logits)
    return found


def softmax_of(logits: Sequence[Floats], temperature: float = 1.0) -> list[Floats]:
    """Return the probabilities of several arrays of logits."""
    return [softmax(each / temperature) for each in logits]


def fit_temperature(logits: Sequence[Floats], labels_N: Labels, weights_N: Floats | None = None) -> float:
    """Return the temperature with the highest likelihood of the held-out labels.

    Source: C. Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    from scipy.optimize import minimize_scalar

    def loss(temperature: float) -> float:
        return log_loss(softmax_of(logits, temperature), labels_N, weights_N)

    return float(minimize_scalar(loss, bounds=(0.2, 5.0), method="bounded", options={"xatol": 1e-8}).x)


def fit_scale(compounds_N: Floats, labels_N: Labels, threshold: float | None = None) -> WordScale:
    """Return the scale with the highest likelihood; a given threshold stays."""
    from scipy.optimize import minimize

    def loss(values: Floats) -> float:
        return log_loss([WordScale(*values.tolist()).probabilities(compounds_N)], labels_N)

    bounds = [(0.0, 0.9) if threshold is None else (threshold, threshold), (0.1, 100.0), (0.0, 1.0)]
    start = (0.1 if threshold is None else threshold, 4.0, 0.2)
    exactly = {"xatol": 1e-8, "fatol": 1e-14, "maxiter": 5_000}
    return WordScale(*minimize(loss, start, method="Nelder-Mead", bounds=bounds, options=exactly).x.tolist())


def log_loss(probabilities: Sequence[Floats], labels_N: Labels, weights_N: Floats | None = None) -> float:
    """Return the mean negative log probability of the labels, of several arrays of probabilities (N, 3)."""
    rows = np.arange(len(labels_N))
    losses = [-np.log(np.maximum(each[rows, labels_N], 1e-12)) for each in probabilities]
    return float(np.mean([np.average(each, weights=weights_N) for each in losses]))


def _figures(probabilities: Sequence[Floats], labels_N: Labels) -> dict[str, float]:
    """Return accuracy, macro-F1, loss and calibration error, each averaged over seeds."""
    every = []
    for each in probabilities:
        said = each.argmax(axis=1)
        error = calibration_error(Forecasts.of(each.max(axis=1), said == labels_N))
        score = float(macro_f1(confusion_of(labels_N, said)))
        every.append(((said == labels_N).mean(), score, log_loss([each], labels_N), error))
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
    """Train on the committed headlines and the tweets of a file, and write the head next to the headlines."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--tweets", type=Path, default=TWEETS_FILE, help=f"{TWEETS} on the Hugging Face Hub")
    tweets = read_tweets(parser.parse_args().tweets)
    head = train(HEADLINES_FILE, tweets, Embedder(remembered=len(tweets.texts) + 2000))
    write_head(head, HEAD_FILE)
    print(json.dumps(head.measured, indent=2))


if __name__ == "__main__":
    main()
