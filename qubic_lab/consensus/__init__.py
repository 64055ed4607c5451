"""Several answers to one question, one decision: which of them say the same, who wins, and how sure that is."""
