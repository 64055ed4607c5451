"""What each study says and draws of its results: one module a notebook, plain values in, words and figures out."""
