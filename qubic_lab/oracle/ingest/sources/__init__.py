"""Clients of the sources' interfaces."""
