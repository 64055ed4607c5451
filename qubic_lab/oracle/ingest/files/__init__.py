"""Readers of files and packaged data."""
