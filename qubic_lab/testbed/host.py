"""The first process of a host of the test bed: mounts the host's own folders, then runs its units as systemd does.

`python -m qubic_lab.testbed.host FOLDER`, in new network, mount, process and UTS namespaces. /etc, /opt and /var are
the machine's with the host's changes over them; /run is the host's own and empty after a reboot.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from qubic_lab import logs
from qubic_lab.checked_yaml import codec
from qubic_lab.errors import QubicLabError
from qubic_lab.testbed.units import Command, Unit, in_order, read_unit, unit_texts

CONFIG, READY, LOGS = "host.json", "ready", "log"
DISKS = ("etc", "opt", "var")
UNIT_FOLDERS = (Path("/etc/systemd/system"), Path("/usr/lib/systemd/system"))
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LOOK_S = 0.05
_END_S = 10.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HostConfig:
    """A host.

    Attributes:
        name: its name.
        binds: folders of the machine to show there, as (source, target).
        opened: folders of the machine that only root may enter, and there everybody.
        units: units that it starts.
    """

    name: str
    binds: tuple[tuple[str, str], ...] = ()
    opened: tuple[str, ...] = ()
    units: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Write it into the host's folder."""
        (folder / CONFIG).write_bytes(codec(HostConfig).dump_json(self))

    @classmethod
    def read(cls, folder: Path) -> "HostConfig":
        """Read it from the host's folder."""
        return codec(cls).validate_json((folder / CONFIG).read_bytes())


