"""Backtests of strategies, filled after the decision and with all costs; look-ahead check; judged past forecasts."""
