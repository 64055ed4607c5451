"""Risk: volatility, value at risk, drawdown, liquidity, and warnings from rules; every value uses its past alone."""
