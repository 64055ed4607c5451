"""Processes of tests, forked from one that has imported the package: its imports take one to three seconds of a core.

After `fork_from_here()` this process's `subprocess.Popen` starts the modules of FORKED, any module or code by PYTHON,
and pytest's workers as forks of what is imported now; so do pools of `multiprocessing` that would spawn. All are its
children, with the environment, folder, session and descriptors that they would have; what they start themselves is
started as always, but for those by PYTHON and of FORKING.
"""

import ctypes
import faulthandler
import fcntl
import gc
import itertools
import json
import logging
import multiprocessing.util
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

FORKED = {
    "ipykernel_launcher",
    "qubic_lab.bench.link",
    "qubic_lab.bench.queue",
    "qubic_lab.cluster.supervisor",
    "qubic_lab.consensus.symbolic_worker",
    "qubic_lab.lifeline",
    "qubic_lab.oracle.ingest.feed_worker",
    "qubic_lab.pipeline.launcher",
    "qubic_lab.runs.worker",
    "qubic_lab.votes.counting_worker",
    "reading_worker",
}
FORKING = {
    "qubic_lab.cluster.supervisor": (),
    "qubic_lab.lifeline": (),
    "qubic_lab.runs.worker": ("papermill", "papermill.translators", "nbclient", "ipykernel.kernelapp"),
}
"""Modules whose processes fork theirs in turn, and what these import."""
PYTHON = f"{Path(sys.executable).parent}/./{Path(sys.executable).name}"
"""This interpreter by a name that tests use: with it any module or code is started as a fork, which forks others."""
WORKER = "import sys;exec(eval(sys.stdin.readline()))"
"""What execnet lets a worker of pytest run."""
LONGEST, MOST_PASSED = 1 << 18, 99
TESTS = Path(__file__).parent
_PR_SET_CHILD_SUBREAPER = 36

start_anew = subprocess.Popen._execute_child  # type: ignore[attr-defined]
spawn_anew = multiprocessing.util.spawnv_passfds  # type: ignore[attr-defined]


def fork_from_here(first: Callable[[], None] = lambda: None) -> None:
    """Fork the process that does something `first` and forks others (Linux).

    Call it before this process starts threads or runs operations of torch.
    """
    if sys.platform != "linux":
        return
    asked, asking = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent, one_at_a_time = os.getpid(), threading.Lock()
    if not os.fork():
        try:
            asking.close()
            first()
            _fork_others(asked)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)  # what follows is the parent's
    asked.close()

    def fork(argv: list[str], given: list[int], passed: Iterable[int], **job: Any) -> int:
        blocked = [*signal.pthread_sigmask(signal.SIG_BLOCK, [])]
        job |= {"argv": argv, "parent": parent, "numbers": [0, 1, 2, *passed], "blocked": blocked}
        with one_at_a_time:
            adopt_orphans(True)
            socket.send_fds(asking, [json.dumps(job).encode()], [*given, *passed])
            pid = int(asking.recv(99))
            asking.recv(1)  # it is ours now
            adopt_orphans(False)
        return pid

    def start(self: Any, args: Any, executable: Any, *others: Any) -> None:
        before, close_fds, passed, cwd, env, _, _, shell, *pipes, _, _, _, _, _, new_session, _ = others
        env = dict(os.environ if env is None else env)
        paths = env.get("PYTHONPATH", "").split(os.pathsep)
        anew = before or shell or not close_fds or any(Path(p, "sitecustomize.py").exists() for p in paths)
        if anew or os.getpid() != parent or not _is_forked(args):
            start_anew(self, args, executable, *others)
            return
        argv = [str(each) for each in args[1:]]
        stdin, to_stdin, from_stdout, stdout, from_stderr, stderr = pipes
        given = [own if number == -1 else number for own, number in enumerate((stdin, stdout, stderr))]
        forking = args[0] == PYTHON or argv[_options_end(argv)] in FORKING
        folder = str(cwd or Path.cwd())
        self.pid = fork(argv, given, passed, env=env, cwd=folder, new_session=new_session, forking=forking)
        self._child_created = True
        self._close_pipe_fds(stdin, to_stdin, from_stdout, stdout, from_stderr, stderr)

    def spawn(path: bytes, args: list[Any], passed: Iterable[int]) -> int:
        argv = [os.fsdecode(each) for each in args]
        if os.getpid() != parent or "--multiprocessing-fork" not in argv:  # but for the tracker of resources
            return spawn_anew(path, args, passed)
        given, env, folder = [0, 1, 2], dict(os.environ), str(Path.cwd())
        return fork(argv[argv.index("-c") :], given, passed, env=env, cwd=folder, new_session=False, forking=False)

    subprocess.Popen._execute_child = start  # type: ignore[attr-defined]
    multiprocessing.util.spawnv_passfds = spawn  # type: ignore[attr-defined]


