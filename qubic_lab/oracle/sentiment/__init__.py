"""What texts about a coin say: models that score them, and an index with its reasons."""
