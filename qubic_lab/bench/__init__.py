"""Benchmarks: each returns plain results."""
