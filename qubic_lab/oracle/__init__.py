"""The market oracle: prices and texts with what was known when, and what they say."""
