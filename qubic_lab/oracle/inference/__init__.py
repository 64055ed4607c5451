"""Statistics of signals and forecasts: performance, bootstrap, multiple testing, event studies."""
