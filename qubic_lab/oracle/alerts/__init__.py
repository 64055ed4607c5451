"""Alerts of risk: what is worth telling, kept before it is sent, and sent at least once."""
