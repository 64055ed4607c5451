"""The test bed: a cluster's machines as namespaces of this one, with the plan's addresses and firewall.

`/run/qubic-lab-testbed` holds what belongs to it, a folder for each host; whoever makes that folder has the bed.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import qubic_lab
from qubic_lab.checked_yaml import codec
from qubic_lab.errors import InputError, QubicLabError, did_you_mean
from qubic_lab.launch_plan.network import Network
from qubic_lab.testbed import network as plan
from qubic_lab.testbed.host import READY, HostConfig

FOLDER = Path("/run/qubic-lab-testbed")
NAMESPACES = Path("/run/netns")
STATE, INIT_LOG, RELAY_LOG, ENVIRONMENT = "bed.json", "host.log", "relay.log", "environment.json"
TOOLS = {"ip": "iproute2", "tc": "iproute2", "bridge": "iproute2", "nft": "nftables", "nsenter": "util-linux"}
TOOLS |= {"unshare": "util-linux", "mount": "util-linux"}
START_S, END_S = 30.0, 20.0
LOOK_S = 0.05
_CHECKOUT = {"PYTHONPATH": str(Path(qubic_lab.__file__).parents[1])}


@dataclass(frozen=True)
class Bed:
    """A test bed that is up."""

    network: Network
    shape: plan.Shape

    @property
    def addresses(self) -> dict[str, str]:
        """Address of each host by its name, with the machine outside."""
        return {host.name: host.address for host in self.network.hosts} | {plan.OUTSIDE: plan.OUTSIDE_ADDRESS}

    def folder(self, name: str) -> Path:
        """Return a host's folder.

        Raises:
            InputError: there is no such host.
        """
        if name not in self.addresses:
            raise InputError(f"no host {name!r} in the test bed: {did_you_mean(name, self.addresses)}")
        return FOLDER / name

    def write(self) -> None:
        """Write it into its folder."""
        (FOLDER / STATE).write_bytes(codec(Bed).dump_json(self))


def why_not() -> str:
    """Return why no test bed can be made here, and the remedy; empty if one can."""
    if sys.platform != "linux":
        return "a test bed needs Linux"
    if os.geteuid() != 0:
        return "a test bed needs root, for network namespaces: run it with sudo"
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if missing:
        return f"a test bed needs programs that are not installed: apt install {' '.join(missing)}"
    try:
        subprocess.run(["unshare", "--net", "--mount", "nft", "list", "ruleset"], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        return f"network namespaces or nftables cannot be used here ({_last(error.stderr)}): use a virtual machine"
    return ""


def up(network: Network, shape: plan.Shape) -> Bed:
    """Make the network and start its hosts, without units.

    Raises:
        InputError: it cannot be made here, or one is up.
        QubicLabError: a step failed; nothing is left.
    """
    if why := why_not():
        raise InputError(why)
    if shape.delay_ms and not Path("/dev/net/tun").exists():
        raise InputError("--delay-ms needs /dev/net/tun, which is not here: modprobe tun")
    taken = [name for name in plan.namespaces(network) if (NAMESPACES / name).exists()]
    if FOLDER.exists() or not taken:
        _claim()
    else:
        raise InputError(f"a network namespace {taken[0]} is there that is no test bed's: ip netns delete {taken[0]}")
    bed = Bed(network, shape)
    try:
        bed.write()
        _make_network(bed)
        for name in bed.addresses:
            folder = bed.folder(name)
            (folder / "disk" / "etc").mkdir(parents=True)
            (folder / "disk" / "etc" / "hosts").write_text(plan.hosts_file(network))
            HostConfig(name).write(folder)
            boot(bed, name)
    except BaseException:
        down()
        raise
    return bed


def running() -> Bed | None:
    """Return the test bed that is up, or None."""
    try:
        return codec(Bed).validate_json((FOLDER / STATE).read_bytes())
    except (OSError, ValueError):
        return None


def needed() -> Bed:
    """Return the test bed that is up; an InputError if there is none."""
    if (bed := running()) is None:
        raise InputError("no test bed is up: qubic-lab testbed up")
    return bed


def down() -> bool:
    """End all processes of the test bed and remove all that belongs to it; return whether anything was there.

    Raises:
        InputError: only root can.
        QubicLabError: something could not be ended.
    """
    if not FOLDER.exists():
        return False
    if os.geteuid() != 0:
        raise InputError("only root can end a test bed: run it with sudo")
    bed = running()
    names = [name for name in plan.namespaces(bed.network) if (NAMESPACES / name).exists()] if bed else []
    _kill(names)
    for name in names:
        _run("ip", "netns", "delete", name)
    shutil.rmtree(FOLDER)
    return True


def boot(bed: Bed, name: str) -> None:
    """Start a host and wait until its units are being started.

    Raises:
        QubicLabError: it does not start; the message says why.
    """
    folder = bed.folder(name)
    (folder / READY).unlink(missing_ok=True)
    spaces = ("--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc")
    first = (sys.executable, "-m", "qubic_lab.testbed.host", str(folder))
    with (folder / INIT_LOG).open("ab") as log:
        process = subprocess.Popen(
            ["ip", "netns", "exec", name, "unshare", *spaces, *first],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={"PATH": os.environ["PATH"], **_CHECKOUT},
            start_new_session=True,
        )
    deadline_s = time.monotonic() + START_S
    while not (folder / READY).exists():
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise QubicLabError(f"{name} does not start: {_last((folder / INIT_LOG).read_bytes())}")
        time.sleep(LOOK_S)


def reboot(bed: Bed, name: str) -> None:
    """Kill all processes of a host, then start it again: its disk stays, and its units start by themselves."""
    halt(bed, name)
    boot(bed, name)


def halt(bed: Bed, name: str) -> None:
    """Kill all processes of a host."""
    bed.folder(name)
    _kill([name])


@contextmanager
def cut(bed: Bed, name: str) -> Iterator[None]:
    """Let no frame of a host pass the bridge during the block."""
    bed.folder(name)
    _run("bridge", "-n", plan.BRIDGE, "link", "set", "dev", name, "state", "0")
    try:
        yield
    finally:
        _run("bridge", "-n", plan.BRIDGE, "link", "set", "dev", name, "state", "3")


def command_on(bed: Bed, name: str, command: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the command line that runs a command on a host, and its environment.

    Raises:
        QubicLabError: the host does not run.
    """
    first = first_process(bed, name)
    environment = dict(os.environ)
    with suppress(OSError):
        environment |= json.loads((bed.folder(name) / ENVIRONMENT).read_text())
    spaces = ["--mount", "--uts", "--ipc", "--net", "--pid"]
    return ["nsenter", "--target", str(first), *spaces, "--", *command], environment


