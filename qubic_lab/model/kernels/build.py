"""Compiles the kernels for this machine's processor, once; the library is kept in the cache folder."""

import atexit
import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from qubic_lab.settings import cache_folder, settings

SOURCE = Path(__file__).with_name("decoder.cpp")
FLAGS = (
    *("-std=c++20", "-O3", "-march=native", "-ffp-contract=fast", "-fno-exceptions", "-fno-rtti"),
    *("-fPIC", "-shared", "-pthread"),
)
_HASH_BYTES = hashlib.sha256().digest_size
COMPILE_S = 120
"""Time after which a compiler counts as stuck."""


class Matrix(ctypes.Structure):
    """Fields as in decoder.cpp, as those of the other structures here."""

    _fields_ = (
        ("words", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("columns", ctypes.c_int32),
        ("inputs", ctypes.c_int32),
        ("exceptions", ctypes.c_void_p),
        ("exception_count", ctypes.c_int32),
        ("base", ctypes.c_int32),
        ("bits", ctypes.c_int32),
    )


class Layer(ctypes.Structure):
    """The weights of a layer."""

    _fields_ = (
        ("input_norm", ctypes.c_void_p),
        ("qkv", Matrix),
        ("output", Matrix),
        ("post_norm", ctypes.c_void_p),
        ("gate_up", Matrix),
        ("down", Matrix),
    )


class Shape(ctypes.Structure):
    """The shape of a stage, and what is not of a layer."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate")),
        ("bf16", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("norm_eps", ctypes.c_float),
        ("frequencies", ctypes.c_void_p),
        ("final_norm", ctypes.c_void_p),
        ("head", Matrix),
    )


class SegmentPages(ctypes.Structure):
    """Rows that follow each other in a request, and the pages of its slot."""

    _fields_ = (("start", ctypes.c_int32), ("count", ctypes.c_int32), ("pages", ctypes.c_void_p))


def compiler() -> tuple[str, ...] | None:
    """Return the command of a C++ compiler, or None: $CXX, the usual names, or the package ziglang's clang."""
    for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++"):
        if name and (found := shutil.which(name)):
            return (found,)
    return (sys.executable, "-m", "ziglang", "c++") if find_spec("ziglang") else None


@cache
def kernels() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None where they cannot be compiled; `failure` says why."""
    try:
        library = ctypes.CDLL(str(_built()))
    except OSError as error:
        _failures.append(str(error))
        return None
    library.decoder_create.restype = ctypes.c_void_p
    library.decoder_create.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    library.decoder_page_words.restype = ctypes.c_int64
    library.decoder_page_words.argtypes = (ctypes.c_void_p,)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.dense_base.argtypes = (pointer, number)
    library.dense_pack.restype = number
    library.dense_pack.argtypes = (pointer, number, number, ctypes.c_int32, pointer, pointer, number, number)
    library.quantise.argtypes = (pointer, ctypes.c_int32, number, number, ctypes.c_int32, pointer)
    library.decoder_destroy.argtypes = (ctypes.c_void_p,)
    library.decoder_run.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32)
    library.decoder_logits.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p)
    library.draw_tokens.argtypes = (pointer, pointer, number, ctypes.c_int32, ctypes.c_int32, *[pointer] * 5)
    library.all_finite.argtypes = (pointer, number, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32)
    return library


_failures: list[str] = []


def failure() -> str:
    """Return why there are no kernels on this machine, or an empty text."""
    return "" if kernels() else _failures[-1]


def _built() -> Path:
    """Return the library for this source, compiler and processor; compile it if it is not in the cache, or damaged.

    Its last bytes are the SHA-256 of the others, which loaders do not look at: code that was damaged could do anything.

    Raises:
        OSError: there is no compiler, or it failed.
    """
    command = compiler()
    if command is None:
        raise OSError("no C++ compiler was found: install g++, or `pip install ziglang`")
    library = cache_folder("kernels") / _library_name(command)
    if _is_whole(library):
        return library
    with _alone_in(library.parent):
        if not _is_whole(library):  # another process may have made it meanwhile
            _build(command, library)
    return library


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is in here with the folder: a compiler takes a core for half a minute."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks: then several may compile
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _build(command: tuple[str, ...], library: Path) -> None:
    partial = library.with_suffix(f".{os.getpid()}.partial")
    status, said = _compile([*command, *FLAGS, str(SOURCE), "-o", str(partial)])
    if status:
        lines = said.strip().splitlines() or [f"exit status {status}"]
        raise OSError(f"{command[0]} failed: {next((line for line in lines if 'error' in line), lines[-1])}")
    with partial.open("ab") as file:
        file.write(hashlib.sha256(partial.read_bytes()).digest())
    partial.replace(library)


def stale_libraries() -> list[Path]:
    """Return the libraries in the cache that this version and compiler would not load."""
    command = compiler()
    current = command and _library_name(command)
    return [path for path in sorted((settings().cache / "kernels").glob("decoder-*.so")) if path.name != current]


def _library_name(command: tuple[str, ...]) -> str:
    parts = (SOURCE.read_bytes(), repr((command, FLAGS)).encode(), _processor().encode())
    name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    return f"decoder-{name}.so"


def _compile(command: list[str]) -> tuple[int, str]:
    """Return a compiler's exit status and messages; the processes that it starts end with it, also on Ctrl-C."""
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:

        def kill() -> None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        atexit.register(kill)  # a node that ends while it starts does not wait for its thread here
        try:
            said = process.communicate(timeout=COMPILE_S)[1]
            return process.returncode, said
        except subprocess.TimeoutExpired as error:
            raise OSError(f"{command[0]} did not end in {COMPILE_S} s") from error
        finally:
            atexit.unregister(kill)
            if process.returncode is None:
                kill()


def _is_whole(library: Path) -> bool:
    try:
        content = library.read_bytes()
    except FileNotFoundError:
        return False
    return hashlib.sha256(content[:-_HASH_BYTES]).digest() == content[-_HASH_BYTES:]


def _processor() -> str:
    """Return what `-march=native` depends on: the processor's model and features."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
