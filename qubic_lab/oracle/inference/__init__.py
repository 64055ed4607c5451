"""Statistics of returns and scores: Sharpe ratios, bootstrap, multiple testing, permutation tests, event studies."""
