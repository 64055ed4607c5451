"""The entry point: registers the commands, configures output, and turns errors into one line and an exit status."""

import gc
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer import Option
from typer.exceptions import TyperException
from typer.main import get_command

from qubic_lab import __version__, logs
from qubic_lab.cli import (
    backup,
    chaos,
    chat,
    compare,
    coordinator,
    dashboard,
    doctor,
    generate,
    models,
    node,
    project,
    runs,
    serve,
    simulate,
    verify,
)
from qubic_lab.cli.console import Commands, add_commands, add_group
from qubic_lab.errors import InputError, QubicLabError

app = typer.Typer(
    name="qubic-lab",
    help="Run, split and measure small language models on a few machines, and analyse markets with them.",
    epilog='Example: qubic-lab generate --ranks 2 --prompt "Why is the sky blue?"',
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
COMMANDS: Commands = {
    "generate": (generate.generate, '--ranks 2 --prompt "Why is the sky blue?"'),
    "ask": (generate.ask, '"What is 5 + 7?" --mode consensus --nodes 3'),
    "chat": (chat.chat, "--ranks 2"),
    "serve": (serve.serve, "--model smollm2 --ranks 2"),
    "compare": (compare.compare, "--ranks 2 --strategy A,B,C --batch 1,4 --dtype fp32,bf16"),
    "model-path": (models.model_path, "smollm2"),
    "split": (models.split, "--model smollm2 --ranks 2 --out parts"),
    "random-model": (models.random_model, "--config deepseek --out random"),
    "plan": (models.plan, "--model deepseek --devices t4,t4,t4 --link 10Gbps:0.1ms --goal throughput"),
    "run": (runs.run, "experiments/weekly.yaml"),
    "report": (runs.report, "--week 2026-W48"),
    "verify": (verify.verify, "reports/2026-W48 --sample 50"),
    "init": (project.init, "my-lab"),
    "new-study": (project.new_study, "my_study"),
    "doctor": (doctor.doctor, "--role node --model deepseek"),
    "coordinator": (coordinator.coordinator, "--listen 127.0.0.1:5000 --nodes 127.0.0.1:5001"),
    "node": (node.node, "--coordinator 127.0.0.1:5001 --model smollm2 --slots 4"),
    "dashboard": (dashboard.dashboard, "--coordinator http://127.0.0.1:5000"),
    "backup": (backup.backup, "cluster.tar.gz"),
    "restore": (backup.restore, "cluster.tar.gz"),
    "chaos": (chaos.chaos, "--case node-killed --requests 50"),
    "simulate": (simulate.simulate, "--seed 7 --hours 0.1"),
}
add_commands(app, COMMANDS)
add_group(app, "model", "Look into a model, or fetch one.", "analyse --model smollm2", "models")
add_group(app, "runs", "Look at runs of all weeks, repeat one, delete old ones.", "list --since 2026-W48")
add_group(
    app,
    "bench",
    "Measure pipelines, clusters, votes and the oracle.",
    "memory --model smollm2 --ranks 2",
    "bench_evaluations",
)
add_group(app, "cluster", "Run a cluster on this machine, and show its state.", "up --nodes 3")
add_group(app, "net", "Check the network between a cluster's machines.", "check")
add_group(app, "testbed", "Run a cluster's machines on this one, with its firewall.", "up --rate 100mbit")
add_group(app, "token", "Add and remove tokens of HTTP clients.", "add notebook")
add_group(app, "certs", "Make, show and renew TLS certificates of hosts.", "make ~/qubic-lab-tls laptop")
add_group(app, "oracle", "Collect and analyse market data and texts.", "demo")
add_group(app, "gcp", "Plan, make and remove a cluster on Google Cloud.", "plan")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"qubic-lab {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    verbose: Annotated[bool, Option("--verbose", "-v", help="Write a log to stderr.")] = False,
) -> None:
    """Configure logging for all commands."""
    # Otherwise gRPC reports lost connections on stderr beside our one line. It reads the variable when imported.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"
    level, form = logging.INFO if verbose else logging.ERROR, "text"
    if Path(".env").exists() or any(name.upper().startswith("QUBIC_LAB_") for name in os.environ):
        from qubic_lab.settings import settings  # takes a tenth of a second to import

        form, named = settings().log_format, settings().log_level
        level = min(level, logs.level_of(named)) if named else level
    logs.configure(level, form)


def run(arguments: Sequence[str]) -> int:
    """Run one command; return its exit status.

    It is 0, 1 for a failure, 2 for wrong input, 130 for Ctrl-C and 143 for SIGTERM.
    """
    command = get_command(app)
    try:
        # Not `app()`, which handles Ctrl-C and broken pipes itself.
        with command.make_context("qubic-lab", list(arguments) or ["--help"]) as context:
            command.invoke(context)
        return 0
    except typer.Exit as ended:
        return ended.exit_code
    except QubicLabError as error:
        return _fail(str(error), error.exit_status)
    except TyperException as error:
        return _fail(explain(error), InputError.exit_status)
    except _Terminated:
        return _fail("terminated", 128 + signal.SIGTERM)
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of a pipe has left; redirect stdout so that the exit does not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # for example a full disk
        logging.getLogger(__name__).info("traceback", exc_info=error)
        return _fail(f"{error} ('qubic-lab --verbose …' shows where)", QubicLabError.exit_status)


def explain(error: TyperException) -> str:
    """Return Typer's message with the value and the command whose help explains it."""
    from pydantic import ValidationError

    message = error.format_message().rstrip(".")
    if isinstance(error.__cause__, ValidationError):
        message += f": {error.__cause__.errors()[0]['input']!r}"
    command = getattr(error, "ctx", None)
    return f"{message} (see '{command.command_path if command else 'qubic-lab'} --help')"


def _fail(message: str, status: int) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return status


class _Terminated(KeyboardInterrupt):
    """SIGTERM came, which ends a command as Ctrl-C does."""


def _on_sigterm(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the process at once
    raise _Terminated


def main() -> None:
    """Run the command line of this process."""
    if "_QUBIC_LAB_COMPLETE" in os.environ:  # a shell asks what may come next
        app(prog_name="qubic-lab")
    signal.signal(signal.SIGTERM, _on_sigterm)
    gc.set_threshold(50_000)  # by default collections take a fifth of the time of imports
    status = run(sys.argv[1:])
    gc.freeze()  # else the interpreter's end looks through all that torch holds, for a second or more
    sys.exit(status)


if __name__ == "__main__":
    main()
