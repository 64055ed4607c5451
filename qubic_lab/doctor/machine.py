"""Checks of the machine itself: graphics cards, torch, memory, disk, compiler and cores."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

import psutil

from qubic_lab.doctor.finding import Finding, Verdict, as_root, skip
from qubic_lab.doctor.graphics import ANSWER_S, Graphics, runs_on
from qubic_lab.doctor.subject import Subject
from qubic_lab.launch_plan.network import SERVICES
from qubic_lab.model.config import CONFIGS, ModelConfig, resolve_shape
from qubic_lab.model.device import USABLE_SHARE
from qubic_lab.model.folders import rank_folders
from qubic_lab.model.kernels.build import compiler, stale_libraries
from qubic_lab.model.plan import plan_layers
from qubic_lab.model.predict import rank_memory_bytes
from qubic_lab.model.resolve import local_model
from qubic_lab.model.split import surviving_manifest
from qubic_lab.provenance import usable_cores
from qubic_lab.settings import settings

GIB = 2**30
LEAST_FREE_BYTES, ENOUGH_FREE_BYTES = GIB, 5 * GIB
"""Free disk below which a machine is ill, and below which it is warned."""
CONTEXT = 2_048
"""Tokens of each request that memory must hold."""
INDEX = "https://download.pytorch.org/whl/"
WHEELS = {"11": "cu118", "12": "cu126", "13": "cu130"}
"""Builds of torch by the CUDA of the driver; the first two have code for T4 cards and older ones."""
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_ASK_TORCH = "import json, torch; print(json.dumps([torch.cuda.is_available(), torch.cuda.get_arch_list()]))"


def driver(subject: Subject) -> Iterator[Finding]:
    """NVIDIA's driver, where a card of theirs is."""
    graphics = subject.graphics
    if not graphics.there:
        yield skip("NVIDIA driver", "this machine has no NVIDIA card: models run on its CPU")
    elif graphics.cards:
        cards = ", ".join(f"{card.name} ({card.total_bytes / GIB:.0f} GiB)" for card in graphics.cards)
        yield Finding("NVIDIA driver", f"{graphics.cards[0].driver}: {cards}")
    elif "mismatch" in graphics.trouble:
        why = f"{graphics.trouble}: the driver was updated while it ran"
        yield Finding("NVIDIA driver", "not usable", "fail", why, as_root("reboot"))
    else:
        value = "installed, not usable" if graphics.trouble else "none"
        why = graphics.trouble or f"a card of NVIDIA is on the PCI bus ({graphics.in_slots}), and nvidia-smi is missing"
        install = "apt-get install -y nvidia-driver-570-server"
        if shutil.which("ubuntu-drivers"):
            install = "ubuntu-drivers install --gpgpu"
        yield Finding("NVIDIA driver", value, "fail", why, as_root(install))


def cuda(subject: Subject) -> Iterator[Finding]:
    """The driver's CUDA, against the one that torch was built for."""
    graphics, (_, built) = subject.graphics, torch_build()
    if not graphics.cards:
        yield skip("CUDA", "no card is usable" if graphics.there else "this machine has no NVIDIA card")
    elif not graphics.cuda:
        yield skip("CUDA", "nvidia-smi does not tell the driver's version of CUDA")
    elif built and int(built.split(".")[0]) > int(graphics.cuda.split(".")[0]):
        why = f"torch is built for CUDA {built}, and the driver knows {graphics.cuda} at most"
        yield Finding("CUDA", graphics.cuda, "fail", why, install_torch(graphics.cuda))
    else:
        yield Finding("CUDA", f"{graphics.cuda} of the driver, {built or 'none'} of torch")


def torch(subject: Subject) -> Iterator[Finding]:
    """Whether torch can use the cards; it is loaded, in a process of its own, only where there is one."""
    graphics, (number, built) = subject.graphics, torch_build()
    if not number:
        yield Finding("torch", "none", "fail", "torch is not installed", f"{_pip()} torch")
    elif not graphics.cards:
        yield Finding("torch", f"{number}, on the CPU: no NVIDIA card is usable here")
    elif not built:
        why = f"this build has no CUDA, and the machine has {graphics.cards[0].name}"
        yield Finding("torch", number, "fail", why, install_torch(graphics.cuda))
    else:
        yield _architectures(graphics, number)


def _architectures(graphics: Graphics, number: str) -> Finding:
    command = [sys.executable, "-c", _ASK_TORCH]
    try:
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=ANSWER_S).stdout
    except subprocess.TimeoutExpired:
        return skip("torch", f"not loaded within {ANSWER_S:g} s", shlex.join(command))
    except subprocess.CalledProcessError as error:
        why = f"it cannot be loaded: {error.stderr.strip().rpartition(chr(10))[2]}"
        return Finding("torch", number, "fail", why, install_torch(graphics.cuda))
    available, architectures = json.loads(said.splitlines()[-1])
    lacking = [card for card in graphics.cards if not runs_on(architectures, card.capability)]
    value = f"{number}: {', '.join(architectures)}"
    if lacking:
        why = f"no code for {lacking[0].name} (sm_{lacking[0].capability.replace('.', '')})"
        return Finding("torch", value, "fail", why, install_torch("12"))
    if not available:
        return Finding("torch", value, "fail", "torch.cuda.is_available() is False", as_root("modprobe nvidia-uvm"))
    return Finding("torch", value)


