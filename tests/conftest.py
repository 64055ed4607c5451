"""Fixtures that many tests share; rank groups are started once for the whole run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from models import tiny_model

from qubic_lab.pipeline import Pipeline


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama-family model with random weights and a byte tokenizer."""
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


def _launched(model: Path, ranks: int) -> Iterator[Pipeline]:
    with Pipeline.launch(model=str(model), ranks=ranks, threads=1) as pipeline:
        yield pipeline


@pytest.fixture(scope="session")
def one_rank(tiny: Path) -> Iterator[Pipeline]:
    """A pipeline of one rank; tests configure it as they need."""
    yield from _launched(tiny, 1)


@pytest.fixture(scope="session")
def two_ranks(tiny: Path) -> Iterator[Pipeline]:
    """A pipeline of two ranks over gloo; tests configure it as they need."""
    yield from _launched(tiny, 2)


@pytest.fixture(scope="session")
def three_ranks(tiny: Path) -> Iterator[Pipeline]:
    """A pipeline of three ranks over gloo; tests configure it as they need."""
    yield from _launched(tiny, 3)
