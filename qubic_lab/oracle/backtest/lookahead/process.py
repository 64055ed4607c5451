"""A look-ahead check of a function in a process of its own, which is ended when it takes too long.

`python -m qubic_lab.oracle.backtest.lookahead.process MODULE:FUNCTION FRAME RESULT CUTS SEED` reads a frame (Parquet)
and writes a report, or an error, as JSON. Modules are found from the working folder.
"""

import contextlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from qubic_lab.errors import InputError, QubicLabError, did_you_mean
from qubic_lab.oracle.backtest.lookahead.check import CUTS, LookaheadReport, check_lookahead
from qubic_lab.oracle.backtest.lookahead.runs import Signal

TIME_LIMIT_S = 120.0


def check_by_name(
    target: str, frame: pd.DataFrame, cuts: int = CUTS, seed: int = 0, time_limit_s: float = TIME_LIMIT_S
) -> LookaheadReport:
    """Check a function by its name, in a process of its own.

    Args:
        target: MODULE:FUNCTION, found from the working folder.
        frame: of bars, as `check_lookahead` takes it.
        cuts: see there.
        seed: see there.
        time_limit_s: the process is ended after this time.

    Raises:
        InputError: the function cannot be found, or took too long.
        QubicLabError: the process ended without a report.
    """
    _split(target)
    with tempfile.TemporaryDirectory(prefix="qubic-lab-audit-") as folder:
        data, result, errors = (Path(folder) / name for name in ("frame.parquet", "report.json", "errors.txt"))
        frame.to_parquet(data)
        command = [sys.executable, "-P", "-m", "qubic_lab.lifeline", str(os.getpid()), __name__]
        command += [target, str(data), str(result), str(cuts), str(seed)]
        with (
            errors.open("wb") as said,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
            ) as process,
        ):
            try:
                status = process.wait(time_limit_s)
            except subprocess.TimeoutExpired:
                raise InputError(
                    f"{target} was not audited within {time_limit_s:g} s: give fewer bars or cuts, or more time"
                ) from None
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)  # and what it started
                process.wait()
        if not result.exists():
            last = errors.read_text("utf-8", "replace").strip().splitlines()[-1:]
            said_last = f" ({last[0][:200]})" if last else ""
            raise QubicLabError(f"{target} ended its process with status {status} before the audit was done{said_last}")
        content = json.loads(result.read_text("utf-8"))
    if "error" in content:
        raise InputError(content["error"])
    return LookaheadReport.from_dict(content)


def _split(target: str) -> tuple[str, str]:
    module, colon, name = target.partition(":")
    if not (colon and module and name):
        raise InputError(f"{target!r} names no function: give MODULE:FUNCTION, such as my_signals:momentum")
    if "/" in module:
        path = os.path.relpath(module)
        if path.startswith(".."):
            raise InputError(f"{module!r} is not below the working folder: go to its folder first, or name a module")
        module = path
    return module.removesuffix(".py").replace("/", "."), name


def load_function(target: str) -> Signal:
    """Return a function by its name.

    Raises:
        InputError: its module cannot be imported, or has no function of this name.
    """
    module_name, name = _split(target)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        text = " ".join(str(error).split())
        raise InputError(f"module {module_name!r} cannot be imported ({type(error).__name__}: {text})") from error
    if not hasattr(module, name):
        known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise InputError(f"module {module_name!r} has no {name!r}: {did_you_mean(name, known)}")
    function: Signal = getattr(module, name)
    if not callable(function):
        raise InputError(f"{target} is a {type(function).__name__}: name a function that takes a frame of bars")
    return function


def main() -> None:
    """Check one function and write what was found."""
    target, data, result, cuts, seed = sys.argv[1:]
    sys.path.insert(0, str(Path.cwd()))
    sys.stdin = io.StringIO()  # a function that asks for input gets none, and does not wait
    content: dict[str, Any]
    try:
        content = check_lookahead(load_function(target), pd.read_parquet(data), int(cuts), int(seed)).to_dict()
    except InputError as error:
        content = {"error": str(error)}
    part = Path(result).with_suffix(".part")
    part.write_text(json.dumps(content), "utf-8")
    part.replace(result)


if __name__ == "__main__":
    main()
