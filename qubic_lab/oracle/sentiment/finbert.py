"""FinBERT and similar models: any sequence classifier with our three labels, by hub id or folder."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qubic_lab.errors import InputError, ModelError
from qubic_lab.oracle.model.bars import Floats
from qubic_lab.oracle.sentiment.labelled_file import read_label
from qubic_lab.oracle.sentiment.scores import LABELS, SentimentScore, as_scores, softmax

FINBERT = "ProsusAI/finbert"
MOST_TOKENS = 512
BATCH = 16
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ("*.safetensors", "pytorch_model*.bin", "*.json", "*.txt", "*.model")


@dataclass(frozen=True, eq=False)
class FinBert:
    """A classifier of the library transformers; it is loaded with the first texts. Too long texts are cut.

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
        return _weights_hash(model)[:12]

    def load(self) -> None:
        """Load the model now.

        Raises:
            ModelError: it is missing, is no sequence classifier, or has other labels.
        """
        _ = self._loaded

    def score(self, texts: Sequence[str]) -> list[SentimentScore]:
        """Return the score of each text.

        Raises:
            ModelError: as for `load`.
        """
        import torch

        tokenizer, model, columns = self._loaded
        scores: list[SentimentScore] = []
        for start in range(0, len(texts), BATCH):
            tokens = tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                truncation=True,
                max_length=min(MOST_TOKENS, int(model.config.max_position_embeddings)),
                return_tensors="pt",
            )
            with torch.inference_mode():
                logits = model(**tokens).logits.double().numpy()
            scores += as_scores(label_probabilities(logits, columns), self.name, self.version)
        return scores

    @cached_property
    def _loaded(self) -> tuple[Any, Any, tuple[int, ...]]:
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


def label_columns(checkpoint: str, id2label: Mapping[int, str]) -> tuple[int, ...]:
    """Return the column of each of `LABELS` in a checkpoint's logits, by the checkpoint's names of its labels.

    Raises:
        ModelError: its labels are not ours, each once.
    """
    found: dict[str, int] = {}
    for column, name in id2label.items():
        try:
            label = read_label(name)
        except InputError:
            label = None
        if label is None or label in found:
            raise ModelError(
                f"labels of {checkpoint!r} are {', '.join(map(str, id2label.values()))}: they must be negative, "
                "neutral and positive, each once; give a model whose id2label says so"
            )
        found[label] = int(column)
    if len(found) != len(LABELS):
        raise ModelError(f"labels of {checkpoint!r} are {', '.join(found)}: negative, neutral and positive are needed")
    return tuple(found[label] for label in LABELS)


def label_probabilities(logits_NK: Floats, columns: Sequence[int]) -> Floats:
    """Return probabilities (N, 3) in the order of `LABELS`."""
    return softmax(np.asarray(logits_NK, dtype=np.float64)[:, list(columns)])


def _weights_hash(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(re.sub(r"\s", "", name).encode())
        digest.update(np.ascontiguousarray(tensor.float().numpy()).tobytes())
    return digest.hexdigest()