def adopt_orphans(yes: bool) -> None:
    """Let this process become the parent of what its descendants leave behind, or no longer (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(yes))


def _is_forked(command: Any) -> bool:
    if isinstance(command, str) or command[0] not in (sys.executable, PYTHON):
        return False
    module = _options_end(command[1:]) + 1
    if command[module - 1] == "-c":
        return command[0] == PYTHON or command[module] == WORKER
    return command[module - 1] in ("-m", "-um") and (command[0] == PYTHON or command[module] in FORKED)


def _options_end(arguments: list[str]) -> int:
    """Return how many options of Python come before a module's name, or before the end."""
    return next((n for n, each in enumerate(arguments) if str(each)[:1] != "-"), len(arguments) - 1)


def _fork_others(asked: socket.socket) -> None:
    """Fork a process for each job; its parent ends at once, so that whoever asked becomes its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.disable()
    gc.freeze()
    os.closerange(3, asked.fileno())  # others may wait for their close
    os.closerange(asked.fileno() + 1, 1 << 16)
    for number in (0, 1):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    while True:
        message, given, *_ = socket.recv_fds(asked, LONGEST, MOST_PASSED)
        if not message:
            os._exit(0)
        job = json.loads(message)
        for name in FORKING.get(job["argv"][_options_end(job["argv"])], ()):
            import_module(name)
        if not (between := os.fork()):
            own = os.getpid()
            if child := os.fork():
                asked.send(b"%d" % child)
                os._exit(0)
            _become(asked, job, given, own)
        os.waitpid(between, 0)
        asked.send(b".")
        for descriptor in given:
            os.close(descriptor)


def _become(asked: socket.socket, job: dict[str, Any], given: list[int], between: int) -> None:
    """Run a module or code as `python -m` and `python -c` do, and end."""
    asked.close()
    numbers = job["numbers"]
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, max(*given, *numbers) + 1) for descriptor in given]
    for number, descriptor in zip(numbers, moved, strict=True):
        os.dup2(descriptor, number)
    for number, following in itertools.pairwise([*sorted(numbers), 1 << 16]):
        os.closerange(number + 1, following)
    if job["new_session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    while (parent := os.getppid()) == between:
        time.sleep(0.001)
    if parent != job["parent"]:  # it was killed
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_SETMASK, job["blocked"])
    status = 1
    try:
        module = _options_end(job["argv"])
        _as_new(job["argv"][:module], job["argv"][module:])
        code = job["argv"][module]
        if code != WORKER:
            _forget_tests()
            if job["forking"]:
                fork_from_here()
        if job["argv"][module - 1] == "-c":
            sys.argv[0] = "-c"
            main = sys.modules["__main__"] = ModuleType("__main__")  # not pytest's: processes of a pool would import it
            exec(code, main.__dict__)
        else:
            runpy.run_module(code, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        __import__("atexit")._run_exitfuncs()
        sys.stdout.flush()
        os._exit(status)


def _as_new(options: list[str], argv: list[str]) -> None:
    """Undo what pytest has set."""
    from qubic_lab.settings import settings

    subprocess.Popen._execute_child = start_anew  # type: ignore[attr-defined]
    multiprocessing.util.spawnv_passfds = spawn_anew  # type: ignore[attr-defined]
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}:
        if callable(signal.getsignal(number)) or number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    if "-um" in options:
        sys.stdout.reconfigure(write_through=True)
    sys.argv = argv
    own = [] if "-P" in options else [str(Path.cwd())]
    own += filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = own + [each for each in sys.path if each and not Path(each).is_relative_to(TESTS)]
    sys.meta_path[:] = [each for each in sys.meta_path if not type(each).__module__.startswith("_pytest")]
    sys.excepthook, sys.unraisablehook = sys.__excepthook__, sys.__unraisablehook__
    threading.excepthook = threading.__excepthook__
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*found in sys.modules", category=RuntimeWarning)
    settings.cache_clear()
    tempfile.tempdir = None  # its environment may name another


def _forget_tests() -> None:
    """Undo what tests have set and imported."""
    for name in [
        name
        for name, each in sys.modules.items()
        if str(getattr(each, "__dict__", {}).get("__file__")).startswith(str(TESTS))  # lazy ones must not import
    ]:
        del sys.modules[name]
    kernel = sys.argv[0] == "ipykernel_launcher"
    if kernel and (watched := os.environ.get("JPY_PARENT_PID")):  # which was read at the import
        sys.argv.append(f"--IPKernelApp.parent_handle={watched}")
    if (kernel or sys.argv[0] == "forked_kernels") and "matplotlib" in sys.modules:  # which has chosen another
        sys.modules["matplotlib"].rcParams["backend"] = "module://matplotlib_inline.backend_inline"
    gc.enable()
