"""What a signal does beside reading its frame: it looks at the clock, keeps something, or reads from elsewhere."""

import inspect
import os
import sys
import sysconfig
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import numpy as np
import pandas as pd

from qubic_lab.oracle.backtest.lookahead.runs import Signal

_CLOCK = frozenset({"time", "time_ns", "localtime", "gmtime", "ctime", "now", "utcnow", "today"})
_CLOCK_NAMES = frozenset({"now", "utcnow", "today"})
_CLOCK_MODULES = frozenset({"time", "datetime"})
_LOGGERS = frozenset({"logging", "warnings", "threading"})
_PYARROW = frozenset(f"pyarrow.{name}" for name in ("csv", "dataset", "feather", "json", "orc", "parquet"))
_UNSEEN_READERS = _PYARROW | {"read_parquet", "read_feather", "read_orc", "read_table", "ParquetFile", "ParquetDataset"}
"""Modules and functions whose libraries open files out of Python's sight."""
_LEAST_ROWS = 20
"""A table of a function's own with fewer rows is one of settings, not of data."""
_SYSTEM = ("/dev", "/etc", "/proc", "/sys", "/usr/share/zoneinfo")
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_ARRAYS = (np.ndarray, pd.DataFrame, pd.Series)
_listeners: list[tuple[int, set[str]]] = []
"""Who listens to what is opened: a thread, and where it is noted. Python's audit hooks cannot be taken away again."""


@contextmanager
def clock_watched(function: Signal, seen: set[str]) -> Iterator[None]:
    """Note calls of the clock, but for those that libraries make for themselves; none where a profiler is at work."""
    before = sys.getprofile()
    if before is not None and not callable(before):  # one in C, which could not be put back
        yield
        return

    home = str(_inner(function)[1].get("__name__", "")).split(".")[0]

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event != "c_call" or getattr(argument, "__name__", "") not in _CLOCK:
            return
        owner = getattr(argument, "__self__", None)
        module = getattr(argument, "__module__", None) or getattr(owner, "__module__", None)
        caller = str(frame.f_globals.get("__name__", "")).split(".")[0]
        own = caller == home or not _is_installed(frame.f_code.co_filename)
        if module in _CLOCK_MODULES and caller not in _LOGGERS and own:
            seen.add(f"{module}.{argument.__name__}")

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(before)


def clock_names(function: Signal) -> set[str]:
    """Return names such as `now` in a function's own code: calls in compiled libraries are seen in no other way."""
    return {name for code in _own_code(function) for name in _CLOCK_NAMES & set(code.co_names)}


def _own_code(function: Signal) -> dict[CodeType, dict[str, Any]]:
    """Return the code of a function, of those within it, and of what it calls that is not installed, with its names."""
    inner, scope = _inner(function)
    first = getattr(inner, "__code__", None)
    waiting = [(first, scope)] if isinstance(first, CodeType) else []
    done: dict[CodeType, dict[str, Any]] = {}
    while waiting:
        part, scope = waiting.pop()
        if part in done:
            continue
        done[part] = scope
        waiting += [(constant, scope) for constant in part.co_consts if isinstance(constant, CodeType)]
        for called in _named(part, scope).values():
            behind = getattr(called, "__wrapped__", called)
            code = getattr(behind, "__code__", None)
            if isinstance(code, CodeType) and not _is_installed(code.co_filename):
                waiting.append((code, getattr(behind, "__globals__", {})))
    return done


def _named(code: CodeType, scope: dict[str, Any]) -> dict[str, Any]:
    """Return what code names in its module, and in modules and objects of one's own that it names there."""
    found = {name: scope[name] for name in code.co_names if name in scope}
    for owner in list(found.values()):
        if not _is_of_library(owner):
            inside = {name: inspect.getattr_static(owner, name, None) for name in code.co_names if name not in found}
            found |= {name: value for name, value in inside.items() if value is not None}
    return found


def _inner(function: Signal) -> tuple[Any, dict[str, Any]]:
    """Return the plain function behind a partial, a decorator, a method or an object, and its module's names."""
    inner: Any = function
    for name in ("func", "__wrapped__", "__func__"):
        inner = getattr(inner, name, inner)
    if not hasattr(inner, "__code__"):
        inner = getattr(type(inner).__call__, "__wrapped__", type(inner).__call__)
    return inner, getattr(inner, "__globals__", {})


def state_of(function: Signal) -> dict[str, Any]:
    """Return what a function could keep between runs, by name, so that it can be compared: values, or which object."""
    found: dict[str, Any] = {name: _fingerprint(value) for name, value in _held(function).items()}
    # Libraries set variables for themselves when they are imported.
    own = {each for code in _own_code(function) for each in code.co_consts if isinstance(each, str)}
    return found | {"os.environ": {name: each for name, each in os.environ.items() if name in own}}


