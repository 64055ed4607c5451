"""Alerts of risk: decided from levels, stored before they are sent, and delivered at least once."""
