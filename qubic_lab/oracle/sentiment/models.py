"""All sentiment models by name: majority, two lexicons, the default (a head over embeddings), FinBERT and its like."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from qubic_lab.errors import InputError, ModelError, check_choice
from qubic_lab.model.embeddings import DIMENSIONS, WEIGHTS_SHA256, Embedder
from qubic_lab.oracle.model.bars import Floats
from qubic_lab.oracle.sentiment.labelled import read_label
from qubic_lab.oracle.sentiment.lexicon import (
    LEXICON_CODE,
    crypto_compounds,
    crypto_lexicon,
    lexicon_hash,
    vader_compounds,
)
from qubic_lab.oracle.sentiment.scores import LABELS, SentimentModel, SentimentScore, as_scores, softmax
from qubic_lab.provenance import data_file
from qubic_lab.settings import settings

DEFAULT = "default"
HEAD_FILE = data_file("sentiment/head.json", __file__)
"""What was learned from our headlines and tweets on finance; `train` writes it."""
TRAIN_COMMAND = "python -m qubic_lab.oracle.sentiment.train"
DECIMALS = 6
"""Decimals of the weights in the file."""
COMPOUNDS: dict[str, Callable[[Sequence[str]], Floats]] = {
    "vader": vader_compounds,
    "crypto-lexicon": crypto_compounds,
}
"""The models of words alone, and the compound of each."""
LEXICON_FEATURES = 8
_SUM_SCALE = 3.0
EMBEDDED_TOGETHER, CLASSIFIED_TOGETHER = 256, 16
"""Texts in a batch of the default model, and of FinBERT."""
FINBERT = "ProsusAI/finbert"
MOST_TOKENS = 512
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ("*.safetensors", "pytorch_model*.bin", "*.json", "*.txt", "*.model")


@dataclass(frozen=True)
class WordScale:
    """The conversion of a lexicon's compound to probabilities.

    Attributes:
        threshold: beyond it, on either side of 0, `positive` or `negative` is the most likely label, else `neutral`.
        steepness: how quickly the probabilities change.
        doubt: 0 to 1, a share that all labels always have, since no sum of words is certain.
    """

    threshold: float
    steepness: float
    doubt: float

    def probabilities(self, compounds_N: Floats) -> Floats:
        """Return probabilities (N, 3) of the labels."""
        neutral, negative = np.zeros_like(compounds_N), self.steepness * (-compounds_N - self.threshold)
        logits = np.stack([negative, neutral, self.steepness * (compounds_N - self.threshold)], axis=1)
        return (1.0 - self.doubt) * softmax(logits) + self.doubt / len(LABELS)


@dataclass(frozen=True, eq=False)
class Head:
    """A multinomial logistic regression over features, and the data that it was fitted to.

    Attributes:
        weights_CF, intercept_C: of each label in the order of `LABELS`.
        temperature: divides logits, so that probabilities are calibrated.
        scales: of the lexicon models, by name.
        shares: of the labels in the training part.
        hashes: SHA-256 of the headlines, the tweets, the lexicon, and the embedder's weights; of one's own labels too.
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
        """Return plain values for JSON."""
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


