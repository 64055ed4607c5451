"""Where prices and texts come from: web interfaces, feeds, files, and what is packaged."""
