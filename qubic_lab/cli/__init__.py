"""The command `qubic-lab`: one file for each group of commands; the only place that wires the parts together."""
