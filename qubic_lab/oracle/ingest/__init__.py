"""Gets prices and texts from sources, files and packages into the store."""
