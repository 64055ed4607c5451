"""Backtests of strategies, filled after the decision and with all costs; the look-ahead check; judged past forecasts."""