def torch_build() -> tuple[str, str]:
    """Return torch's version and the CUDA that it was built for, both empty if there is none; without loading it."""
    spec = find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if file is None or not file.exists():
        return "", ""
    text = file.read_text()
    number, cuda = (re.search(rf"^{name}\b.*= *'([^']*)'", text, re.M) for name in ("__version__", "cuda"))
    return (number[1] if number else "unknown"), (cuda[1] if cuda else "")


def install_torch(cuda: str) -> str:
    """Return the command that installs the build of torch for a driver's CUDA."""
    wheel = WHEELS.get(cuda.split(".")[0], WHEELS["12"])
    return f"{_pip()} --force-reinstall torch --index-url {INDEX}{wheel}"


def packages(subject: Subject) -> Iterator[Finding]:
    """This project's own requirements, as installed."""
    from packaging.requirements import Requirement

    wrong: list[str] = []
    wanted = [Requirement(text) for text in requires("qubic-lab") or ()]
    wanted = [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    for each in wanted:
        try:
            if not each.specifier.contains(version(each.name), prereleases=True):
                wrong.append(f"{each.name}{each.specifier}")
        except PackageNotFoundError:
            wrong.append(f"{each.name}{each.specifier}")
    value = f"Python {sys.version.split()[0]}, {len(wanted)} packages"
    if wrong:
        why, remedy = f"missing or too old: {', '.join(wrong)}", f"{_pip()} {shlex.join(wrong)}"
        yield Finding("packages", value, "fail", why, remedy)
    else:
        yield Finding("packages", value)


def memory(subject: Subject) -> Iterator[Finding]:
    """The memory that the model needs by the planner's estimate, against what is there."""
    if (found := _ranks(subject)) is None:
        yield skip("memory", f"the size of {subject.model} is not known before its download")
        return
    config, layers, here = found
    cards = subject.graphics.cards
    on_cards = len(cards) >= len(here) > 0
    if on_cards:
        have = int(min(card.total_bytes for card in cards) * USABLE_SHARE)
        where, places = "memory of each card", 1
    else:
        have, where, places = available_bytes(), "memory", len(here)

    def needs(dtype: str, slots: int) -> int:
        each = rank_memory_bytes(config, layers, dtype, len(layers) * slots * CONTEXT)
        return max(each[rank] for rank in here) if on_cards else sum(each[rank] for rank in here)

    need = needs(subject.dtype, subject.slots)
    value = f"{have / GIB:.1f} GiB usable, {need / GIB:.1f} needed"
    looked_at = f"{where}, for {subject.model} in {subject.dtype} with {subject.slots} slots"
    looked_at += f" on {places} ranks" if places > 1 else ""
    if need <= have:
        yield Finding(looked_at, value)
        return
    narrow = "fp16" if on_cards else "bf16"
    tries = [(subject.dtype, slots) for slots in (2, 1) if slots < subject.slots]
    tries += [(narrow, slots) for slots in (subject.slots, 2, 1) if subject.dtype == "fp32" and slots <= subject.slots]
    for dtype, slots in tries:
        if needs(dtype, slots) <= have:
            start = f"qubic-lab serve --model {shlex.quote(subject.model)}"
            if subject.host is not None:
                registry = f"{subject.hosts[0].domain_name}:{SERVICES['registry'].ports[0]}"
                start = f"qubic-lab node --coordinator {registry} --model {shlex.quote(subject.model)}"
            remedy = f"{start} --dtype {dtype} --slots {slots}"
            yield Finding(looked_at, value, "fail", "it does not fit; with these settings it does", remedy)
            return
    yield Finding(
        looked_at, value, "fail", "it does not fit on one machine of this size", _split(subject, config, have)
    )


def _split(subject: Subject, config: ModelConfig, have: int) -> str:
    """Return the command that splits the model over as many machines as it takes."""
    for ranks in range(2, config.layers + 1):
        layers = plan_layers(config, ranks, "C")
        if max(rank_memory_bytes(config, layers, "bf16", ranks * CONTEXT)) <= have:
            model = shlex.quote(subject.model)
            return f"qubic-lab split --model {model} --ranks {ranks} --out {Path(subject.model).name}-of-{ranks}"
    return "qubic-lab plan --model smollm2"


def _ranks(subject: Subject) -> tuple[ModelConfig, tuple[int, ...], list[int]] | None:
    """Return the model's shape, the layers of each rank, and which ranks run here; None if it is not here yet."""
    path = Path(subject.model).expanduser()
    folder = path if path.is_dir() else None if subject.model in CONFIGS else local_model(subject.model)
    if folder is None and subject.model not in CONFIGS:
        return None
    if folder is not None and (ranks := rank_folders(folder)):
        here = [int(path.name.removeprefix("rank-")) for path in ranks]
        return resolve_shape(str(ranks[0])), surviving_manifest(folder).layers_per_rank, here
    config = resolve_shape(str(folder or subject.model))
    return config, plan_layers(config, subject.ranks, "C"), list(range(subject.ranks))


def available_bytes() -> int:
    """Return the memory that is free for a model, what our own ranks hold included, within the limit of the cgroup."""
    free = psutil.virtual_memory().available
    for process in psutil.process_iter(["cmdline", "memory_info"]):
        if "qubic_lab.pipeline.rank" in (process.info["cmdline"] or ()) and process.info["memory_info"]:
            free += process.info["memory_info"].rss
    for path in map(Path, CGROUP_LIMITS):
        if path.exists() and (limit := path.read_text().strip()).isdecimal():
            free = min(free, int(limit))
    return int(free)


def disk(subject: Subject) -> Iterator[Finding]:
    """Room and rights in the folders of cache, data, runs and pages; those of one disk are looked at once."""
    disks: dict[int, list[Path]] = {}
    for folder in (settings().cache, settings().data, settings().runs, settings().reports):
        there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
        if not os.access(there, os.W_OK):
            owner = f"chown -R {os.geteuid()} {shlex.quote(str(there))}"
            yield Finding(str(folder), "not writable", "fail", f"{there} is not this user's", f"sudo {owner}")
        disks.setdefault(there.stat().st_dev, []).append(there)
    for folders in disks.values():
        usage = shutil.disk_usage(folders[0])
        looked_at = ", ".join(dict.fromkeys(map(str, folders)))
        value = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free"
        if usage.free >= ENOUGH_FREE_BYTES:
            yield Finding(looked_at, value)
            continue
        verdict: Verdict = "fail" if usage.free < LEAST_FREE_BYTES else "warn"
        least = LEAST_FREE_BYTES if verdict == "fail" else ENOUGH_FREE_BYTES
        why = f"less than {least / GIB:.0f} GiB is free"
        stale = [file for file in stale_files() if file.stat().st_dev == folders[0].stat().st_dev]
        if (size := sum(map(size_of, stale))) and verdict == "fail":
            reason = f"{why}; {size / GIB:.2f} GiB of the cache are of no more use"
            yield Finding(looked_at, value, "fail", reason, fix=partial(delete, stale))
        else:
            remedy = "qubic-lab runs gc --weeks 1" if settings().runs.exists() else "pip cache purge"
            yield Finding(looked_at, value, verdict, why, remedy)


def stale_files() -> list[Path]:
    """Return what the cache holds without use: kernels of other versions, and folders whose makers were killed."""
    partial = {path: path.name.split(".")[-2] for path in (settings().cache / "models").glob(".*.*.partial")}
    dead = [path for path, pid in partial.items() if pid.isdecimal() and not psutil.pid_exists(int(pid))]
    return [*stale_libraries(), *dead]


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files of a folder."""
    return sum(each.stat().st_size for each in (path, *path.rglob("*")) if each.is_file())


def delete(paths: Sequence[Path]) -> str:
    """Delete files and folders; return what was done."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return f"deleted {len(paths)} stale files of the cache"


def compile_kernels(subject: Subject) -> Iterator[Finding]:
    """The compiler that builds the kernels of CPUs."""
    command = compiler()
    if command is not None:
        yield Finding("C++ compiler", shlex.join(command))
    elif subject.graphics.cards:
        yield skip("C++ compiler", "none, and none is needed: models run on the card")
    else:
        why = "models run on torch's slower kernels without one"
        yield Finding("C++ compiler", "none", "warn", why, f"{_pip()} ziglang")


def cores(subject: Subject) -> Iterator[Finding]:
    """Cores, and the threads that each rank computes with."""
    found, usable, there = _ranks(subject), usable_cores(), os.cpu_count() or 1
    ranks = len(found[2]) if found else subject.ranks
    value = f"{usable} of {there} usable; {ranks} rank{'s' * (ranks > 1)} with {max(1, usable // ranks)} threads each"
    if ranks > usable and not subject.graphics.cards:
        remedy = f"qubic-lab serve --model {shlex.quote(subject.model)} --ranks {usable}"
        yield Finding("cores", value, "warn", "ranks take turns on the cores", remedy)
    else:
        yield Finding("cores", value)


def _pip() -> str:
    return f"{shlex.quote(sys.executable)} -m pip install"
