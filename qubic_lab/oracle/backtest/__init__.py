"""Backtests that do not look ahead: decided at a bar's close, filled at a later one's open, every cost counted."""
