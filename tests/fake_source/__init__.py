"""A server on this machine that answers like the oracle's sources: synthetic data, their limits, keys and faults.

Run `PYTHONPATH=tests python -m fake_source --help` to point a collector at it by hand.
"""
