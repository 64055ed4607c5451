"""The oracle's answers: queries, responses, cache and service."""
