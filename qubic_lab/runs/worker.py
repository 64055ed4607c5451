"""The process of one notebook: papermill and the kernel that it starts. Run by `qubic_lab.runs.notebook`.

Its only argument is its job as JSON. It reports each cell and any error as lines of JSON on standard output, and ends
as soon as its standard input closes, that is, when the process that started it has ended.
"""

import json
import os
import sys
import tempfile
import textwrap
import traceback
from pathlib import Path
from typing import Any, TextIO

from qubic_lab.lifeline import end_when_stdin_closes
from qubic_lab.runs.notebook import EXECUTED, RUN_DIR

# A kernel gets its ports before it takes them, and another process may have taken one in between. Nothing has run yet.
KERNEL_STARTS = 3
DIED_AT_ITS_START = "Kernel died before replying to kernel_info"


def main() -> int:
    """Run the notebook and return the exit status."""
    messages = _take_stdout()
    end_when_stdin_closes()  # the kernel watches this process and follows
    job = json.loads(sys.argv[1])
    os.environ[RUN_DIR] = job["folder"]
    with tempfile.TemporaryDirectory(dir=job["folder"]) as kernels:
        return _execute(job, _install_kernel(Path(kernels)), messages)


def _take_stdout() -> TextIO:
    """Keep standard output for messages: what the kernel and its children print there goes to the log instead."""
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return messages


def _install_kernel(folder: Path) -> str:
    """Make a kernel of this very Python: a `python3` kernel of the user or the system may be another one."""
    from ipykernel.kernelspec import KERNEL_NAME, write_kernel_spec

    write_kernel_spec(folder / "kernels" / KERNEL_NAME)
    # The first folder of this path wins.
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("JUPYTER_PATH")]))
    # The kernel's connection file lies here too: it goes with the run's folder, however the run ends.
    os.environ["JUPYTER_RUNTIME_DIR"] = str(folder)
    return str(KERNEL_NAME)


def _execute(job: dict[str, Any], kernel: str, messages: TextIO) -> int:
    # jsonschema would build a grammar for a second, which no notebook's schema needs; and papermill would load what it
    # writes into Hadoop with.
    for name in ("rfc3987_syntax", "pyarrow"):
        sys.modules[name] = None  # type: ignore[assignment]
    import papermill

    begun = 0

    def report(**message: Any) -> None:
        print(json.dumps(message), file=messages)

    def report_cell(**_: Any) -> None:
        nonlocal begun
        begun += 1
        report(cell=begun)

    for start in range(1, KERNEL_STARTS + 1):
        try:
            papermill.execute_notebook(
                job["notebook"],
                Path(job["folder"]) / EXECUTED,
                job["parameters"],
                kernel_name=kernel,
                cwd=job["root"],
                progress_bar=False,
                on_cell_execute=report_cell,
            )
            return 0
        except papermill.PapermillExecutionError as error:  # the notebook's own failure
            report(error=_one_line(error.ename, error.evalue), cell=begun)
            break
        except Exception as error:  # the kernel was lost, or could not start
            traceback.print_exc()
            if start == KERNEL_STARTS or DIED_AT_ITS_START not in str(error):
                report(error=_one_line(type(error).__name__, str(error)), cell=begun)
                break
    return 1


def _one_line(kind: str, message: str) -> str:
    return textwrap.shorten(f"{kind}: {message}" if message else kind, width=300)


if __name__ == "__main__":
    sys.exit(main())