@dataclass
class Service:
    """A unit while the host runs: its process, and when it starts next."""

    unit: Unit
    log: Path
    step: int = 0
    process: "subprocess.Popen[bytes] | None" = None
    due_s: float | None = 0.0
    up: bool = False
    starts: int = 0
    _commands: tuple[Command, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._commands = (*self.unit.before, *self.unit.commands)

    def start(self) -> None:
        """Start the command of this step."""
        command, unit = self._commands[self.step], self.unit
        for folder in unit.folders:
            Path(folder).mkdir(mode=0o750, parents=True, exist_ok=True)
            if unit.user:
                subprocess.run(["chown", f"{unit.user}:", folder], check=False)
        temporary = Path("/run/temporary") / unit.name
        temporary.mkdir(mode=0o700, parents=True, exist_ok=True)
        user = unit.user or None
        if user:
            subprocess.run(["chown", f"{user}:", temporary], check=False)
        environment = {
            "PATH": PATH,
            "LANG": "C.UTF-8",
            "TMPDIR": str(temporary),
            "HOME": str(Path(f"~{unit.user}").expanduser()),
        }
        self.starts += self.step == len(unit.before)
        self.due_s = None
        with self.log.open("ab") as log:
            log.write(f"== {' '.join(command.arguments)}\n".encode())
            log.flush()
            try:
                self.process = subprocess.Popen(
                    command.arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=unit.folder or "/",
                    env=environment | dict(unit.environment),
                    start_new_session=True,
                    user=user,
                    group=user,
                    extra_groups=unit.groups if user else None,
                )
            except (OSError, KeyError, LookupError) as error:
                log.write(f"== cannot start: {error}\n".encode())
                self._ended(1)
                return
        self.up = self.step == len(self._commands) - 1 and self.unit.restarts

    def look(self) -> None:
        """Go on to the next step, or start again, if the process has ended."""
        status = self.process.poll() if self.process is not None else None
        if status is not None:
            self.process = None
            self._ended(status)

    def end(self) -> None:
        """Ask the process to end."""
        self.due_s = None
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def _ended(self, status: int) -> None:
        failed = status != 0 and not self._commands[self.step].may_fail
        if not failed and self.step < len(self._commands) - 1:
            self.step += 1
            self.due_s = 0.0
        elif not failed and not self.unit.restarts:
            self.up = True  # a oneshot is done
        elif self.unit.restarts:
            self.step, self.up = 0, False
            self.due_s = time.monotonic() + self.unit.pause_s
            logger.info("%s ended with status %s", self.unit.name, status)


def mount_disks(folder: Path, config: HostConfig) -> None:
    """Mount the host's own /etc, /opt, /var and /run, and the folders that it shares with the machine."""

    def run(*command: str | Path) -> None:
        subprocess.run(command, check=True)

    run("mount", "--make-rprivate", "/")
    run("hostname", config.name)
    names = [Path(name.lstrip("/")) for name in (*DISKS, *config.opened)]
    for name in names:
        (folder / "disk" / name).mkdir(parents=True, exist_ok=True)
    for name in names:
        if not any(above in names for above in name.parents):  # else the folder is part of that one's layer
            work = folder / "work" / name
            work.mkdir(parents=True, exist_ok=True)
            layers = f"lowerdir=/{name},upperdir={folder / 'disk' / name},workdir={work}"
            run("mount", "-t", "overlay", "overlay", "-o", layers, f"/{name}")
    for source, target in config.binds:
        if Path(source).is_dir():
            Path(target).mkdir(parents=True, exist_ok=True)
        else:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            Path(target).touch()
        run("mount", "--bind", source, target)


def mount_run(folder: Path) -> None:
    """Mount an empty /run, in which the host's folder stays where it was."""
    own = folder / "run"
    own.mkdir(exist_ok=True)
    same = own / folder.relative_to("/run")
    for command in (
        ("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", own),
        ("mkdir", "-p", same, own / "lock"),
        ("mount", "--bind", folder, same),
        ("mount", "--rbind", own, "/run"),
    ):
        subprocess.run(command, check=True)


def load_units(config: HostConfig) -> list[Unit]:
    """Return the host's units in the order of their start.

    Raises:
        QubicLabError: one is missing or cannot be run.
    """
    units = []
    for name in config.units:
        texts = unit_texts(UNIT_FOLDERS, name)
        files = {str(path): path.read_text() for path in _environment_files(texts)}
        units.append(read_unit(name, texts, config.name, files))
    return in_order(units)


def _environment_files(texts: Sequence[str]) -> list[Path]:
    lines = [line.strip() for text in texts for line in text.splitlines()]
    named = [line.partition("=")[2].strip().lstrip("-") for line in lines if line.startswith("EnvironmentFile=")]
    return [Path(each) for each in named if Path(each).is_file()]


def run_units(services: Sequence[Service]) -> None:
    """Keep the services running until SIGTERM; reap whatever ends in this host."""
    ending = False

    def end(*_: object) -> None:
        nonlocal ending
        ending = True

    signal.signal(signal.SIGTERM, end)
    names = {service.unit.name for service in services}
    while not ending:
        up = {service.unit.name for service in services if service.up}
        now_s = time.monotonic()
        for service in services:
            service.look()
            if service.due_s is not None and service.due_s <= now_s and not (set(service.unit.after) & names) - up:
                service.start()
        _reap(services)
        time.sleep(LOOK_S)
    for service in reversed(services):
        service.end()
    deadline_s = time.monotonic() + _END_S
    while any(service.process and service.process.poll() is None for service in services):
        if time.monotonic() > deadline_s:
            return  # the kernel ends what is left with process 1
        time.sleep(LOOK_S)


def _reap(services: Sequence[Service]) -> None:
    """Reap orphans; processes of services are left to their `Popen`."""
    own = {service.process.pid for service in services if service.process is not None}
    with suppress(ChildProcessError):
        while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if found.si_pid in own:
                return  # `look` takes it first
            os.waitpid(found.si_pid, 0)


def main() -> None:
    """Be process 1 of the host in a folder."""
    logs.configure(logging.INFO, timed=True)
    folder = Path(sys.argv[1])
    config = HostConfig.read(folder)
    try:
        mount_disks(folder, config)
        mount_run(folder)
        (folder / LOGS).mkdir(exist_ok=True)
        services = [Service(unit, folder / LOGS / f"{unit.name}.log") for unit in load_units(config)]
    except (QubicLabError, OSError, subprocess.CalledProcessError) as error:
        logger.error("%s", error)
        sys.exit(1)
    (folder / READY).touch()
    run_units(services)


if __name__ == "__main__":
    main()