@cache
def read_head(file: Path = HEAD_FILE) -> Head:
    """Return the head of a file, read once.

    Raises:
        ModelError: it is missing or damaged, or a head for other labels or features.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
        if tuple(content["labels"]) != LABELS:
            raise ValueError(f"labels are {content['labels']}")
        negative, neutral, positive = map(float, content["shares"])
        head = Head(
            np.array(content["weights"], dtype=np.float64),
            np.array(content["intercept"], dtype=np.float64),
            float(content["temperature"]),
            {name: WordScale(**each) for name, each in content["scales"].items()},
            (negative, neutral, positive),
            content["hashes"],
            content["measured"],
        )
        expected = (len(LABELS), DIMENSIONS + LEXICON_FEATURES)
        if head.weights_CF.shape != expected or head.intercept_C.shape != expected[:1]:
            raise ValueError(f"weights are not {expected[0]} rows of {expected[1]}")
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        command = TRAIN_COMMAND if file == HEAD_FILE else "qubic-lab oracle train-sentiment"
        raise ModelError(f"the sentiment head {file} is missing or damaged ({error}): run `{command}` again") from error
    return head


@dataclass(frozen=True)
class Majority:
    """The baseline: gives every text the same probabilities, the `shares` of `LABELS` where they were counted."""

    shares: tuple[float, float, float]
    name: str = "majority"

    @property
    def version(self) -> str:
        """The shares."""
        return "-".join(f"{share:.3f}" for share in self.shares)

    def score(self, texts: Sequence[str]) -> list[SentimentScore]:
        """Return the shares as probabilities, for each text."""
        total = sum(self.shares)
        same = SentimentScore.of([share / total for share in self.shares], self.name, self.version)
        return [same] * len(texts)


def majority_of(labels: Sequence[str]) -> Majority:
    """Return the baseline with the shares of some labels, at least one."""
    negative, neutral, positive = (float(np.mean([each == label for each in labels])) for label in LABELS)
    return Majority((negative, neutral, positive))


@dataclass(frozen=True)
class LexiconModel:
    """A model of words alone: a scale that is fitted to our headlines converts the compound of a lexicon."""

    name: str
    scale: WordScale

    @cached_property
    def version(self) -> str:
        """VADER's version, or a hash of the crypto lexicon; and a hash of what else the scores depend on."""
        general = version("vaderSentiment")
        if self.name == "vader":
            return f"{general}-{_short(self.scale)}"
        return f"{lexicon_hash()[:8]}-{_short(self.scale, general, LEXICON_CODE)}"

    def score(self, texts: Sequence[str]) -> list[SentimentScore]:
        """Return the score of each text."""
        return as_scores(self.scale.probabilities(COMPOUNDS[self.name](texts)), self.name, self.version)


def _short(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


@dataclass(frozen=True, eq=False)
class EmbeddingHead:
    """The default model: a linear head over sentence embeddings and features of two lexicons.

    It needs no network, and loads its embedder with the first texts, which takes seconds.
    """

    head: Head = field(default_factory=read_head)
    embedder: Embedder = field(default_factory=Embedder)
    name: str = DEFAULT

    @cached_property
    def version(self) -> str:
        """A hash of the head, the embedder, the lexicon, VADER's version and the matching."""
        depends = (
            json.dumps({**self.head.to_dict(), "measured": None}, sort_keys=True),
            WEIGHTS_SHA256,
            lexicon_hash(),
            version("vaderSentiment"),
            LEXICON_CODE,
        )
        return hashlib.sha256("\n".join(map(str, depends)).encode()).hexdigest()[:12]

    def score(self, texts: Sequence[str]) -> list[SentimentScore]:
        """Return the score of each text; a ModelError if the embedder's weights are not installed."""
        scores: list[SentimentScore] = []
        for start in range(0, len(texts), EMBEDDED_TOGETHER):
            features = head_features(texts[start : start + EMBEDDED_TOGETHER], self.embedder)
            scores += as_scores(self.head.probabilities(features), self.name, self.version)
        return scores


def head_features(texts: Sequence[str], embedder: Embedder) -> Floats:
    """Return the features of the head (N, 392): the embedding, then the lexicon features."""
    vectors = embedder.embed(texts).vectors_ND.astype(np.float64)
    return np.hstack([vectors, lexicon_features(texts)])


def lexicon_features(texts: Sequence[str]) -> Floats:
    """Return features of each text (N, 8), each -1 to 1.

    They are: the crypto lexicon's compound, its positive and negative sums, the compound above and below 0, whether
    nothing was found, VADER's compound and its size.
    """
    readings = [crypto_lexicon().read(text) for text in texts]
    compound = np.array([each.compound for each in readings])
    positive = np.tanh(np.array([each.positive for each in readings]) / _SUM_SCALE)
    negative = np.tanh(np.array([each.negative for each in readings]) / _SUM_SCALE)
    nothing = np.array([float(not each.hits) for each in readings])
    general = vader_compounds(texts)
    columns = (compound, positive, negative, np.maximum(compound, 0), np.maximum(-compound, 0), nothing)
    return np.stack([*columns, general, np.abs(general)], axis=1)


@dataclass(frozen=True, eq=False)
class FinBert:
    """FinBERT, or another sequence classifier of the library transformers with our three labels.

    It is loaded with the first texts. Too long texts are cut.

    Attributes:
        checkpoint: hub id or folder.
        local: use only files of this machine.
    """

    checkpoint: str = FINBERT
    local: bool = False

    @property
    def name(self) -> str:
        """`finbert`, with the name of any other checkpoint."""
        return "finbert" if self.checkpoint == FINBERT else f"finbert:{Path(self.checkpoint).name}"[:96]

    @cached_property
    def version(self) -> str:
        """A hash of the weights."""
        _, model, _ = self._loaded
        digest = hashlib.sha256()
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.float().numpy()).tobytes())
        return digest.hexdigest()[:12]

    def load(self) -> None:
        """Load the model now; a ModelError if it is missing, is no sequence classifier, or has other labels."""
        _ = self._loaded

    def score(self, texts: Sequence[str]) -> list[SentimentScore]:
        """Return the score of each text.

        Raises:
            ModelError: as for `load`.
        """
        import torch

        tokenizer, model, columns = self._loaded
        scores: list[SentimentScore] = []
        for start in range(0, len(texts), CLASSIFIED_TOGETHER):
            tokens = tokenizer(
                list(texts[start : start + CLASSIFIED_TOGETHER]),
                padding=True,
                truncation=True,
                max_length=min(MOST_TOKENS, int(model.config.max_position_embeddings)),
                return_tensors="pt",
            )
            with torch.inference_mode():
                logits = model(**tokens).logits.double().numpy()
            scores += as_scores(softmax(logits[:, columns]), self.name, self.version)
        return scores

    @cached_property
    def _loaded(self) -> tuple[Any, Any, list[int]]:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        folder = _folder(self.checkpoint, self.local)
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            model = AutoModelForSequenceClassification.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            said = str(error).strip().split("\n", 1)[0][:200]
            raise ModelError(
                f"model {self.checkpoint!r} cannot be loaded ({said}): give a folder that holds a sequence classifier "
                "with its tokenizer"
            ) from error
        return tokenizer, model.eval(), label_columns(self.checkpoint, model.config.id2label)