def module_on(bed: Bed, name: str, module: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start a module of this checkout on a host, with pipes as its stdin and stdout."""
    line, environment = command_on(bed, name, [sys.executable, "-m", module, *arguments])
    environment |= _CHECKOUT
    return subprocess.Popen(line, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")


def output_on(bed: Bed, name: str, command: Sequence[str], content: str = "") -> str:
    """Run a command on a host with a text as its stdin, and return its output; a QubicLabError if it fails."""
    line, environment = command_on(bed, name, command)
    done = subprocess.run(line, env=environment, input=content, capture_output=True, text=True, check=False)
    if done.returncode:
        raise QubicLabError(f"{command[0]} failed on {name}: {_last(done.stderr.encode())}")
    return done.stdout


def first_process(bed: Bed, name: str) -> int:
    """Return the id, on this machine, of a host's first process; a QubicLabError if it does not run."""
    bed.folder(name)
    for pid in _pids(name):
        with suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
            if len(numbers) > 1 and numbers[-1] == "1":
                return pid
    raise QubicLabError(f"{name} does not run: qubic-lab testbed reboot {name}")


def configure(bed: Bed, config: HostConfig, files: Mapping[str, str], environment: Mapping[str, str]) -> None:
    """Write files to the disk of a host that is halted, and what it mounts and starts at its next start."""
    folder = bed.folder(config.name)
    for path, content in files.items():
        target = folder / "disk" / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
    (folder / ENVIRONMENT).write_text(json.dumps(dict(environment)))
    config.write(folder)


def processes(name: str) -> int:
    """Return how many processes run on a host."""
    return len(_pids(name))


def listening(name: str) -> set[int]:
    """Return the TCP ports at which anything listens on a host, loopback included."""
    found = subprocess.run(["ip", "netns", "exec", name, "cat", "/proc/net/tcp", "/proc/net/tcp6"], capture_output=True)
    lines = [line.split() for line in found.stdout.decode().splitlines()]
    return {int(line[1].rpartition(":")[2], 16) for line in lines if len(line) > 3 and line[3] == "0A"}


def _claim() -> None:
    try:
        FOLDER.mkdir(mode=0o700)
    except FileExistsError:
        bed = running()
        what = f"{', '.join(bed.addresses)} with {bed.shape.text()}" if bed else "a part of one"
        raise InputError(f"a test bed is there: {what}; end it with qubic-lab testbed down") from None


def _make_network(bed: Bed) -> None:
    for name in plan.namespaces(bed.network):
        _run("ip", "netns", "add", name)
    _ip(plan.BRIDGE, plan.bridge_commands())
    if bed.shape.delay_ms:
        _start_relay(bed)
    else:
        _ip(plan.BRIDGE, [command for name in bed.addresses for command in plan.cable_commands(name)])
    for name, address in bed.addresses.items():
        _ip(plan.BRIDGE, plan.port_commands(name))
        _ip(name, plan.address_commands(name, address))
        if bed.shape.rate_bps:
            _run("tc", "-n", name, *plan.rate_command(bed.shape.rate_bps).split())
        for key, value in plan.system_values().items():
            _run("ip", "netns", "exec", name, "sysctl", "-qw", f"{key.replace('/', '.')}={value}")
    for host in bed.network.hosts:
        _run("ip", "netns", "exec", host.name, "nft", "-f", "-", content=plan.firewall(bed.network, host))


def _start_relay(bed: Bed) -> None:
    """Start the relay, which makes the cables; a round trip passes it once in each direction."""
    each_ms = str(bed.shape.delay_ms / 2)
    with (FOLDER / RELAY_LOG).open("wb") as log:
        relay = subprocess.Popen(
            [sys.executable, "-m", "qubic_lab.testbed.relay", each_ms, plan.BRIDGE, *bed.addresses],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd="/",
            env={"PATH": os.environ["PATH"], **_CHECKOUT},
            start_new_session=True,
        )
    assert relay.stdout is not None
    if not relay.stdout.readline():
        raise QubicLabError(f"the relay does not start: {_last((FOLDER / RELAY_LOG).read_bytes())}")


def _pids(name: str) -> list[int]:
    """Return the ids of the processes in a network namespace."""
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def _kill(names: Sequence[str]) -> None:
    """Kill all processes in network namespaces, and wait until they are gone."""
    deadline_s = time.monotonic() + END_S
    while left := [pid for name in names for pid in _pids(name)]:
        if time.monotonic() > deadline_s:
            raise QubicLabError(f"process {left[0]} of the test bed does not end: kill it, then repeat")
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(LOOK_S)


def _ip(name: str, commands: Sequence[str]) -> None:
    _run("ip", "-n", name, "-batch", "-", content="\n".join(commands))


def _run(*command: str, content: str = "") -> None:
    """Run a command; a QubicLabError with its last line if it fails."""
    done = subprocess.run(command, input=content, capture_output=True, text=True, check=False)
    if done.returncode:
        raise QubicLabError(f"{' '.join(command)} failed: {_last(done.stderr.encode())}")


def _last(output: bytes) -> str:
    return output.decode(errors="replace").strip().rpartition("\n")[2]
