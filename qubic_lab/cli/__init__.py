"""The command `qubic-lab`: one file for each group of commands; the only place that wires the parts together."""

import signal


def main() -> None:
    """Run the command line of this process; while its modules are loaded, Ctrl-C ends it without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from qubic_lab.cli.main import main as run

    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()
