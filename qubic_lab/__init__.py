"""Qubic Lab: a workbench for running, splitting and judging small language models on a few modest machines."""

import logging

__version__ = "0.1.0"

# The library never configures output; the command line does (qubic_lab.cli.main).
logging.getLogger(__name__).addHandler(logging.NullHandler())
