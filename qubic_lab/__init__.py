"""Qubic Lab: a workbench for running, splitting and judging small language models on a few modest machines."""

import logging
import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Before anything imports grpc: with it, a fork during a TLS handshake can stop a server for good (grpcio 1.85.3).
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# The library never configures output; the command line does (qubic_lab.cli.main).
logging.getLogger(__name__).addHandler(logging.NullHandler())


def load_ipython_extension(shell: Any) -> None:
    """Add the magics and the displays of `notebook_extension` to a notebook: `%load_ext qubic_lab`."""
    # By name: the package itself, which all of its modules import, imports none of them.
    import_module("qubic_lab.notebook_extension").load(shell)
