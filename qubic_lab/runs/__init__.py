"""Studies: experiment files, executed notebooks, their results, and the weekly report made from them."""
