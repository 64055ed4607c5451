"""Kernels for the notebooks of tests, forked from one process that has imported what the notebooks import.

`python -m forked_kernels PARENT NOTEBOOK…` is that process, which ends with PARENT; its stdin is a listening socket.
`python forked_kernels.py ADDRESS ARGUMENTS…` is what Jupyter starts as a kernel: it asks for one with these arguments
of ipykernel, and lives and dies with it. What kernels leave behind becomes that process's.
"""

import ast
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LONGEST = 1 << 18


def ask_for_kernel(address: str, arguments: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Jupyter sends it before it asks a kernel to end
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asked:
        asked.connect(address)
        job = {"argv": arguments, "environ": dict(os.environ), "folder": str(Path.cwd())}
        socket.send_fds(asked, [json.dumps(job).encode()], [1, 2])
        asked.recv(1)  # nothing, when the kernel has ended


def fork_kernels(parent: int, notebooks: list[str]) -> None:
    from forked_python import adopt_orphans, fork_from_here

    from qubic_lab.lifeline import end_when_parent_dies

    del sys.path[0]  # the folder of the tests, which a kernel does not have
    end_when_parent_dies(parent)
    adopt_orphans(True)
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as ipykernel sets it
    import matplotlib.pyplot  # noqa: F401
    import pandas  # noqa: F401
    from ipykernel.kernelapp import IPKernelApp

    from qubic_lab.runs import shown
    from qubic_lab.runs.parameters import read_source

    shown.PNG_DPI = 24  # nobody looks
    for notebook in notebooks:
        nodes = [node for cell in read_source(Path(notebook)).code_cells for node in ast.walk(ast.parse(cell))]
        exec("\n".join(ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)), {})
    gc.freeze()  # else each kernel looks through it again and again
    os.write(1, b".")  # the kernels are ready: Jupyter gives up after a minute
    listener = socket.socket(fileno=os.dup(0))
    while True:
        connection, _ = listener.accept()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # so their time counts as that of the tests
                pass
        if not os.fork():
            break
        connection.close()
    listener.close()
    message, given, *_ = socket.recv_fds(connection, LONGEST, 2)
    job = json.loads(message)
    for number, descriptor in enumerate(given, start=1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(job["environ"])
    os.chdir(job["folder"])
    sys.argv[1:] = job["argv"]
    fork_from_here()
    threading.Thread(target=lambda: (connection.recv(1), os._exit(1)), daemon=True).start()  # who asked was killed
    IPKernelApp.launch_instance()


@contextmanager
def forked_kernels(folder: Path, notebooks: list[Path]) -> Iterator[tuple[str, int]]:
    """Yield a folder for JUPYTER_PATH whose kernel "python3" is forked, and the process below which all kernels are."""
    from forked_python import PYTHON

    kernel = folder / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address := str(folder / "socket"))
        listener.listen()
        command = [sys.executable, "-S", __file__, address, "-f", "{connection_file}"]  # it needs no packages
        kernel.write_text(json.dumps({"argv": command, "display_name": "forked", "language": "python"}))
        command = [PYTHON, "-m", "forked_kernels", str(os.getpid()), *map(str, notebooks)]
        tests = Path(__file__).parent
        with subprocess.Popen(command, cwd=tests, stdin=listener, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None and process.stdout.read(1)
                yield str(folder), process.pid
            finally:
                process.kill()


if __name__ == "__main__":
    if sys.argv[1].isdecimal():
        fork_kernels(int(sys.argv[1]), sys.argv[2:])
    else:
        ask_for_kernel(sys.argv[1], sys.argv[2:])
