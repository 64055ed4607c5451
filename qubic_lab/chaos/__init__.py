"""Faults that are done to a real cluster on this machine while clients ask it: what is lost, how soon it recovers."""
