"""A server on this machine that answers like the oracle's sources, with synthetic data, their limits and faults."""