def _folder(checkpoint: str, local: bool) -> Path:
    """Return the folder of a checkpoint; it is downloaded into the hub's cache if it may be and is not there yet."""
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    if not _HUB_ID.fullmatch(checkpoint):
        raise ModelError(f"model {checkpoint!r} is neither a folder nor a hub id such as {FINBERT}: check the name")
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            checkpoint, allow_patterns=list(_FILES), ignore_patterns=["*/*"], etag_timeout=5, local_files_only=local
        )
    except Exception as error:  # besides the hub's own errors those of its HTTP library, which changes with versions
        said = str(error).partition("\n")[0] or repr(error)
        raise ModelError(
            f"model {checkpoint!r} is no folder, and the hub does not give it ({said}): give a folder that holds it"
        ) from error
    return Path(folder)


def label_columns(checkpoint: str, id2label: Mapping[int, str]) -> list[int]:
    """Return the column of each of `LABELS` in a checkpoint's logits, by the checkpoint's names of its labels.

    Raises:
        ModelError: its labels are not ours, each once.
    """
    found: dict[str, int] = {}
    with suppress(InputError):
        found = {read_label(name): int(column) for column, name in id2label.items()}
    if len(found) != len(id2label) or len(found) != len(LABELS):
        raise ModelError(
            f"labels of {checkpoint!r} are {', '.join(map(str, id2label.values()))}: they must be negative, "
            "neutral and positive, each once; give a model whose id2label says so"
        )
    return [found[label] for label in LABELS]


MODELS: dict[str, Callable[[], SentimentModel]] = {
    "majority": lambda: Majority(read_head().shares),
    "vader": lambda: LexiconModel("vader", read_head().scales["vader"]),
    "crypto-lexicon": lambda: LexiconModel("crypto-lexicon", read_head().scales["crypto-lexicon"]),
    DEFAULT: lambda: EmbeddingHead(read_head(settings().sentiment_head or HEAD_FILE)),
    "finbert": FinBert,
}
"""Makes each model; the majority is that of our training part."""


def make_model(name: str = DEFAULT) -> SentimentModel:
    """Return a model by name; `finbert:ID` stands for another hub id or folder.

    Raises:
        InputError: an unknown name.
        ModelError: what it needs is missing.
    """
    kind, colon, checkpoint = name.partition(":")
    if kind == "finbert" and colon:
        if not checkpoint:
            raise InputError("model 'finbert:' names no checkpoint: give a hub id or folder behind the colon")
        return FinBert(checkpoint)
    return MODELS[check_choice("model", name, MODELS)]()
