"""The weights that were learned from our headlines, kept in `data/sentiment/head.json`; `train` writes that file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from qubic_lab.errors import ModelError
from qubic_lab.oracle.model.bars import Floats
from qubic_lab.oracle.sentiment.scores import LABELS, softmax

TRAIN_COMMAND = "python -m qubic_lab.oracle.sentiment.train"
DECIMALS = 6
"""Decimals of the weights in the file."""


@dataclass(frozen=True)
class WordScale:
    """The conversion of a lexicon's compound to probabilities; see `scores.ordered_probabilities`."""

    threshold: float
    steepness: float
    doubt: float


@dataclass(frozen=True, eq=False)
class Head:
    """A multinomial logistic regression over features, and the data that it was fitted to.

    Attributes:
        weights_CF, intercept_C: of each label in the order of `LABELS`.
        temperature: divides logits, so that probabilities are calibrated.
        scales: of the lexicon models, by name.
        shares: of the labels in the training part.
        hashes: SHA-256 of the headlines, the lexicon, and the embedder's weights.
        measured: results of the cross-validation, for readers.
    """

    weights_CF: Floats
    intercept_C: Floats
    temperature: float
    scales: Mapping[str, WordScale]
    shares: tuple[float, float, float]
    hashes: Mapping[str, str]
    measured: Mapping[str, Any]

    def probabilities(self, features_NF: Floats) -> Floats:
        """Return calibrated probabilities (N, 3)."""
        return softmax((features_NF @ self.weights_CF.T + self.intercept_C) / self.temperature)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `from_dict` makes the same head of them."""
        return {
            "labels": list(LABELS),
            "weights": np.round(self.weights_CF, DECIMALS).tolist(),
            "intercept": np.round(self.intercept_C, DECIMALS).tolist(),
            "temperature": round(self.temperature, DECIMALS),
            "scales": {
                name: {part: round(value, DECIMALS) for part, value in asdict(each).items()}
                for name, each in self.scales.items()
            },
            "shares": [round(share, DECIMALS) for share in self.shares],
            "hashes": dict(self.hashes),
            "measured": dict(self.measured),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Head":
        """Return the head of plain values.

        Raises:
            ModelError: they are not the values of a head with our labels.
        """
        try:
            if tuple(content["labels"]) != LABELS:
                raise ValueError(f"labels are {content['labels']}")
            negative, neutral, positive = map(float, content["shares"])
            head = cls(
                np.array(content["weights"], dtype=np.float64),
                np.array(content["intercept"], dtype=np.float64),
                float(content["temperature"]),
                {name: WordScale(**each) for name, each in content["scales"].items()},
                (negative, neutral, positive),
                content["hashes"],
                content["measured"],
            )
            if head.weights_CF.ndim != 2 or {len(head.weights_CF), len(head.intercept_C)} != {len(LABELS)}:
                raise ValueError("weights are not one row for each label")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the sentiment head is damaged ({error}): run `{TRAIN_COMMAND}` again") from error
        return head


def data_file(folder: str, name: str) -> Path:
    """Return a committed data file, from the checkout or the installed package."""
    checkout = Path(__file__).parents[3] / "data" / folder
    return checkout / name if checkout.is_dir() else Path(__file__).parent / name


def head_file() -> Path:
    """Return the committed head."""
    return data_file("sentiment", "head.json")


def lexicon_file() -> Path:
    """Return the committed lexicon of crypto markets."""
    return data_file("lexicons", "crypto.yaml")


@cache
def read_head() -> Head:
    """Return the committed head, read once.

    Raises:
        ModelError: it is missing or damaged.
    """
    try:
        return Head.from_dict(json.loads(head_file().read_text("utf-8")))
    except (OSError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{head_file()} cannot be read ({error}): run `{TRAIN_COMMAND}`") from error
