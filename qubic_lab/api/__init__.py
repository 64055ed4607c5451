"""The HTTP interface of a coordinator."""
