"""Votes on a cluster: which nodes are asked, how ballots are counted, what is kept."""
