"""Provenance of results: the commit, the versions, the machine, and the committed data."""

import os
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "transformers", "numpy", "safetensors", "qubic-lab")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Commit:
    """The git commit of the source; `dirty` if the tree has uncommitted changes."""

    hash: str
    dirty: bool

    def __str__(self) -> str:
        return f"{self.hash[:12]}{' + changes' if self.dirty else ''}"


@cache
def source_commit() -> Commit:
    """Return the commit of the checkout that this package runs from, or `unknown` outside a checkout."""
    root = Path(__file__).parent.parent
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        return Commit("unknown", dirty=False)
    return Commit(head, dirty=bool(_git(root, "status", "--porcelain")))


def data_file(path: str, user: str) -> Path:
    """Return a file of the checkout's `data/`; an installed copy has it beside the module of file `user` instead."""
    checkout = Path(__file__).parents[1] / "data" / path
    return checkout if checkout.parent.is_dir() else Path(user).with_name(checkout.name)


def _git(root: Path, *args: str) -> str | None:
    if not (root / ".git").exists():  # an installed copy may be inside another repository
        return None
    try:
        done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def reference_library() -> str:
    """Return the name and version of the library that the engine is compared with."""
    return f"transformers {version('transformers')}"


@dataclass(frozen=True)
class Machine:
    """A machine: processor, usable cores, memory and operating system."""

    processor: str
    cores: int
    memory_gib: float
    system: str

    def __str__(self) -> str:
        return f"{self.processor}, {self.cores} cores, {self.memory_gib:.0f} GiB, {self.system}"


def usable_cores() -> int:
    """Return the number of cores that this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def free_memory_bytes() -> int:
    """Return the memory that this process can still take, within the limit of its container (cgroup v2)."""
    import psutil

    free: int = psutil.virtual_memory().available
    limit, used, parts = (CGROUP / f"memory.{name}" for name in ("max", "current", "stat"))
    if limit.exists() and (most := limit.read_text().strip()).isdecimal():
        cached = next(int(line.split()[1]) for line in parts.read_text().splitlines() if line.startswith("file "))
        free = min(free, max(0, int(most) - int(used.read_text()) + cached))
    return free


@cache
def machine() -> Machine:
    """Return the machine of this process."""
    import psutil

    return Machine(_processor(), usable_cores(), psutil.virtual_memory().total / 2**30, platform.platform(terse=True))


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
        fields = {name.strip(): value.strip() for name, _, value in lines}
        if name := fields.get("model name"):
            return f"{name} (family {fields.get('cpu family', '?')}, model {fields.get('model', '?')})"
    return platform.processor() or platform.machine()
