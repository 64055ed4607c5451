"""Votes on a cluster: whom to ask, how to count, what to keep."""