def _held(function: Signal) -> dict[str, Any]:
    """Return the values that a function finds outside of its frame, by name: of its module, its object, its closure."""
    inner, _ = _inner(function)
    found: dict[str, Any] = {}
    for part, scope in _own_code(function).items():
        found |= _named(part, scope)
    for owner in (function, getattr(function, "func", None), getattr(function, "__self__", None), inner):
        found |= _attributes(owner)
    defaults, code = getattr(inner, "__defaults__", None) or (), getattr(inner, "__code__", None)
    found |= getattr(inner, "__kwdefaults__", None) or {}
    if code is not None:
        first = code.co_argcount - len(defaults)
        found |= dict(zip(code.co_varnames[first : code.co_argcount], defaults, strict=True))
        for name, cell in zip(code.co_freevars, inner.__closure__ or (), strict=False):
            with suppress(ValueError):  # the cell is empty
                found[name] = cell.cell_contents
    return found | dict(getattr(function, "keywords", None) or {})


def _attributes(owner: Any) -> dict[str, Any]:
    slots = [name for kind in type(owner).__mro__ for name in _names(getattr(kind, "__slots__", ()))]
    return dict(getattr(owner, "__dict__", {})) | {name: getattr(owner, name) for name in slots if hasattr(owner, name)}


def _names(slots: str | Sequence[str]) -> Sequence[str]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _fingerprint(value: Any) -> Any:
    """Return what changes when a value is changed, in place or by another; what is deeper within is not looked at."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, np.ndarray):
        return id(value), value.shape, value.tobytes() if value.nbytes <= 1 << 20 and value.dtype != object else b""
    if isinstance(value, dict):
        return id(value), [(_mark(key), _mark(each)) for key, each in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return id(value), [_mark(each) for each in value]
    if isinstance(value, ModuleType | pd.DataFrame | pd.Series):
        return id(value)
    known = _attributes(value).items()
    if _is_of_library(value):  # which may keep what it has worked out, such as the text of a path
        known = {name: each for name, each in known if not name.startswith("_")}.items()
    return id(value), {name: _mark(each) for name, each in known}


def _is_of_library(value: Any) -> bool:
    """Return whether a module, a class or an object of one belongs to Python or to an installed library."""
    kind = value if isinstance(value, type) else type(value)
    module = value if isinstance(value, ModuleType) else sys.modules.get(kind.__module__)
    return _is_installed(getattr(module, "__file__", None) or "<frozen")


def _mark(value: Any) -> Any:
    return repr(value) if isinstance(value, _PLAIN) else id(value)


def data_held(function: Signal, bars: int) -> set[str]:
    """Return the names of data that a function has of its own: they cannot be cut off, so nobody knows what it sees.

    Args:
        function: the signal.
        bars: of the frame; shorter arrays may be filters, and shorter tables than 20 rows settings.
    """
    return {name for name, value in _held(function).items() if _holds_data(value, bars)}


def _holds_data(value: Any, bars: int, depth: int = 3) -> bool:
    return _is_data(value, bars) or (depth > 0 and any(_holds_data(each, bars, depth - 1) for each in _parts(value)))


def _parts(value: Any) -> list[Any]:
    """Return what is in a value; of objects of libraries, such as fitted models, arrays and tables alone."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple):
        return [*value]
    if isinstance(value, type | FunctionType | ModuleType):
        return []
    inside = [*_attributes(value).values()]
    return [each for each in inside if isinstance(each, _ARRAYS)] if _is_of_library(value) else inside


def _is_data(value: Any, bars: int) -> bool:
    if isinstance(value, pd.DataFrame | pd.Series):
        return len(value) >= _LEAST_ROWS
    if isinstance(value, list | tuple | dict):
        return len(value) >= bars
    return isinstance(value, np.ndarray) and max(value.shape, default=0) >= bars


@contextmanager
def reads_watched(function: Signal, seen: set[str]) -> Iterator[None]:
    """Note the names of files that are read, of databases and of hosts, but for what belongs to installed libraries."""
    _listen()
    listener = (threading.get_ident(), seen)
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
    for code, scope in _own_code(function).items():
        modules = {getattr(scope.get(name), "__name__", name) for name in code.co_names}
        seen |= {f"by {name}" for name in _UNSEEN_READERS & {*code.co_names, *modules}}


@cache
def _listen() -> None:
    sys.addaudithook(_note_opened)


def _note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if not _listeners or event not in ("open", "sqlite3.connect", "socket.connect"):
        return
    name = _opened(event, arguments)
    for thread, seen in _listeners:
        if name and thread == threading.get_ident():
            seen.add(name)


def _opened(event: str, arguments: tuple[Any, ...]) -> str:
    """Return what is opened to be read, by its name; empty if it is not, or belongs to a library or to the system."""
    if event == "socket.connect":
        return f"the host {arguments[1]}"
    if event == "sqlite3.connect":
        return f"the database {arguments[0]}"
    path, mode, flags = arguments
    written = bool(flags & (os.O_WRONLY | os.O_RDWR)) if mode is None else not {"r", "+"} & set(mode)
    if written or not isinstance(path, str | bytes | os.PathLike):
        return ""
    name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100  (Path.resolve would open folders itself)
    ours = name.endswith((".py", ".pyc", ".so")) or name in sys.path or name.startswith(_SYSTEM) or _is_installed(name)
    return "" if ours else Path(name).name


def _is_installed(file: str) -> bool:
    """Return whether a file belongs to Python or to an installed library."""
    return file.startswith(_installed_folders())


@cache
def _installed_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = {f"{paths[name]}{os.sep}" for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return *folders, "<frozen"
