"""Questions, scores and comparisons: what a model answers, and whether two ways of running it are the same."""
